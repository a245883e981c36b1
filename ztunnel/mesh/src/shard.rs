//! The map under every index of a snapshot: cheap to clone, and a change copies one small part of it.
//!
//! A fixed number of hash tables, each behind its own `Arc`. A clone is one reference count. The first change to a
//! clone copies the list of shards and one shard (with 100,000 entries that is about 400 of them, each an `Arc`
//! or two); later changes to the same shard of the same clone copy nothing, so applying a whole push to one clone
//! costs about one copy of the table however many changes it has. Snapshots taken earlier never see any of it.
//!
//! On purpose not a tree: lookups happen for each connection, changes for each pod that comes or goes.

use alloc::sync::Arc;
use core::fmt;
use core::hash::{BuildHasher as _, Hash};

use hashbrown::{DefaultHashBuilder, Equivalent, HashTable};

const SHARDS: usize = 256;

type Shard<K, V> = HashTable<(K, V)>;

pub(crate) struct ShardMap<K, V> {
    shards: Arc<[Arc<Shard<K, V>>; SHARDS]>,
    hasher: DefaultHashBuilder,
    len: usize,
}

impl<K, V> ShardMap<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards
            .iter()
            .flat_map(|shard| shard.iter().map(|(k, v)| (k, v)))
    }
}

impl<K: Hash + Eq + Clone, V: Clone> ShardMap<K, V> {
    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        self.shards[shard_of(hash)]
            .find(hash, |(k, _)| key.equivalent(k))
            .map(|(_, v)| v)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(&key);
        let (shard, hasher) = self.shard_mut(hash);
        if let Some((_, old)) = shard.find_mut(hash, |(k, _)| *k == key) {
            return Some(core::mem::replace(old, value));
        }
        shard.insert_unique(hash, (key, value), |(k, _)| hasher.hash_one(k));
        self.len += 1;
        None
    }

    pub(crate) fn remove<Q: Hash + Equivalent<K> + ?Sized>(&mut self, key: &Q) -> Option<V> {
        // Removing what is not there must not copy a shard.
        self.get(key)?;
        let hash = self.hasher.hash_one(key);
        let (shard, _) = self.shard_mut(hash);
        let entry = shard.find_entry(hash, |(k, _)| key.equivalent(k)).ok()?;
        let ((_, value), _) = entry.remove();
        self.len -= 1;
        Some(value)
    }

    /// The value of `key` for changing, made with `Default` when there was none.
    pub(crate) fn or_default(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        let hash = self.hasher.hash_one(key);
        if self.get(key).is_none() {
            self.len += 1;
        }
        let (shard, hasher) = self.shard_mut(hash);
        let entry = shard.entry(hash, |(k, _)| k == key, |(k, _)| hasher.hash_one(k));
        let entry = entry.or_insert_with(|| (key.clone(), V::default()));
        &mut entry.into_mut().1
    }

    fn shard_mut(&mut self, hash: u64) -> (&mut Shard<K, V>, &DefaultHashBuilder) {
        let shards = Arc::make_mut(&mut self.shards);
        (Arc::make_mut(&mut shards[shard_of(hash)]), &self.hasher)
    }
}

// A table uses the lowest and the highest bits itself.
fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

impl<K, V> Default for ShardMap<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashTable::new());
        Self {
            shards: Arc::new(core::array::from_fn(|_| Arc::clone(&empty))),
            hasher: DefaultHashBuilder::default(),
            len: 0,
        }
    }
}

// Not derived: a derive would ask for `K: Clone`.
impl<K, V> Clone for ShardMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            shards: Arc::clone(&self.shards),
            hasher: self.hasher.clone(),
            len: self.len,
        }
    }
}

impl<K, V> fmt::Debug for ShardMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString as _};
    use alloc::vec::Vec;

    #[test]
    fn behaves_like_a_map_and_leaves_clones_alone() {
        let mut map = ShardMap::<String, u32>::default();
        for i in 0..2_000 {
            assert_eq!(map.insert(i.to_string(), i), None);
        }
        let before = map.clone();
        assert_eq!(map.insert("7".into(), 70), Some(7));
        assert_eq!(map.remove("8"), Some(8));
        assert_eq!(map.remove("8"), None);
        *map.or_default(&"new".into()) += 1;
        *map.or_default(&"new".into()) += 1;

        assert_eq!(map.len(), 2_000);
        assert_eq!(map.get("7"), Some(&70));
        assert_eq!(map.get("8"), None);
        assert_eq!(map.get("new"), Some(&2));
        assert_eq!((before.len(), before.get("7")), (2_000, Some(&7)));
        let mut keys: Vec<u32> = before.iter().map(|(_, v)| *v).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..2_000).collect::<Vec<_>>());
    }

    #[test]
    fn one_change_copies_one_shard() {
        let mut map = ShardMap::<u32, u32>::default();
        for i in 0..2_000 {
            map.insert(i, i);
        }
        let before = map.clone();
        map.insert(1, 100);
        let shared = before.shards.iter().zip(map.shards.iter());
        assert_eq!(shared.filter(|(a, b)| !Arc::ptr_eq(a, b)).count(), 1);
    }
}
