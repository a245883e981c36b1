//! Plain TCP to this pod: from outside the mesh, and from whoever does not use the tunnel. Policy says whether that
//! is allowed; such a client has no identity.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::authorize::Peer;
use ztunnel_mesh::inbound::{LastHop, plaintext_target};

use super::Inner;
use super::error::InboundError;
use super::live::Place;
use crate::relay::{self, FarError, ResetOnDrop};
use crate::telemetry::{Direction, Record};

pub(super) async fn serve(
    inner: &Inner,
    accepted: TcpStream,
    client: ClientAddr,
    local: SocketAddr,
) {
    let accepted = ResetOnDrop::new(accepted);
    let mut record = Record::start(Direction::InboundPlaintext, &inner.pod.name, client);
    record.dst = Some(local);
    let reached = tokio::select! {
        reached = reach(inner, &mut record, client, local) => reached,
        err = relay::broken(accepted.get()) => Err(InboundError::ClientGone(FarError::Broken(err))),
    };
    let (place, app) = match reached {
        Ok(reached) => reached,
        Err(err) => {
            drop(accepted);
            return record.failed(err.reason(), &err);
        }
    };
    let joined = relay::join_tcp(app, accepted, &record.traffic);
    match place.unless_cut(joined).await {
        Ok(Ok(())) => record.complete(),
        Ok(Err(err)) => record.failed(err.reason(), &err),
        Err(cut) => record.failed(cut.reason(), &cut),
    }
}

/// The checks in the order of the contract, then the app.
async fn reach<'a>(
    inner: &'a Inner,
    record: &mut Record,
    client: ClientAddr,
    local: SocketAddr,
) -> Result<(Place<'a>, ResetOnDrop), InboundError> {
    let app = plaintext_target(local)?;
    inner.refuse_own_ports(app)?;
    let workload = inner.pod.workload().await?;
    record.dst_identity = Some(workload.identity());
    let peer = Peer {
        principal: None,
        addr: client,
    };
    let (place, permit) = inner.admit(&inner.pod.mesh.load(), peer, app)?;
    let hop = LastHop::AsClient;
    let app = inner.deliver(permit, &place, client, app, hop).await?;
    Ok((place, app))
}
