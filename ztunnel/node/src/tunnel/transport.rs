//! The bytes of one tunnel: HTTP/2 on one side, TLS on the other.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite};
use ztunnel_hbone::http2::{Connection, Lost};

use super::lane::Shared;
use crate::tls::TlsStream;

/// How much is received before the streams have their turn: it is still in the cache when they take it.
const AT_ONCE: usize = 256 * 1024;

/// Whoever has it must poll it, or nothing moves.
pub(super) struct Transport<IO> {
    connection: Shared,
    tls: TlsStream<IO>,
    received: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Transport<IO> {
    pub(super) fn new(connection: Connection, tls: TlsStream<IO>) -> Self {
        Self {
            connection: Rc::new(RefCell::new(connection)),
            tls,
            received: false,
        }
    }

    pub(super) fn connection(&self) -> &Shared {
        &self.connection
    }

    /// Whether something has come since this was asked last.
    pub(super) fn take_received(&mut self) -> bool {
        mem::take(&mut self.received)
    }

    /// Moves what there is to move. Ready when the tunnel has ended, in order or not; its streams have been told then.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is put into it from here on leaves with this very call.
        self.connection.borrow_mut().attend();
        let received = self.poll_receive(cx);
        let sent = match received {
            Ok(()) => self.poll_send(cx),
            Err(err) => Poll::Ready(Err(err)),
        };
        if let Poll::Ready(Err(err)) = sent {
            let lost = Lost::Transport(Arc::new(err));
            self.connection.borrow_mut().lose(lost.clone());
            return Poll::Ready(Err(lost.into()));
        }
        let is_done = self.connection.borrow().is_done();
        if is_done && sent.is_ready() {
            // All has been said: a peer that does not hear the last word has heard what matters.
            let _ = ready!(Pin::new(&mut self.tls).poll_shutdown(cx));
            return Poll::Ready(self.outcome());
        }
        self.connection.borrow_mut().set_driver(cx.waker());
        Poll::Pending
    }

    fn outcome(&self) -> io::Result<()> {
        match self.connection.borrow().lost() {
            None | Some(Lost::Closed) => Ok(()),
            Some(lost) => Err(lost.clone().into()),
        }
    }

    /// Receives what has come.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut received = 0;
        while self.connection.borrow().lost().is_none() {
            let mut tls = Pin::new(&mut self.tls);
            let bytes = match tls.as_mut().poll_fill_buf(cx) {
                Poll::Ready(bytes) => bytes?,
                Poll::Pending => break,
            };
            let len = bytes.len();
            let mut connection = self.connection.borrow_mut();
            if len == 0 {
                connection.lose(Lost::Closed);
                break;
            }
            // What is wrong with it ends the connection, which tells the peer.
            let _ = connection.receive(bytes);
            tls.consume(len);
            received += len;
            self.received = true;
            if received >= AT_ONCE {
                cx.waker().wake_by_ref();
                break;
            }
        }
        Ok(())
    }

    /// Sends what there is. Ready when that is all.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            connection, tls, ..
        } = self;
        let write = |bytes: &[io::IoSlice<'_>]| Pin::new(&mut *tls).poll_write_vectored(cx, bytes);
        ready!(connection.borrow_mut().poll_transmit(write))?;
        Pin::new(tls).poll_flush(cx)
    }
}

impl<IO> Drop for Transport<IO> {
    fn drop(&mut self) {
        self.connection.borrow_mut().lose(Lost::Closed);
    }
}
