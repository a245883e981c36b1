//! HTTP/2 (RFC 9113) as far as tunnels need it: one connection as a machine without I/O.
//!
//! Whoever runs it gives it what comes ([`Connection::receive`]) and sends what it has ([`Connection::poll_transmit`]);
//! streams are worked with by their [`StreamKey`]. It is for one thread, so nothing is locked, and for CONNECT: DATA is handed
//! on as it comes, not frame by frame, and there is neither push nor priority. Of what the `h2` crate takes, it takes a sixth to
//! a fifth of the time for streams and short messages, 0.9 for bulk, and half the memory for an idle stream (`benches/http2`).
//!
//! Of the 146 cases of h2spec (2.6) it fails 6, on purpose. Two are of priorities, which RFC 9113 has no more, two of
//! `content-length`, which means nothing in a CONNECT. HEADERS for a stream that is over or was passed over cost that stream,
//! not the connection: only the last streams that this side has reset are remembered, and others may have had trailers on
//! their way, too.
//!
//! Invariants:
//! - What a peer sends ends at worst its connection, with a [`Violation`] that says what it was. What concerns one stream
//!   only ends that stream.
//! - Bounded, whatever the peer does: streams, header lists and the frames they come in, bytes held (by the windows; what
//!   is set aside for more is at most three times as much), bytes that wait to be sent, answers to PING and SETTINGS.
//! - A stream sends no more than both windows and the peer's frame size allow at the moment when the frame is made, and
//!   streams that have something to send take turns by frames. The END_STREAM of a stream waits for nobody's window.
//! - Whoever waits is woken when what it waits for is there: each wait ends by data, room, the stream's end or the loss of
//!   the connection. Room in the connection's window goes round, first come, first served: it is kept for
//!   who is woken for it, and goes to the next if that one does not use it.
//! - Windows are the peer's by its own account: a smaller window of streams counts from its acknowledgment on.

mod connection;
mod data;
mod ending;
mod error;
mod few;
mod frame;
mod head;
mod receive;
mod send;
mod settings;
mod streams;
mod window;

pub use connection::Connection;
pub use error::{Lost, StreamError, Violation};
pub use head::{Field, Fields};
pub use settings::Settings;
pub use streams::StreamKey;

#[cfg(test)]
mod tests;
