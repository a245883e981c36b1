//! `/config_dump`: all that the daemon knows, in the schema that `istioctl ztunnel-config` reads.
//!
//! Made from one snapshot, while it is sent, so that a large mesh takes neither much memory nor much time at once: the
//! next workload is found when there is room for it. Keys are sorted at every level. Public parts only: of secrets
//! there is nothing in what a dump is made from.
//!
//! Absent: of `config` what has no meaning for this daemon.

mod certificate;
mod connection;
mod json;
mod policy;
mod service;
mod workload;

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use ztunnel_mesh::name::ServiceName;
use ztunnel_mesh::{Mesh, Policy, Service, Workload};

use certificate::ShownSet;
pub use certificate::{CertificateSet, CertificateState};
pub use connection::ConnectionEntry;
use connection::ShownConnections;
use json::{Members, Pieces, Section, element, field};
use policy::ShownPolicy;
use service::{ShownService, shown_endpoints};
use workload::ShownWorkload;

use super::http::{Body, Response};
use crate::state::MeshReader;

/// Dumps at a time: each keeps a snapshot.
const MAX_DUMPS: usize = 4;

/// A pod that the daemon serves, or should.
#[derive(Clone, Debug)]
pub struct PodEntry {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    /// Whether it is served.
    pub up: bool,
    /// Those that are open, each as often as there is one like it. None when that is not known.
    pub connections: Option<Vec<ConnectionEntry>>,
}

/// Where the parts of a dump that are not of the mesh come from.
pub trait Sources: Send + Sync + 'static {
    /// The certificates of all identities in use.
    fn certificates(&self) -> Vec<CertificateSet>;
    /// The pods.
    fn pods(&self) -> Pin<Box<dyn Future<Output = Vec<PodEntry>> + Send + '_>>;
    /// The settings, without secrets, by their names in the schema.
    fn config(&self) -> Value;
    /// What this program is, by names in the schema.
    fn version(&self) -> Value;
}

/// Makes dumps.
pub struct ConfigDump {
    mesh: MeshReader,
    sources: Box<dyn Sources>,
    running: Arc<Semaphore>,
}

impl ConfigDump {
    #[must_use]
    pub fn new(mesh: MeshReader, sources: impl Sources) -> Self {
        Self {
            mesh,
            sources: Box::new(sources),
            running: Arc::new(Semaphore::new(MAX_DUMPS)),
        }
    }

    pub(super) async fn answer(&self) -> Response {
        let Some(pieces) = self.pieces().await else {
            let mut response = Response::new("other dumps are being made\n".into());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        };
        let mut response = Response::new(Body::Pieces(Box::new(pieces)));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }

    /// A dump, each piece of which is made when it is asked for. None: too many are being made.
    pub async fn pieces(&self) -> Option<impl Iterator<Item = Bytes> + Send + 'static> {
        let turn = Arc::clone(&self.running).try_acquire_owned().ok()?;
        let pods = self.sources.pods().await;
        let rest = Rest {
            certificates: self.sources.certificates(),
            pods,
            config: self.sources.config(),
            version: self.sources.version(),
        };
        Some(pieces(self.mesh.load(), rest).inspect(move |_| {
            // Kept as long as it is being made.
            let _ = &turn;
        }))
    }
}

struct Rest {
    certificates: Vec<CertificateSet>,
    pods: Vec<PodEntry>,
    config: Value,
    version: Value,
}

