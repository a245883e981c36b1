//! A map that grows in small parts.
//!
//! An ordinary one that is full moves all it has into a larger one, and hashes every key again for that: with 50,000
//! names some milliseconds in which the thread takes no breath (`task::breath`). Here that is done for one part at a
//! time.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher as _, Hash};

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::task::breath;

/// So many make a part of a map of 100,000 small enough.
const PARTS: usize = 64;

pub(super) struct Table<K, V> {
    hasher: DefaultHashBuilder,
    parts: Box<[HashTable<(K, V)>]>,
}

impl<K: Hash + Eq, V> Table<K, V> {
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.parts.iter().flatten()
    }

    /// The key as it was put in.
    pub(super) fn key<Q>(&self, key: &Q) -> Option<&K>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let found = self.parts[part(hash)].find(hash, |(k, _)| k.borrow() == key);
        found.map(|(key, _)| key)
    }

    /// Puts both in place of an equal key and its value.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let Self { hasher, parts } = self;
        let hash = hasher.hash_one(&key);
        let entry = parts[part(hash)].entry(hash, |(k, _)| *k == key, |(k, _)| hasher.hash_one(k));
        match entry {
            Entry::Occupied(mut there) => *there.get_mut() = (key, value),
            Entry::Vacant(free) => drop(free.insert((key, value))),
        }
    }

    /// Says whether it was there.
    pub(super) fn remove<Q>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let found = self.parts[part(hash)].find_entry(hash, |(k, _)| k.borrow() == key);
        found.map(|entry| drop(entry.remove())).is_ok()
    }

    /// Keeps only some, and not much room besides. Takes breaths.
    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let Self { hasher, parts } = self;
        for part in parts {
            part.retain(|(key, _)| {
                breath::step();
                keep(key)
            });
            part.shrink_to(part.len() * 2, |(key, _)| hasher.hash_one(key));
            breath::long_step();
        }
    }
}

/// A table takes the lowest bits of a hash for the place and the highest for a tag.
fn part(hash: u64) -> usize {
    (hash >> 40) as usize % PARTS
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            parts: std::iter::repeat_with(HashTable::new).take(PARTS).collect(),
        }
    }
}

impl<K: Hash + Eq, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn check(table: &Table<String, usize>, model: &BTreeMap<String, usize>) {
        let all: BTreeMap<_, _> = table.iter().cloned().collect();
        assert_eq!(all, *model);
        assert_eq!(table.len(), model.len());
        for key in model.keys() {
            assert_eq!(table.key(&**key), Some(key));
        }
    }

    #[test]
    fn behaves_like_a_map() {
        let (mut table, mut model) = (Table::default(), BTreeMap::new());
        for number in 0..3000 {
            let key = (number * 7 % 2000).to_string();
            table.insert(key.clone(), number);
            model.insert(key, number);
        }
        check(&table, &model);
        for number in 0..500 {
            let key = number.to_string();
            assert_eq!(table.remove(&*key), model.remove(&key).is_some());
            assert!(!table.remove(&*key) && table.key(&*key).is_none());
        }
        check(&table, &model);
        let ends_in_seven = |key: &String| key.ends_with('7');
        table.retain(ends_in_seven);
        model.retain(|key, _| ends_in_seven(key));
        check(&table, &model);
    }

    #[test]
    fn no_part_is_much_larger_than_the_others() {
        let mut table = Table::default();
        for number in 0..PARTS * 100 {
            table.insert(format!("cluster//Pod/shop/web-{number}"), ());
        }
        let largest = table.parts.iter().map(HashTable::len).max();
        assert!(largest < Some(200), "{largest:?} of {}", table.len());
    }
}
