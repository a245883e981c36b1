//! Tunnels that end at this pod, and their streams.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::field::display;
use tracing::{Span, debug, debug_span};
use ztunnel_hbone::{Authority, ProxyHeader};
use ztunnel_mesh::Workload;
use ztunnel_mesh::addr::{AppAddr, ClientAddr, HboneAddr};
use ztunnel_mesh::authorize::Peer;
use ztunnel_mesh::inbound::{self, Connect, lacking, target};
use ztunnel_mesh::reason::Reason;

use super::Inner;
use super::error::InboundError;
use crate::connections::Record;
use crate::identity::IdentityError;
use crate::own_pod::{WorkloadUnknown, baggage};
use crate::relay::{self, ResetOnDrop};
use crate::state::LOOKUP_WAIT;
use crate::task::Follows;
use crate::telemetry::{Counting, Direction, Party, Via, within};
use crate::tls::HandshakeError;
use crate::tunnel::{AcceptError, Incoming, Request, Stream, TunnelError, TunnelFacts, accept};

/// Questions that one address may need: whose it is, and what the waypoints of those are; hardly ever more than one.
const MOST_LOOKUPS: usize = 4;

/// Why a connection to 15008 did not become a tunnel.
#[derive(Debug, thiserror::Error)]
enum TunnelRefused {
    #[error("too many tls handshakes at the same time, all of them new")]
    TooMany,
    #[error("too many tls handshakes at the same time, and this one took the longest")]
    TooSlow,
    #[error(transparent)]
    Unknown(#[from] WorkloadUnknown),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Accept(#[from] AcceptError),
}

impl TunnelRefused {
    fn reason(&self) -> Reason {
        match self {
            Self::TooMany | Self::TooSlow => Reason::Overloaded,
            Self::Unknown(_) => Reason::WorkloadUnknown,
            Self::Identity(err) => err.reason(),
            Self::Accept(err) => err.reason(),
        }
    }

    /// Whether no more tunnels can be watched for revocation.
    fn is_untracked(&self) -> bool {
        matches!(
            self,
            Self::Accept(AcceptError::Tls(HandshakeError::TooMany))
        )
    }
}

/// What all streams of a tunnel have in common.
struct Tunnel {
    client: ClientAddr,
    /// The address of the pod that the tunnel came to.
    local: SocketAddr,
    facts: TunnelFacts,
}

pub(super) async fn serve(
    inner: &Rc<Inner>,
    accepted: TcpStream,
    client: ClientAddr,
    local: SocketAddr,
) {
    let span = debug_span!("tunnel", src = %client, dst = %local, pod = %inner.pod.name);
    within(span, serve_tunnel(inner, accepted, client, local)).await;
}

async fn serve_tunnel(
    inner: &Rc<Inner>,
    accepted: TcpStream,
    client: ClientAddr,
    local: SocketAddr,
) {
    let connections = &inner.pod.connections;
    let metrics = &connections.metrics().tunnels;
    let _open = connections.socket(Direction::InboundHbone);
    let began = Instant::now();
    let record = connections.start(Direction::InboundHbone, client);
    record.facts().via = Via::Hbone(HboneAddr(local));
    let making = record.unless_cut(Box::pin(make_tunnel(inner, accepted)));
    let running = Counting::one(&metrics.accepting);
    let made = making.await;
    drop(running);
    let incoming = match made {
        Ok(Ok(incoming)) => incoming,
        Ok(Err(err)) => {
            metrics.refused(err.reason(), err.is_untracked());
            return record.failed(err.reason(), err);
        }
        Err(cut) => {
            metrics.refused(cut.reason(), false);
            return record.failed(cut.reason(), cut);
        }
    };
    metrics
        .accept_seconds
        .observe(began.elapsed().as_secs_f64());
    let _served = Counting::one(&metrics.served);
    let TunnelFacts { peer, tls } = incoming.facts();
    let peer = peer.as_ref().map(|peer| display(peer.identity()));
    debug!(
        peer,
        cipher = tls.cipher,
        key_exchange = tls.key_exchange,
        "tunnel accepted"
    );
    // From here on every stream has a record of its own.
    record.dismiss();
    let tunnel = Rc::new(Tunnel {
        client,
        local,
        facts: incoming.facts().clone(),
    });
    let ended = incoming
        .run(&inner.shutdown, |request| {
            let stream = serve_stream(Rc::clone(inner), Rc::clone(&tunnel), request);
            inner.tasks.spawn(stream);
        })
        .await;
    match ended {
        Ok(()) => debug!("tunnel closed"),
        Err(error) => {
            if let TunnelError::Revoked = error {
                metrics.revoked();
            }
            debug!(error = &error as &dyn std::error::Error, "tunnel broke");
        }
    }
}

async fn make_tunnel(inner: &Inner, accepted: TcpStream) -> Result<Box<Incoming>, TunnelRefused> {
    let mut place = inner.handshakes.begin().ok_or(TunnelRefused::TooMany)?;
    let making = async {
        let workload = inner.pod.workload().await?;
        let credential = inner.pod.credential(&workload).await?;
        Ok(accept(accepted, &credential, &inner.tunnels).await?)
    };
    tokio::select! {
        made = making => made,
        () = place.lost() => Err(TunnelRefused::TooSlow),
    }
}

#[expect(
    clippy::manual_async_fn,
    reason = "it would have room for its arguments twice, for as long as the stream lasts"
)]
fn serve_stream(
    inner: Rc<Inner>,
    tunnel: Rc<Tunnel>,
    request: Box<Request>,
) -> impl Future<Output = ()> {
    async move {
        let (record, span) = begin(&inner, &tunnel, &request);
        // Large, and over long before the stream is.
        let opening = Box::pin(open(&inner, &tunnel, &record, request));
        match within(span, carry(&record, opening)).await {
            Ok(()) => record.complete(),
            Err(err) => record.failed(err.reason(), err),
        }
    }
}

