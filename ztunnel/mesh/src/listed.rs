//! An index from a key to a short sorted list: several workloads may share an address, several services a name.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::Hash;

use hashbrown::Equivalent;

use crate::shard::ShardMap;

/// Lists are shared between snapshots like shards are: the first change to a clone copies the list.
#[derive(Debug)]
pub(crate) struct Listed<K, V>(ShardMap<K, Arc<Vec<Arc<V>>>>);

impl<K: Hash + Eq + Clone, V> Listed<K, V> {
    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> &[Arc<V>] {
        self.0.get(key).map_or(&[], |list| list)
    }

    /// Puts `value` where `order` says. The caller has removed whatever it replaces; the same value again is no
    /// change.
    pub(crate) fn insert<O: Ord>(&mut self, key: &K, value: &Arc<V>, order: impl Fn(&V) -> O) {
        let list = Arc::make_mut(self.0.or_default(key));
        let own = order(value);
        if let Err(place) = list.binary_search_by(|other| order(other).cmp(&own)) {
            list.insert(place, Arc::clone(value));
        }
    }

    pub(crate) fn remove(&mut self, key: &K, value: &Arc<V>) {
        let others = |other: &Arc<V>| !Arc::ptr_eq(other, value);
        if !self.get(key).iter().any(others) {
            self.0.remove(key);
        } else {
            Arc::make_mut(self.0.or_default(key)).retain(others);
        }
    }
}

impl<K, V> Default for Listed<K, V> {
    fn default() -> Self {
        Self(ShardMap::default())
    }
}

impl<K, V> Clone for Listed<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
