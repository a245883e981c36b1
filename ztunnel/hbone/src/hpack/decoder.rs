//! Reads header blocks (RFC 7541 3 and 6).
//!
//! Invariants: what a block costs in memory is the table, and for one field at a time the text that cannot be borrowed
//! from the block or the table. A block that expands, by many references to one large entry, costs nothing here.

use std::ops::Range;

use super::huffman;
use super::table::Table;

/// How much of the scratch buffer is kept from one block to the next: the longest field of a CONNECT fits.
const KEPT: usize = 1024;
/// Enough for 32 bits behind a prefix. Nothing in a block that is not an attack has more than three.
const LONGEST_INTEGER: u32 = 5;

/// The receiving side of one connection.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(super) table: Table,
    max_table: usize,
    /// Texts of one field: what was in Huffman code, and a name that its insertion may evict.
    pub(super) scratch: Vec<u8>,
}

/// What was wrong with a block. Each is an error of the connection (`COMPRESSION_ERROR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("header block ends within a field")]
    Truncated,
    #[error("integer in a header block is larger than 32 bits")]
    IntegerTooLarge,
    #[error("header field has index 0")]
    ZeroIndex,
    #[error("header field has index {index}, which no table has")]
    UnknownIndex { index: u32 },
    #[error("header table is changed to {size} bytes, more than the {max} allowed")]
    TableTooLarge { size: u32, max: usize },
    #[error("header table is changed behind the first field of a block")]
    TableChangeTooLate,
    #[error("padding of a huffman text is not less than a byte of ones")]
    HuffmanPadding,
    #[error("huffman text contains the end of string")]
    HuffmanEnd,
}

impl Decoder {
    /// `max_table` is what we announce as `SETTINGS_HEADER_TABLE_SIZE`. The table itself begins with the 4096 bytes
    /// that hold until the peer has seen that: one who is told less changes it at the beginning of a block. That it
    /// does so at all is not demanded.
    pub(crate) const fn new(max_table: usize) -> Self {
        Self {
            table: Table::new(),
            max_table,
            scratch: Vec::new(),
        }
    }

    /// Reads a complete header block and gives each field (name, value) to `field`, in order. After an error no other
    /// block can be read. The caller bounds the block, and what it keeps of the fields.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        let mut input = Input { rest: block };
        let mut may_resize = true;
        while let Some(first) = input.rest.first() {
            match first {
                0x80.. => {
                    let (name, value) = entry(&self.table, input.integer(7)?)?;
                    field(name, value);
                }
                0x40..=0x7f => self.indexed_literal(&mut input, &mut field)?,
                0x20..=0x3f if may_resize => {
                    self.resize(input.integer(5)?)?;
                    continue;
                }
                0x20..=0x3f => return Err(DecodeError::TableChangeTooLate),
                // Not to be indexed now, or never: for one who does not pass fields on that is the same.
                0x00..=0x1f => self.plain_literal(&mut input, &mut field)?,
            }
            may_resize = false;
        }
        if self.scratch.capacity() > KEPT {
            self.scratch = Vec::new();
        }
        Ok(())
    }

    fn resize(&mut self, size: u32) -> Result<(), DecodeError> {
        if size as usize > self.max_table {
            let max = self.max_table;
            return Err(DecodeError::TableTooLarge { size, max });
        }
        self.table.set_max(size as usize);
        Ok(())
    }

    fn plain_literal(
        &mut self,
        input: &mut Input<'_>,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        self.scratch.clear();
        let index = input.integer(4)?;
        if index != 0 {
            let (name, _) = entry(&self.table, index)?;
            let value = input.text(&mut self.scratch)?;
            field(name, value.get(&self.scratch));
        } else {
            let name = input.text(&mut self.scratch)?;
            let value = input.text(&mut self.scratch)?;
            field(name.get(&self.scratch), value.get(&self.scratch));
        }
        Ok(())
    }

    fn indexed_literal(
        &mut self,
        input: &mut Input<'_>,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), DecodeError> {
        self.scratch.clear();
        let index = input.integer(6)?;
        let name = if index != 0 {
            // The insertion may evict the very entry that the name is from (RFC 7541 4.4).
            self.scratch.extend_from_slice(entry(&self.table, index)?.0);
            Text::Scratch(0..self.scratch.len())
        } else {
            input.text(&mut self.scratch)?
        };
        let value = input.text(&mut self.scratch)?;
        let (name, value) = (name.get(&self.scratch), value.get(&self.scratch));
        field(name, value);
        self.table.insert(name, value);
        Ok(())
    }
}

fn entry(table: &Table, index: u32) -> Result<(&[u8], &[u8]), DecodeError> {
    if index == 0 {
        return Err(DecodeError::ZeroIndex);
    }
    table
        .get(index as usize)
        .ok_or(DecodeError::UnknownIndex { index })
}

enum Text<'a> {
    Block(&'a [u8]),
    Scratch(Range<usize>),
}

impl<'a> Text<'a> {
    fn get(self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Block(text) => text,
            Self::Scratch(range) => &scratch[range],
        }
    }
}

/// What is left of a block.
pub(super) struct Input<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// An integer that begins with the lower `prefix` bits of the next byte (RFC 7541 5.1).
    pub(super) fn integer(&mut self, prefix: u32) -> Result<u32, DecodeError> {
        let mask = u8::MAX >> (8 - prefix);
        let first = self.byte()? & mask;
        if first < mask {
            return Ok(first.into());
        }
        let mut integer = u64::from(mask);
        for place in 0..LONGEST_INTEGER {
            let byte = self.byte()?;
            integer += u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return u32::try_from(integer).map_err(|_| DecodeError::IntegerTooLarge);
            }
        }
        Err(DecodeError::IntegerTooLarge)
    }

    /// A string literal (RFC 7541 5.2).
    fn text(&mut self, scratch: &mut Vec<u8>) -> Result<Text<'a>, DecodeError> {
        let is_huffman = self.rest.first().is_some_and(|byte| byte & 0x80 != 0);
        let length = self.integer(7)? as usize;
        let (text, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        if !is_huffman {
            return Ok(Text::Block(text));
        }
        let start = scratch.len();
        huffman::decode(text, scratch)?;
        Ok(Text::Scratch(start..scratch.len()))
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (byte, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*byte)
    }
}
