//! Moves the bytes of one connection until both directions have ended or something breaks.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use pin_project_lite::pin_project;
use tokio::net::tcp::ReadHalf;
use ztunnel_hbone::Received;
use ztunnel_mesh::reason::Reason;

use super::buffer::{self, LARGEST_READ};
use super::far::{Far, FarError};
use super::tcp::{
    Halves, ResetOnDrop, TcpFar, broken, is_read_closed, poll_write_all, shutdown_write,
};
use crate::telemetry::Traffic;

/// How a relayed connection ended before its time. Both ends have been reset.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the app's connection broke")]
    App(#[source] io::Error),
    #[error(transparent)]
    Far(FarError),
}

impl RelayError {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::App(_) => Reason::Reset,
            Self::Far(err) => err.reason(),
        }
    }
}

/// Joins the app with a stream of a tunnel. Fails when one of them broke; otherwise both directions have ended in order,
/// and the app's connection is to be closed.
///
/// Made of halves, since an async function that splits the app has room for all of its arguments twice, for as long as
/// the connection lasts.
pub fn join<'a>(
    app: &'a mut Halves<'a>,
    far: impl Far + 'a,
    traffic: &'a Traffic,
) -> impl Future<Output = Result<(), RelayError>> + 'a {
    Relaying {
        app_broken: broken(app.write.as_ref()),
        relay: Relay {
            app: &mut app.read,
            far,
            received: None,
            out: Out::Idle,
            into: In::Going,
            traffic,
        },
    }
}

/// Joins the app with another TCP connection.
///
/// # Errors
/// When one of them broke.
pub async fn join_tcp(
    app: &mut ResetOnDrop,
    far: &mut ResetOnDrop,
    traffic: &Traffic,
) -> Result<(), RelayError> {
    {
        let (read, write) = far.get_mut().split();
        let tcp = write.as_ref();
        let broken = pin!(broken(tcp));
        let far = TcpFar {
            tcp,
            read,
            broken,
            unsent: Bytes::new(),
        };
        let mut app = app.split();
        join(&mut app, far, traffic).await?;
    }
    app.close();
    far.close();
    Ok(())
}

/// Sends what was taken from an app before it was joined.
///
/// # Errors
/// When the far end broke.
pub async fn say(far: &mut impl Far, mut words: Bytes) -> Result<(), RelayError> {
    while !words.is_empty() {
        let room = poll_fn(|cx| far.poll_capacity(cx, words.len())).await;
        let piece = words.split_to(room.map_err(RelayError::Far)?);
        far.send(piece).map_err(RelayError::Far)?;
    }
    Ok(())
}

pin_project! {
    /// What a connection is for as long as it lasts.
    struct Relaying<'a, F, B> {
        relay: Relay<'a, F>,
        #[pin]
        app_broken: B,
    }
}

impl<F: Far, B: Future<Output = io::Error>> Future for Relaying<'_, F, B> {
    type Output = Result<(), RelayError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let relay = this.relay;
        // What has arrived from the peer goes to the app before a reset is looked at.
        if let Poll::Ready(Err(err)) = relay.poll_in(cx) {
            return Poll::Ready(Err(err));
        }
        if let Poll::Ready(Err(err)) = relay.poll_out(cx) {
            return Poll::Ready(Err(err));
        }
        if matches!((&relay.out, &relay.into), (Out::Done, In::Done)) {
            return Poll::Ready(Ok(()));
        }
        this.app_broken
            .poll(cx)
            .map(|err| Err(RelayError::App(err)))
    }
}

/// The direction from the app to the far end.
enum Out {
    /// Waits for the app; holds nothing.
    Idle,
    /// The app has something to say: waits for room.
    Readable,
    Done,
}

/// The direction from the far end to the app.
enum In {
    Going,
    Done,
}

struct Relay<'a, F> {
    app: &'a mut ReadHalf<'a>,
    far: F,
    /// Not written to the app yet.
    received: Option<Bytes>,
    out: Out,
    into: In,
    traffic: &'a Traffic,
}

