//! What was seen of a connection, for people and for programs.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::Wire;
use crate::connections::OpenConnection;
use crate::explain::Explanation;
use crate::telemetry::Party;

/// A connection to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// `namespace/name`, or the name or the uid of a pod that is enrolled here.
    pub pod: String,
    pub to: String,
    /// A line to send, and to look for on the wire.
    pub text: Option<String>,
    /// How long it may take until the connection can carry bytes.
    pub within_seconds: u64,
}

/// What a connection of a pod has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Whether it left through the mesh, and nothing of it in the clear.
    pub proven: bool,
    /// Stable, for programs: `PROVEN`, or what is missing, or the reason that the connection ended with.
    pub code: String,
    /// The verdict in a sentence.
    pub verdict: String,
    /// What to do when it is not proven.
    pub next_step: Option<String>,
    pub evidence: Evidence,
    /// What the proof does not say.
    pub limits: Vec<String>,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub pod: String,
    pub to: SocketAddr,
    /// What is wrong with the pod's capture, as measured in the kernel before.
    pub capture_problem: Option<String>,
    /// Whether the connection came to the proxy.
    pub captured: bool,
    /// What the mesh would decide, as it was known before.
    pub decision: Explanation,
    pub app: App,
    /// What the proxy has made of the connection; none when it was not decided in time.
    pub proxy: Option<Proxied>,
    /// The connection's end, when it came before it was wanted.
    pub failed: Option<Failed>,
    pub wire: Wire,
    pub text: Option<Text>,
    pub took_milliseconds: u64,
}

/// The end that stands for an app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    pub from: Option<SocketAddr>,
    /// Why it could not connect.
    pub refused: Option<String>,
    /// It was forbidden to connect: by the connect hooks.
    pub forbidden: bool,
    pub received_bytes: u64,
    pub reset: bool,
}

/// The connection as the proxy has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxied {
    /// `HBONE`, or `TCP` for plain TCP.
    pub protocol: String,
    /// Whether the far end has accepted it.
    pub connected: bool,
    /// The tunnel port, or where plain TCP goes to.
    pub via: Option<SocketAddr>,
    pub identity: Option<String>,
    /// Proved by TLS.
    pub peer_identity: Option<String>,
    pub peer: Option<String>,
    pub peer_node: Option<String>,
    pub tls_version: Option<String>,
    pub tls_cipher: Option<String>,
    pub tls_key_exchange: Option<String>,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// Why it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// As in the log.
    pub reason: String,
    pub error: Option<String>,
    pub cause: String,
    pub next_step: String,
}

/// A line that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    pub bytes: u64,
    /// It was sent only when the connection was known to go through a tunnel.
    pub sent: bool,
}

impl Proxied {
    pub(super) fn new(open: &OpenConnection, connected: bool) -> Self {
        let (peer, peer_node) = match &open.dst {
            Party::Workload(workload) => (
                Some(format!("{}/{}", workload.namespace, workload.name)),
                Some(workload.place.node.to_string()).filter(|node| !node.is_empty()),
            ),
            _ => (None, None),
        };
        Self {
            protocol: open.protocol.to_owned(),
            connected,
            via: open.via,
            identity: open.src_identity.as_ref().map(ToString::to_string),
            // Before the handshake it is the one that is expected.
            peer_identity: (open.dst_identity.as_ref())
                .filter(|_| open.tls_cipher.is_some())
                .map(ToString::to_string),
            peer,
            peer_node,
            tls_version: open.tls_cipher.map(|cipher| version(cipher).to_owned()),
            tls_cipher: open.tls_cipher.map(str::to_owned),
            tls_key_exchange: open.tls_key_exchange.map(str::to_owned),
            bytes_sent: open.sent,
            bytes_received: open.received,
        }
    }
}

impl Evidence {
    /// Of the tunnel that the connection went through: what passed while it was watched.
    #[must_use]
    pub fn tunnel(&self) -> Option<&super::wire::Tunnel> {
        let via = self.proxy.as_ref()?.via?;
        self.wire.tunnels.iter().find(|tunnel| tunnel.peer == via)
    }

    pub(super) fn took(&mut self, took: Duration) {
        self.took_milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    }
}

/// The suites of TLS 1.3 name no key exchange (RFC 8446 B.4).
fn version(cipher: &str) -> &'static str {
    match cipher.contains("_WITH_") {
        true => "1.2",
        false => "1.3",
    }
}
