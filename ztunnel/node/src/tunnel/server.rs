//! One incoming tunnel: accepted, then a source of requests.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use ztunnel_hbone::http2::{Connection, Fields};
use ztunnel_hbone::{Answer, Asked, BadConnect, Baggage, ErrorCode, Refusal};
use ztunnel_mesh::reason::Reason;

use super::client::TunnelFacts;
use super::cut::Cut;
use super::flow::{Arrivals, Backlog, Windows};
use super::keepalive::{Beat, Keepalive};
use super::lane::Lane;
use super::settings::TunnelSettings;
use super::stream::{Stream, far_error};
use super::transport::Transport;
use crate::relay::FarError;
use crate::task::Shutdown;
use crate::tls::{self, Credential, HandshakeError, RevocationWatch};

/// How long a client that is cut off has to take the news.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Why a connection to 15008 did not become a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("no tls with the client")]
    Tls(#[source] HandshakeError),
    #[error("no http/2 preface from the client within {after:?}")]
    Silent { after: Duration },
    #[error("no http/2 with the client")]
    Http2(#[source] io::Error),
}

impl AcceptError {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls(err) => err.reason(),
            Self::Silent { .. } | Self::Http2(_) => Reason::PeerProtocol,
        }
    }
}

/// How a tunnel ended before its time. Its streams are told by themselves.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("the client did not answer a PING within {after:?}")]
    Dead { after: Duration },
    #[error("the tunnel broke")]
    Broken(#[source] io::Error),
    #[error("the client's certificate was revoked")]
    Revoked,
}

/// An incoming tunnel.
pub struct Incoming {
    transport: Transport<TcpStream>,
    keepalive: Keepalive,
    ping_timeout: Duration,
    facts: TunnelFacts,
    revocation: RevocationWatch,
    cut: Cut,
    backlog: Backlog,
    windows: Windows,
}

/// Makes a tunnel of a TCP connection that came to 15008.
///
/// # Errors
/// When the client has no acceptable certificate, speaks something else, or takes too long.
pub async fn accept(
    tcp: TcpStream,
    credential: &Credential,
    settings: &TunnelSettings,
) -> Result<Box<Incoming>, AcceptError> {
    let after = settings.handshake_timeout;
    let tls = tls::accept(credential.server_config(), tcp, after)
        .await
        .map_err(AcceptError::Tls)?;
    let revocation = credential
        .watch_client(&tls.peer)
        .map_err(AcceptError::Tls)?;
    let facts = TunnelFacts::new(&tls);
    let connection = Connection::server(&settings.server());
    let mut transport = Transport::new(connection, tls.stream);
    timeout(after, begin(&mut transport))
        .await
        .map_err(|_| AcceptError::Silent { after })?
        .map_err(AcceptError::Http2)?;
    let backlog = Backlog::default();
    // It goes from hand to hand, and each future on the way would have room for it.
    Ok(Box::new(Incoming {
        transport,
        windows: Windows::new(settings, settings.served_streams, backlog.clone()),
        backlog,
        keepalive: Keepalive::new(settings),
        ping_timeout: settings.ping_timeout,
        facts,
        revocation,
        cut: Cut::default(),
    }))
}

