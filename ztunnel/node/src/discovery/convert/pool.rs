//! Values that many resources have in common, each in memory once.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use super::super::table::Table;

/// So many may stay without anybody looking whether they are in use.
const FEW: usize = 1024;

/// Values in use.
pub(super) struct Pool<T: ?Sized> {
    known: Table<Arc<T>, ()>,
    tidy_at: usize,
}

impl<T: Hash + Eq + ?Sized> Pool<T> {
    /// The one there is that is equal to `value`.
    pub(super) fn shared(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.known.key(value.borrow()) {
            return Arc::clone(known);
        }
        let new = value.into();
        self.known.insert(Arc::clone(&new), ());
        new
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.known.len() == 0
    }

    /// Forgets what nothing uses any more. Looks at everything, so only when as much has come as was left the last
    /// time.
    pub(super) fn tidy(&mut self) {
        if self.known.len() > self.tidy_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.tidy_at = FEW.max(self.known.len() * 2);
        }
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            known: Table::default(),
            tidy_at: 0,
        }
    }
}

impl<T: Hash + Eq + ?Sized> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.known.len())
    }
}
