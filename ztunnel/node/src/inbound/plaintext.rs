//! Plain TCP to this pod: from outside the mesh, and from whoever does not use the tunnel. Policy says whether that
//! is allowed; such a client has no identity.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tracing::{debug, debug_span};
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::authorize::Peer;
use ztunnel_mesh::inbound::{LastHop, plaintext_target};

use super::Inner;
use super::error::InboundError;
use crate::connections::Record;
use crate::relay::{self, FarError, ResetOnDrop};
use crate::task::Follows;
use crate::telemetry::{Direction, Party, within};

pub(super) async fn serve(
    inner: &Inner,
    accepted: TcpStream,
    client: ClientAddr,
    local: SocketAddr,
) {
    let _open = inner.pod.connections.socket(Direction::InboundPlaintext);
    let record = inner
        .pod
        .connections
        .start(Direction::InboundPlaintext, client);
    record.facts().dst_addr = Some(local);
    let span = debug_span!("inbound", src = %client, dst = %local, pod = %inner.pod.name);
    let carried = {
        let accepted = ResetOnDrop::new(accepted);
        let carried = carry(inner, &record, accepted, client, local);
        record.unless_cut(within(span, carried)).await
    };
    match carried {
        Ok(Ok(())) => record.complete(),
        Ok(Err(err)) => record.failed(err.reason(), err),
        Err(cut) => record.failed(cut.reason(), cut),
    }
}

async fn carry(
    inner: &Inner,
    record: &Record,
    mut accepted: ResetOnDrop,
    client: ClientAddr,
    local: SocketAddr,
) -> Result<(), InboundError> {
    // Large, and over long before the connection is.
    let reaching = Box::pin(reach(inner, record, client, local));
    let mut app = tokio::select! {
        app = reaching => app?,
        err = relay::broken(accepted.get()) => {
            return Err(InboundError::ClientGone(FarError::Broken(err)));
        }
    };
    let joined = relay::join_tcp(&mut app, &mut accepted, record.traffic()).await;
    let (bytes_out, bytes_in) = (record.traffic().sent(), record.traffic().received());
    debug!(bytes_out, bytes_in, "relay ended");
    Ok(joined?)
}

/// The checks in the order of the contract, then the app.
async fn reach(
    inner: &Inner,
    record: &Record,
    client: ClientAddr,
    local: SocketAddr,
) -> Result<ResetOnDrop, InboundError> {
    let app = plaintext_target(local)?;
    inner.refuse_own_ports(app)?;
    let workload = inner.pod.workload().await?;
    {
        let mut facts = record.facts();
        facts.dst = Party::Workload(Arc::clone(&workload));
        facts.dst_identity = Some(workload.identity());
    }
    let peer = Peer {
        principal: None,
        addr: client,
    };
    let permit = {
        let mesh = inner.pod.mesh.load();
        {
            let mut facts = record.facts();
            facts.src = inner.pod.party_at(&mesh, client, Party::Unknown);
            facts.service = inner.pod.service_for(&mesh, &workload, None, app);
        }
        record.opened();
        inner.admit(record, &mesh, peer, app)?
    };
    debug!(%app, "permitted");
    let app = inner
        .deliver(permit, client, app, LastHop::AsClient, Follows::Anything)
        .await?;
    record.connected();
    Ok(app)
}
