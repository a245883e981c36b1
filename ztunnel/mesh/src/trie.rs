//! The persistent set under every index of a snapshot: cheap to clone, and a change copies one path of it.
//!
//! Values are kept by a 64-bit hash that the caller computes, in a tree that branches sixteen ways on four bits at
//! a time, the highest first, and ends in leaves of at most [`LEAF`] values. So a walk goes in the order of the
//! hashes, however the tree came about. A clone is two reference counts. A change copies the branches on one path
//! and one leaf, and only what is shared with a clone: applying a whole push to one clone costs about one copy of
//! the tree, however many changes it has.
//!
//! The hash is no key: several values may share one, and whoever asks says which of them is meant. Every part of
//! the tree knows the weight of what is below, so that a value can be drawn by weight in a few steps.
//!
//! Values take what they need and no slack: an index of many thousand entries costs about 19 bytes for each in
//! addition to the value.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::{array, fmt, mem, slice};

const BITS: u32 = 4;
const WIDTH: usize = 1 << BITS;
/// So many levels use up a hash; values that share all of it stay in one leaf.
const DEPTH: u32 = u64::BITS / BITS;
/// A fuller leaf becomes a branch.
const LEAF: usize = 32;
/// A branch over no more than this becomes a leaf again; well below `LEAF`, so that one value that comes and goes
/// does not do it every time.
const MERGE: usize = 12;

/// A value of a trie.
pub(crate) trait Weigh {
    /// Its share when one is drawn.
    fn weight(&self) -> u64;
}

/// Things that are only looked up.
impl<T> Weigh for Arc<T> {
    fn weight(&self) -> u64 {
        0
    }
}

pub(crate) struct Trie<V> {
    root: Slot<V>,
    len: usize,
}

struct Slot<V> {
    node: Node<V>,
    weight: u64,
}

enum Node<V> {
    Leaf(Arc<[Entry<V>]>),
    Branch(Arc<[Slot<V>; WIDTH]>),
}

#[derive(Clone)]
struct Entry<V> {
    hash: u64,
    value: V,
}

impl<V> Trie<V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn weight(&self) -> u64 {
        self.root.weight
    }

    /// All values, in the order of their hashes.
    pub(crate) fn iter(&self) -> Iter<'_, V> {
        Iter {
            slots: alloc::vec![slice::from_ref(&self.root).iter()],
            leaf: [].iter(),
        }
    }

    /// The values with this hash.
    pub(crate) fn all(&self, hash: u64) -> impl Iterator<Item = &V> {
        let leaf = self.beginning_at(hash).iter();
        leaf.take_while(move |entry| entry.hash == hash)
            .map(|entry| &entry.value)
    }

    pub(crate) fn get(&self, hash: u64, same: impl Fn(&V) -> bool) -> Option<&V> {
        self.all(hash).find(|value| same(value))
    }

    /// The rest of the leaf from where values with this hash begin.
    ///
    /// Hashes are spread evenly, so the place can be guessed to within an entry or two: one cache line, where a
    /// walk from the front of a leaf touches six.
    fn beginning_at(&self, hash: u64) -> &[Entry<V>] {
        let (mut node, mut depth) = (&self.root.node, 0);
        let leaf = loop {
            match node {
                Node::Leaf(entries) => break entries,
                Node::Branch(children) => node = &children[nibble(hash, depth)].node,
            }
            depth += 1;
        };
        // The sixteen bits after those that led here, as a share of the leaf.
        let following = hash.checked_shl(BITS * depth).unwrap_or(0) >> 48;
        let mut place = (following as usize * leaf.len()) >> 16;
        while place > 0 && leaf[place - 1].hash >= hash {
            place -= 1;
        }
        while place < leaf.len() && leaf[place].hash < hash {
            place += 1;
        }
        &leaf[place..]
    }
}

impl<V> Trie<V> {
    /// Frees what no clone shares, leaf by leaf: `free` is shown each value before it goes, and `step` is called after each
    /// leaf.
    pub(crate) fn free_in_steps<S: FnMut()>(self, step: &mut S, free: &impl Fn(&mut V, &mut S)) {
        self.root.free_in_steps(step, free);
    }
}

