//! The tunnel protocol without I/O: what a CONNECT says, what its answer means, and what the end of a TCP
//! connection looks like in HTTP/2.
//!
//! Invariants: nothing here waits, reads a clock or draws random numbers. Nothing here panics on what a peer sends,
//! and whatever is kept of it has a bound.
//!
//! Absent for now: frames and flow control (the `h2` crate does them), the header of an inner tunnel
//! (`x-forwarded-network`).

mod authority;
mod baggage;
mod connect;
mod error_code;
mod hpack;
pub mod http2;
mod proxy_header;
mod response;
mod trace;

pub use authority::{Authority, BadAuthority};
pub use baggage::Baggage;
pub use connect::{Asked, BadConnect, Connect};
pub use error_code::{ErrorCode, Received};
pub use proxy_header::{IdentityTooLong, ProxyHeader};
pub use response::{Answer, Refusal};
pub use trace::Traceparent;
