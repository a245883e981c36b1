//! The connections that are open now: each has one record, from accept to end, and all records of a pod on a worker
//! thread are in one registry.
//!
//! Invariants: a connection is in the registry for exactly as long as its record lives. It ends with exactly one
//! reason and one line in the access log, also when its future is dropped. Whoever wants connections to end (policy,
//! a drain, a revoked certificate) cuts them here, one by one: a cut is about one connection, never about the tunnel
//! it came through.

mod list;
mod record;
mod registry;
mod watch;

pub(crate) use list::find;
pub use list::{
    BadPeer, BadPod, Found, MOST_LISTED, OpenConnection, Sort, Wanted, WantedPeer, WantedPod, Way,
};
pub use record::{Cut, Record};
pub use registry::Registry;
pub use watch::{Seen, Watch, Watching};

#[cfg(test)]
mod tests;
