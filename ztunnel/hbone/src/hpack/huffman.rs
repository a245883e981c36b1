//! The Huffman code of HPACK (RFC 7541 5.2 and appendix B), for reading only.
//!
//! The code is canonical: the codes of one length follow each other in the order of their symbols, and begin where
//! those of the length before end. So its lengths are all of it, and a code is found by comparing numbers instead of
//! walking a tree. What a text is made of mostly has eight bits or fewer, and takes one look into a table.
//!
//! Invariant: what comes out is no longer than 8/5 of what goes in, the shortest code being five bits.

use super::DecodeError;

/// Reads `text` to the end of `out`. With an error, what is there of it means nothing.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    out.reserve(text.len() * 8 / SHORTEST);
    let mut rest = text;
    // The next bits, the first one at the top and zeros behind the last one, and how many they are.
    let mut window = 0_u64;
    let mut bits = 0_u32;
    loop {
        if bits < 32 {
            if let Some((four, behind)) = rest.split_first_chunk::<4>() {
                window |= u64::from(u32::from_be_bytes(*four)) << (32 - bits);
                bits += 32;
                rest = behind;
            } else {
                for byte in std::mem::take(&mut rest) {
                    window |= u64::from(*byte) << (56 - bits);
                    bits += 8;
                }
            }
        }
        let (symbol, length) = next(window);
        if length > bits {
            // No whole code is left. Padding is the beginning of the end of string, and less than a byte.
            return if bits < 8 && window.leading_ones() >= bits {
                Ok(())
            } else {
                Err(DecodeError::HuffmanPadding)
            };
        }
        out.push(symbol.ok_or(DecodeError::HuffmanEnd)?);
        window <<= length;
        bits -= length;
    }
}

/// The first symbol, none being the end of string, and how many bits its code has.
#[inline]
fn next(window: u64) -> (Option<u8>, u32) {
    let (symbol, length) = CODE.short[(window >> 56) as usize];
    if length > 0 {
        return (Some(symbol), length.into());
    }
    let top = window >> 32;
    let length = (9..LONGEST)
        .find(|length| top < CODE.limits[*length])
        .unwrap_or(LONGEST);
    let place = (top >> (32 - length)) as usize - CODE.offsets[length];
    (CODE.symbols.get(place).copied(), length as u32)
}

struct Code {
    /// By the first eight bits: the symbol and how many of the bits are its code, none if it has more than eight.
    short: [(u8, u8); 256],
    /// All symbols but the end of string, which is the last one, in the order of their codes.
    symbols: [u8; 256],
    /// By length: the first 32 bits that are beyond the codes of this length.
    limits: [u64; LONGEST + 1],
    /// By length: how far a code is ahead of the place of its symbol.
    offsets: [usize; LONGEST + 1],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut made = Code {
        short: [(0, 0); 256],
        symbols: [0; 256],
        limits: [0; LONGEST + 1],
        offsets: [0; LONGEST + 1],
    };
    let (mut code, mut place) = (0, 0);
    let mut length = SHORTEST;
    while length <= LONGEST {
        made.offsets[length] = code - place;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                made.symbols[place] = symbol as u8;
                if length <= 8 {
                    let mut bits = code << (8 - length);
                    while bits < (code + 1) << (8 - length) {
                        made.short[bits] = (symbol as u8, length as u8);
                        bits += 1;
                    }
                }
                code += 1;
                place += 1;
            }
            symbol += 1;
        }
        made.limits[length] = (code as u64) << (32 - length);
        code <<= 1;
        length += 1;
    }
    made
}

const SHORTEST: usize = 5;
/// Those of the end of string, too, which is all ones.
const LONGEST: usize = 30;

