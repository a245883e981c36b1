//! Joins the TCP connection of an app with its far end: a stream of a tunnel, or another TCP connection.
//!
//! Invariants:
//! - Each direction ends on its own: FIN becomes END_STREAM and back, the other direction stays open.
//! - What breaks is passed on as broken: a reset of one side resets the other, a cut resets both. Nobody takes a
//!   truncated transfer for a whole one.
//! - Bounded: nothing is read from the app before the far end has room for it, and the far end gets its window back
//!   only when the app has taken the bytes. One chunk per direction is in hand at most.
//! - An idle connection holds no buffer and no share of the tunnel's window.
//! - One task per connection polls both directions; it runs on the thread that owns the far end.
//!
//! No timeout: an idle connection may stay for ever, TCP keepalive and the tunnel's PING find the dead ones.

mod buffer;
mod far;
mod join;
mod tcp;

pub(crate) use buffer::{MOST_NOW, give_back, read_now};
pub use far::{Far, FarError};
pub use join::{RelayError, join, join_tcp, say};
pub use tcp::{Halves, ResetOnDrop, broken};

#[cfg(test)]
pub(crate) mod test_bulk;
#[cfg(test)]
mod tests;
