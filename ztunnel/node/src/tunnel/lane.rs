//! A stream as its owner has it: dropped, it is closed.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use ztunnel_hbone::ErrorCode;
use ztunnel_hbone::http2::{Connection, Field, Fields, StreamError, StreamKey};

/// The HTTP/2 of one tunnel, for whoever moves its bytes and for its streams: all of them on one thread.
pub(super) type Shared = Rc<RefCell<Connection>>;

/// A stream. One that is dropped before both directions have ended is reset with CONNECT_ERROR.
pub(super) struct Lane {
    connection: Shared,
    key: StreamKey,
}

impl Lane {
    pub(super) fn new(connection: Shared, key: StreamKey) -> Self {
        Self { connection, key }
    }

    pub(super) fn key(&self) -> StreamKey {
        self.key
    }

    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Box<Fields>, StreamError>> {
        self.connection.borrow_mut().poll_answer(self.key, cx)
    }

    pub(super) fn answer(&mut self, head: &[Field<'_>], end: bool) -> Result<(), StreamError> {
        self.connection.borrow_mut().answer(self.key, head, end)
    }

    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.connection.borrow_mut().poll_data(self.key, cx)
    }

    pub(super) fn has_data(&self) -> bool {
        self.connection.borrow().has_data(self.key)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.connection.borrow().is_at_end(self.key)
    }

    pub(super) fn held(&self) -> usize {
        self.connection.borrow().held(self.key)
    }

    pub(super) fn release(&mut self, len: usize) {
        self.connection.borrow_mut().release(self.key, len);
    }

    pub(super) fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, StreamError>> {
        let mut connection = self.connection.borrow_mut();
        connection.poll_capacity(self.key, cx, wanted)
    }

    /// How much may be sent at once.
    pub(super) fn room(&self) -> usize {
        self.connection.borrow().room(self.key)
    }

    pub(super) fn yield_capacity(&mut self) {
        self.connection.borrow_mut().yield_capacity(self.key);
    }

    pub(super) fn send(&mut self, data: Bytes, end: bool) -> Result<(), StreamError> {
        self.connection.borrow_mut().send(self.key, data, end)
    }

    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.connection.borrow_mut().poll_broken(self.key, cx)
    }

    /// Nothing more is to be said: what the peer still has to say does not matter.
    pub(super) fn close(&mut self) {
        let mut connection = self.connection.borrow_mut();
        connection.close_stream(self.key, ErrorCode::NO_ERROR);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut connection = self.connection.borrow_mut();
        connection.close_stream(self.key, ErrorCode::CONNECT_ERROR);
    }
}

/// How a stream broke, for those to whom it is like any other connection.
pub(super) fn io_error(err: StreamError) -> io::Error {
    match err {
        StreamError::Lost(lost) => lost.into(),
        StreamError::NotTaken | StreamError::Reset(_) => io::Error::other(err),
    }
}
