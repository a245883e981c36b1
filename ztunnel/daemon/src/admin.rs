//! What `/config_dump` shows besides the mesh.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;

use serde_json::{Value, json};
use tracing::warn;
use ztunnel_node::admin::{CertificateSet, CertificateState, ConnectionEntry, PodEntry, Sources};
use ztunnel_node::connections::{MOST_LISTED, OpenConnection, Sort, Wanted};
use ztunnel_node::enroll::{Enroller, PodState, PodStatus};
use ztunnel_node::identity::{Identities, KnownIdentity};
use ztunnel_node::inspect::Inspector;
use ztunnel_node::telemetry::{Direction, chain};

pub(crate) struct Daemon {
    pub(crate) identities: Identities,
    pub(crate) enroller: Enroller,
    pub(crate) inspector: Inspector,
    /// As [`crate::config::Config::dump`] made it.
    pub(crate) config: Value,
    pub(crate) istio_version: String,
}

impl Sources for Daemon {
    fn certificates(&self) -> Vec<CertificateSet> {
        let known = self.identities.known();
        known.into_iter().map(certificate_set).collect()
    }

    fn pods(&self) -> Pin<Box<dyn Future<Output = Vec<PodEntry>> + Send + '_>> {
        Box::pin(async {
            let pods = self.enroller.pods().await;
            let mut connections = self.connections().await;
            let mut entries: Vec<_> = pods.into_iter().filter_map(entry).collect();
            if let Some(open) = &mut connections {
                for pod in &mut entries {
                    // The uid is not known where connections are served. One of the same name that leaves is not shown.
                    let name = (pod.namespace.clone(), pod.name.clone());
                    let own = open.remove(&name);
                    pod.connections = own.or_else(|| pod.up.then(Vec::new));
                }
            }
            entries
        })
    }

    fn config(&self) -> Value {
        self.config.clone()
    }

    fn version(&self) -> Value {
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        };
        json!({
            "buildProfile": profile,
            "buildStatus": "unknown",
            "cryptoProvider": "tls-aws-lc",
            "gitRevision": option_env!("ZTUNNEL_GIT_REVISION").unwrap_or("unknown"),
            "istioVersion": self.istio_version,
            "rustVersion": concat!("at least ", env!("CARGO_PKG_RUST_VERSION")),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

impl Daemon {
    /// By the namespace and the name of the pod; the oldest [`MOST_LISTED`] of the node.
    async fn connections(&self) -> Option<HashMap<(String, String), Vec<ConnectionEntry>>> {
        let wanted = Wanted {
            pod: None,
            peer: None,
            direction: None,
            sort: Sort::Age,
            limit: MOST_LISTED,
        };
        let found = self.inspector.connections(wanted).await;
        let found = found
            .inspect_err(|error| warn!(%error, "a dump was made without connections"))
            .ok()?;
        let mut by_pod: HashMap<_, Vec<_>> = HashMap::new();
        for open in found.chosen {
            let pod = (open.pod.namespace.to_string(), open.pod.name.to_string());
            by_pod.entry(pod).or_default().extend(connection(open));
        }
        Some(by_pod)
    }
}

/// Nothing for one that is on its way.
fn connection(open: OpenConnection) -> Option<ConnectionEntry> {
    let (dst, client) = (open.dst_addr.filter(|_| open.opened)?, open.client.0);
    Some(match open.direction {
        Direction::Outbound => ConnectionEntry::Outbound {
            app: client,
            dialed: dst,
            next_hop: open.via?,
            tunnels: match (open.protocol, open.double) {
                ("TCP", _) => 0,
                (_, false) => 1,
                (_, true) => 2,
            },
        },
        Direction::InboundHbone | Direction::InboundPlaintext => ConnectionEntry::Inbound {
            client,
            hostname: open.told_service.map(String::from),
            app: dst,
            identified: open.src_identity.is_some(),
        },
    })
}

/// One that is there counts, whatever has become of its renewal.
fn certificate_set(known: KnownIdentity) -> CertificateSet {
    let accepted = known.seconds_left().is_some_and(|left| left > 0);
    let state = match (known.credential.filter(|_| accepted), known.failure) {
        (Some(credential), _) => CertificateState::Available(credential),
        (None, Some((failure, _))) => CertificateState::Unavailable(chain(&*failure)),
        (None, None) => CertificateState::Initializing,
    };
    CertificateSet {
        identity: known.identity,
        state,
    }
}

/// Nothing for a pod that only has connections left.
fn entry(pod: PodStatus) -> Option<PodEntry> {
    let up = match pod.state {
        PodState::Captured => true,
        PodState::Defective => false,
        PodState::Leaving => return None,
    };
    Some(PodEntry {
        uid: pod.uid,
        name: pod.name,
        namespace: pod.namespace,
        service_account: pod.service_account,
        up,
        connections: None,
    })
}
