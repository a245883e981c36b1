//! A large cluster as its control plane describes it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use prost::Message as _;
use ztunnel_mesh::name::ServiceName;
use ztunnel_proto::ADDRESS_TYPE;
use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use ztunnel_proto::istio::workload as wire;

pub(crate) const WORKLOADS: usize = 100_000;
pub(crate) const SERVICES: usize = 10_000;
pub(crate) const BIG_ENDPOINTS: usize = 2_700;
const NODES: usize = 1_000;
const NAMESPACES: usize = 200;
const ZONES: usize = 3;

/// The two services with many endpoints.
#[derive(Clone, Copy)]
pub(crate) enum Big {
    /// Any endpoint will do.
    Anywhere = 0,
    /// The nearer the better, down to the node.
    Near = 1,
}

impl Big {
    pub(crate) fn name(self) -> ServiceName {
        ServiceName::new(&namespace(self as usize), &hostname(self as usize))
    }
}

impl fmt::Display for Big {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anywhere => "no preferences",
            Self::Near => "nearest first",
        })
    }
}

pub(crate) fn everything() -> DeltaDiscoveryResponse {
    let services = (0..SERVICES).map(|number| resource(name(service(number))));
    let workloads = (0..WORKLOADS).map(|number| resource(name_workload(workload(number))));
    response(services.chain(workloads).collect())
}

/// An endpoint of a big service has become unhealthy, or healthy again.
pub(crate) fn changed(big: Big, endpoint: usize, round: usize) -> DeltaDiscoveryResponse {
    let mut workload = workload(big as usize * BIG_ENDPOINTS + endpoint);
    workload.status = (round / BIG_ENDPOINTS + round) as i32 % 2;
    response(vec![resource(name_workload(workload))])
}

/// Many workloads have changed.
pub(crate) fn changed_many(count: usize, round: usize) -> DeltaDiscoveryResponse {
    let changed = (0..count).map(|number| {
        let mut workload = workload(number * (WORKLOADS / count));
        workload.canonical_revision = format!("v{round}");
        resource(name_workload(workload))
    });
    response(changed.collect())
}

/// The uid of a workload that connects to others.
pub(crate) fn a_client() -> String {
    workload(77_777).uid
}

pub(crate) fn workload_ip(number: usize) -> IpAddr {
    ip(0x0a00_0000, number)
}

pub(crate) fn service_ip(number: usize) -> IpAddr {
    ip(0xac10_0000, number)
}

fn ip(base: u32, number: usize) -> IpAddr {
    Ipv4Addr::from(base + 1 + number as u32).into()
}

fn service(number: usize) -> wire::Service {
    let near = wire::LoadBalancing {
        mode: wire::load_balancing::Mode::Failover.into(),
        routing_preference: [6, 1, 2, 3, 4].into(),
        ..Default::default()
    };
    wire::Service {
        name: format!("svc-{number}"),
        namespace: namespace(number),
        hostname: hostname(number),
        addresses: vec![wire::NetworkAddress {
            address: bytes(service_ip(number)),
            ..Default::default()
        }],
        ports: ports(),
        load_balancing: (number == Big::Near as usize).then_some(near),
        canonical: true,
        ..Default::default()
    }
}

fn workload(number: usize) -> wire::Workload {
    let service = match number / BIG_ENDPOINTS {
        big @ (0 | 1) => big,
        _ => 2 + number % (SERVICES - 2),
    };
    let (namespace, app) = (namespace(service), format!("app-{service}"));
    // As a deployment names its pods.
    let name = format!("{app}-{:09x}-{:05x}", service * 7_919_993, number);
    let node = number % NODES;
    let zone = node % ZONES;
    let key = format!("{namespace}/{}", hostname(service));
    wire::Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name,
        namespace,
        addresses: vec![bytes(workload_ip(number))],
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        service_account: app.clone(),
        node: format!(
            "ip-10-200-{}-{}.eu-central-1.compute.internal",
            node / 256,
            node % 256
        ),
        canonical_name: app.clone(),
        canonical_revision: "v1".into(),
        workload_type: wire::WorkloadType::Pod.into(),
        workload_name: app,
        cluster_id: "Kubernetes".into(),
        services: [(key, wire::PortList { ports: ports() })].into(),
        locality: Some(wire::Locality {
            region: "eu-central-1".into(),
            zone: format!("eu-central-1{zone}"),
            subzone: String::new(),
        }),
        ..Default::default()
    }
}

fn ports() -> Vec<wire::Port> {
    let port = |service_port, target_port| wire::Port {
        service_port,
        target_port,
        ..Default::default()
    };
    vec![port(80, 8080), port(443, 8443)]
}

fn namespace(service: usize) -> String {
    format!("ns-{}", service % NAMESPACES)
}

fn hostname(service: usize) -> String {
    format!("svc-{service}.{}.svc.cluster.local", namespace(service))
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

fn name(service: wire::Service) -> (String, wire::address::Type) {
    let name = format!("{}/{}", service.namespace, service.hostname);
    (name, wire::address::Type::Service(service))
}

fn name_workload(workload: wire::Workload) -> (String, wire::address::Type) {
    (
        workload.uid.clone(),
        wire::address::Type::Workload(workload),
    )
}

fn resource((name, address): (String, wire::address::Type)) -> Resource {
    let address = wire::Address {
        r#type: Some(address),
    };
    let value = address.encode_to_vec();
    let version = value.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Resource {
        name,
        version: format!("{version:016x}"),
        resource: Some(prost_types::Any {
            type_url: ADDRESS_TYPE.into(),
            value,
        }),
        ..Default::default()
    }
}

fn response(resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        nonce: "n".into(),
        resources,
        ..Default::default()
    }
}
