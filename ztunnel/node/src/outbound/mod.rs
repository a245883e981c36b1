//! Connections that apps of a pod make: each gets one decision, and then a far end of its own.
//!
//! Invariants: the client is the pod of the listener, never the owner of a source address. What cannot be reached as
//! decided is refused; there is no second choice that would go around a tunnel. If an endpoint of many refuses, that is
//! decided again (see `attempts`). Since the app's connect has been accepted by our listener before any of this is
//! known, a refusal is a reset. What a partial mesh lacks is asked for; an answer that is late means a refusal, not
//! plaintext.

mod resolve;

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::field::{Empty, display};
use tracing::{Level, Span, debug, debug_span, enabled};
use ztunnel_hbone::{Authority, Connect, Traceparent};
use ztunnel_mesh::addr::{self, ClientAddr, HboneAddr, OrigDst};
use ztunnel_mesh::decide::{Decision, DoubleHboneRoute, Drawn, HboneRoute, Route, decide};
use ztunnel_mesh::name::Principal;
use ztunnel_mesh::reason::Reason;
use ztunnel_mesh::service::Service;
use ztunnel_mesh::{Mesh, Refusal, Rng, Workload};
use ztunnel_sys::socket::canonical;

use crate::connections::Record;
use crate::identity::IdentityError;
use crate::own_pod::{OwnPod, WorkloadUnknown, baggage};
use crate::relay::{self, FarError, RelayError, ResetOnDrop};
use crate::state::{LOOKUP_WAIT, LookupTimeout};
use crate::task::{LocalTasks, Shutdown};
use crate::telemetry::{Direction, KnownNames, Party, Via, within};
use crate::tunnel::{
    Destination, Early, OpenError, Opened, Pool, Stream, TunnelFacts, TunnelSettings,
};

pub use resolve::{ResolveError, Resolver, ResolverConfig};

mod attempts;
mod refusers;

use attempts::{Attempts, Tried};
use refusers::Refusers;

/// How often one connection may ask. A decision needs four answers at most: about the address, on each network, and about
/// a waypoint and a gateway, or one about each waypoint that may be drawn. More would be because things come and go faster
/// than they can be followed.
const LOOKUPS: usize = 16;

/// The outgoing side of one pod on one worker thread.
pub struct Outbound {
    pod: Rc<OwnPod>,
    resolver: Resolver,
    pool: Pool,
    refusers: Refusers,
    names: KnownNames,
    settings: Arc<TunnelSettings>,
}

