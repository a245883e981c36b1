//! HTTP endpoints of the daemon itself. Rooms above register what they have to say.
//!
//! Invariants: a request reads what is at hand, and is answered without waiting for anything else but a profile, which
//! takes as long as was asked for. Only those on loopback may change anything.

mod config_dump;
mod guard;
mod http;
mod logging;
mod page;
mod profile;
mod readiness;
mod server;
mod stats;

use std::io;

use ::http::StatusCode;
use ::http::header::{CONTENT_TYPE, HeaderValue};

pub use config_dump::{
    CertificateSet, CertificateState, ConfigDump, ConnectionEntry, PodEntry, Sources,
};
pub use http::{Body, HttpListener, Limits, Request, Response};
pub use page::{Page, PageSource};
pub use profile::Profiles;
pub use readiness::{Pending, Readiness};
pub use server::{ADMIN_PORT, Admin};
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

fn plain(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