/// How many bits the code of each symbol has.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Code and length of each symbol, the last one being the end of string.
    fn codes() -> Vec<(u32, u32)> {
        let lengths: Vec<u32> = LENGTHS
            .iter()
            .map(|length| (*length).into())
            .chain([30])
            .collect();
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|symbol| (lengths[*symbol], *symbol));
        let mut codes = vec![(0, 0); lengths.len()];
        let (mut next, mut before) = (0_u64, SHORTEST as u32);
        for symbol in order {
            let length = lengths[symbol];
            next <<= length - before;
            codes[symbol] = (next as u32, length);
            before = length;
            next += 1;
        }
        // All bits are used, as a code without gaps does.
        assert_eq!(next, 1 << LONGEST);
        codes
    }

    pub(in super::super) fn encode(text: &[u8]) -> Vec<u8> {
        let codes = codes();
        pack(text.iter().map(|byte| codes[usize::from(*byte)]), true)
    }

    /// One code after the other, and the rest of the last byte filled up.
    fn pack(codes: impl IntoIterator<Item = (u32, u32)>, fill: bool) -> Vec<u8> {
        let mut bits: Vec<bool> = Vec::new();
        for (code, length) in codes {
            bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8), fill);
        let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        bits.chunks(8).map(byte).collect()
    }

    fn decoded(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let mut out = b"before".to_vec();
        decode(text, &mut out)?;
        Ok(out.strip_prefix(b"before").unwrap().to_vec())
    }

    /// Lines of appendix B from each part of it.
    #[test]
    fn the_codes_are_those_of_the_rfc() {
        let codes = codes();
        for (symbol, code, length) in [
            (0, 0x1ff8, 13),
            (1, 0x7fffd8, 23),
            (2, 0xfffffe2, 28),
            (9, 0xffffea, 24),
            (10, 0x3ffffffc, 30),
            (22, 0x3ffffffe, 30),
            (32, 0x14, 6),
            (39, 0x7fa, 11),
            (48, 0x0, 5),
            (58, 0x5c, 7),
            (65, 0x21, 6),
            (90, 0xfd, 8),
            (92, 0x7fff0, 19),
            (97, 0x3, 5),
            (122, 0x7b, 7),
            (126, 0x1ffd, 13),
            (127, 0xffffffc, 28),
            (128, 0xfffe6, 20),
            (192, 0x3ffffe0, 26),
            (199, 0x1ffffec, 25),
            (249, 0xffffffe, 28),
            (255, 0x3ffffee, 26),
            (256, 0x3fffffff, 30),
        ] {
            assert_eq!(codes[symbol], (code, length), "symbol {symbol}");
        }
    }

    #[test]
    fn every_byte_is_read_wherever_it_stands() {
        for byte in 0..=255 {
            for count in 1..9 {
                let mut text = vec![byte; count];
                assert_eq!(decoded(&encode(&text)).unwrap(), text);
                text.insert(0, b'a');
                text.push(b'Z');
                assert_eq!(decoded(&encode(&text)).unwrap(), text);
            }
        }
        assert_eq!(decoded(b"").unwrap(), b"");
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
    }

    #[test]
    fn padding_is_short_and_of_ones() {
        let padding = |text: &[u8]| matches!(decoded(text), Err(DecodeError::HuffmanPadding));
        let codes = codes();
        for byte in 0..=255_u8 {
            let (code, length) = codes[usize::from(byte)];
            let mut text = pack([(code, length)], true);
            assert_eq!(decoded(&text).unwrap(), [byte]);
            // Five zeros are a text.
            if length % 8 != 0 && length % 8 != 3 {
                let zeros = pack([(code, length)], false);
                assert!(padding(&zeros), "zeros behind {byte}");
            }
            text.push(0xff);
            assert!(padding(&text), "more than a byte behind {byte}");
            text.extend([0xff, 0xff]);
            assert!(padding(&text) || matches!(decoded(&text), Err(DecodeError::HuffmanEnd)));
        }
        for text in [&[0xff][..], &[0xff; 2], &[0xff; 3]] {
            assert!(padding(text));
        }
    }

    #[test]
    fn the_end_of_string_is_an_error() {
        let codes = codes();
        for before in 0..8 {
            let text = std::iter::repeat_n(codes[usize::from(b'a')], before);
            let text = pack(text.chain([codes[256]]), true);
            assert!(matches!(decoded(&text), Err(DecodeError::HuffmanEnd)));
        }
        assert!(matches!(decoded(&[0xff; 4]), Err(DecodeError::HuffmanEnd)));
    }
}
