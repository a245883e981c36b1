//! Large buffers for records on their way, lent by the thread.
//!
//! Invariants: a session that has nothing on its way holds none. What was sealed or came is not erased: none of it is a
//! key, and data is written over by whoever comes next.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::task::note_use;

/// Eight records of full size and what is around them. One system call moves as much: at 16 KiB, receiving costs
/// 1.2 times as much CPU as from 64 KiB on, and sending 64 KiB 1.15 times as much as 256 KiB.
pub(super) const SIZE: usize = 8 * (16 * 1024 + 64);

/// How many a thread keeps until it rests: one for each direction is mostly enough, since each is used for a moment only.
const KEPT: usize = 2;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Lets go of what this thread keeps.
pub(crate) fn give_back() {
    FREE.take();
}

/// A buffer, until it is dropped.
pub(super) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(super) fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // The thread may be ending.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
        note_use();
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
