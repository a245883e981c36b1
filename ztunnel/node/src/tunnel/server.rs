//! One incoming tunnel: accepted, then a source of requests.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use tokio::net::TcpStream;
use tokio::time::timeout;
use ztunnel_hbone::{Answer, Asked, BadConnect, Baggage, ErrorCode, Refusal};
use ztunnel_mesh::reason::Reason;

use super::client::TunnelFacts;
use super::cut::Cut;
use super::flow::{Arrivals, Backlog, Windowed, Windows};
use super::keepalive::{Beat, Keepalive};
use super::settings::TunnelSettings;
use super::stream::{Stream, far_error, io_error};
use crate::relay::FarError;
use crate::task::Shutdown;
use crate::tls::{self, Credential, HandshakeError, RevocationWatch, TlsStream};

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
    connection: Connection<TlsStream<TcpStream>, Bytes>,
    keepalive: Option<Keepalive>,
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
    let mut connection = timeout(after, settings.server().handshake(tls.stream))
        .await
        .map_err(|_| AcceptError::Silent { after })?
        .map_err(|err| AcceptError::Http2(io_error(err)))?;
    let keepalive = connection
        .ping_pong()
        .map(|ping| Keepalive::new(ping, settings));
    let backlog = Backlog::default();
    // It goes from hand to hand, and each future on the way would have room for it.
    Ok(Box::new(Incoming {
        connection,
        windows: Windows::new(settings, settings.served_streams, backlog.clone()),
        backlog,
        keepalive,
        ping_timeout: settings.ping_timeout,
        facts,
        revocation,
        cut: Cut::default(),
    }))
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
                self.connection.graceful_shutdown();
            }
            loop {
                match self.connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let cut = self.cut.clone();
                        serve(Request::new(request, respond, cut, &self.backlog));
                    }
                    Poll::Ready(Some(Err(err))) => {
                        return Poll::Ready(Err(TunnelError::Broken(io_error(err))));
                    }
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => break,
                }
            }
            if self.windows.adapt(&mut self.connection, cx.waker()) {
                cx.waker().wake_by_ref();
            }
            match self.keepalive.as_mut().map(|keepalive| keepalive.poll(cx)) {
                Some(Poll::Ready(Beat::Dead)) => {
                    // There is nobody to say good-bye to. The streams learn it when the connection is dropped.
                    Poll::Ready(Err(TunnelError::Dead {
                        after: self.ping_timeout,
                    }))
                }
                Some(Poll::Ready(Beat::Sent | Beat::Late)) => {
                    self.windows.rest();
                    // The PING leaves, and its timer starts, with the next poll.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Some(Poll::Pending) | None => Poll::Pending,
            }
        })
        .await;
        if let Err(TunnelError::Revoked) = ended {
            self.cut_off().await;
        }
        ended
    }

    /// Ends all streams at once. The client gets a GOAWAY without an error code, as it would from other
    /// implementations, and a moment to take it.
    async fn cut_off(&mut self) {
        self.cut.set(Reason::PeerRevoked);
        self.connection.abrupt_shutdown(h2::Reason::NO_ERROR);
        let closed = poll_fn(|cx| self.connection.poll_closed(cx));
        // It ends now, however it takes it.
        drop(timeout(LAST_WORD, closed).await);
    }
}

impl Windowed for Connection<TlsStream<TcpStream>, Bytes> {
    fn resize_streams(&mut self, window: u32) -> bool {
        self.set_initial_window_size(window).is_ok()
    }

    fn resize_tunnel(&mut self, window: u32) {
        self.set_target_window_size(window);
    }
}

/// A request for a stream, to be opened or refused. Dropping it cancels the stream.
pub struct Request {
    asked: Result<Asked, BadConnect>,
    respond: SendResponse<Bytes>,
    /// What comes before it is opened waits, too. Dropped before `recv`, which lets go of it.
    early: Arrivals,
    recv: RecvStream,
    cut: Cut,
}

impl Request {
    fn new(
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        cut: Cut,
        backlog: &Backlog,
    ) -> Box<Self> {
        let (head, mut recv) = request.into_parts();
        let mut early = Arrivals::new(&mut recv, backlog);
        early.hold();
        // It goes through several hands, and each would have room for it.
        Box::new(Self {
            early,
            asked: Asked::parse(http::Request::from_parts(head, ())),
            respond,
            recv,
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

    /// Resolves when the client does not want it any more.
    pub async fn canceled(&mut self) -> FarError {
        match poll_fn(|cx| self.respond.poll_reset(cx)).await {
            Ok(code) => FarError::Reset(ErrorCode(code.into())),
            Err(err) => far_error(&self.cut, err),
        }
    }

    /// Tells the client that the app has accepted, and about `own` workload.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn open(self: Box<Self>, own: Option<&Baggage<'_>>) -> Result<Stream, FarError> {
        let mut this = *self;
        let send = this
            .respond
            .send_response(Answer::open(own), false)
            .map_err(|err| far_error(&this.cut, err))?;
        this.early.unhold();
        Ok(Stream::new(send, this.recv, this.early, this.cut, None))
    }

    /// Tells the client no.
    pub fn refuse(mut self: Box<Self>, refusal: Refusal) {
        // A client that is gone needs no answer.
        let _ = self.respond.send_response(refusal.response(), true);
    }
}
