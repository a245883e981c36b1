//! Connections that apps of a pod make: each gets one decision, and then a far end of its own.
//!
//! Invariants: the client is the pod of the listener, never the owner of a source address. What cannot be reached as
//! decided is refused; there is no second choice that would go around a tunnel. Since the app's connect has been
//! accepted by our listener before any of this is known, a refusal is a reset. What a partial mesh lacks is asked for;
//! an answer that is late means a refusal, not plaintext.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::debug;
use ztunnel_hbone::{Authority, Connect, Traceparent};
use ztunnel_mesh::addr::{self, ClientAddr, HboneAddr, OrigDst};
use ztunnel_mesh::decide::{Decision, HboneRoute, NamedRoute, Route, decide};
use ztunnel_mesh::name::Principal;
use ztunnel_mesh::reason::Reason;
use ztunnel_mesh::{Refusal, Rng, Workload};
use ztunnel_sys::socket::canonical;

use crate::identity::IdentityError;
use crate::own_pod::{OwnPod, WorkloadUnknown, baggage};
use crate::relay::{self, ResetOnDrop};
use crate::state::{LOOKUP_WAIT, LookupTimeout};
use crate::task::{Shutdown, TaskGroup};
use crate::telemetry::{Direction, Record};
use crate::tunnel::{Destination, OpenError, Pool, Stream, TunnelSettings};

/// How often one connection may ask. A decision needs four answers at most: about the address, on each network, and about
/// a waypoint and a gateway, or one about each waypoint that may be drawn. More would be because things come and go faster
/// than they can be followed.
const LOOKUPS: usize = 16;

/// The outgoing side of one pod on one worker thread.
pub struct Outbound {
    pod: Rc<OwnPod>,
    pool: Pool,
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
    #[error("{hostname} has to be resolved to reach {to}, which is not supported yet")]
    Name { hostname: Arc<str>, to: OrigDst },
    #[error(
        "{to} is on another network, reached through the gateway {gateway}, which is not supported yet"
    )]
    Gateway { gateway: HboneAddr, to: OrigDst },
    #[error("the app gave up")]
    AppGone(#[source] io::Error),
}

impl OutboundError {
    fn reason(&self) -> Reason {
        match self {
            Self::Loopback { .. } | Self::Loop { .. } => Reason::Loop,
            Self::Unknown(_) => Reason::WorkloadUnknown,
            Self::Refused(refusal) => refusal.reason,
            Self::Lookup(_) | Self::Lookups { .. } => Reason::LookupTimeout,
            Self::Name { .. } | Self::Gateway { .. } => Reason::NoRoute,
            Self::Identity(err) => err.reason(),
            Self::Open(err) => err.reason(),
            Self::Timeout { .. } | Self::Connect { .. } => Reason::DestinationUnreachable,
            Self::AppGone(_) => Reason::Reset,
        }
    }
}

/// What the app is connected to.
enum Reached {
    Tcp(ResetOnDrop),
    Stream(Stream),
}

impl Outbound {
    /// Serves `pod`. Its tunnels are run by tasks in `tasks`; on `shutdown` they are let go, and each ends with its
    /// last stream.
    #[must_use]
    pub fn new(
        pod: Rc<OwnPod>,
        settings: Arc<TunnelSettings>,
        tasks: TaskGroup,
        shutdown: Shutdown,
    ) -> Self {
        let pool = Pool::new(Arc::clone(&settings), tasks, shutdown);
        Self {
            pod,
            pool,
            settings,
        }
    }

