//! One stream of a tunnel as the far end of a relayed connection.

use std::io;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use ztunnel_hbone::{ErrorCode, Received};

use super::client::Slot;
use super::cut::Cut;
use super::flow::Arrivals;
use crate::relay::{Far, FarError};

/// An open stream: bytes flow both ways. In a box, since it goes from hand to hand, and each future on the way would have
/// room for it.
pub struct Stream(Box<Inner>);

struct Inner {
    send: SendStream<Bytes>,
    /// Dropped before `recv`, which lets go of what nobody took.
    arrivals: Arrivals,
    recv: RecvStream,
    /// How much of the window is asked for and not used yet.
    reserved: usize,
    /// Whether a byte was sent.
    sent: bool,
    sent_end: bool,
    received_end: bool,
    cut: Cut,
    /// Its place in the outgoing tunnel.
    slot: Option<Slot>,
}

impl Stream {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        arrivals: Arrivals,
        cut: Cut,
        slot: Option<Slot>,
    ) -> Self {
        Self(Box::new(Inner {
            send,
            arrivals,
            recv,
            reserved: 0,
            sent: false,
            sent_end: false,
            received_end: false,
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

    /// Why nothing can be sent any more.
    fn closed(&mut self) -> FarError {
        match self.poll_broken(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(err) => err,
            Poll::Pending => FarError::Lost(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Far for Stream {
    const QUEUES: bool = true;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, FarError>> {
        // What the library still has buffered came from a peer that is not believed any more.
        if let Some(reason) = self.0.cut.reason() {
            return Poll::Ready(Err(FarError::Cut(reason)));
        }
        loop {
            match ready!(self.0.recv.poll_data(cx)) {
                // Only END_STREAM may come in a frame without data; a peer that sends others is passed over.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.0.arrivals.give(data.len());
                    return Poll::Ready(Ok(Some(data)));
                }
                None => {
                    self.0.received_end = true;
                    return Poll::Ready(Ok(None));
                }
                Some(Err(err)) => {
                    let err = far_error(&self.0.cut, err);
                    if let FarError::Reset(code) = err {
                        self.0.received_end = code.received() == Received::End;
                    }
                    return Poll::Ready(Err(err));
                }
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.0.recv.is_end_stream()
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
        if self.0.reserved < wanted {
            self.0.send.reserve_capacity(wanted);
            self.0.reserved = wanted;
        }
        loop {
            let capacity = self.0.send.capacity();
            if capacity > 0 {
                self.note_room(true);
                return Poll::Ready(Ok(capacity.min(wanted)));
            }
            let Poll::Ready(more) = self.0.send.poll_capacity(cx) else {
                self.note_room(false);
                return Poll::Pending;
            };
            match more {
                Some(Ok(_)) => {}
                Some(Err(err)) => return Poll::Ready(Err(far_error(&self.0.cut, err))),
                None => return Poll::Ready(Err(self.closed())),
            }
        }
    }

    fn yield_capacity(&mut self) {
        if self.0.reserved > 0 {
            self.0.send.reserve_capacity(0);
            self.0.reserved = 0;
        }
    }

    fn send(&mut self, data: Bytes) -> Result<(), FarError> {
        self.0.reserved = self.0.reserved.saturating_sub(data.len());
        self.0.sent = true;
        self.0
            .send
            .send_data(data, false)
            .map_err(|_| self.closed())
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
        let sent = self.0.send.send_data(data, true);
        sent.map_err(|_| self.closed())?;
        self.0.sent = true;
        self.0.sent_end = true;
        self.yield_capacity();
        Ok(())
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<FarError> {
        let reset = ready!(self.0.send.poll_reset(cx));
        Poll::Ready(match reset {
            Ok(code) => FarError::Reset(ErrorCode(code.into())),
            Err(err) => far_error(&self.0.cut, err),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !(self.sent_end && self.received_end) {
            self.send
                .send_reset(h2::Reason::from(ErrorCode::CONNECT_ERROR.0));
        }
    }
}

pub(super) fn far_error(cut: &Cut, err: h2::Error) -> FarError {
    if let Some(reason) = cut.reason() {
        return FarError::Cut(reason);
    }
    match err.reason() {
        Some(code) if err.is_reset() => FarError::Reset(ErrorCode(code.into())),
        _ => FarError::Lost(io_error(err)),
    }
}

/// The library's error as one that says nothing of the library.
pub(super) fn io_error(err: h2::Error) -> io::Error {
    if err.is_io() {
        err.into_io()
            .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::other(err)
    }
}
