//! One stream of a tunnel as the far end of a relayed connection.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use ztunnel_hbone::http2::StreamError;

use super::client::Slot;
use super::cut::Cut;
use super::flow::Arrivals;
use super::lane::io_error;
use crate::relay::{Far, FarError};

/// An open stream: bytes flow both ways. In a box, since it goes from hand to hand, and each future on the way would have
/// room for it.
pub struct Stream(Box<Inner>);

struct Inner {
    arrivals: Arrivals,
    /// Whether a byte was sent.
    sent: bool,
    cut: Cut,
    /// Its place in the outgoing tunnel.
    slot: Option<Slot>,
}

impl Stream {
    pub(super) fn new(arrivals: Arrivals, cut: Cut, slot: Option<Slot>, sent: bool) -> Self {
        Self(Box::new(Inner {
            arrivals,
            sent,
            cut,
            slot,
        }))
    }

    /// That of the tunnel it is in.
    pub(super) fn cut(&self) -> &Cut {
        &self.0.cut
    }

    /// A stream that has sent nothing has its own window still whole: if there is no room for it, then because there is
    /// none in the tunnel.
    fn note_room(&self, is_room: bool) {
        if let (false, Some(slot)) = (self.0.sent, &self.0.slot) {
            slot.0.note_room(is_room);
        }
    }

    fn broken(&self, err: StreamError) -> FarError {
        far_error(&self.0.cut, err)
    }
}

impl Far for Stream {
    const QUEUES: bool = true;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, FarError>> {
        // What is still buffered came from a peer that is not believed any more.
        if let Some(reason) = self.0.cut.reason() {
            return Poll::Ready(Err(FarError::Cut(reason)));
        }
        let data = ready!(self.0.arrivals.lane.poll_data(cx));
        let data = data.map_err(|err| self.broken(err))?;
        self.0.arrivals.give(data.as_ref().map_or(0, Bytes::len));
        Poll::Ready(Ok(data))
    }

    fn is_at_end(&self) -> bool {
        self.0.arrivals.lane.is_at_end()
    }

    fn release(&mut self, len: usize) {
        self.0.arrivals.release(len);
    }

    fn stop(&mut self) {
        self.0.arrivals.stop();
    }

    fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, FarError>> {
        let room = self.0.arrivals.lane.poll_capacity(cx, wanted);
        self.note_room(room.is_ready());
        room.map_err(|err| self.broken(err))
    }

    fn yield_capacity(&mut self) {
        self.0.arrivals.lane.yield_capacity();
    }

    fn send(&mut self, data: Bytes) -> Result<(), FarError> {
        self.0.sent = true;
        let sent = self.0.arrivals.lane.send(data, false);
        sent.map_err(|err| self.broken(err))
    }

    /// The tunnel's own task writes; how much waits for it is bounded by `poll_capacity`.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), FarError>> {
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) -> Result<(), FarError> {
        self.send_last(Bytes::new())
    }

    /// In one frame.
    fn send_last(&mut self, data: Bytes) -> Result<(), FarError> {
        self.0.sent = true;
        let sent = self.0.arrivals.lane.send(data, true);
        sent.map_err(|err| self.broken(err))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<FarError> {
        let err = ready!(self.0.arrivals.lane.poll_broken(cx));
        Poll::Ready(self.broken(err))
    }
}

pub(super) fn far_error(cut: &Cut, err: StreamError) -> FarError {
    if let Some(reason) = cut.reason() {
        return FarError::Cut(reason);
    }
    match err {
        StreamError::Reset(code) => FarError::Reset(code),
        err => FarError::Lost(io_error(err)),
    }
}
