//! A TLS session as a stream of bytes, made for bulk: data is sealed straight from where it is, opened where it was received,
//! and eight records go through one system call. rustls' own stream allocates and copies each record on its way out, copies
//! twice on the way in, and receives one record at a time (`--bench tls` compares the two).
//!
//! Invariants:
//! - What was taken from the caller is sent by `poll_flush` at the latest; small writes in between share a record.
//! - The end of the peer's data is its close_notify. A connection that ends without one is an error.
//! - After an error there is no more data, in either direction.
//! - Bounded: a buffer for each direction while something is on its way, the beginning of one record otherwise.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Error;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::{self, Buffer};
use super::record::{ContentType, MAX_PLAINTEXT, Opener};
use super::session::{Received, Session};

/// A session, and what it goes through.
pub struct TlsStream<IO> {
    io: IO,
    /// The keys make it large, and streams are moved before they are used.
    session: Box<Session>,
    incoming: Incoming,
    outgoing: Outgoing,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The peer has said that it sends no more.
    Ended,
    Broken,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// `data` and `records` came during the handshake already, opened and not.
    pub(super) fn new(io: IO, session: Session, data: Vec<u8>, records: Vec<u8>) -> Self {
        Self {
            io,
            session: Box::new(session),
            incoming: Incoming::new(data, records),
            outgoing: Outgoing::default(),
            state: State::Open,
        }
    }

