//! One outgoing tunnel: dialed once, shared by many streams.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::debug;
use ztunnel_hbone::http2::{Connection, StreamError};
use ztunnel_mesh::addr::HboneAddr;
use ztunnel_mesh::name::{Identity, Principal};
use ztunnel_mesh::reason::Reason;

use super::cut::Cut;
use super::early::LATELY;
use super::flow::{Backlog, Windows};
use super::inside;
use super::keepalive::{Beat, Keepalive};
use super::lane::Shared;
use super::settings::TunnelSettings;
use super::transport::Transport;
use crate::task::Shutdown;
use crate::telemetry::{PoolMetrics, Retired};
use crate::tls::{self, Credential, Established, HandshakeError, Negotiated, RevocationWatch};

/// Why there is no tunnel to a peer.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(
        "connect to {peer} timed out after {after:?}; a NetworkPolicy or firewall may block this port"
    )]
    Timeout { peer: HboneAddr, after: Duration },
    #[error("connect to {peer} failed")]
    Connect {
        peer: HboneAddr,
        #[source]
        source: io::Error,
    },
    #[error("no tls with {peer}")]
    Tls {
        peer: HboneAddr,
        #[source]
        source: HandshakeError,
    },
    #[error("this pod has {tunnels} tunnels in use already, none to {peer}")]
    TooMany { peer: HboneAddr, tunnels: usize },
    #[error("the tunnel to {peer} was silent for {after:?}, and another one is not there in time")]
    Silent { peer: HboneAddr, after: Duration },
    #[error("connect to {peer} was cut: the pod or the daemon stops")]
    Cut { peer: HboneAddr },
}

impl DialError {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls { .. } if inside::reason(self).is_some() => {
                inside::reason(self).unwrap_or(Reason::PeerUnreachable)
            }
            Self::Timeout { .. } => Reason::PeerTimeout,
            Self::Connect { source, .. } => match source.kind() {
                // The kernel has given up before we did.
                io::ErrorKind::TimedOut => Reason::PeerTimeout,
                _ => Reason::PeerUnreachable,
            },
            Self::Silent { .. } => Reason::PeerSilent,
            Self::Tls { source, .. } => source.reason(),
            Self::TooMany { .. } => Reason::Overloaded,
            Self::Cut { .. } => Reason::Drained,
        }
    }

    /// Whether it failed since no more can be watched for revocation.
    pub(super) fn is_untracked(&self) -> bool {
        matches!(self, Self::Tls { source, .. } if matches!(source, HandshakeError::TooMany))
    }
}

/// What there is to tell about a tunnel.
#[derive(Clone, Debug)]
pub struct TunnelFacts {
    /// Whom the peer proved to be.
    pub peer: Option<Principal>,
    pub tls: Negotiated,
}

impl TunnelFacts {
    pub(super) fn new<IO>(tls: &Established<IO>) -> Self {
        Self {
            peer: tls::peer_identity(&tls.peer).map(Principal::from),
            tls: tls.negotiated,
        }
    }
}

/// An outgoing tunnel, alive as long as the pool or a stream refers to it.
pub(super) struct Tunnel {
    pub(super) facts: TunnelFacts,
    connection: Shared,
    /// What we allow; the peer may allow less.
    max_streams: usize,
    streams: Cell<usize>,
    used: Cell<Instant>,
    /// When something came from the peer.
    heard: Cell<Option<Instant>>,
    /// Never again in the pool.
    retired: Cell<bool>,
    pub(super) cut: Cut,
    pub(super) backlog: Backlog,
    /// Since when there has been no room for the first bytes of a stream.
    no_room_since: Cell<Option<Instant>>,
    /// Somebody wants to know whether the peer is alive.
    asked: Cell<bool>,
    driver: RefCell<Option<Waker>>,
    /// Whether a PONG is late.
    in_doubt: watch::Sender<bool>,
    metrics: Arc<PoolMetrics>,
    /// It was counted that, and why, it takes no more streams.
    counted: Cell<bool>,
}

/// A tunnel without room for so long is passed over.
const CONGESTED_AFTER: Duration = Duration::from_millis(20);

