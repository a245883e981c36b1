//! Bytes of one connection, counted while they move.

use std::cell::Cell;

/// Counters of one connection, from the point of view of the app in the pod. Shared between the one who moves the
/// bytes and the one who reports them, both on one thread.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl Traffic {
    /// The app sent `bytes` more.
    pub fn add_sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    /// The app was given `bytes` more.
    pub fn add_received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// What the app sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// What the app was given.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.get()
    }
}
