//! TCP connections as the relay needs them: resets are noticed, and are what happens by default.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use ztunnel_sys::socket;

use super::buffer::{self, LARGEST_READ};
use super::far::{Far, FarError};

/// A TCP connection that is reset when it is dropped before both sides agreed on its end, so that its peer takes
/// neither a refusal nor a cut for an orderly close.
#[derive(Debug)]
pub struct ResetOnDrop {
    tcp: TcpStream,
    armed: bool,
}

impl ResetOnDrop {
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, armed: true }
    }

    /// Both directions have ended: what is still to be sent will be sent.
    pub fn close(&mut self) {
        self.armed = false;
    }

    /// Sends what comes before all that is relayed.
    ///
    /// # Errors
    /// As `write(2)`; the app may have got a part of it then.
    pub async fn send_first(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tcp.write_all(bytes).await
    }

    /// For looking at it.
    #[must_use]
    pub fn get(&self) -> &TcpStream {
        &self.tcp
    }

    /// For joining it with a far end.
    #[must_use]
    pub fn split(&mut self) -> Halves<'_> {
        let (read, write) = self.tcp.split();
        Halves { read, write }
    }

    pub(super) fn get_mut(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }
}

/// The two directions of a connection.
#[derive(Debug)]
pub struct Halves<'a> {
    pub(super) read: ReadHalf<'a>,
    pub(super) write: WriteHalf<'a>,
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if self.armed {
            // It fails only on what is no longer a connection.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

/// Resolves when the connection was reset or otherwise broke, whether or not anyone reads or writes.
pub async fn broken(tcp: &TcpStream) -> io::Error {
    loop {
        match tcp.ready(Interest::ERROR).await {
            Ok(_) => match tcp.take_error() {
                Ok(Some(err)) | Err(err) => return err,
                // A read or a write was told first. Forget the event, so that waiting does not spin.
                Ok(None) => {
                    let _ = tcp.try_io(Interest::ERROR, || {
                        Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock))
                    });
                }
            },
            Err(err) => return err,
        }
    }
}

/// Whether the other side has sent FIN, as far as that is known without a system call.
pub(super) fn is_read_closed(tcp: &TcpStream) -> bool {
    let ready = pin!(tcp.ready(Interest::READABLE));
    let known = ready.poll(&mut Context::from_waker(Waker::noop()));
    matches!(known, Poll::Ready(Ok(ready)) if ready.is_read_closed())
}

/// Sends FIN; a connection that is gone already needs none.
pub(super) fn shutdown_write(tcp: &TcpStream) -> io::Result<()> {
    match socket::shutdown_write(tcp.as_fd()) {
        Err(err) if err.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}

/// A TCP connection as the far end: what passes through without a tunnel.
pub(super) struct TcpFar<'a, B> {
    pub(super) tcp: &'a TcpStream,
    pub(super) read: ReadHalf<'a>,
    pub(super) broken: Pin<&'a mut B>,
    /// What the kernel did not take yet.
    pub(super) unsent: Bytes,
}

impl<B: Future<Output = io::Error>> Far for TcpFar<'_, B> {
    const QUEUES: bool = false;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, FarError>> {
        // First of all wait: a buffer is taken only when there is something to put into it.
        ready!(self.tcp.poll_read_ready(cx)).map_err(FarError::Broken)?;
        let read = ready!(buffer::poll_read(
            Pin::new(&mut self.read),
            cx,
            LARGEST_READ
        ));
        let bytes = read.map_err(FarError::Broken)?;
        Poll::Ready(Ok((!bytes.is_empty()).then_some(bytes)))
    }

    fn is_at_end(&self) -> bool {
        false
    }

    fn release(&mut self, _: usize) {}

    fn stop(&mut self) {}

    fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, FarError>> {
        ready!(self.poll_flush(cx))?;
        ready!(self.tcp.poll_write_ready(cx)).map_err(FarError::Broken)?;
        Poll::Ready(Ok(wanted))
    }

    fn yield_capacity(&mut self) {}

    fn send(&mut self, data: Bytes) -> Result<(), FarError> {
        self.unsent = data;
        match self.tcp.try_write(&self.unsent) {
            Ok(written) => self.unsent.advance(written),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(FarError::Broken(err)),
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FarError>> {
        ready!(poll_write_all(
            self.tcp,
            cx,
            &mut self.unsent,
            false,
            |_| {}
        ))
        .map_err(FarError::Broken)?;
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self) -> Result<(), FarError> {
        shutdown_write(self.tcp).map_err(FarError::Broken)
    }

    fn send_last(&mut self, data: Bytes) -> Result<(), FarError> {
        self.send(data)?;
        self.finish()
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<FarError> {
        self.broken.as_mut().poll(cx).map(FarError::Broken)
    }
}

/// Writes until nothing is left, telling of every part that was taken. When it is the `last` the kernel may keep it until
/// the end is said, which has to come next: so both go in one packet.
pub(super) fn poll_write_all(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    data: &mut Bytes,
    last: bool,
    mut taken: impl FnMut(usize),
) -> Poll<io::Result<()>> {
    while !data.is_empty() {
        ready!(tcp.poll_write_ready(cx))?;
        let written = match last {
            true => tcp.try_io(Interest::WRITABLE, || socket::send_more(tcp.as_fd(), data)),
            false => tcp.try_write(data),
        };
        match written {
            Ok(written) => {
                data.advance(written);
                taken(written);
            }
            // The readiness is cleared now: the next poll waits.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Poll::Ready(Err(err)),
        }
    }
    // Nothing of the buffer it came from is kept.
    *data = Bytes::new();
    Poll::Ready(Ok(()))
}
