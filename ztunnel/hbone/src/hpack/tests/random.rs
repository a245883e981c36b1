//! Seeded sequences: the tables of both sides stay the same, and what is not a block does no harm.

use std::collections::VecDeque;

use super::super::encoder::integer;
use super::super::huffman;
use super::super::table::Table;
use super::super::{Encoder, Indexing};
use super::*;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn chance(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn text(&mut self, longest: usize) -> Vec<u8> {
        let length = self.below(longest + 1);
        let is_text = !self.chance(4);
        let byte = |_| {
            (if is_text {
                0x20 + self.below(0x5f)
            } else {
                self.below(256)
            }) as u8
        };
        (0..length).map(byte).collect()
    }

    /// What CONNECTs consist of, and what they do not.
    fn field(&mut self) -> (Vec<u8>, Vec<u8>) {
        let name: &[u8] = match self.below(10) {
            0 => b":method",
            1 => b":authority",
            2 => b":status",
            3 => b"baggage",
            4 => b"forwarded",
            5 => b"traceparent",
            6 => b"x-forwarded-network",
            7 => return (self.text(20), self.text(30)),
            8 if self.chance(20) => return (self.text(5000), self.text(5000)),
            _ => b"accept-encoding",
        };
        let value = match self.below(8) {
            0 => b"200".to_vec(),
            1 => b"CONNECT".to_vec(),
            2 => b"gzip, deflate".to_vec(),
            3 => self.text(2),
            4 | 5 => vec![b'a' + self.below(5) as u8; 150],
            6 => Vec::new(),
            _ => self.text(200),
        };
        (name.to_vec(), value)
    }

    fn fields(&mut self) -> Fields {
        (0..self.below(12)).map(|_| self.field()).collect()
    }
}

fn assert_same(left: &Table, right: &Table) {
    assert_eq!(left.entries(), right.entries());
    assert_eq!((left.size(), left.max()), (right.size(), right.max()));
    assert!(left.size() <= left.max());
}

#[test]
fn both_sides_stay_in_step() {
    for seed in 1..40 {
        let mut random = Random(seed);
        let (mut decoder, mut encoder) = (Decoder::new(4096), Encoder::new());
        for _ in 0..250 {
            for _ in 0..random.below(3) {
                let size = match random.below(20) {
                    0 => 0,
                    1 => random.below(100) as u32,
                    2 => random.below(2000) as u32,
                    3 => random.below(5000) as u32,
                    4 => u32::MAX,
                    _ => continue,
                };
                encoder.set_peer_table(size);
            }
            let fields = random.fields();
            let mut block = Vec::new();
            encoder.begin(&mut block);
            for (name, value) in &fields {
                let indexing = if random.chance(3) {
                    Indexing::Once
                } else {
                    Indexing::Index
                };
                encoder.field(name, value, indexing, &mut block);
            }
            assert_eq!(decode(&mut decoder, &block).unwrap(), fields);
            assert_same(&encoder.table, &decoder.table);
        }
    }
}

#[test]
fn a_change_of_the_table_is_told_with_the_smallest_in_between() {
    #[track_caller]
    fn check(encoder: &mut Encoder, sizes: &[u32], expected: &str) {
        for size in sizes {
            encoder.set_peer_table(*size);
        }
        let mut block = Vec::new();
        encoder.begin(&mut block);
        assert_eq!(block, bytes(expected));
    }
    let mut encoder = Encoder::new();
    check(&mut encoder, &[], "");
    check(&mut encoder, &[4096], "");
    check(&mut encoder, &[u32::MAX], "");
    check(&mut encoder, &[0, 4096], "20 3fe11f");
    check(&mut encoder, &[], "");
    check(&mut encoder, &[16, 0, 30, 20], "20 34");
    check(&mut encoder, &[10], "2a");
    check(&mut encoder, &[100_000], "3fe11f");
}

#[test]
fn what_does_not_fit_leaves_the_table_as_it_is() {
    let mut encoder = Encoder::new();
    let mut block = Vec::new();
    for value in [&[b'x'; 150][..], &[b'y'; 4090]] {
        encoder.field(b"baggage", value, Indexing::Index, &mut block);
    }
    assert_eq!(
        encoder.table.entries(),
        [(&b"baggage"[..], &[b'x'; 150][..])]
    );
}