/// Waits for what a client says first.
async fn begin(transport: &mut Transport<TcpStream>) -> io::Result<()> {
    poll_fn(|cx| match transport.poll(cx) {
        Poll::Ready(ended) => Poll::Ready(ended.and(Err(io::ErrorKind::UnexpectedEof.into()))),
        Poll::Pending if transport.connection().borrow().has_begun() => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

impl Incoming {
    /// Who the client is, and over what.
    #[must_use]
    pub fn facts(&self) -> &TunnelFacts {
        &self.facts
    }

    /// Moves the tunnel's frames and gives its requests to `serve`, until the client closes it. On `shutdown` the
    /// client is told to make no more streams; those that are open are finished.
    ///
    /// # Errors
    /// When it broke.
    pub async fn run(
        mut self: Box<Self>,
        shutdown: &Shutdown,
        mut serve: impl FnMut(Box<Request>),
    ) -> Result<(), TunnelError> {
        let mut stopping = pin!(shutdown.started());
        let mut stopped = false;
        let ended = poll_fn(|cx| {
            if self.revocation.poll_revoked(cx).is_ready() {
                return Poll::Ready(Err(TunnelError::Revoked));
            }
            if !stopped && stopping.as_mut().poll(cx).is_ready() {
                stopped = true;
                self.transport.connection().borrow_mut().go_away();
            }
            let moved = self.transport.poll(cx);
            // A request may have come with the end.
            self.serve_requests(&mut serve);
            if let Poll::Ready(ended) = moved {
                return Poll::Ready(ended.map_err(TunnelError::Broken));
            }
            let mut connection = self.transport.connection().borrow_mut();
            self.windows.adapt(&mut *connection, cx.waker());
            match self.keepalive.poll(cx, &mut connection) {
                Poll::Ready(Beat::Dead) => {
                    // There is nobody to say good-bye to. The streams learn it when the connection is dropped.
                    Poll::Ready(Err(TunnelError::Dead {
                        after: self.ping_timeout,
                    }))
                }
                Poll::Ready(Beat::Sent | Beat::Late) => {
                    self.windows.rest();
                    // The timer starts with the next poll.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        if let Err(TunnelError::Revoked) = ended {
            self.cut_off().await;
        }
        ended
    }

    fn serve_requests(&self, serve: &mut impl FnMut(Box<Request>)) {
        loop {
            let connection = self.transport.connection();
            let Some((key, head)) = connection.borrow_mut().accept() else {
                break;
            };
            let lane = Lane::new(Rc::clone(connection), key);
            serve(Request::new(head, lane, self.cut.clone(), &self.backlog));
        }
    }

    /// Ends all streams at once. The client gets a GOAWAY without an error code, as it would from other
    /// implementations, and a moment to take it.
    async fn cut_off(&mut self) {
        self.cut.set(Reason::PeerRevoked);
        let connection = self.transport.connection();
        connection.borrow_mut().abort(ErrorCode::NO_ERROR);
        let closed = poll_fn(|cx| self.transport.poll(cx));
        // It ends now, however it takes it.
        drop(timeout(LAST_WORD, closed).await);
    }
}

/// A request for a stream, to be opened or refused. Dropping it resets the stream.
pub struct Request {
    asked: Result<Asked, BadConnect>,
    /// What comes before it is opened waits, too.
    early: Arrivals,
    cut: Cut,
}

impl Request {
    fn new(head: Fields, lane: Lane, cut: Cut, backlog: &Backlog) -> Box<Self> {
        let mut early = Arrivals::new(lane, backlog);
        early.hold();
        // It goes through several hands, and each would have room for it.
        Box::new(Self {
            early,
            asked: Asked::parse(head),
            cut,
        })
    }

    /// What the client wants.
    ///
    /// # Errors
    /// When it is not a CONNECT.
    pub fn asked(&self) -> Result<&Asked, &BadConnect> {
        self.asked.as_ref()
    }

    /// Whether the client has said something already.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.early.lane.has_data()
    }

    /// Resolves when the client does not want it any more.
    pub async fn canceled(&mut self) -> FarError {
        let broken = poll_fn(|cx| self.early.lane.poll_broken(cx)).await;
        far_error(&self.cut, broken)
    }

    /// Tells the client that the app has accepted, and about `own` workload.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn open(self: Box<Self>, own: Option<&Baggage<'_>>) -> Result<Stream, FarError> {
        let Self { mut early, cut, .. } = *self;
        Answer::open(own, |head| early.lane.answer(head, false))
            .map_err(|err| far_error(&cut, err))?;
        early.unhold();
        Ok(Stream::new(early, cut, None, false))
    }

    /// Tells the client no.
    pub fn refuse(mut self: Box<Self>, refusal: Refusal) {
        let lane = &mut self.early.lane;
        // A client that is gone needs no answer.
        let _ = refusal.answer(|head| lane.answer(head, true));
        lane.close();
    }
}
