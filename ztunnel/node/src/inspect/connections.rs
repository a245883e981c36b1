//! Open connections, as rows.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use ztunnel_mesh::name::{Identity, PodName};

use crate::connections::OpenConnection;
use crate::telemetry::{Direction, Ended, Party};

/// An open connection of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// The pod of this node, as `namespace/name`.
    pub pod: String,
    /// `inbound` or `outbound`, seen from that pod.
    pub direction: String,
    /// `HBONE`, or `TCP` for plain TCP.
    pub protocol: String,
    /// Whether it can carry bytes, or is on its way.
    pub opened: bool,
    pub source: ConnectionEnd,
    pub destination: ConnectionEnd,
    /// Hostname of the service that was asked for.
    pub service: Option<String>,
    /// The tunnel port that it goes to or came in by, or where plain TCP goes to.
    pub via: Option<SocketAddr>,
    pub tls_cipher: Option<String>,
    pub tls_key_exchange: Option<String>,
    /// By the app of this node's pod.
    pub bytes_sent: u64,
    /// By the app of this node's pod.
    pub bytes_received: u64,
    pub age_seconds: u64,
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEnd {
    pub namespace: Option<String>,
    /// The pod, when the mesh knows it.
    pub name: Option<String>,
    /// What it is a pod of.
    pub workload: Option<String>,
    /// Of the source: that of the app. Of the destination: what the app dialed, or the app that was dialed.
    pub address: Option<SocketAddr>,
    /// Proved by TLS, or the one that is expected.
    pub identity: Option<String>,
}

impl ConnectionRow {
    pub(super) fn new(open: &OpenConnection) -> Self {
        let service = open.service.as_ref();
        let service = service.map(|service| &*service.key.hostname);
        let service = service.or(open.told_service.as_deref());
        Self {
            pod: open.pod.to_string(),
            direction: open.direction.as_str().to_owned(),
            protocol: open.protocol.to_owned(),
            opened: open.opened,
            source: ConnectionEnd::new(&open.src, Some(open.client.0), open.src_identity.as_ref())
                .or_pod(&open.pod, open.direction == Direction::Outbound),
            destination: ConnectionEnd::new(&open.dst, open.dst_addr, open.dst_identity.as_ref())
                .or_pod(&open.pod, open.direction != Direction::Outbound),
            service: service.map(str::to_owned),
            via: open.via,
            tls_cipher: open.tls_cipher.map(str::to_owned),
            tls_key_exchange: open.tls_key_exchange.map(str::to_owned),
            bytes_sent: open.sent,
            bytes_received: open.received,
            age_seconds: open.age.as_secs(),
        }
    }
}

impl ConnectionEnd {
    /// The source and the destination of a connection that has ended.
    pub(crate) fn both(ended: &Ended) -> (Self, Self) {
        let (facts, outbound) = (&ended.facts, ended.direction == Direction::Outbound);
        let client = Some(ended.client.0);
        let source = Self::new(&facts.src, client, facts.src_identity.as_ref());
        let destination = Self::new(&facts.dst, facts.dst_addr, facts.dst_identity.as_ref());
        (
            source.or_pod(&ended.pod, outbound),
            destination.or_pod(&ended.pod, !outbound),
        )
    }

    fn new(party: &Party, address: Option<SocketAddr>, identity: Option<&Identity>) -> Self {
        let named = party.named();
        let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            namespace: known(named.namespace),
            name: known(named.name),
            workload: known(named.workload),
            address,
            identity: identity.map(ToString::to_string),
        }
    }

    /// This node's own end is known before the control plane has said anything.
    fn or_pod(self, pod: &PodName, own: bool) -> Self {
        if !own || self.name.is_some() {
            return self;
        }
        Self {
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            ..self
        }
    }
}
