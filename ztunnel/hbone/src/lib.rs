//! The tunnel protocol without I/O: what a CONNECT says, what its answer means, and what the end of a TCP
//! connection looks like in HTTP/2.
//!
//! Invariants: nothing here waits, reads a clock or draws random numbers. Nothing here panics on what a peer sends,
//! and whatever is kept of it has a bound.
//!
//! HTTP/2 is our own, since what a connection costs is mostly structure: the `h2` crate locks and hashes for each frame, hands
//! on whole frames only, and holds more for a stream than everything else does. It is the reference in the tests.

mod authority;
mod baggage;
mod connect;
mod error_code;
mod hpack;
pub mod http2;
mod proxy_header;
mod response;
mod text;
mod trace;

pub use authority::{Authority, BadAuthority};
pub use baggage::Baggage;
pub use connect::{Asked, BadConnect, Connect, NotAHeader};
pub use error_code::{ErrorCode, Received};
pub use proxy_header::{IdentityTooLong, ProxyHeader};
pub use response::{Answer, Refusal};
pub use trace::Traceparent;
