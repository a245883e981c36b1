//! Writes header blocks (RFC 7541 6).
//!
//! Invariants: the table is as the peer's will be when it has read all blocks in the order they were begun, so a block
//! that was begun has to be sent. The table takes no more than 4096 bytes, whatever the peer allows.

use super::table::{Found, INITIAL_SIZE, Table, find_static};

/// The sending side of one connection.
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(super) table: Table,
    /// The size the peer allows now.
    size: usize,
    /// The smallest size it allowed since the last block began.
    smallest: usize,
}

/// What becomes of a field once it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Indexing {
    /// It will come again.
    Index,
    /// It is of this one stream.
    Once,
}

impl Encoder {
    pub(crate) const fn new() -> Self {
        Self {
            table: Table::new(),
            size: INITIAL_SIZE,
            smallest: INITIAL_SIZE,
        }
    }

    /// The peer's `SETTINGS_HEADER_TABLE_SIZE`; we use no more than 4096 of it. The next block begins with the change.
    pub(crate) fn set_peer_table(&mut self, size: u32) {
        self.size = INITIAL_SIZE.min(size as usize);
        self.smallest = self.smallest.min(self.size);
    }

    /// Begins a block: says how the table changed since the last one. When it grew after it shrank the peer has to
    /// hear of both, for it emptied its own meanwhile (RFC 7541 4.2).
    pub(crate) fn begin(&mut self, block: &mut Vec<u8>) {
        for size in [self.smallest.min(self.table.max()), self.size] {
            if size != self.table.max() {
                integer(0x20, 5, size, block);
                self.table.set_max(size);
            }
        }
        self.smallest = self.size;
    }

    /// Appends one field.
    pub(crate) fn field(
        &mut self,
        name: &[u8],
        value: &[u8],
        indexing: Indexing,
        block: &mut Vec<u8>,
    ) {
        let mut found = find_static(name, value);
        if indexing == Indexing::Index && !matches!(found, Some(Found::Field(_))) {
            let dynamic = self.table.find(name, value, found.is_none());
            found = dynamic.or(found);
        }
        let name_index = match found {
            Some(Found::Field(index)) => return integer(0x80, 7, index, block),
            Some(Found::Name(index)) => index,
            None => 0,
        };
        // One that does not fit would only empty the table.
        let insert = indexing == Indexing::Index && self.table.fits(name, value);
        if insert {
            self.table.insert(name, value);
            integer(0x40, 6, name_index, block);
        } else {
            integer(0x00, 4, name_index, block);
        }
        if name_index == 0 {
            text(name, block);
        }
        text(value, block);
    }
}

/// An integer behind the bits of `first` that are not its prefix (RFC 7541 5.1).
pub(super) fn integer(first: u8, prefix: u32, integer: usize, block: &mut Vec<u8>) {
    let mask = (1_usize << prefix) - 1;
    if integer < mask {
        block.push(first | integer as u8);
        return;
    }
    block.push(first | mask as u8);
    let mut rest = integer - mask;
    while rest >= 0x80 {
        block.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    block.push(rest as u8);
}

/// A string literal, as it is.
fn text(text: &[u8], block: &mut Vec<u8>) {
    integer(0x00, 7, text.len(), block);
    block.extend_from_slice(text);
}