impl Tunnel {
    /// A place for one more stream.
    pub(super) fn slot(self: &Rc<Self>) -> Result<Slot, NoSlot> {
        if self.retired.get() {
            return Err(NoSlot::Full);
        }
        let connection = self.connection.borrow();
        if let Err(err) = connection.may_open() {
            self.retired.set(true);
            self.retires(Retired::Broken);
            return Err(NoSlot::Broken(err));
        }
        // Who dialed goes ahead. How many others may follow the peer says next.
        if !connection.is_told() && self.streams.get() > 0 {
            return Err(NoSlot::TooSoon);
        }
        // One at least: a peer that allows none for now may allow one later.
        let limit = (connection.max_streams()).clamp(1, self.max_streams.max(1));
        let streams = self.streams.get() + 1;
        if streams >= limit {
            self.retired.set(true);
            self.retires(Retired::Full);
        }
        if streams > limit {
            return Err(NoSlot::Full);
        }
        self.streams.set(streams);
        self.metrics.streams.inc();
        self.used.set(Instant::now());
        Ok(Slot(Rc::clone(self)))
    }

    /// Notes whether there is room for the first bytes of a stream.
    pub(super) fn note_room(&self, is_room: bool) {
        match (is_room, self.no_room_since.get()) {
            (true, _) => self.no_room_since.set(None),
            (false, None) => self.no_room_since.set(Some(Instant::now())),
            (false, Some(_)) => {}
        }
    }

    /// Whether a new stream would probably not get to say anything.
    pub(super) fn is_congested(&self) -> bool {
        let since = self.no_room_since.get();
        since.is_some_and(|since| since.elapsed() >= CONGESTED_AFTER)
    }

