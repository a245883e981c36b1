//! Bytes that tell their position: what is lost, doubled or swapped does not go unnoticed.
//!
//! Words of eight bytes, each a mix of the seed and the word's number, so no two stretches look alike.

use std::io::{self, Read, Write};

use crate::read::read;

/// Bytes made or checked at a time.
const CHUNK: usize = 64 << 10;

/// An endless stream of bytes.
pub(crate) struct Pattern {
    seed: u64,
    position: u64,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// The next bytes. `into` is a multiple of eight long, except at the end.
    fn fill(&mut self, into: &mut [u8]) {
        for word in into.chunks_mut(8) {
            let bytes = mix(self.seed ^ self.position).to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
            self.position += 1;
        }
    }

    /// Writes the first `length` bytes.
    pub(crate) fn write(mut self, to: &mut impl Write, length: u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut left = length;
        while left > 0 {
            let now = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
            self.fill(&mut chunk[..now]);
            to.write_all(&chunk[..now])?;
            left -= now as u64;
        }
        Ok(())
    }

    /// Reads `length` bytes and compares. The error says how many were right.
    pub(crate) fn check(mut self, from: &mut impl Read, length: u64) -> Result<(), Mismatch> {
        let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut done = 0;
        while done < length {
            let now = CHUNK.min(usize::try_from(length - done).unwrap_or(CHUNK));
            let mut filled = 0;
            while filled < now {
                match read(from, &mut chunk[filled..now]) {
                    Ok(0) => return Err(Mismatch::Ended(done + filled as u64)),
                    Ok(some) => filled += some,
                    Err(err) => return Err(Mismatch::Failed(done + filled as u64, err)),
                }
            }
            self.fill(&mut expected[..now]);
            if chunk[..now] != expected[..now] {
                let same = chunk
                    .iter()
                    .zip(&expected)
                    .take_while(|(a, b)| a == b)
                    .count();
                return Err(Mismatch::Wrong(done + same as u64));
            }
            done += now as u64;
        }
        Ok(())
    }
}

/// How far a stream was right, and what came then.
pub(crate) enum Mismatch {
    Ended(u64),
    Wrong(u64),
    Failed(u64, io::Error),
}

/// The finalizer of SplitMix64.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_with_one_byte_missing_is_noticed_where_it_is() {
        let length = 200_003;
        let mut stream = Vec::new();
        Pattern::new(7).write(&mut stream, length).unwrap();
        assert!(
            Pattern::new(7)
                .check(&mut stream.as_slice(), length)
                .is_ok()
        );
        let other = Pattern::new(8).check(&mut stream.as_slice(), length);
        assert!(matches!(other, Err(Mismatch::Wrong(0..8))));
        stream.remove(100_000);
        let short = Pattern::new(7).check(&mut stream.as_slice(), length);
        assert!(matches!(short, Err(Mismatch::Wrong(99_999..100_010))));
    }
}