fn begin(inner: &Inner, tunnel: &Tunnel, request: &Request) -> (Record, Span) {
    let record = inner
        .pod
        .connections
        .start(Direction::InboundHbone, tunnel.client);
    {
        let mut facts = record.facts();
        facts.via = Via::Hbone(HboneAddr(tunnel.local));
        let peer = tunnel.facts.peer.as_ref();
        facts.src_identity = peer.map(|peer| peer.identity().clone());
        facts.tls_cipher = Some(tunnel.facts.tls.cipher);
        facts.tls_key_exchange = Some(tunnel.facts.tls.key_exchange);
    }
    let asked = request.asked().ok();
    let dst = asked.map(|asked| display(&asked.authority));
    let trace = asked.and_then(|asked| asked.trace.as_ref());
    let trace = trace.map(|trace| display(trace.trace_id()));
    let span = debug_span!("inbound", src = %tunnel.client, dst, pod = %inner.pod.name, trace);
    (record, span)
}

async fn carry(
    record: &Record,
    opening: impl Future<Output = Result<(ResetOnDrop, Stream), InboundError>>,
) -> Result<(), InboundError> {
    let (mut app, stream) = opening.await?;
    let joined = {
        let mut halves = app.split();
        let joined = relay::join(&mut halves, stream, record.traffic());
        record.unless_cut(joined).await
    };
    if let Ok(Ok(())) = joined {
        app.close();
    }
    let (bytes_out, bytes_in) = (record.traffic().sent(), record.traffic().received());
    debug!(bytes_out, bytes_in, "relay ended");
    Ok(joined??)
}

/// Reaches the app, and opens the stream. One that is cut before the app accepted is answered, one that is cut later is
/// reset.
async fn open(
    inner: &Inner,
    tunnel: &Tunnel,
    record: &Record,
    mut request: Box<Request>,
) -> Result<(ResetOnDrop, Stream), InboundError> {
    let asked = request.asked().map_err(Clone::clone);
    let reached = match asked {
        Err(err) => Err(InboundError::BadConnect(err)),
        Ok(asked) => {
            {
                let mut facts = record.facts();
                facts.src = asked.baggage().into();
                facts.trace = asked.trace;
                facts.told_service.clone_from(&asked.service);
                facts.authority = Some(asked.authority.clone());
            }
            let authority = authority(&asked.authority);
            let follows = match request.has_data() {
                true => Follows::Data,
                false => Follows::Anything,
            };
            let reaching = reach(inner, tunnel, record, &authority, follows);
            tokio::select! {
                reached = record.unless_cut(reaching) => {
                    reached.unwrap_or_else(|cut| Err(cut.into()))
                }
                err = request.canceled() => Err(InboundError::ClientGone(err)),
            }
        }
    };
    let Reached {
        workload,
        mut app,
        at,
        header,
    } = match reached {
        Ok(reached) => reached,
        Err(err) => {
            request.refuse(err.answer());
            return Err(err);
        }
    };
    let told = inner.settings.response_baggage.then(|| baggage(&workload));
    let stream = request
        .open(told.as_ref())
        .map_err(InboundError::ClientGone)?;
    record.connected();
    debug!(app = %at, "app accepted");
    record
        .unless_cut(introduce(inner, &mut app, at, &header))
        .await??;
    Ok((app, stream))
}

