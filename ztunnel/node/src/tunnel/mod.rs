//! HBONE tunnels: HTTP/2 over mutual TLS between two nodes, one CONNECT stream for each connection of an app.
//!
//! Invariants:
//! - A tunnel, its streams and its pool live on one thread. Nothing here is `Send`; a byte is never handed to another
//!   thread.
//! - Nobody outside this room sees HTTP/2: a stream is a [`crate::relay::Far`], errors are our own.
//! - Every wait for a peer has a deadline: connect, TLS, HTTP/2, the answer to a CONNECT, the answer to a PING.
//! - Bounded: tunnels per pool, streams per tunnel, bytes buffered per stream, per tunnel and
//!   in all tunnels, header lists.
//! - A stream that is dropped before both directions have ended is reset with CONNECT_ERROR. Never with CANCEL, which
//!   peers take for an orderly end.
//! - A tunnel whose peer's certificate is revoked ends at once, with all its streams, and each of them says why.
//! - A tunnel inside of another one's stream is for one connection and is never in a pool.

mod client;
mod cut;
mod early;
mod flow;
mod inside;
mod keepalive;
mod lane;
mod open;
mod pace;
mod pool;
mod server;
mod settings;
mod stream;
mod transport;

pub use client::{DialError, TunnelFacts};
pub use early::Early;
pub use open::{OpenError, Opened};
pub use pool::{Destination, Pool};
pub use server::{AcceptError, Incoming, Request, TunnelError, accept};
pub use settings::TunnelSettings;
pub use stream::Stream;

#[cfg(test)]
mod tests;
