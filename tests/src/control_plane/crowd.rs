//! Many workloads that exist only on the wire, encoded beforehand: what a large push does to whoever receives it.
//!
//! They are not in the mesh file, which would have to be written, read and compared as YAML each time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ztunnel_proto::istio::workload;

use super::snapshot::Entry;
use super::wire::{Body, CLUSTER};

/// Services that they are behind.
const SERVICES: usize = 500;
/// Nodes that they run on, none of which the lab has.
const NODES: usize = 500;
/// Their addresses begin here, beside everything that a lab has. There are a million.
const FIRST: u32 = u32::from_be_bytes([11, 0, 0, 0]);

/// Workloads, ready to be announced.
#[derive(Clone, Debug)]
pub struct Crowd(pub(super) BTreeMap<String, Arc<Entry>>);

impl Crowd {
    /// `count` workloads and services in front of them. Another `revision` of it has the same names, and of every
    /// workload another address and other contents.
    #[must_use]
    pub fn new(count: usize, revision: u32) -> Self {
        let services = (0..SERVICES.min(count)).map(|number| {
            let service = service(number);
            let name = format!("{}/{}", service.namespace, service.hostname);
            (name, workload::address::Type::Service(service))
        });
        let workloads = (0..count).map(|number| {
            let workload = member(number, count, revision);
            let name = workload.uid.clone();
            (name, workload::address::Type::Workload(workload))
        });
        let encode = |(name, inner)| {
            let message = workload::Address {
                r#type: Some(inner),
            };
            let entry = Entry::new(Body::Address(Box::new(message)));
            (name, Arc::new(entry))
        };
        Self(services.chain(workloads).map(encode).collect())
    }
}

fn service(number: usize) -> workload::Service {
    workload::Service {
        name: format!("svc-{number}"),
        namespace: namespace(number),
        hostname: hostname(number),
        addresses: vec![workload::NetworkAddress {
            // Below them all.
            address: ip(FIRST - 1 - number as u32),
            ..Default::default()
        }],
        ports: ports(),
        canonical: true,
        ..Default::default()
    }
}

fn member(number: usize, count: usize, revision: u32) -> workload::Workload {
    let service = number % SERVICES.min(count);
    let (namespace, app) = (namespace(service), format!("app-{service}"));
    // As a deployment names its pods.
    let name = format!("{app}-{:09x}-{number:05x}", service * 7_919_993);
    let key = format!("{namespace}/{}", hostname(service));
    // Of two revisions, one has the even addresses and the other the odd ones.
    let address = FIRST + 2 * number as u32 + revision % 2;
    workload::Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name,
        namespace,
        addresses: vec![ip(address)],
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        service_account: app.clone(),
        node: format!("elsewhere-{}", number % NODES),
        canonical_name: app.clone(),
        canonical_revision: format!("v{revision}"),
        workload_type: workload::WorkloadType::Pod.into(),
        workload_name: app,
        cluster_id: CLUSTER.to_owned(),
        services: [(key, workload::PortList { ports: ports() })].into(),
        ..Default::default()
    }
}

fn namespace(service: usize) -> String {
    format!("crowd-{}", service % 50)
}

fn hostname(service: usize) -> String {
    format!("svc-{service}.{}.svc.cluster.local", namespace(service))
}

fn ports() -> Vec<workload::Port> {
    vec![workload::Port {
        service_port: 80,
        target_port: 8080,
        ..Default::default()
    }]
}

fn ip(address: u32) -> Vec<u8> {
    Ipv4Addr::from(address).octets().to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn another_revision_changes_every_workload_and_no_name() {
        let (one, two) = (Crowd::new(1_000, 1), Crowd::new(1_000, 2));
        assert_eq!(one.0.len(), 1_500);
        assert!(one.0.keys().eq(two.0.keys()));
        let mut aliases = BTreeSet::new();
        for (name, entry) in &one.0 {
            let same = entry.version == two.0[name].version;
            assert_eq!(same, entry.is_service(), "{name}");
            aliases.extend(entry.aliases());
        }
        assert_eq!(aliases.len(), 1_500, "two have the same address");
    }
}
