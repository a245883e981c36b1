//! What `/config_dump` shows besides the mesh.

use std::future::Future;
use std::pin::Pin;

use serde_json::{Value, json};
use ztunnel_node::admin::{CertificateSet, CertificateState, PodEntry, Sources};
use ztunnel_node::enroll::{Enroller, PodState, PodStatus};
use ztunnel_node::identity::{Identities, KnownIdentity};
use ztunnel_node::telemetry::chain;

pub(crate) struct Daemon {
    pub(crate) identities: Identities,
    pub(crate) enroller: Enroller,
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
            pods.into_iter().filter_map(entry).collect()
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
    })
}
