//! HTTP endpoints of the daemon itself. Rooms above register what they have to say.
//!
//! Invariants: a request changes nothing, reads what is at hand, and is answered without waiting for anything.

mod http;
mod readiness;
mod stats;

use std::io;

pub use http::{Body, HttpListener, Request, Response};
pub use readiness::{Pending, Readiness};
pub use stats::{STATS_PORT, stats};

/// Where readiness is asked for. Fixed: probes of every installation name it.
pub const READINESS_PORT: u16 = 15021;

/// Why an endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("listen for {purpose} on port {port}")]
    Listen {
        purpose: &'static str,
        port: u16,
        source: io::Error,
    },
}
