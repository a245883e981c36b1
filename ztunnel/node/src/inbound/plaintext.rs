//! Plain TCP to this pod: from outside the mesh, and from whoever does not use the tunnel. Policy says whether that
//! is allowed; such a client has no identity.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::authorize::Peer;
use ztunnel_mesh::inbound::plaintext_target;

use super::Inner;
use super::error::InboundError;
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
    let app = match reached {
        Ok(app) => app,
        Err(err) => {
            drop(accepted);
            return record.failed(err.reason(), &err);
        }
    };
    match relay::join_tcp(app, accepted, &record.traffic).await {
        Ok(()) => record.complete(),
        Err(err) => record.failed(err.reason(), &err),
    }
}

/// The checks in the order of the contract, then the app.
async fn reach(
    inner: &Inner,
    record: &mut Record,
    client: ClientAddr,
    local: SocketAddr,
) -> Result<ResetOnDrop, InboundError> {
    let app = plaintext_target(local)?;
    inner.refuse_own_ports(app)?;
    let workload = inner.pod.workload().await?;
    record.dst_identity = Some(workload.identity());
    let peer = Peer {
        principal: None,
        addr: client,
    };
    let policies = inner.pod.policies(&inner.pod.mesh.load(), &workload);
    let permit = policies.authorize(peer, app)?;
    inner.deliver(permit, client, app).await
}
