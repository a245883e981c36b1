//! What is told about connections: one record for each, and its line in the access log.
//!
//! Absent for now: metrics. Field names of the access log live with the record, the only place that writes it.

mod chain;
mod record;
mod traffic;

pub use chain::chain;
pub use record::{Direction, Record};
pub use traffic::Traffic;
