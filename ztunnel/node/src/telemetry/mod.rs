//! What is counted and told.
//!
//! Absent for now: metrics.

mod chain;
mod traffic;

pub use chain::chain;
pub use traffic::Traffic;
