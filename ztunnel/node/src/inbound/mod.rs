//! Connections to the apps of a pod: streams of tunnels that end here, and plain TCP.
//!
//! Invariants: nothing reaches an app without a `Permit`, and nothing the proxy's own listeners. An app sees the
//! address of the TCP peer as its client. A stream is accepted towards its client only after the app has accepted it. A
//! stream that fails takes no other with it. Who is denied later is cut then.

mod error;
mod handshakes;
mod hbone;
mod live;
mod plaintext;
mod settings;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;
use ztunnel_mesh::Mesh;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::{Peer, Permit};
use ztunnel_mesh::inbound::{LastHop, Target};
use ztunnel_sys::socket::canonical;

use crate::connections::Record;
use crate::own_pod::OwnPod;
use crate::relay::ResetOnDrop;
use crate::task::{Follows, LocalTasks, Shutdown};
use crate::tunnel::TunnelSettings;
use error::InboundError;
use handshakes::Handshakes;
pub use live::Live;
pub use settings::{InboundSettings, Offer};

/// The incoming side of one pod on one worker thread.
pub struct Inbound(Rc<Inner>);

struct Inner {
    pod: Rc<OwnPod>,
    offer: Offer,
    settings: InboundSettings,
    tunnels: Arc<TunnelSettings>,
    tasks: LocalTasks,
    shutdown: Shutdown,
    handshakes: Handshakes,
    live: Live,
}

impl Inbound {
    /// Serves what `offer` says of `pod`. Streams are run by tasks in `tasks`; on `shutdown` the clients of tunnels are
    /// told to make no more of them.
    #[must_use]
    pub fn new(
        pod: Rc<OwnPod>,
        offer: Offer,
        settings: InboundSettings,
        tunnels: Arc<TunnelSettings>,
        tasks: LocalTasks,
        shutdown: Shutdown,
    ) -> Self {
        Self(Rc::new(Inner {
            live: Live::new(Rc::clone(&pod.connections)),
            pod,
            offer,
            settings,
            tunnels,
            tasks,
            shutdown,
            handshakes: Handshakes::default(),
        }))
    }

    /// Serves a connection of `from` to the tunnel port until it ends, or until its streams have ended after shutdown began.
    /// Dropping the future cuts all its streams.
    pub async fn serve_hbone(&self, accepted: TcpStream, from: SocketAddr) {
        if let Some((client, local)) = addresses(&accepted, from) {
            hbone::serve(&self.0, accepted, client, local).await;
        }
    }

    /// Serves a plain connection of `from` until it ends. Its local address is where the client meant to connect. Dropping the
    /// future resets it.
    pub async fn serve_plaintext(&self, accepted: TcpStream, from: SocketAddr) {
        if let Some((client, local)) = addresses(&accepted, from) {
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

fn addresses(accepted: &TcpStream, from: SocketAddr) -> Option<(ClientAddr, SocketAddr)> {
    match accepted.local_addr() {
        Ok(local) => Some((ClientAddr(canonical(from)), canonical(local))),
        // Gone before we looked: there is nothing to tell about it.
        Err(error) => {
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

    /// Refuses what is not on offer.
    fn refuse_others(&self, target: &Target) -> Result<(), InboundError> {
        let Offer::OwnPort(port) = self.offer else {
            return Ok(());
        };
        let app = target.app;
        let plain = target.hop == LastHop::AsClient && target.proxy_to.is_none();
        if app.0.port() == port && plain {
            Ok(())
        } else {
            Err(InboundError::NotOffered { app, port })
        }
    }

    /// Asks policy about a connection of `peer` to `app`, by what `mesh` knows of the pod.
    fn admit(
        &self,
        record: &Record,
        mesh: &Mesh,
        peer: Peer<'_>,
        app: AppAddr,
    ) -> Result<Permit, InboundError> {
        let workload = self.pod.known_in(mesh)?;
        let policies = self.pod.policies(mesh, workload);
        Ok(self.live.admit(record, &policies, peer, app)?)
    }

    /// Connects to the app. The permit is spent: it was for this connection.
    async fn deliver(
        &self,
        _permit: Permit,
        client: ClientAddr,
        app: AppAddr,
        hop: LastHop,
        follows: Follows,
    ) -> Result<ResetOnDrop, InboundError> {
        let after = self.tunnels.connect_timeout;
        let net = &self.pod.net;
        let connecting = async {
            match (hop, self.offer) {
                (LastHop::Loopback(at), _) => net.connect(at).await,
                (LastHop::AsClient, Offer::Apps) => {
                    let source = self.settings.source;
                    net.connect_as(client, app, source, follows).await
                }
                // Nothing in the daemon's own namespace would bring answers to another address back.
                (LastHop::AsClient, Offer::OwnPort(_)) => net.connect(app.0).await,
            }
        };
        timeout(after, connecting)
            .await
            .map_err(|_| InboundError::AppTimeout { app, after })?
            .map(ResetOnDrop::new)
            .map_err(|source| InboundError::App { app, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What connections take for as long as they last.
    #[test]
    fn connections_take_little_memory() {
        fn size<'a, F: Future>(_: impl FnOnce(&'a Inbound, TcpStream, SocketAddr) -> F) -> usize {
            size_of::<F>()
        }
        for (bytes, most) in [
            (size(Inbound::serve_hbone), 1024),
            (size(Inbound::serve_plaintext), 1152),
            // With the 120 bytes that a task has besides, this just fits what the allocator gives for 512.
            (hbone::stream_size(), 392),
        ] {
            assert!(bytes <= most, "{bytes}, not {most}");
        }
    }
}