/// Why a connection of an app was refused.
#[derive(Debug, thiserror::Error)]
enum OutboundError {
    #[error("{to} is a loopback address, which capture leaves alone: it cannot have been meant")]
    Loopback { to: OrigDst },
    #[error(transparent)]
    Unknown(#[from] WorkloadUnknown),
    #[error("{}", .0.detail)]
    Refused(Refusal),
    #[error(transparent)]
    Lookup(#[from] LookupTimeout),
    #[error("what the control plane says about {to} does not last until it is acted on")]
    Lookups { to: OrigDst },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the gateway {gateway} passes it on, but no tunnel could be made through it")]
    Through {
        gateway: HboneAddr,
        #[source]
        source: OpenError,
    },
    #[error("connect to {to} timed out after {after:?}")]
    Timeout { to: SocketAddr, after: Duration },
    #[error("connect to {to} failed")]
    Connect {
        to: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{to} is the pod itself: the connection would come back")]
    Loop { to: SocketAddr },
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("no endpoint accepted: {tried}")]
    NobodyAccepted { tried: Tried, reason: Reason },
    #[error("after other endpoints refused ({before})")]
    Retried {
        before: Tried,
        #[source]
        last: Box<Self>,
    },
    #[error("the app gave up")]
    AppGone(#[source] io::Error),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl OutboundError {
    fn reason(&self) -> Reason {
        match self {
            Self::Loopback { .. } | Self::Loop { .. } => Reason::Loop,
            Self::Unknown(_) => Reason::WorkloadUnknown,
            Self::Refused(refusal) => refusal.reason,
            Self::Lookup(_) | Self::Lookups { .. } => Reason::LookupTimeout,
            Self::Resolve(err) => err.reason(),
            Self::Identity(err) => err.reason(),
            Self::Open(err) | Self::Through { source: err, .. } => err.reason(),
            Self::Timeout { .. } => Reason::DestinationTimeout,
            Self::Connect { source, .. } => match source.kind() {
                // The kernel has given up before we did.
                io::ErrorKind::TimedOut => Reason::DestinationTimeout,
                _ => Reason::DestinationUnreachable,
            },
            Self::NobodyAccepted { reason, .. } => *reason,
            Self::Retried { last, .. } => last.reason(),
            Self::AppGone(_) => Reason::Reset,
            Self::Relay(err) => err.reason(),
        }
    }
}

/// A way, and who is there, as far as the same snapshot knows.
struct Decided {
    route: Route,
    drawn: Option<Drawn>,
    next_hop: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
}

impl Decided {
    fn new(
        mesh: &Mesh,
        client: &Workload,
        dst: OrigDst,
        route: Route,
        drawn: Option<Drawn>,
    ) -> Self {
        let (hop, hostname) = match &route {
            Route::Direct { to } => (Some(to.ip()), None),
            Route::Hbone(route) => (Some(route.peer.0.ip()), route.service.as_ref()),
            Route::DoubleHbone(route) => {
                (Some(route.outer.peer.0.ip()), route.outer.service.as_ref())
            }
            Route::Named(_) => (None, None),
        };
        let network = &client.network;
        let next_hop = match &drawn {
            Some(drawn) => mesh.workload(&drawn.uid),
            None => hop.and_then(|ip| mesh.workload_by_ip(network, ip)),
        };
        let service = mesh.service_by_vip(network, dst.0.ip(), &client.namespace);
        let asked =
            |service: &&Arc<Service>| hostname.is_none_or(|name| service.key.hostname == *name);
        Self {
            next_hop: next_hop.cloned(),
            service: service.filter(asked).cloned(),
            route,
            drawn,
        }
    }
}

/// What the app is connected to.
enum Reached {
    Tcp(Box<ResetOnDrop>),
    Stream(Stream),
}

impl Reached {
    /// Who is at the far end is what the tunnel that goes all the way says.
    fn through(opened: Opened, record: &Record) -> Self {
        let TunnelFacts { peer, tls } = opened.tunnel;
        let mut facts = record.facts();
        facts.dst_identity = peer.map(Principal::into_identity);
        facts.tls_cipher = Some(tls.cipher);
        facts.tls_key_exchange = Some(tls.key_exchange);
        Self::Stream(opened.stream)
    }

    /// Makes sure that what was taken of the app before it was connected has been said.
    async fn told(mut self, record: &Record, early: Early<'_>) -> Result<Self, OutboundError> {
        let is_out = early.is_out();
        let words = early.into_words();
        let len = words.len();
        match &mut self {
            _ if is_out || words.is_empty() => {}
            // It was taken for a peer that has refused since.
            Self::Stream(far) => relay::say(far, words).await?,
            Self::Tcp(far) => {
                let sent = far.send_first(&words).await;
                sent.map_err(|err| RelayError::Far(FarError::Broken(err)))?;
            }
        }
        record.traffic().add_sent(len);
        Ok(self)
    }
}

impl Outbound {
    /// Serves `pod`. Its tunnels are run by tasks in `tasks`; on `shutdown` they are let go, and each ends with its
    /// last stream.
    #[must_use]
    pub fn new(
        pod: Rc<OwnPod>,
        resolver: Resolver,
        settings: Arc<TunnelSettings>,
        tasks: LocalTasks,
        shutdown: Shutdown,
    ) -> Self {
        let metrics = Arc::clone(&pod.connections.metrics().pool);
        let pool = Pool::new(Arc::clone(&settings), tasks, shutdown, metrics);
        Self {
            pod,
            resolver,
            pool,
            refusers: Refusers::default(),
            names: KnownNames::default(),
            settings,
        }
    }

    /// Serves one connection until it ends. Its local address is where the app meant to connect. Dropping the future
    /// resets it.
    pub fn serve(self: Rc<Self>, accepted: TcpStream) -> impl Future<Output = ()> {
        // An async function would have room for its arguments twice, for as long as the connection lasts.
        let mut app = ResetOnDrop::new(accepted);
        async move {
            let _open = self.pod.connections.socket(Direction::Outbound);
            let Some((record, span)) = self.begin(app.get()) else {
                return;
            };
            let carrying = self.carry(&record, &mut app);
            let carried = record.unless_cut(within(span, carrying)).await;
            drop(app);
            match carried {
                Ok(Ok(())) => record.complete(),
                Ok(Err(err)) => record.failed(err.reason(), err),
                Err(cut) => record.failed(cut.reason(), cut),
            }
        }
    }

    fn begin(&self, app: &TcpStream) -> Option<(Record, Span)> {
        // Who it is from would be known from accept, and kept as long as the connection.
        let (src, dst) = match (app.peer_addr(), app.local_addr()) {
            (Ok(src), Ok(dst)) => (ClientAddr(canonical(src)), OrigDst(canonical(dst))),
            // Gone before we looked: there is nothing to tell about it.
            (Err(error), _) | (_, Err(error)) => {
                debug!(%error, "app gone before its connection was served");
                return None;
            }
        };
        let record = self.pod.connections.start(Direction::Outbound, src);
        record.facts().dst_addr = Some(dst.0);
        let (pod, trace) = (&self.pod.name, Empty);
        let span = debug_span!("outbound", %src, %dst, %pod, trace);
        Some((record, span))
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "it would have room for its arguments twice, for as long as the connection lasts"
    )]
    fn carry<'a>(
        &'a self,
        record: &'a Record,
        app: &'a mut ResetOnDrop,
    ) -> impl Future<Output = Result<(), OutboundError>> + 'a {
        async move {
            let reached = {
                // Large, and over long before the connection is.
                let reaching = Box::pin(self.reach(record, app.get()));
                tokio::select! {
                    reached = reaching => reached?,
                    err = relay::broken(app.get()) => return Err(OutboundError::AppGone(err)),
                }
            };
            let far = match reached {
                Reached::Stream(far) => far,
                // Mostly it is a stream, which takes less.
                Reached::Tcp(mut far) => {
                    let joined = relay::join_tcp(app, &mut far, record.traffic());
                    return ended(record, Box::pin(joined).await);
                }
            };
            let joined = {
                let mut halves = app.split();
                relay::join(&mut halves, far, record.traffic()).await
            };
            if joined.is_ok() {
                app.close();
            }
            ended(record, joined)
        }
    }