impl<V> Slot<V> {
    fn free_in_steps<S: FnMut()>(self, step: &mut S, free: &impl Fn(&mut V, &mut S)) {
        match self.node {
            Node::Branch(children) => {
                let children = Arc::into_inner(children).into_iter().flatten();
                children.for_each(|child| child.free_in_steps(step, free));
            }
            Node::Leaf(mut entries) => {
                for entry in Arc::get_mut(&mut entries).into_iter().flatten() {
                    free(&mut entry.value, step);
                }
                drop(entries);
                step();
            }
        }
    }
}

impl<V: Weigh> Trie<V> {
    /// Draws a value by weight: the one that `at` falls on when all weights lie in a row. What `at` has then is
    /// how far into the value's weight it is.
    pub(crate) fn pick(&self, at: &mut u64) -> Option<&V> {
        let mut node = &self.root.node;
        loop {
            match node {
                Node::Branch(children) => {
                    node = &fall_on(children.iter(), |slot| slot.weight, at)?.node;
                }
                Node::Leaf(entries) => {
                    let fallen_on = fall_on(entries.iter(), |entry| entry.value.weight(), at);
                    return fallen_on.map(|entry| &entry.value);
                }
            }
        }
    }
}

fn fall_on<T>(
    mut items: impl Iterator<Item = T>,
    weight: impl Fn(&T) -> u64,
    at: &mut u64,
) -> Option<T> {
    items.find(|item| {
        let weight = weight(item);
        let found = *at < weight;
        if !found {
            *at -= weight;
        }
        found
    })
}

impl<V: Clone + Weigh> Trie<V> {
    /// Puts `value` in place of the one with this hash that is the `same`, or adds it.
    pub(crate) fn put(&mut self, hash: u64, value: V, same: impl Fn(&V) -> bool) -> Option<V> {
        let old = self.root.put(0, Entry { hash, value }, &same);
        self.len += usize::from(old.is_none());
        old
    }

    /// Changes the value with this hash that is the `same`, when there is one.
    pub(crate) fn change<R>(
        &mut self,
        hash: u64,
        same: impl Fn(&V) -> bool,
        change: impl FnOnce(&mut V) -> R,
    ) -> Option<R> {
        // Changing what is not there must not copy anything.
        self.get(hash, &same)?;
        self.root.change(0, hash, &same, change)
    }

    pub(crate) fn remove(&mut self, hash: u64, same: impl Fn(&V) -> bool) -> Option<V> {
        // Removing what is not there must not copy anything.
        self.get(hash, &same)?;
        let old = self.root.remove(0, hash, &same);
        self.len -= usize::from(old.is_some());
        old
    }
}

impl<V: Clone + Weigh> Slot<V> {
    fn of(entries: Vec<Entry<V>>) -> Self {
        Self {
            weight: entries.iter().map(|entry| entry.value.weight()).sum(),
            node: Node::Leaf(entries.into()),
        }
    }

    fn put(&mut self, depth: u32, entry: Entry<V>, same: &impl Fn(&V) -> bool) -> Option<V> {
        match &mut self.node {
            Node::Branch(children) => {
                let child = &mut Arc::make_mut(children)[nibble(entry.hash, depth)];
                let before = child.weight;
                let old = child.put(depth + 1, entry, same);
                self.weight = self.weight - before + child.weight;
                old
            }
            Node::Leaf(entries) => {
                let is_it = |e: &Entry<V>| e.hash == entry.hash && same(&e.value);
                if let Some(place) = entries.iter().position(is_it) {
                    self.weight += entry.value.weight();
                    let old = mem::replace(&mut Arc::make_mut(entries)[place], entry).value;
                    self.weight -= old.weight();
                    return Some(old);
                }
                let place = entries.partition_point(|e| e.hash <= entry.hash);
                let mut longer = Vec::with_capacity(entries.len() + 1);
                longer.extend_from_slice(&entries[..place]);
                longer.push(entry);
                longer.extend_from_slice(&entries[place..]);
                *self = Self::of(longer).split(depth);
                None
            }
        }
    }