impl<F: Far> Relay<'_, F> {
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        loop {
            match (&self.into, &mut self.received) {
                (In::Done, _) => return Poll::Ready(Ok(())),
                (In::Going, Some(data)) => {
                    let (far, traffic) = (&mut self.far, self.traffic);
                    let last = far.is_at_end();
                    let written = poll_write_all(self.app.as_ref(), cx, data, last, |taken| {
                        far.release(taken);
                        traffic.add_received(taken);
                    });
                    let Poll::Ready(written) = written else {
                        self.far.stop();
                        return Poll::Pending;
                    };
                    written.map_err(RelayError::App)?;
                    self.received = None;
                }
                (In::Going, None) => match ready!(self.far.poll_data(cx)) {
                    Ok(Some(data)) => self.received = Some(data),
                    Ok(None) => self.end_in()?,
                    Err(err) if is_end(&err) => self.end_in()?,
                    Err(err) => return Poll::Ready(Err(RelayError::Far(err))),
                },
            }
        }
    }

    fn end_in(&mut self) -> Result<(), RelayError> {
        // When the app has ended already its connection is closed next, which says the same.
        if !matches!(self.out, Out::Done) {
            shutdown_write(self.app.as_ref()).map_err(RelayError::App)?;
        }
        self.into = In::Done;
        Ok(())
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        match ready!(self.poll_out_until_done(cx)) {
            Ok(()) => {}
            // Nobody listens any more. Whatever else the app says meets a closed socket.
            Err(RelayError::Far(err)) if is_end(&err) => {}
            Err(err) => return Poll::Ready(Err(err)),
        }
        self.out = Out::Done;
        Poll::Ready(Ok(()))
    }

    fn poll_out_until_done(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        loop {
            match self.out {
                Out::Done => return Poll::Ready(Ok(())),
                Out::Idle => {
                    ready!(self.far.poll_flush(cx)).map_err(RelayError::Far)?;
                    match self.app.as_ref().poll_read_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(RelayError::App)?,
                        Poll::Pending => {
                            self.far.yield_capacity();
                            return self
                                .far
                                .poll_broken(cx)
                                .map(|err| Err(RelayError::Far(err)));
                        }
                    }
                    self.out = Out::Readable;
                }
                Out::Readable => {
                    let room = ready!(self.far.poll_capacity(cx, LARGEST_READ))
                        .map_err(RelayError::Far)?;
                    let read = buffer::poll_read(Pin::new(&mut *self.app), cx, room);
                    let Poll::Ready(read) = read else {
                        // Readiness was stale.
                        self.out = Out::Idle;
                        continue;
                    };
                    let data = read.map_err(RelayError::App)?;
                    if data.is_empty() {
                        self.far.finish().map_err(RelayError::Far)?;
                        return Poll::Ready(Ok(()));
                    }
                    self.traffic.add_sent(data.len());
                    let rest = match self.poll_rest(cx, room - data.len()) {
                        Poll::Ready(rest) => Some(rest.map_err(RelayError::App)?),
                        Poll::Pending => None,
                    };
                    if rest.as_ref().is_some_and(Bytes::is_empty) {
                        self.far.send_last(data).map_err(RelayError::Far)?;
                        return Poll::Ready(Ok(()));
                    }
                    self.far.send(data).map_err(RelayError::Far)?;
                    if let Some(rest) = rest {
                        self.traffic.add_sent(rest.len());
                        self.far.send(rest).map_err(RelayError::Far)?;
                    }
                    self.out = Out::Idle;
                }
            }
        }
    }

    /// What follows data if the app is known to have ended: its end, so that both are told together.
    fn poll_rest(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<Bytes>> {
        if !F::QUEUES || room == 0 {
            return Poll::Pending;
        }
        // Of a connection that is not readable any more nothing else is known.
        ready!(self.app.as_ref().poll_read_ready(cx))?;
        if !is_read_closed(self.app.as_ref()) {
            return Poll::Pending;
        }
        buffer::poll_read(Pin::new(&mut self.app), cx, room)
    }
}

/// Whether this is how some peers end a stream in order.
fn is_end(err: &FarError) -> bool {
    matches!(err, FarError::Reset(code) if code.received() == Received::End)
}