/// A stream whose app has accepted.
struct Reached {
    workload: Arc<Workload>,
    app: ResetOnDrop,
    at: AppAddr,
    /// What the app has to be sent before the client's bytes; mostly nothing.
    header: Vec<u8>,
}

/// The checks in the order of the contract, then the app.
async fn reach(
    inner: &Inner,
    tunnel: &Tunnel,
    record: &Record,
    authority: &inbound::Authority,
    follows: Follows,
) -> Result<Reached, InboundError> {
    let workload = inner.pod.workload().await?;
    {
        let mut facts = record.facts();
        facts.dst = Party::Workload(Arc::clone(&workload));
        facts.dst_identity = Some(workload.identity());
    }
    // Each round answers one question about one service of the pod. What still lacks then is refused.
    let deadline = Instant::now() + LOOKUP_WAIT;
    let connect = Connect {
        own_network: &inner.pod.network,
        pod: &workload,
        authority,
        local: tunnel.local,
        localhost_app_tunnel: inner.settings.localhost_app_tunnel,
    };
    for _ in 0..MOST_LOOKUPS.max(workload.memberships.len()) {
        let Some(key) = lacking(&inner.pod.mesh.load(), &connect) else {
            break;
        };
        inner.pod.mesh.look_up(key, deadline).await?;
    }
    let peer = Peer {
        principal: tunnel.facts.peer.as_ref(),
        addr: tunnel.client,
    };
    let (target, permit) = {
        let mesh = inner.pod.mesh.load();
        let target = target(&mesh, &connect)?;
        {
            let mut facts = record.facts();
            facts.dst_addr = Some(target.app.0);
            let told = std::mem::take(&mut facts.src);
            facts.src = inner.pod.party_at(&mesh, tunnel.client, told);
            let named = facts.told_service.as_deref();
            facts.service = inner.pod.service_for(&mesh, &workload, named, target.app);
        }
        record.opened();
        inner.refuse_own_ports(target.app)?;
        inner.refuse_others(&target)?;
        (target, inner.admit(record, &mesh, peer, target.app)?)
    };
    let header = match target.proxy_to {
        Some(to) => header(tunnel, to)?,
        None => Vec::new(),
    };
    let at = target.app;
    debug!(app = %at, "permitted");
    let delivering = inner.deliver(permit, tunnel.client, at, target.hop, follows);
    let app = delivering.await?;
    Ok(Reached {
        workload,
        app,
        at,
        header,
    })
}

/// What tells an app who connected to `to`.
fn header(tunnel: &Tunnel, to: SocketAddr) -> Result<Vec<u8>, InboundError> {
    let peer = tunnel.facts.peer.as_ref();
    let identity = peer.map(|peer| peer.identity().to_string());
    let header = ProxyHeader {
        from: tunnel.client.0,
        to,
        identity: identity.as_deref(),
    };
    Ok(header.encode()?)
}

/// Sends the app its header, which goes before everything that the client says.
async fn introduce(
    inner: &Inner,
    app: &mut ResetOnDrop,
    at: AppAddr,
    header: &[u8],
) -> Result<(), InboundError> {
    // A new connection has room for it; only an app that is gone already makes a difference.
    let sent = timeout(inner.tunnels.connect_timeout, app.send_first(header)).await;
    sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| InboundError::Introduce { app: at, source })
}

fn authority(asked: &Authority) -> inbound::Authority {
    match asked {
        Authority::Ip(addr) => inbound::Authority::Ip(*addr),
        Authority::Host { host, port } => inbound::Authority::Host {
            host: host.to_string(),
            port: *port,
        },
    }
}

/// What a stream takes for as long as it lasts.
#[cfg(test)]
pub(super) fn stream_size() -> usize {
    fn size<F: Future>(_: impl FnOnce(Rc<Inner>, Rc<Tunnel>, Box<Request>) -> F) -> usize {
        size_of::<F>()
    }
    size(serve_stream)
}