    /// Makes a branch of a leaf that has become too full.
    fn split(self, depth: u32) -> Self {
        let Node::Leaf(entries) = &self.node else {
            return self;
        };
        if entries.len() <= LEAF || depth >= DEPTH {
            return self;
        }
        let children = array::from_fn(|child| {
            let of_child = |e: &&Entry<V>| nibble(e.hash, depth) == child;
            Self::of(entries.iter().filter(of_child).cloned().collect()).split(depth + 1)
        });
        Self {
            node: Node::Branch(Arc::new(children)),
            weight: self.weight,
        }
    }

    fn change<R>(
        &mut self,
        depth: u32,
        hash: u64,
        same: &impl Fn(&V) -> bool,
        change: impl FnOnce(&mut V) -> R,
    ) -> Option<R> {
        match &mut self.node {
            Node::Branch(children) => {
                let child = &mut Arc::make_mut(children)[nibble(hash, depth)];
                let before = child.weight;
                let result = child.change(depth + 1, hash, same, change);
                self.weight = self.weight - before + child.weight;
                result
            }
            Node::Leaf(entries) => {
                let is_it = |e: &Entry<V>| e.hash == hash && same(&e.value);
                let place = entries.iter().position(is_it)?;
                let value = &mut Arc::make_mut(entries)[place].value;
                let before = value.weight();
                let result = change(value);
                self.weight = self.weight - before + value.weight();
                Some(result)
            }
        }
    }

    fn remove(&mut self, depth: u32, hash: u64, same: &impl Fn(&V) -> bool) -> Option<V> {
        match &mut self.node {
            Node::Branch(children) => {
                let child = &mut Arc::make_mut(children)[nibble(hash, depth)];
                let before = child.weight;
                let old = child.remove(depth + 1, hash, same);
                self.weight = self.weight - before + child.weight;
                self.merge();
                old
            }
            Node::Leaf(entries) => {
                let is_it = |e: &Entry<V>| e.hash == hash && same(&e.value);
                let place = entries.iter().position(is_it)?;
                let mut shorter = entries.to_vec();
                let old = shorter.remove(place).value;
                *self = Self::of(shorter);
                Some(old)
            }
        }
    }

    /// Makes a leaf of a branch that has become too empty.
    fn merge(&mut self) {
        let Node::Branch(children) = &self.node else {
            return;
        };
        let mut total = 0;
        for child in children.iter() {
            match &child.node {
                Node::Leaf(entries) => total += entries.len(),
                Node::Branch(_) => return,
            }
        }
        if total <= MERGE {
            let leaves = children.iter().filter_map(|child| match &child.node {
                Node::Leaf(entries) => Some(entries),
                Node::Branch(_) => None,
            });
            *self = Self::of(leaves.flat_map(|entries| entries.iter().cloned()).collect());
        }
    }
}

fn nibble(hash: u64, depth: u32) -> usize {
    // At the last level nothing is left of the hash, and there are no branches either.
    let shift = u64::BITS.saturating_sub(BITS * (depth + 1));
    (hash >> shift) as usize % WIDTH
}

pub(crate) struct Iter<'a, V> {
    slots: Vec<slice::Iter<'a, Slot<V>>>,
    leaf: slice::Iter<'a, Entry<V>>,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = &'a V;

    fn next(&mut self) -> Option<&'a V> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(&entry.value);
            }
            match self.slots.last_mut()?.next() {
                Some(Slot { node, .. }) => match node {
                    Node::Leaf(entries) => self.leaf = entries.iter(),
                    Node::Branch(children) => self.slots.push(children.iter()),
                },
                None => drop(self.slots.pop()),
            }
        }
    }
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self {
            root: Slot {
                node: Node::Leaf(Arc::from([])),
                weight: 0,
            },
            len: 0,
        }
    }
}

// Not derived: a derive would ask for `V: Clone`.
impl<V> Clone for Trie<V> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            len: self.len,
        }
    }
}

impl<V> Clone for Slot<V> {
    fn clone(&self) -> Self {
        Self {
            node: match &self.node {
                Node::Leaf(entries) => Node::Leaf(Arc::clone(entries)),
                Node::Branch(children) => Node::Branch(Arc::clone(children)),
            },
            weight: self.weight,
        }
    }
}

impl<V> fmt::Debug for Trie<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.len)
    }
}

#[cfg(test)]
mod tests;
