//! Bytes of one connection, counted while they move.

use std::cell::{Cell, OnceCell};

use ztunnel_mesh::reason::Reason;

use super::series::Counted;

/// Counters of one connection, from the point of view of the app in the pod. Shared between the one who moves the
/// bytes and the one who reports them, both on one thread.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: Cell<u64>,
    received: Cell<u64>,
    /// Once both ends are known.
    counted: OnceCell<Counted>,
}

impl Traffic {
    /// The app sent `bytes` more.
    pub fn add_sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
        if let Some(counted) = self.counted.get() {
            counted.add_sent(bytes as u64);
        }
    }

    /// The app was given `bytes` more.
    pub fn add_received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
        if let Some(counted) = self.counted.get() {
            counted.add_received(bytes as u64);
        }
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

    /// From now on it is part of this.
    pub(super) fn count_as(&self, counted: impl FnOnce() -> Counted) {
        self.counted.get_or_init(counted);
    }

    /// Whether it has become part of a series.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.counted.get().is_some()
    }

    /// The connection has ended; to be called once.
    pub(super) fn close(&self, reason: Reason, now: u32) {
        if let Some(counted) = self.counted.get() {
            counted.close(reason, now);
        }
    }
}
