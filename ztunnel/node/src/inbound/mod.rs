//! Connections to the apps of a pod: streams of tunnels that end here, and plain TCP.
//!
//! Invariants: nothing reaches an app without a `Permit`, and nothing the proxy's own listeners. An app sees the
//! address of the TCP peer as its client. A stream is accepted towards its client only after the app has accepted it. A
//! stream that fails takes no other with it. Who is denied later is cut then.
//!
//! Absent for now: the PROXY protocol.

mod error;
mod handshakes;
mod hbone;
mod live;
mod plaintext;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;
use ztunnel_mesh::Mesh;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::{Peer, Permit};
use ztunnel_sys::socket::canonical;

use crate::own_pod::OwnPod;
use crate::relay::ResetOnDrop;
use crate::task::{Shutdown, TaskGroup};
use crate::tunnel::TunnelSettings;
use error::InboundError;
use handshakes::Handshakes;
use live::{Live, Place};

/// The incoming side of one pod on one worker thread.
pub struct Inbound(Rc<Inner>);

struct Inner {
    pod: Rc<OwnPod>,
    settings: Arc<TunnelSettings>,
    tasks: TaskGroup,
    shutdown: Shutdown,
    handshakes: Handshakes,
    live: Live,
}

impl Inbound {
    /// Serves `pod`. Streams are run by tasks in `tasks`; on `shutdown` the clients of tunnels are told to make no
    /// more of them.
    #[must_use]
    pub fn new(
        pod: Rc<OwnPod>,
        settings: Arc<TunnelSettings>,
        tasks: TaskGroup,
        shutdown: Shutdown,
    ) -> Self {
        Self(Rc::new(Inner {
            pod,
            settings,
            tasks,
            shutdown,
            handshakes: Handshakes::default(),
            live: Live::default(),
        }))
    }

    /// Serves a connection to the tunnel port until it ends, or until its streams have ended after shutdown began.
    /// Dropping the future cuts all its streams.
    pub async fn serve_hbone(&self, accepted: TcpStream) {
        if let Some((client, local)) = addresses(&accepted) {
            hbone::serve(&self.0, accepted, client, local).await;
        }
    }

    /// Serves a plain connection until it ends. Its local address is where the client meant to connect. Dropping the
    /// future resets it.
    pub async fn serve_plaintext(&self, accepted: TcpStream) {
        if let Some((client, local)) = addresses(&accepted) {
            plaintext::serve(&self.0, accepted, client, local).await;
        }
    }
}

impl Inbound {
    /// Cuts connections when policy denies what it had permitted. To be run beside those that serve, and for as long
    /// as connections are open.
    pub async fn follow_policy(&self) {
        let Inner { pod, live, .. } = &*self.0;
        live.follow(pod.mesh.clone(), |mesh, known| {
            pod.policies(mesh, pod.workload_in(mesh).unwrap_or(known))
        })
        .await;
    }
}

fn addresses(accepted: &TcpStream) -> Option<(ClientAddr, SocketAddr)> {
    match (accepted.peer_addr(), accepted.local_addr()) {
        (Ok(client), Ok(local)) => Some((ClientAddr(canonical(client)), canonical(local))),
        // Gone before we looked: there is nothing to tell about it.
        (Err(error), _) | (_, Err(error)) => {
            debug!(%error, "client gone before its connection was served");
            None
        }
    }
}

impl Inner {
    /// Refuses what the proxy would connect to itself: besides the well-known ports, those that its listeners in this
    /// pod happen to have.
    fn refuse_own_ports(&self, app: AppAddr) -> Result<(), InboundError> {
        if self.pod.is_listener(app.0.port()) {
            return Err(InboundError::Loop { app });
        }
        Ok(())
    }

    /// Asks policy about a connection of `peer` to `app`, by what `mesh` knows of the pod.
    fn admit(
        &self,
        mesh: &Mesh,
        peer: Peer<'_>,
        app: AppAddr,
    ) -> Result<(Place<'_>, Permit), InboundError> {
        let workload = self.pod.known_in(mesh)?;
        let policies = self.pod.policies(mesh, workload);
        Ok(self.live.admit(&policies, peer, app)?)
    }

    /// Connects to the app, unless the connection is cut meanwhile. The permit is spent: it was for this connection.
    async fn deliver(
        &self,
        _permit: Permit,
        place: &Place<'_>,
        client: ClientAddr,
        app: AppAddr,
    ) -> Result<ResetOnDrop, InboundError> {
        let after = self.settings.connect_timeout;
        let connecting = timeout(after, self.pod.net.connect_as(client, app));
        place
            .unless_cut(connecting)
            .await?
            .map_err(|_| InboundError::AppTimeout { app, after })?
            .map(ResetOnDrop::new)
            .map_err(|source| InboundError::App { app, source })
    }
}
