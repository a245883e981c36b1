//! Writes the inputs that runs begin with: conversations as a real control plane has them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use prost::Message as _;
use prost_types::Any;
use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use ztunnel_proto::istio::security;
use ztunnel_proto::istio::workload::{self as wire, address::Type};
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

const EVERYTHING: u8 = 0;
const ON_DEMAND: u8 = 1;

fn main() -> io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/xds");
    fs::create_dir_all(&dir)?;
    let (tell, start_over, later) = (vec![4], vec![5], vec![7]);
    let ask = |ip: [u8; 4]| [&[6][..], &ip].concat();
    let all = || vec![workload(1), workload(2), service(), remote()];
    let seeds = [
        ("workloads", EVERYTHING, vec![addresses(all(), &[])]),
        (
            "changes",
            EVERYTHING,
            vec![
                addresses(all(), &[]),
                policies(vec![policy()], &[]),
                addresses(vec![workload(1)], &["c//Pod/shop/2", "shop/web.shop.svc"]),
                tell,
                addresses(vec![workload(3)], &["unknown"]),
                policies(vec![], &["shop/deny"]),
            ],
        ),
        (
            "start-over",
            EVERYTHING,
            vec![
                addresses(all(), &[]),
                start_over,
                addresses(vec![workload(2)], &[]),
            ],
        ),
        (
            "on-demand",
            ON_DEMAND,
            vec![
                ask([10, 0, 0, 1]),
                addresses(vec![workload(1)], &[]),
                ask([10, 0, 0, 9]),
                addresses(vec![], &["/10.0.0.9"]),
                later.clone(),
                later,
                ask([10, 0, 0, 9]),
                addresses(vec![service(), workload(2)], &["c//Pod/shop/1"]),
            ],
        ),
        (
            "broken",
            EVERYTHING,
            vec![addresses(
                vec![broken(), workload(1), Resource::default()],
                &[],
            )],
        ),
    ];
    for (name, mode, steps) in seeds {
        fs::write(dir.join(name), [vec![mode], steps.concat()].concat())?;
    }
    Ok(())
}

fn addresses(resources: Vec<Resource>, removed: &[&str]) -> Vec<u8> {
    step(3, ADDRESS_TYPE, resources, removed)
}

fn policies(resources: Vec<Resource>, removed: &[&str]) -> Vec<u8> {
    step(2, AUTHORIZATION_TYPE, resources, removed)
}

fn step(step: u8, type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> Vec<u8> {
    let response = DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: "n1".into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    };
    let bytes = response.encode_to_vec();
    let length = u16::try_from(bytes.len()).expect("seeds are short");
    [&[step][..], &length.to_be_bytes(), &bytes].concat()
}

fn resource(name: String, content: Vec<u8>) -> Resource {
    Resource {
        name,
        version: "v1".into(),
        resource: Some(Any {
            type_url: ADDRESS_TYPE.into(),
            value: content,
        }),
        ..Resource::default()
    }
}

fn address(name: String, content: Type) -> Resource {
    let address = wire::Address {
        r#type: Some(content),
    };
    resource(name, address.encode_to_vec())
}

fn gateway(hostname: &str) -> wire::GatewayAddress {
    let name = wire::NamespacedHostname {
        namespace: "infra".into(),
        hostname: hostname.into(),
    };
    wire::GatewayAddress {
        destination: Some(wire::gateway_address::Destination::Hostname(name)),
        hbone_mtls_port: 15008,
    }
}

fn port() -> wire::Port {
    wire::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 1,
    }
}

fn workload(number: u8) -> Resource {
    let uid = format!("c//Pod/shop/{number}");
    let workload = wire::Workload {
        uid: uid.clone(),
        name: number.to_string(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, number]],
        tunnel_protocol: 1,
        node: "node1".into(),
        authorization_policies: vec!["shop/deny".into()],
        services: HashMap::from([(
            "shop/web.shop.svc".into(),
            wire::PortList {
                ports: vec![port()],
            },
        )]),
        locality: Some(wire::Locality {
            region: "eu".into(),
            zone: "z1".into(),
            subzone: "r1".into(),
        }),
        capacity: Some(3),
        ..wire::Workload::default()
    };
    let mut resource = address(uid, Type::Workload(workload));
    resource.aliases = vec![format!("/10.0.0.{number}")];
    resource
}

/// One on another network, behind a gateway, with a waypoint and an application tunnel.
fn remote() -> Resource {
    let workload = wire::Workload {
        uid: "far/remote".into(),
        network: "far".into(),
        network_mode: 1,
        status: 1,
        hostname: "remote.example".into(),
        network_gateway: Some(gateway("gateway")),
        waypoint: Some(gateway("waypoint")),
        application_tunnel: Some(wire::ApplicationTunnel {
            protocol: 1,
            port: 99,
        }),
        ..wire::Workload::default()
    };
    address("far/remote".into(), Type::Workload(workload))
}

fn service() -> Resource {
    let vip = |length| wire::NetworkAddress {
        network: String::new(),
        address: vec![10, 9, 0, 1],
        length,
    };
    let service = wire::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc".into(),
        addresses: vec![vip(None), vip(Some(16))],
        ports: vec![port()],
        subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/web".into()],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: vec![6, 1, 2],
            mode: 2,
            health_policy: 0,
        }),
        weighted_waypoints: vec![wire::WeightedWaypoint {
            destination: Some(gateway("canary")),
            weight: 0,
        }],
        visibility: 1,
        ..wire::Service::default()
    };
    address("shop/web.shop.svc".into(), Type::Service(service))
}

fn policy() -> Resource {
    use security::string_match::MatchType;
    let namespaces = [
        MatchType::Exact("shop".into()),
        MatchType::Prefix("b".into()),
        MatchType::Presence(()),
    ];
    let namespaces = namespaces.map(|m| security::StringMatch {
        match_type: Some(m),
    });
    let policy = security::Authorization {
        name: "deny".into(),
        namespace: "shop".into(),
        scope: 2,
        action: 1,
        rules: vec![security::Rule {
            clauses: vec![security::Clause {
                matches: vec![security::Match {
                    not_namespaces: namespaces.into(),
                    source_ips: vec![security::Address {
                        address: vec![10, 0, 0, 0],
                        length: 8,
                    }],
                    destination_ports: vec![80],
                    ..security::Match::default()
                }],
            }],
        }],
        ..security::Authorization::default()
    };
    resource("shop/deny".into(), policy.encode_to_vec())
}

fn broken() -> Resource {
    resource("broken".into(), vec![0xff; 3])
}