    /// Tells the peer about it, if that can be done at once.
    fn break_off(&mut self, cx: &mut Context<'_>, error: Error) -> io::Error {
        self.state = State::Broken;
        if self.outgoing.abort(&mut self.session, &error).is_ok() {
            let _ = self.outgoing.poll_send(cx, &mut self.io);
        }
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Ready when there is something unread, or when nothing follows.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.incoming.unread().is_empty() {
            match self.state {
                State::Open => {}
                State::Ended => return Poll::Ready(Ok(())),
                State::Broken => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
            match self.incoming.open(&mut self.session) {
                Ok(Some(Received::Data(_) | Received::Nothing)) => continue,
                Ok(Some(Received::End)) => {
                    self.state = State::Ended;
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    let error = self.break_off(cx, error);
                    return Poll::Ready(Err(error));
                }
            }
            match self.incoming.poll_receive(cx, &mut self.io) {
                Poll::Ready(Ok(0)) => {
                    self.state = State::Broken;
                    let what = "the peer closed the connection without a tls close_notify";
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, what);
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.incoming.rest();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.state == State::Broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            match self.outgoing.take(&mut self.session, bufs) {
                Ok(0) => ready!(self.poll_send(cx))?,
                Ok(taken) => return Poll::Ready(Ok(taken)),
                Err(error) => {
                    let error = self.break_off(cx, error);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Sends all there is.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = self.outgoing.finish(&mut self.session) {
            let error = self.break_off(cx, error);
            return Poll::Ready(Err(error));
        }
        self.outgoing.poll_send(cx, &mut self.io)
    }
}

/// What came is opened where it was received, and read from there.
impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncBufRead for TlsStream<IO> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        let unread = this.poll_unread(cx);
        // The peer has asked for another key: there may be nothing to write for a long time. Once, however often it asks
        // before that is sent.
        let is_due = this.state == State::Open && this.session.wants_update();
        if is_due && this.outgoing.is_empty() {
            if let Err(error) = this.outgoing.update(&mut this.session) {
                return Poll::Ready(Err(this.break_off(cx, error)));
            }
            if let Poll::Ready(Err(error)) = this.outgoing.poll_send(cx, &mut this.io) {
                return Poll::Ready(Err(error));
            }
        }
        ready!(unread)?;
        Poll::Ready(Ok(this.incoming.unread()))
    }

    fn consume(self: Pin<&mut Self>, len: usize) {
        self.get_mut().incoming.consume(len);
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unread = ready!(self.as_mut().poll_fill_buf(cx))?;
        let len = unread.len().min(buf.remaining());
        buf.put_slice(&unread[..len]);
        self.consume(len);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_take(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Err(error) = this.outgoing.close(&mut this.session) {
            let error = this.break_off(cx, error);
            return Poll::Ready(Err(error));
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

/// What has come.
struct Incoming {
    buffer: Option<Buffer>,
    /// Of the buffer, what was opened and not given yet.
    data: (usize, usize),
    /// Of the buffer, what was received and not opened yet.
    records: (usize, usize),
    /// The same for a stream that waits and so has no buffer: the beginning of a record.
    kept: Vec<u8>,
    /// What was opened before there was a stream.
    early: Vec<u8>,
}

impl Incoming {
    fn new(data: Vec<u8>, records: Vec<u8>) -> Self {
        Self {
            buffer: None,
            data: (0, 0),
            records: (0, 0),
            kept: records,
            early: data,
        }
    }

    /// What was opened and not read.
    fn unread(&self) -> &[u8] {
        if !self.early.is_empty() {
            return &self.early;
        }
        let (begin, end) = self.data;
        let buffer = self.buffer.as_ref();
        buffer.map_or(&[], |buffer| &buffer[begin..end])
    }

    fn consume(&mut self, len: usize) {
        if self.early.is_empty() {
            self.data.0 = (self.data.0 + len).min(self.data.1);
        } else {
            self.early.drain(..len.min(self.early.len()));
        }
    }

    /// Opens the next record, if all of it is there and what came before was given.
    fn open(&mut self, session: &mut Session) -> Result<Option<Received>, Error> {
        self.fetch();
        let Some(buffer) = &mut self.buffer else {
            return Ok(None);
        };
        let (begin, end) = self.records;
        let received = &mut buffer[begin..end];
        let Some(len) = Opener::record_len(received)? else {
            return Ok(None);
        };
        let Some(record) = received.get_mut(..len) else {
            return Ok(None);
        };
        let opened = session.receive(record)?;
        self.records.0 += len;
        if let Received::Data(inside) = &opened {
            self.data = (begin + inside.start, begin + inside.end);
        }
        Ok(Some(opened))
    }

    /// Has what was kept in a buffer again.
    fn fetch(&mut self) {
        if self.kept.is_empty() || self.buffer.is_some() {
            return;
        }
        let kept = std::mem::take(&mut self.kept);
        let mut buffer = Buffer::take();
        buffer[..kept.len()].copy_from_slice(&kept);
        self.buffer = Some(buffer);
        self.records = (0, kept.len());
    }

    /// Receives what comes after the beginning of a record: how much there is now. To be called when all else was opened
    /// and given.
    fn poll_receive<IO: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
    ) -> Poll<io::Result<usize>> {
        let buffer = self.buffer.get_or_insert_with(Buffer::take);
        let (begin, end) = self.records;
        buffer.copy_within(begin..end, 0);
        self.records = (0, end - begin);
        self.data = (0, 0);
        let mut room = ReadBuf::new(&mut buffer[end - begin..]);
        ready!(Pin::new(io).poll_read(cx, &mut room))?;
        let received = room.filled().len();
        self.records.1 += received;
        Poll::Ready(Ok(received))
    }

    /// Lets go of the buffer until more comes.
    fn rest(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            let (begin, end) = self.records;
            self.kept = buffer[begin..end].to_vec();
        }
        self.records = (0, 0);
        self.data = (0, 0);
    }
}

/// What is to be sent.
#[derive(Default)]
struct Outgoing {
    buffer: Option<Buffer>,
    sent: usize,
    /// End of what is sealed.
    sealed: usize,
    /// Content of the record after that, which is not sealed yet.
    open: usize,
    closed: bool,
}

impl Outgoing {
    /// Takes as much as there is room for.
    fn take(&mut self, session: &mut Session, bufs: &[IoSlice<'_>]) -> Result<usize, Error> {
        let mut taken = 0;
        for buf in bufs {
            let mut rest = &buf[..];
            while !rest.is_empty() {
                let len = self.take_some(session, rest)?;
                if len == 0 {
                    return Ok(taken);
                }
                taken += len;
                rest = &rest[len..];
            }
        }
        Ok(taken)
    }

    /// Takes what goes into one record.
    fn take_some(&mut self, session: &mut Session, plain: &[u8]) -> Result<usize, Error> {
        if self.room() == 0 {
            return Ok(0);
        }
        if self.open == 0 && session.wants_update() {
            self.update(session)?;
        }
        let room = self.room();
        let sealer = session.sealer();
        let buffer = self.buffer.get_or_insert_with(Buffer::take);
        let room = room.saturating_sub(sealer.overhead() + self.open);
        if self.open == 0 && plain.len() >= MAX_PLAINTEXT && room >= MAX_PLAINTEXT {
            let len = MAX_PLAINTEXT + sealer.overhead();
            let record = &mut buffer[self.sealed..self.sealed + len];
            sealer.seal(
                ContentType::APPLICATION_DATA,
                &plain[..MAX_PLAINTEXT],
                record,
            )?;
            self.sealed += len;
            return Ok(MAX_PLAINTEXT);
        }
        let len = plain.len().min(room).min(MAX_PLAINTEXT - self.open);
        let at = self.sealed + sealer.before() + self.open;
        buffer[at..at + len].copy_from_slice(&plain[..len]);
        self.open += len;
        if self.open == MAX_PLAINTEXT {
            self.finish(session)?;
        }
        Ok(len)
    }

    /// For records about data. Those about something else still fit when there is none: at most one of each kind.
    fn room(&self) -> usize {
        const SPARE: usize = 128;
        (buffer::SIZE - SPARE).saturating_sub(self.sealed)
    }

    fn is_empty(&self) -> bool {
        self.sealed == 0 && self.open == 0
    }

    /// Seals what is not yet.
    fn finish(&mut self, session: &mut Session) -> Result<(), Error> {
        if let (Some(buffer), 1..) = (&mut self.buffer, self.open) {
            let sealer = session.sealer();
            let len = self.open + sealer.overhead();
            let record = &mut buffer[self.sealed..self.sealed + len];
            sealer.seal_in_place(ContentType::APPLICATION_DATA, record)?;
            self.sealed += len;
            self.open = 0;
        }
        Ok(())
    }

    fn update(&mut self, session: &mut Session) -> Result<(), Error> {
        self.say(session, |session, room| session.update(room))
    }

    fn abort(&mut self, session: &mut Session, error: &Error) -> Result<(), Error> {
        self.say(session, |session, room| session.abort(error, room))
    }

    fn close(&mut self, session: &mut Session) -> Result<(), Error> {
        if !self.closed {
            self.closed = true;
            self.say(session, Session::close)?;
        }
        Ok(())
    }

    /// Appends a record about something else than data, for which there is always room left by data.
    fn say(
        &mut self,
        session: &mut Session,
        say: impl FnOnce(&mut Session, &mut [u8]) -> Result<usize, Error>,
    ) -> Result<(), Error> {
        self.finish(session)?;
        let buffer = self.buffer.get_or_insert_with(Buffer::take);
        self.sealed += say(session, &mut buffer[self.sealed..])?;
        Ok(())
    }

    /// Sends what is sealed, all of it.
    fn poll_send<IO: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
    ) -> Poll<io::Result<()>> {
        let Some(buffer) = &self.buffer else {
            return Poll::Ready(Ok(()));
        };
        while self.sent < self.sealed {
            let rest = &buffer[self.sent..self.sealed];
            match ready!(Pin::new(&mut *io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        if self.open == 0 {
            self.buffer = None;
            (self.sent, self.sealed) = (0, 0);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