    /// Serves one connection until it ends. Its local address is where the app meant to connect. Dropping the future
    /// resets it.
    pub async fn serve(&self, accepted: TcpStream) {
        let (src, dst) = match (accepted.peer_addr(), accepted.local_addr()) {
            (Ok(src), Ok(dst)) => (ClientAddr(canonical(src)), OrigDst(canonical(dst))),
            // Gone before we looked: there is nothing to tell about it.
            (Err(error), _) | (_, Err(error)) => {
                return debug!(%error, "app gone before its connection was served");
            }
        };
        let app = ResetOnDrop::new(accepted);
        let mut record = Record::start(Direction::Outbound, &self.pod.name, src);
        record.dst = Some(dst.0);

        let reached = tokio::select! {
            reached = Box::pin(self.reach(&mut record, src, dst)) => reached,
            err = relay::broken(app.get()) => Err(OutboundError::AppGone(err)),
        };
        let ended = match reached {
            Ok(Reached::Tcp(far)) => relay::join_tcp(app, far, &record.traffic).await,
            Ok(Reached::Stream(far)) => relay::join(app, far, &record.traffic).await,
            Err(err) => {
                drop(app);
                return record.failed(err.reason(), &err);
            }
        };
        match ended {
            Ok(()) => record.complete(),
            Err(err) => record.failed(err.reason(), &err),
        }
    }

    async fn reach(
        &self,
        record: &mut Record,
        src: ClientAddr,
        dst: OrigDst,
    ) -> Result<Reached, OutboundError> {
        if dst.0.ip().is_loopback() {
            return Err(OutboundError::Loopback { to: dst });
        }
        let workload = self.pod.workload().await?;
        record.src_identity = Some(workload.identity());
        match self.route(&workload, dst).await? {
            Route::Direct { to } => self.direct(to).await.map(Reached::Tcp),
            Route::Hbone(route) => self
                .tunnel(record, src, &workload, route)
                .await
                .map(Reached::Stream),
            Route::DoubleHbone(route) => Err(OutboundError::Gateway {
                gateway: route.outer.peer,
                to: dst,
            }),
            Route::Named(NamedRoute { hostname, .. }) => {
                Err(OutboundError::Name { hostname, to: dst })
            }
        }
    }

    /// Decides, and asks for what that needs.
    async fn route(&self, workload: &Workload, dst: OrigDst) -> Result<Route, OutboundError> {
        let deadline = Instant::now() + LOOKUP_WAIT;
        for _ in 0..=LOOKUPS {
            let decision = {
                let mesh = self.pod.mesh.load();
                decide(&mesh, &self.pod.network, workload, dst, &mut Random)
            };
            match decision {
                Decision::Go(route) => return Ok(route),
                Decision::Refuse(refusal) => return Err(OutboundError::Refused(refusal)),
                Decision::Lookup(key) => self.pod.mesh.look_up(key, deadline).await?,
            }
        }
        Err(OutboundError::Lookups { to: dst })
    }

    async fn direct(&self, to: SocketAddr) -> Result<ResetOnDrop, OutboundError> {
        let after = self.settings.connect_timeout;
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
        record: &mut Record,
        src: ClientAddr,
        workload: &Workload,
        route: HboneRoute,
    ) -> Result<Stream, OutboundError> {
        let trace = Traceparent::new(rand::random(), rand::random());
        record.hbone = Some(route.peer);
        record.dst_service.clone_from(&route.service);
        record.trace = Some(trace);
        let to = Destination {
            peer: route.peer,
            credential: self.pod.credential(workload).await?,
            expected: route.expected,
        };
        let request = Connect {
            authority: authority(route.authority),
            baggage: baggage(workload),
            from: src.0,
            service: route.service.as_deref(),
            network: None,
            trace,
        };
        let connect = || {
            let net = self.pod.net.clone();
            async move { net.connect(route.peer.0).await }
        };
        let opened = self.pool.open(&to, &request, connect).await?;
        record.dst_identity = opened.tunnel.peer.map(Principal::into_identity);
        record.tls_cipher = Some(opened.tunnel.tls.cipher);
        record.tls_key_exchange = Some(opened.tunnel.tls.key_exchange);
        Ok(opened.stream)
    }
}

fn authority(asked: addr::Authority) -> Authority {
    match asked {
        addr::Authority::Ip(addr) => Authority::Ip(addr),
        addr::Authority::Host { host, port } => Authority::Host {
            host: host.into(),
            port,
        },
    }
}

/// The thread's random numbers, for decisions.
struct Random;

impl Rng for Random {
    fn next_u32(&mut self) -> u32 {
        rand::random()
    }
}

#[cfg(test)]
mod tests;
