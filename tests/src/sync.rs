//! A lock that does not fail.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. A panic in one test thread must not hide the state from the one that reports it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