    async fn reach(&self, record: &Record, app: &TcpStream) -> Result<Reached, OutboundError> {
        let noted = record.facts().dst_addr;
        let dst =
            noted.ok_or_else(|| OutboundError::AppGone(io::ErrorKind::NotConnected.into()))?;
        let (src, dst) = (record.src(), OrigDst(dst));
        if dst.0.ip().is_loopback() {
            return Err(OutboundError::Loopback { to: dst });
        }
        let workload = self.pod.workload().await?;
        record.facts().src = Party::Workload(Arc::clone(&workload));
        let mut attempts = Attempts::new(&self.refusers, self.settings.connect_timeout);
        let early = Early::of(app);
        loop {
            let decided = match self.route(&workload, dst, &attempts).await {
                Ok(decided) => decided,
                Err(err) => return Err(attempts.end(err)),
            };
            if attempts.wants_another(decided.drawn.as_ref()) {
                continue;
            }
            let Decided {
                route,
                drawn,
                next_hop,
                service,
            } = decided;
            let workload_uid = next_hop.as_ref().map(|next_hop| &*next_hop.uid);
            let (protocol, to) = told(&route);
            debug!(protocol, next_hop = %to, workload_uid, "decided");
            let attempt = attempts.begin(drawn).inspect_err(|_| record.opened())?;
            {
                let mut facts = record.facts();
                (facts.via, facts.authority) = (Via::Unknown, None);
                facts.double = false;
                facts.dst_identity = next_hop.as_ref().map(|next_hop| next_hop.identity());
                facts.dst = next_hop.map_or(Party::Unknown, Party::Workload);
                facts.service = service;
            }
            match self
                .follow(record, src, &workload, route, attempt.within, &early)
                .await
            {
                Ok(reached) => {
                    attempts.succeeded(&attempt);
                    record.opened();
                    record.connected();
                    return reached.told(record, early).await;
                }
                Err(err) if early.is_out() => {
                    record.opened();
                    return Err(attempts.end(err));
                }
                Err(err) => attempts
                    .failed(attempt, err)
                    .inspect_err(|_| record.opened())?,
            }
        }
    }

