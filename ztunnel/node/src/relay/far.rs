//! The far end of a relayed connection, as the relay sees it: whatever transport is below can be replaced.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use ztunnel_hbone::ErrorCode;
use ztunnel_mesh::reason::Reason;

/// One end of a connection with a flow control of its own. Dropping it before both directions have ended tells
/// the peer that the connection broke.
pub trait Far {
    /// Whether `poll_flush` has never anything to do, so that what may be sent may be sent in several pieces.
    const QUEUES: bool;

    /// The next bytes for the app; nothing at the end of the data.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, FarError>>;

    /// Whether nothing comes after what `poll_data` gave last, if that is known already.
    fn is_at_end(&self) -> bool;

    /// The app has taken `len` bytes of what `poll_data` gave: the peer may send as many more.
    fn release(&mut self, len: usize);

    /// The app does not take more for now.
    fn stop(&mut self);

    /// How much may be sent now, before anything else happens: between 1 and `wanted`.
    fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, FarError>>;

    /// There is nothing to send after all: what it might have been told is for others on the same tunnel.
    fn yield_capacity(&mut self);

    /// Takes bytes of the app, no more than `poll_capacity` allowed.
    fn send(&mut self, data: Bytes) -> Result<(), FarError>;

    /// Ready once nothing that was sent waits for this task to be polled.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FarError>>;

    /// The app's data has ended; all of it was flushed.
    fn finish(&mut self) -> Result<(), FarError>;

    /// The same as `send` and `finish`, where data and its end can be told together.
    fn send_last(&mut self, data: Bytes) -> Result<(), FarError>;

    /// Notices a reset or a loss while there is nothing to send.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<FarError>;
}

/// How a far end breaks.
#[derive(Debug, thiserror::Error)]
pub enum FarError {
    #[error("the peer reset the stream with {0}")]
    Reset(ErrorCode),
    #[error("the connection to the peer broke")]
    Broken(#[source] io::Error),
    /// With everything else that was in it.
    #[error("the tunnel to the peer broke")]
    Lost(#[source] io::Error),
    /// This side has ended everything with the peer.
    #[error("the tunnel was cut: {0}")]
    Cut(Reason),
}

impl FarError {
    /// The reason a connection ends with.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Reset(_) => Reason::Reset,
            Self::Broken(err) => broken(err),
            Self::Lost(_) => Reason::PeerLost,
            Self::Cut(reason) => *reason,
        }
    }
}

/// Tells a TCP connection that its other end broke off from one whose other end is gone.
fn broken(err: &io::Error) -> Reason {
    match err.kind() {
        io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => Reason::PeerLost,
        _ => Reason::Reset,
    }
}
