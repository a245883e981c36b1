use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::*;
use crate::fixture::Lcg;

/// A key and its weight. Keys are hashed badly on purpose.
#[derive(Clone, Debug, PartialEq)]
struct Item(u64, u64);

impl Weigh for Item {
    fn weight(&self) -> u64 {
        self.1
    }
}

#[derive(Default, Clone)]
struct Checked {
    trie: Trie<Item>,
    model: BTreeMap<u64, u64>,
}

impl Checked {
    fn put(&mut self, hash: fn(u64) -> u64, key: u64, weight: u64) {
        let old = self.trie.put(hash(key), Item(key, weight), |i| i.0 == key);
        assert_eq!(old.map(|i| i.1), self.model.insert(key, weight));
    }

    fn remove(&mut self, hash: fn(u64) -> u64, key: u64) {
        let old = self.trie.remove(hash(key), |i| i.0 == key);
        assert_eq!(old.map(|i| i.1), self.model.remove(&key));
    }

    fn check(&self, hash: fn(u64) -> u64) {
        assert_eq!(self.trie.len(), self.model.len());
        assert_eq!(self.trie.is_empty(), self.model.is_empty());
        let total: u64 = self.model.values().sum();
        assert_eq!(self.trie.weight(), total);
        let all: BTreeMap<_, _> = self.trie.iter().map(|i| (i.0, i.1)).collect();
        assert_eq!(all, self.model);
        let hashes: Vec<u64> = self.trie.iter().map(|i| hash(i.0)).collect();
        assert!(hashes.is_sorted());
        for (key, weight) in &self.model {
            let found = self.trie.get(hash(*key), |i| i.0 == *key);
            assert_eq!(found, Some(&Item(*key, *weight)));
        }
        assert_eq!(self.trie.pick(&mut total.clone()), None);
    }
}

const SPREAD: fn(u64) -> u64 = |key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
const CROWDED: fn(u64) -> u64 = |key| key % 3;
const LOW_BITS: fn(u64) -> u64 = |key| key;

#[test]
fn behaves_like_a_map_and_leaves_clones_alone() {
    for hash in [SPREAD, CROWDED, LOW_BITS] {
        let mut now = Checked::default();
        let mut earlier = Vec::new();
        let mut random = Lcg(1);
        for step in 0..4_000 {
            let key = random.below(500) as u64;
            // First it grows, then it shrinks.
            if random.below(10) < if step < 2_000 { 8 } else { 2 } {
                now.put(hash, key, random.below(5) as u64);
            } else {
                now.remove(hash, key);
            }
            if step % 250 == 0 {
                earlier.push(now.clone());
            }
        }
        for key in 0..500 {
            now.remove(hash, key);
        }
        now.check(hash);
        assert!(matches!(&now.trie.root.node, Node::Leaf(entries) if entries.is_empty()));
        for snapshot in earlier {
            snapshot.check(hash);
        }
    }
}

#[test]
fn values_are_drawn_by_weight() {
    let mut trie = Checked::default();
    for key in 0..300 {
        trie.put(SPREAD, key, key % 4);
    }
    let mut drawn = BTreeMap::new();
    for mut at in 0..trie.trie.weight() {
        *drawn.entry(trie.trie.pick(&mut at).unwrap().0).or_insert(0) += 1;
    }
    trie.model.retain(|_, weight| *weight > 0);
    assert_eq!(drawn, trie.model);
}

#[test]
fn a_change_copies_one_path() {
    let mut trie = Trie::default();
    for key in 0..100_000 {
        trie.put(SPREAD(key), Arc::new(key), |_| false);
    }
    let before = trie.clone();
    trie.put(SPREAD(7), Arc::new(7), |v| **v == 7);
    let copied = trie.iter().filter(|v| Arc::strong_count(v) > 1).count();
    // Values of the one leaf that was copied, without the one that was replaced.
    assert!((1..LEAF).contains(&copied), "{copied}");
    assert!(Arc::strong_count(before.get(SPREAD(7), |v| **v == 7).unwrap()) == 1);
}
