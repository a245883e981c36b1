//! A tunnel inside of a stream of another tunnel: HBONE in HBONE. The outer tunnel ends at a network gateway, which
//! passes the bytes of its streams on; the inner one ends at whoever the gateway chose, and is for one connection.
//!
//! Invariants: nothing is buffered here but the chunk in hand: the outer stream's window is given back as the inner
//! tunnel takes the bytes, and no more is sent than the outer stream has room for. The inner tunnel ends with its only
//! stream, and the outer stream with the inner tunnel: in order if that ended in order, otherwise with a reset. What
//! cuts the outer tunnel cuts the inner one, for the same reason.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout};
use ztunnel_hbone::Received;
use ztunnel_mesh::reason::Reason;

use super::client::{DialError, NoSlot, Slot, handshake};
use super::cut::Cut;
use super::open::{OpenError, failure};
use super::pool::Destination;
use super::settings::TunnelSettings;
use super::stream::Stream;
use crate::relay::{Far as _, FarError};
use crate::task::{LocalTasks, Shutdown};
use crate::telemetry::{Counting, PoolMetrics};

/// Makes a tunnel inside of `outer`, to one of the identities of `to`. It is run by a task in `tasks`.
pub(super) async fn dial(
    outer: Stream,
    to: &Destination,
    settings: &TunnelSettings,
    tasks: &LocalTasks,
    shutdown: &Shutdown,
    metrics: &Arc<PoolMetrics>,
) -> Result<Slot, OpenError> {
    let peer = to.peer;
    let settings = TunnelSettings {
        max_streams: 1,
        ..settings.clone()
    };
    let cut = Cut::inside(outer.cut());
    let pipe = Pipe::new(outer);
    let own = pipe.clone();
    let expected = Arc::clone(&to.expected);
    // Boxed: the futures of a TLS handshake are large.
    let shaken = Box::pin(handshake(
        peer,
        pipe,
        &to.credential,
        expected,
        &settings,
        cut.clone(),
        metrics,
    ));
    let began = Instant::now();
    let (tunnel, driver) = shaken.await.map_err(|err| {
        metrics.dial_failed(err.reason(), err.is_untracked());
        match cut.reason() {
            Some(reason) => OpenError::Cut { peer, reason },
            None => OpenError::Dial(Arc::new(err)),
        }
    })?;
    metrics.dial_seconds.observe(began.elapsed().as_secs_f64());
    let open = Counting::one(&metrics.open);
    tunnel.is_for_one();
    let slot = tunnel.slot().map_err(|err| match err {
        NoSlot::Broken(err) => failure(peer, err),
        NoSlot::Full | NoSlot::TooSoon => OpenError::Closing { peer },
    })?;
    let (weak, shutdown) = (Rc::downgrade(&tunnel), shutdown.clone());
    let limit = settings.ping_timeout;
    tasks.spawn(Box::pin(async move {
        driver.run(weak, shutdown, || {}).await;
        drop(open);
        // Late is as good as never: the outer stream is reset.
        let _ = timeout(limit, own.ended()).await;
    }));
    Ok(slot)
}

/// Whether it is the outer stream that broke, and so nobody who could be reached inside of it.
pub(super) fn reason(err: &DialError) -> Option<Reason> {
    let source = match err {
        DialError::Tls { source, .. } => source.io()?,
        _ => return None,
    };
    match source.get_ref()?.downcast_ref::<FarError>()? {
        FarError::Cut(reason) => Some(*reason),
        FarError::Reset(_) | FarError::Broken(_) | FarError::Lost(_) => {
            Some(Reason::PeerUnreachable)
        }
    }
}

/// The outer stream's end as whatever goes through it sees it.
fn io_error(err: FarError) -> io::Error {
    let kind = match &err {
        FarError::Reset(_) => io::ErrorKind::ConnectionReset,
        FarError::Broken(source) | FarError::Lost(source) => source.kind(),
        FarError::Cut(_) => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, err)
}

/// A stream as a sequence of bytes in each direction. Clones are the same pipe.
#[derive(Clone)]
pub(super) struct Pipe(Rc<RefCell<Ends>>);

struct Ends {
    stream: Stream,
    /// The rest of a chunk that came.
    unread: Bytes,
    /// The peer will send no more.
    received_end: bool,
    sent_end: bool,
}

impl Pipe {
    pub(super) fn new(stream: Stream) -> Self {
        Self(Rc::new(RefCell::new(Ends {
            stream,
            unread: Bytes::new(),
            received_end: false,
            sent_end: false,
        })))
    }

    /// Waits for the end of what the peer sends, if ours was said in order.
    async fn ended(self) {
        poll_fn(|cx| self.0.borrow_mut().poll_drained(cx)).await;
    }
}

impl Ends {
    /// There is something in `unread` unless the peer's end has come.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.received_end {
            match ready!(self.stream.poll_data(cx)) {
                Ok(Some(data)) => self.unread = data,
                Ok(None) => self.received_end = true,
                Err(FarError::Reset(code)) if code.received() == Received::End => {
                    self.received_end = true;
                }
                Err(err) => return Poll::Ready(Err(io_error(err))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn consume(&mut self, len: usize) {
        self.unread.advance(len);
        self.stream.release(len);
    }

    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sent_end && !self.received_end {
            if ready!(self.poll_fill(cx)).is_err() {
                break;
            }
            self.consume(self.unread.len());
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut ends = self.0.borrow_mut();
        ready!(ends.poll_fill(cx))?;
        let len = ends.unread.len().min(buf.remaining());
        buf.put_slice(&ends.unread[..len]);
        ends.consume(len);
        if !ends.unread.is_empty() {
            ends.stream.stop();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut ends = self.0.borrow_mut();
        let room = ready!(ends.stream.poll_capacity(cx, buf.len())).map_err(io_error)?;
        let data = Bytes::copy_from_slice(&buf[..room]);
        ends.stream.send(data).map_err(io_error)?;
        Poll::Ready(Ok(room))
    }

    /// All of it is the outer tunnel's by now. Whatever room is left is for others.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().stream.yield_capacity();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.0.borrow_mut();
        if !ends.sent_end {
            ends.stream.finish().map_err(io_error)?;
            ends.sent_end = true;
        }
        Poll::Ready(Ok(()))
    }
}