    /// Whether the peer was there just now.
    pub(super) fn is_lively(&self) -> bool {
        let heard = self.heard.get();
        heard.is_some_and(|heard| heard.elapsed() < LATELY) && !self.retired.get()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Has a PING sent now.
    pub(super) fn ask(&self) {
        self.asked.set(true);
        if let Some(driver) = &*self.driver.borrow() {
            driver.wake_by_ref();
        }
    }

    /// Resolves when the peer is late with a PONG.
    pub(super) async fn doubted(&self) {
        let mut in_doubt = self.in_doubt.subscribe();
        if in_doubt.wait_for(|in_doubt| *in_doubt).await.is_err() {
            // The sender is part of the tunnel itself.
            std::future::pending().await
        }
    }

    pub(super) fn connection(&self) -> &Shared {
        &self.connection
    }

    /// Whether it takes no more streams, ever.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Counts why it takes no more streams. The first to say so is right.
    pub(super) fn retires(&self, why: Retired) {
        if !self.counted.replace(true) {
            self.metrics.retired(why);
        }
    }

    /// It is for one stream from the beginning: there is nothing to count.
    pub(super) fn is_for_one(&self) {
        self.counted.set(true);
    }

    /// How long it has had no stream.
    pub(super) fn idle(&self) -> Option<Duration> {
        (self.streams.get() == 0).then(|| self.used.get().elapsed())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.connection.borrow_mut().finish();
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("facts", &self.facts)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

/// Why a tunnel takes no stream.
pub(super) enum NoSlot {
    Full,
    /// Nobody knows how many streams the peer allows.
    TooSoon,
    Broken(StreamError),
}

/// The place of one stream in its tunnel; keeps the tunnel open.
pub(super) struct Slot(pub(super) Rc<Tunnel>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.metrics.streams.dec();
        self.0.used.set(Instant::now());
    }
}

/// What a tunnel goes through.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// The connection below a tunnel: whoever dialed must run it.
pub(super) struct Driver<IO> {
    peer: HboneAddr,
    transport: Transport<IO>,
    keepalive: Keepalive,
    idle_release: Duration,
    revocation: RevocationWatch,
    windows: Windows,
}

/// Makes a tunnel over the TCP connection that `connect` gives.
pub(super) async fn dial(
    peer: HboneAddr,
    connect: impl Future<Output = io::Result<TcpStream>>,
    credential: &Credential,
    expected: Arc<[Identity]>,
    settings: &TunnelSettings,
    connect_timeout: Duration,
    metrics: &Arc<PoolMetrics>,
) -> Result<(Rc<Tunnel>, Box<Driver<TcpStream>>), DialError> {
    let tcp = timeout(connect_timeout, connect)
        .await
        .map_err(|_| DialError::Timeout {
            peer,
            after: connect_timeout,
        })?
        .map_err(|source| DialError::Connect { peer, source })?;
    let cut = Cut::default();
    handshake(peer, tcp, credential, expected, settings, cut, metrics).await
}

/// Makes a tunnel of a connection to `peer`. What cuts it is told to `cut`.
pub(super) async fn handshake<IO: Io>(
    peer: HboneAddr,
    io: IO,
    credential: &Credential,
    expected: Arc<[Identity]>,
    settings: &TunnelSettings,
    cut: Cut,
    metrics: &Arc<PoolMetrics>,
) -> Result<(Rc<Tunnel>, Box<Driver<IO>>), DialError> {
    let no_tls = |source| DialError::Tls { peer, source };
    let config = credential.client_config(expected);
    let tls = tls::connect(config, io, settings.handshake_timeout)
        .await
        .map_err(no_tls)?;
    let revocation = credential.watch_server(&tls.peer).map_err(no_tls)?;
    let facts = TunnelFacts::new(&tls);
    // What it says first goes with the first CONNECT.
    let connection = Connection::client(&settings.client());
    let transport = Transport::new(connection, tls.stream);
    let backlog = Backlog::default();
    let streams = u32::try_from(settings.max_streams).unwrap_or(u32::MAX);
    let windows = Windows::new(settings, streams, backlog.clone());
    let tunnel = Tunnel {
        facts,
        connection: Rc::clone(transport.connection()),
        max_streams: settings.max_streams,
        streams: Cell::new(0),
        used: Cell::new(Instant::now()),
        heard: Cell::new(None),
        retired: Cell::new(false),
        cut,
        backlog,
        no_room_since: Cell::new(None),
        asked: Cell::new(false),
        driver: RefCell::default(),
        in_doubt: watch::Sender::default(),
        metrics: Arc::clone(metrics),
        counted: Cell::new(false),
    };
    // It goes from hand to hand, and each future on the way would have room for it.
    let driver = Box::new(Driver {
        peer,
        transport,
        keepalive: Keepalive::new(settings),
        idle_release: settings.idle_release,
        revocation,
        windows,
    });
    Ok((Rc::new(tunnel), driver))
}

impl<IO: Io> Driver<IO> {
    /// Moves the tunnel's frames until it is closed, by the peer or because nobody refers to it any more. Calls
    /// `release` when the pool should let go of it.
    pub(super) async fn run(
        mut self: Box<Self>,
        tunnel: Weak<Tunnel>,
        shutdown: Shutdown,
        mut release: impl FnMut(),
    ) {
        let peer = self.peer;
        let mut stopping = pin!(shutdown.started());
        let mut stopped = false;
        let retires = |why| {
            if let Some(tunnel) = tunnel.upgrade() {
                tunnel.retires(why);
            }
        };
        let end = poll_fn(|cx| {
            // Dropping the connection tells the streams, and they find out why.
            if self.revocation.poll_revoked(cx).is_ready() {
                if let Some(tunnel) = tunnel.upgrade() {
                    tunnel.retired.set(true);
                    tunnel.retires(Retired::Revoked);
                    tunnel.metrics.revoked();
                    tunnel.cut.set(Reason::PeerRevoked);
                }
                return Poll::Ready(Err(io::Error::other(Reason::PeerRevoked.code())));
            }
            if let Poll::Ready(end) = self.transport.poll(cx) {
                return Poll::Ready(end);
            }
            if let Some(tunnel) = tunnel.upgrade() {
                let mut driver = tunnel.driver.borrow_mut();
                if !driver
                    .as_ref()
                    .is_some_and(|known| known.will_wake(cx.waker()))
                {
                    *driver = Some(cx.waker().clone());
                }
                if self.transport.take_received() {
                    tunnel.heard.set(Some(Instant::now()));
                }
                if tunnel.asked.take() {
                    self.keepalive.hurry();
                }
            }
            let beat = {
                let mut connection = self.transport.connection().borrow_mut();
                self.windows.adapt(&mut *connection, cx.waker());
                self.keepalive.poll(cx, &mut connection)
            };
            match beat {
                Poll::Ready(Beat::Dead) => {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Ready(Beat::Sent) => {
                    let idle = tunnel.upgrade().and_then(|tunnel| tunnel.idle());
                    self.windows.rest();
                    if idle.is_some_and(|idle| idle >= self.idle_release) {
                        retires(Retired::Idle);
                        release();
                    }
                    // Its timer starts with the next poll.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Beat::Late) => {
                    if let Some(tunnel) = tunnel.upgrade() {
                        tunnel.retired.set(true);
                        tunnel.retires(Retired::Silent);
                        tunnel.in_doubt.send_replace(true);
                    }
                    debug!(%peer, "tunnel is silent: no new streams");
                    release();
                    cx.waker().wake_by_ref();
                }
                Poll::Pending => {}
            }
            if !stopped && stopping.as_mut().poll(cx).is_ready() {
                stopped = true;
                retires(Retired::Stopping);
                release();
            }
            Poll::Pending
        })
        .await;
        retires(if end.is_ok() {
            Retired::Closed
        } else {
            Retired::Broken
        });
        release();
        match end {
            Ok(()) => debug!(%peer, "tunnel closed"),
            Err(error) => debug!(%peer, %error, "tunnel broke"),
        }
    }
}