    /// Goes a route to its end. To be connected to its next hop may take `within`, or as long as usual.
    async fn follow(
        &self,
        record: &Record,
        src: ClientAddr,
        workload: &Arc<Workload>,
        route: Route,
        within: Option<Duration>,
        early: &Early<'_>,
    ) -> Result<Reached, OutboundError> {
        match route {
            Route::Direct { to } => {
                record.facts().via = Via::Tcp(to);
                let far = self.direct(to, within).await?;
                Ok(Reached::Tcp(Box::new(far)))
            }
            Route::Hbone(route) => {
                let opened = self.tunnel(record, src, workload, &route, within, early);
                Ok(Reached::through(opened.await?, record))
            }
            Route::DoubleHbone(route) => {
                record.facts().double = true;
                let ways = self.two_tunnels(record, src, workload, route, within);
                Ok(Reached::through(ways.await?, record))
            }
            // With an address it is one of the others.
            Route::Named(route) => {
                let hostname = Arc::clone(&route.hostname);
                let metrics = self.pod.connections.metrics();
                self.names.count(&metrics.names, workload, &hostname);
                let addresses = self.resolver.resolve(&hostname, route.families).await?;
                debug!(%hostname, ?addresses, "name resolved");
                let route = route.resolved(&addresses, workload, &mut Random);
                let route = route.map_err(OutboundError::Refused)?;
                Box::pin(self.follow(record, src, workload, route, within, early)).await
            }
        }
    }

    /// Decides, and asks for what that needs.
    async fn route(
        &self,
        workload: &Workload,
        dst: OrigDst,
        attempts: &Attempts<'_>,
    ) -> Result<Decided, OutboundError> {
        let deadline = Instant::now() + LOOKUP_WAIT;
        for _ in 0..=LOOKUPS {
            let lacking = {
                let mesh = self.pod.mesh.load();
                let network = &self.pod.network;
                match decide(&mesh, network, workload, dst, &mut attempts.chance()) {
                    Decision::Go { route, drawn } => {
                        return Ok(Decided::new(&mesh, workload, dst, route, drawn));
                    }
                    Decision::Refuse(refusal) => return Err(OutboundError::Refused(refusal)),
                    Decision::Lookup(key) => key,
                }
            };
            debug!(key = ?lacking, "control plane asked");
            self.pod.mesh.look_up(lacking, deadline).await?;
        }
        Err(OutboundError::Lookups { to: dst })
    }

    async fn direct(
        &self,
        to: SocketAddr,
        within: Option<Duration>,
    ) -> Result<ResetOnDrop, OutboundError> {
        let usual = self.settings.connect_timeout;
        let after = within.map_or(usual, |within| within.min(usual));
        debug!(%to, "connecting in plain TCP");
        let tcp = timeout(after, self.pod.net.connect(to))
            .await
            .map_err(|_| OutboundError::Timeout { to, after })?
            .map_err(|source| OutboundError::Connect { to, source })?;
        let far = ResetOnDrop::new(tcp);
        let ends = (far.get().local_addr(), far.get().peer_addr());
        match ends {
            (Ok(local), Ok(peer)) if local.ip() == peer.ip() => Err(OutboundError::Loop { to }),
            (Ok(_), Ok(_)) => Ok(far),
            (Err(source), _) | (_, Err(source)) => Err(OutboundError::Connect { to, source }),
        }
    }