fn pieces(mesh: Arc<Mesh>, rest: Rest) -> impl Iterator<Item = Bytes> + Send + 'static {
    let Rest {
        mut certificates,
        mut pods,
        config,
        version,
    } = rest;
    certificates.sort_by(|a, b| a.identity.cmp(&b.identity));
    pods.sort_by(|a, b| a.uid.cmp(&b.uid));
    let nothing = json!({"policies": [], "services": [], "workloads": []});
    // In the order of the names. A section that has not begun has collected nothing.
    type Begin = Box<dyn FnOnce() -> Section + Send>;
    let sections: [Begin; 9] = [
        Box::new(|| {
            let shown = |set: CertificateSet| element(&ShownSet::from(&set));
            Section::Array("certificates", members(certificates, shown))
        }),
        Box::new(|| Section::Value("config", config)),
        Box::new({
            let mesh = Arc::clone(&mesh);
            move || {
                let policies: Vec<_> = mesh.policies().cloned().collect();
                let shown = |policy: Arc<Policy>| element(&ShownPolicy::from(&*policy));
                Section::Array("policies", members(policies, shown))
            }
        }),
        Box::new({
            let mesh = Arc::clone(&mesh);
            move || {
                let services = InOrder::new(mesh.services().cloned().map(ByHostname));
                let shown = move |ByHostname(service)| {
                    element(&ShownService::new(&service, mesh.endpoints(&service.key)))
                };
                Section::Array("services", members(services, shown))
            }
        }),
        Box::new({
            let mesh = Arc::clone(&mesh);
            move || Section::Object("stagedServices", staged(mesh))
        }),
        Box::new(|| Section::Value("staticConfig", nothing)),
        Box::new(|| Section::Value("version", version)),
        Box::new(|| {
            let shown = |pod: PodEntry| {
                let uid = pod.uid.clone();
                field(&uid, &ShownPod::from(pod))
            };
            Section::Object("workloadState", members(pods, shown))
        }),
        Box::new(move || {
            let workloads = InOrder::new(mesh.workloads().cloned().map(ByUid));
            let shown = |ByUid(workload)| element(&ShownWorkload::from(&*workload));
            Section::Array("workloads", members(workloads, shown))
        }),
    ];
    Pieces::new(sections.into_iter().map(|begin| begin()))
}

fn members<T>(
    items: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
    show: impl FnMut(T) -> Vec<u8> + Send + 'static,
) -> Members {
    Box::new(items.into_iter().map(show))
}

/// The endpoints of services that have not come.
fn staged(mesh: Arc<Mesh>) -> Members {
    let mut names: Vec<ServiceName> = mesh.awaited_services().cloned().collect();
    names.sort_by_cached_key(ToString::to_string);
    let shown = move |name: ServiceName| {
        let endpoints = shown_endpoints(mesh.endpoints(&name));
        field(&name.to_string(), &endpoints)
    };
    members(names, shown)
}

/// Gives things in their order without sorting them first: what comes next is found when it is asked for.
struct InOrder<T>(BinaryHeap<Reverse<T>>);

impl<T: Ord> InOrder<T> {
    fn new(all: impl Iterator<Item = T>) -> Self {
        Self(all.map(Reverse).collect::<Vec<_>>().into())
    }
}

impl<T: Ord> Iterator for InOrder<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.pop().map(|Reverse(next)| next)
    }
}

macro_rules! by {
    ($name:ident, $of:ident, $($key:ident).+ $(, $then:ident . $more:ident)?) => {
        struct $name(Arc<$of>);

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                let (a, b): (&$of, &$of) = (&self.0, &other.0);
                a.$($key).+.cmp(&b.$($key).+) $(.then_with(|| a.$then.$more.cmp(&b.$then.$more)))?
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other).is_eq()
            }
        }

        impl Eq for $name {}
    };
}

by!(ByUid, Workload, uid);
by!(ByHostname, Service, key.hostname, key.namespace);

/// The fields in the order of their names.
#[derive(Serialize)]
struct ShownPod {
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<ShownConnections>,
    info: ShownInfo,
    state: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownInfo {
    name: String,
    namespace: String,
    service_account: String,
}

impl From<PodEntry> for ShownPod {
    fn from(pod: PodEntry) -> Self {
        Self {
            connections: pod.connections.map(ShownConnections::from),
            info: ShownInfo {
                name: pod.name,
                namespace: pod.namespace,
                service_account: pod.service_account,
            },
            state: if pod.up { "Up" } else { "Pending" },
        }
    }
}

#[cfg(test)]
mod tests;
