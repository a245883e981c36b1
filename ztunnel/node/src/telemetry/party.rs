//! The two ends of a connection, as far as telemetry knows them.

use std::sync::Arc;

use ztunnel_hbone::Baggage;
use ztunnel_mesh::Workload;

/// Longest value that is taken over from a peer.
const LONGEST: usize = 128;

/// One end of a connection.
#[derive(Clone, Debug, Default)]
pub enum Party {
    #[default]
    Unknown,
    /// The mesh knows it.
    Workload(Arc<Workload>),
    /// Only a peer says what it is.
    Told(Arc<Told>),
}

/// What a peer says about a workload. It may say what it likes, so each value has a bound.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Told {
    cluster: Box<str>,
    namespace: Box<str>,
    workload: Box<str>,
    canonical_name: Box<str>,
    canonical_revision: Box<str>,
    region: Box<str>,
    zone: Box<str>,
}

impl From<Baggage<'_>> for Party {
    fn from(baggage: Baggage<'_>) -> Self {
        if baggage == Baggage::default() {
            return Self::Unknown;
        }
        let bounded = |text: &str| {
            let plain = |byte: u8| byte.is_ascii_graphic();
            if text.len() > LONGEST || !text.bytes().all(plain) {
                return Box::default();
            }
            text.into()
        };
        Self::Told(Arc::new(Told {
            cluster: bounded(baggage.cluster),
            namespace: bounded(baggage.namespace),
            workload: bounded(baggage.workload_name),
            canonical_name: bounded(baggage.service_name),
            canonical_revision: bounded(baggage.service_version),
            region: bounded(baggage.region),
            zone: bounded(baggage.zone),
        }))
    }
}

/// What labels and log lines say about a party; empty is "not known".
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Named<'a> {
    /// The pod, or whatever stands for it.
    pub(crate) name: &'a str,
    pub(crate) workload: &'a str,
    pub(crate) namespace: &'a str,
    pub(super) canonical_name: &'a str,
    pub(super) canonical_revision: &'a str,
    pub(super) app: &'a str,
    pub(super) cluster: &'a str,
    pub(super) region: &'a str,
    pub(super) zone: &'a str,
}

impl Party {
    pub(crate) fn named(&self) -> Named<'_> {
        match self {
            Self::Unknown => Named::default(),
            Self::Workload(workload) => Named {
                name: &workload.name,
                workload: &workload.app.workload_name,
                namespace: &workload.namespace,
                canonical_name: &workload.app.canonical_name,
                canonical_revision: &workload.app.canonical_revision,
                app: &workload.app.canonical_name,
                cluster: &workload.place.cluster_id,
                region: &workload.place.locality.region,
                zone: &workload.place.locality.zone,
            },
            Self::Told(told) => Named {
                name: &told.workload,
                workload: &told.workload,
                namespace: &told.namespace,
                canonical_name: &told.canonical_name,
                canonical_revision: &told.canonical_revision,
                app: &told.workload,
                cluster: &told.cluster,
                region: &told.region,
                zone: &told.zone,
            },
        }
    }
}