    async fn tunnel(
        &self,
        record: &Record,
        src: ClientAddr,
        workload: &Workload,
        route: &HboneRoute,
        within: Option<Duration>,
        early: &Early<'_>,
    ) -> Result<Opened, OutboundError> {
        let peer = route.peer;
        {
            let mut facts = record.facts();
            facts.via = Via::Hbone(peer);
            facts.authority = Some(authority(&route.authority));
            facts.src_identity = Some(workload.identity());
        }
        let request = request(record, src, workload, route);
        let to = Destination {
            peer,
            credential: self.pod.credential(workload).await?,
            expected: Arc::clone(&route.expected),
        };
        let connect = || {
            debug!(%peer, "no tunnel has room, dialing");
            let net = self.pod.net.clone();
            async move { net.connect(peer.0).await }
        };
        debug!(%peer, authority = %route.authority, "stream asked for");
        let opened = self.pool.open_within(within, &to, &request, early, connect);
        let opened = opened.await?;
        let TunnelFacts { peer, tls } = &opened.tunnel;
        let peer = peer.as_ref().map(Principal::identity).map(display);
        debug!(
            peer,
            cipher = tls.cipher,
            key_exchange = tls.key_exchange,
            "stream accepted"
        );
        Ok(opened)
    }

    /// By way of a network gateway, which passes on the bytes of a tunnel that ends behind it.
    async fn two_tunnels(
        &self,
        record: &Record,
        src: ClientAddr,
        workload: &Workload,
        route: DoubleHboneRoute,
        within: Option<Duration>,
    ) -> Result<Opened, OutboundError> {
        let DoubleHboneRoute { outer, inner } = route;
        let gateway = outer.peer;
        // What the app says is for the tunnel inside.
        let none = Early::none();
        let way = self.tunnel(record, src, workload, &outer, within, &none);
        let way = way.await?;
        let request = Connect {
            network: Some(&self.pod.network),
            ..request(record, src, workload, &outer)
        };
        let to = Destination {
            peer: gateway,
            credential: self.pod.credential(workload).await?,
            expected: inner,
        };
        debug!(%gateway, "tunnel inside of the stream asked for");
        self.pool
            .open_inside(way.stream, &to, &request)
            .await
            .map_err(|source| OutboundError::Through { gateway, source })
    }
}

/// What is asked of a peer. The trace is that of the connection, however many tunnels it takes.
fn request<'a>(
    record: &Record,
    src: ClientAddr,
    workload: &'a Workload,
    route: &'a HboneRoute,
) -> Connect<'a> {
    let new = || Traceparent::new(rand::random(), rand::random());
    let trace = *record.facts().trace.get_or_insert_with(new);
    if enabled!(Level::DEBUG) {
        Span::current().record("trace", display(trace.trace_id()));
    }
    Connect {
        authority: authority(&route.authority),
        baggage: baggage(workload),
        from: src.0,
        service: route.service.as_deref(),
        network: None,
        trace,
    }
}

fn ended(record: &Record, joined: Result<(), RelayError>) -> Result<(), OutboundError> {
    let (bytes_out, bytes_in) = (record.traffic().sent(), record.traffic().received());
    debug!(bytes_out, bytes_in, "relay ended");
    Ok(joined?)
}

/// A route for the log: what carries it, and where to.
fn told(route: &Route) -> (&'static str, &dyn Display) {
    match route {
        Route::Direct { to } => ("TCP", to),
        Route::Hbone(route) => ("HBONE", &route.peer),
        Route::DoubleHbone(route) => ("DOUBLEHBONE", &route.outer.peer),
        Route::Named(route) => ("by name", &route.hostname),
    }
}

fn authority(asked: &addr::Authority) -> Authority {
    match asked {
        addr::Authority::Ip(addr) => Authority::Ip(*addr),
        addr::Authority::Host { host, port } => Authority::Host {
            host: host.as_str().into(),
            port: *port,
        },
    }
}

/// The thread's random numbers.
struct Random;

impl Rng for Random {
    fn next_u32(&mut self) -> u32 {
        rand::random()
    }
}

#[cfg(test)]
mod tests;