/// A peer that chooses how it says things, as ours does not: Huffman code, names written out, never indexed.
#[test]
fn other_encoders_are_understood() {
    fn text(random: &mut Random, text: &[u8], block: &mut Vec<u8>) {
        let (first, text) = match random.chance(2) {
            true => (0x80, huffman::tests::encode(text)),
            false => (0x00, text.to_vec()),
        };
        integer(first, 7, text.len(), block);
        block.extend(text);
    }
    for seed in 1..15 {
        let mut random = Random(seed);
        let mut decoder = Decoder::new(8192);
        // The table as one would do it without thinking of what it costs.
        let mut model: VecDeque<(Vec<u8>, Vec<u8>)> = VecDeque::new();
        let size = |model: &VecDeque<(Vec<u8>, Vec<u8>)>| -> usize {
            model.iter().map(|(n, v)| n.len() + v.len() + 32).sum()
        };
        let mut max = 4096;
        for _ in 0..100 {
            let mut block = Vec::new();
            if random.chance(5) {
                max = random.below(8193);
                integer(0x20, 5, max, &mut block);
                while size(&model) > max {
                    model.pop_back();
                }
            }
            let mut fields = Vec::new();
            for (name, value) in random.fields() {
                if !model.is_empty() && random.chance(2) {
                    let place = random.below(model.len());
                    integer(0x80, 7, 62 + place, &mut block);
                    fields.push(model[place].clone());
                    continue;
                }
                let (first, prefix) = [(0x40, 6), (0x00, 4), (0x10, 4)][random.below(3)];
                let name = if !model.is_empty() && random.chance(2) {
                    let place = random.below(model.len());
                    integer(first, prefix, 62 + place, &mut block);
                    model[place].0.clone()
                } else {
                    block.push(first);
                    text(&mut random, &name, &mut block);
                    name
                };
                text(&mut random, &value, &mut block);
                fields.push((name.clone(), value.clone()));
                if first == 0x40 {
                    model.push_front((name, value));
                    while size(&model) > max {
                        model.pop_back();
                    }
                }
            }
            assert_eq!(decode(&mut decoder, &block).unwrap(), fields);
            let entries = model.iter().map(|(n, v)| (&n[..], &v[..]));
            assert_eq!(decoder.table.entries(), entries.collect::<Vec<_>>());
            assert_eq!(decoder.table.size(), size(&model));
        }
    }
}

/// Feeds one decoder until it fails, as a connection does.
fn feed(decoder: &mut Decoder, block: &[u8]) {
    let most = 4096 + block.len() * 8 / 5;
    let mut count = 0;
    let result = decoder.decode(block, |name, value| {
        assert!(name.len() <= most && value.len() <= most);
        count += 1;
    });
    assert!(count <= block.len());
    assert!(decoder.table.size() <= 4096 && decoder.table.allocated().0 <= 4096);
    if result.is_ok() {
        assert!(decoder.scratch.capacity() <= 1024);
    } else {
        assert!(decoder.scratch.capacity() <= 2 * most);
        *decoder = Decoder::new(4096);
    }
}

#[test]
fn random_bytes_do_no_harm() {
    let mut random = Random(7);
    let mut decoder = Decoder::new(4096);
    for _ in 0..20_000 {
        let length = random.below(300);
        let mut block: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        // Small numbers and Huffman texts come further than what is drawn from all bytes.
        if random.chance(2) {
            for byte in &mut block {
                if random.chance(2) {
                    *byte = [0x00, 0x40, 0x41, 0x83, 0xbe, 0xff, 0x7f, 0x1f][random.below(8)];
                }
            }
        }
        feed(&mut decoder, &block);
    }
}

#[test]
fn damaged_blocks_do_no_harm() {
    let mut random = Random(8);
    let (mut decoder, mut encoder) = (Decoder::new(4096), Encoder::new());
    for _ in 0..10_000 {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        for (name, value) in random.fields() {
            encoder.field(&name, &value, Indexing::Index, &mut block);
        }
        if block.is_empty() {
            continue;
        }
        for _ in 0..random.below(4) {
            let place = random.below(block.len());
            block[place] ^= 1 << random.below(8);
        }
        if random.chance(4) {
            block.truncate(random.below(block.len()));
        }
        feed(&mut decoder, &block);
    }
}
