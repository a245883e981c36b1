//! Meshes for tests, from one line of text.
//!
//! Statements are separated by `;`. `pod <ns>/<name> [key=value ...]`, `we ...` (the same, but no pod),
//! `svc <ns>/<hostname> [key=value ...]`. Lists are separated by `,`, a port pair is `<service>:<target>`.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::name::{PolicyName, ServiceName};
use crate::service::{
    HealthPolicy, IpFamilies, LoadBalancingMode, Scope, Service, Vip, Visibility, WeightedWaypoint,
};
use crate::snapshot::{Delta, Mesh, Upsert};
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Health, Locality,
    Membership, NetworkMode, Place, PortPair, TunnelProtocol, Workload,
};

/// Always the same bits.
pub(crate) struct Fixed(pub(crate) u32);

impl crate::Rng for Fixed {
    fn next_u32(&mut self) -> u32 {
        self.0
    }
}

/// Random enough for tests, and the same in every run.
pub(crate) struct Lcg(pub(crate) u64);

impl crate::Rng for Lcg {
    fn next_u32(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

impl Lcg {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        crate::Rng::next_u32(self) as usize % bound
    }

    pub(crate) fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

pub(crate) fn mesh(text: &str) -> Mesh {
    let upserts = upserts(text);
    let removals = Vec::new();
    Mesh::default().apply(Delta { upserts, removals })
}

pub(crate) fn upserts(text: &str) -> Vec<Upsert> {
    let statements = text.split(';').map(str::trim).filter(|s| !s.is_empty());
    statements.map(upsert).collect()
}

/// The uid of `pod <ns>/<name>`.
pub(crate) fn uid(pod: &str) -> Arc<str> {
    format!("Kubernetes//Pod/{pod}").into()
}

pub(crate) fn workload(text: &str) -> Workload {
    match upsert(text) {
        Upsert::Workload(workload) => Workload::clone(&workload),
        other => panic!("{other:?} is no workload"),
    }
}

fn upsert(statement: &str) -> Upsert {
    let mut words = statement.split_whitespace();
    let (kind, key) = (words.next().unwrap(), words.next().unwrap());
    let fields = words.map(|word| word.split_once('=').unwrap_or((word, "")));
    let (namespace, name) = key.split_once('/').unwrap();
    match kind {
        "pod" | "we" => {
            let uid = match kind {
                "pod" => uid(key),
                _ => format!("Kubernetes/networking.istio.io/WorkloadEntry/{key}").into(),
            };
            let mut workload = Workload::new(&uid);
            workload.namespace = namespace.into();
            workload.name = name.into();
            workload.service_account = name.into();
            workload.tunnel = match kind {
                "pod" => TunnelProtocol::Hbone,
                _ => TunnelProtocol::None,
            };
            for (field, value) in fields {
                set_workload(&mut workload, field, value);
            }
            Upsert::Workload(Arc::new(workload))
        }
        "svc" => {
            let mut service = Service::new(ServiceName::new(namespace, name));
            for (field, value) in fields {
                set_service(&mut service, field, value);
            }
            Upsert::Service(Arc::new(service))
        }
        _ => panic!("unknown statement {statement:?}"),
    }
}

fn set_workload(workload: &mut Workload, field: &str, value: &str) {
    match field {
        "ip" => workload.addresses = parts(value).map(|ip| ip.parse().unwrap()).collect(),
        "td" => workload.trust_domain = value.into(),
        "sa" => workload.service_account = value.into(),
        "network" => workload.network = value.into(),
        "node" => place(workload).node = value.into(),
        "cluster" => place(workload).cluster_id = value.into(),
        "hostname" => workload.hostname = value.into(),
        "capacity" => workload.capacity = value.parse().unwrap(),
        "plain" => workload.tunnel = TunnelProtocol::None,
        "hbone" => workload.tunnel = TunnelProtocol::Hbone,
        "unhealthy" => workload.health = Health::Unhealthy,
        "host-network" => workload.network_mode = NetworkMode::HostNetwork,
        "waypoint" => workload.waypoint = Some(Arc::new(gateway(value))),
        "gateway" => workload.network_gateway = Some(Arc::new(gateway(value))),
        "policies" => {
            let keys = parts(value).map(|key| PolicyName::parse(key).unwrap());
            workload.policies = keys.collect();
        }
        "locality" => {
            let mut parts = value.split('/').map(Arc::from);
            let mut next = || parts.next().unwrap_or_default();
            place(workload).locality = Locality {
                region: next(),
                zone: next(),
                subzone: next(),
            };
        }
        "app-tunnel" => {
            let (protocol, port) = value.split_once(':').unwrap_or((value, ""));
            workload.application_tunnel = Some(ApplicationTunnel {
                protocol: match protocol {
                    "proxy" => ApplicationProtocol::Proxy,
                    _ => ApplicationProtocol::None,
                },
                port: port.parse().ok(),
            });
        }
        // `of=<ns>/<hostname>+80:8080+...`, once for each service.
        "of" => {
            let mut parts = value.split('+');
            let service = ServiceName::parse(parts.next().unwrap()).unwrap();
            let ports = parts.map(port_pair).collect();
            let mut memberships = core::mem::take(&mut workload.memberships).into_vec();
            memberships.push(Arc::new(Membership { service, ports }));
            workload.memberships = memberships.into();
        }
        _ => panic!("unknown field {field:?} of a workload"),
    }
}

fn set_service(service: &mut Service, field: &str, value: &str) {
    match field {
        "vip" => service.vips = list(value, vip),
        "ports" => service.ports = list(value, port_pair),
        "san" => service.subject_alt_names = list(value, |uri| uri.parse().unwrap()),
        "canonical" => service.canonical = true,
        "private" => service.visibility = Visibility::Namespace,
        "waypoint" => service.waypoint = Some(gateway(value)),
        "weighted" => {
            service.weighted_waypoints = list(value, |waypoint| {
                let (destination, weight) = waypoint.split_once('*').unwrap();
                WeightedWaypoint {
                    destination: gateway(destination),
                    weight: weight.parse().unwrap(),
                }
            });
        }
        "any-health" => service.load_balancing.health_policy = HealthPolicy::AllowAll,
        "strict" => lb(service, LoadBalancingMode::Strict, value),
        "failover" => lb(service, LoadBalancingMode::Failover, value),
        "passthrough" => lb(service, LoadBalancingMode::Passthrough, value),
        "v4" => service.ip_families = IpFamilies::V4Only,
        "v6" => service.ip_families = IpFamilies::V6Only,
        _ => panic!("unknown field {field:?} of a service"),
    }
}

fn lb(service: &mut Service, mode: LoadBalancingMode, preferences: &str) {
    service.load_balancing.mode = mode;
    service.load_balancing.preferences = list(preferences, |scope| match scope {
        "region" => Scope::Region,
        "zone" => Scope::Zone,
        "subzone" => Scope::Subzone,
        "node" => Scope::Node,
        "cluster" => Scope::Cluster,
        "network" => Scope::Network,
        _ => panic!("unknown scope {scope:?}"),
    });
}

// `<ip or net>` or `<network>@<ip or net>`.
fn vip(value: &str) -> Vip {
    let (network, net) = value.split_once('@').unwrap_or(("", value));
    let net = net.parse().or_else(|_| {
        let ip: core::net::IpAddr = net.parse().unwrap();
        Ok::<_, ()>(ip.into())
    });
    Vip::new(network.into(), net.unwrap())
}

// `<ip>`, `<network>@<ip>` or `<ns>/<hostname>`, with `#<port>` when that is not 15008.
fn gateway(value: &str) -> GatewayAddress {
    let (value, port) = value.split_once('#').unwrap_or((value, "15008"));
    let (network, ip) = value.split_once('@').unwrap_or(("", value));
    GatewayAddress {
        destination: match ip.parse() {
            Ok(ip) => GatewayDestination::Address {
                network: network.into(),
                ip,
            },
            Err(_) => GatewayDestination::Hostname(ServiceName::parse(value).unwrap()),
        },
        hbone_port: port.parse().unwrap(),
    }
}

fn port_pair(value: &str) -> PortPair {
    let (service, target) = value.split_once(':').unwrap_or((value, value));
    PortPair {
        service: service.parse().unwrap(),
        target: target.parse().unwrap(),
    }
}

fn list<T>(value: &str, parse: impl Fn(&str) -> T) -> Box<[T]> {
    parts(value).map(parse).collect()
}

fn parts(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').filter(|part| !part.is_empty())
}

fn place(workload: &mut Workload) -> &mut Place {
    Arc::make_mut(&mut workload.place)
}
