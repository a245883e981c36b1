//! The mesh file as the messages that the control plane sends, the way Istio's would fill them.
//!
//! Pure: a mesh file and the set of enrolled pods in, named messages out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use prost::Message;
use ztunnel_proto::istio::{security, workload};

use crate::mesh_file::{
    ApplicationProtocol, ApplicationTunnel, BalancingMode, Cidr, Gateway, Health, IpFamilies,
    Match, MeshFile, Policy, PolicyAction, PolicyScope, Protocol, Scope, Service, Workload,
};

/// One resource: its message, and the same as bytes.
///
/// Maps inside a message are encoded in no fixed order, so whether two resources are the same is decided by the
/// messages, never by the bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    Address(Box<workload::Address>),
    Authorization(security::Authorization),
    /// An address, and a field of so many bytes that nobody knows.
    Padded(Box<workload::Address>, usize),
    /// Bytes that are no message.
    Nonsense,
}

impl Body {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Address(message) => message.encode_to_vec(),
            Self::Authorization(message) => message.encode_to_vec(),
            Self::Padded(message, size) => padded(message.encode_to_vec(), *size),
            Self::Nonsense => vec![0xff; 3],
        }
    }
}

fn padded(mut message: Vec<u8>, size: usize) -> Vec<u8> {
    use prost::encoding::{WireType, encode_key, encode_varint};
    encode_key(2000, WireType::LengthDelimited, &mut message);
    encode_varint(size as u64, &mut message);
    message.resize(message.len() + size, 0);
    message
}

/// All workloads and services, by resource name. `enrolled` holds keys of workloads.
pub(crate) fn addresses(mesh: &MeshFile, enrolled: &BTreeSet<String>) -> BTreeMap<String, Body> {
    let mut resources = BTreeMap::new();
    for workload in mesh.workloads.iter().filter(|w| w.announce) {
        let protocol = workload
            .protocol
            .unwrap_or(if enrolled.contains(&workload.key()) {
                Protocol::Hbone
            } else {
                Protocol::None
            });
        let message = workload_message(mesh, workload, protocol);
        resources.insert(
            workload.uid(),
            address(workload::address::Type::Workload(message)),
        );
    }
    for service in &mesh.services {
        let message = service_message(mesh, service);
        let name = format!("{}/{}", service.namespace, service.hostname());
        resources.insert(name, address(workload::address::Type::Service(message)));
    }
    resources
}

/// All policies, by resource name.
pub(crate) fn authorizations(mesh: &MeshFile) -> BTreeMap<String, Body> {
    mesh.policies
        .iter()
        .map(|policy| {
            let name = format!("{}/{}", policy.namespace, policy.name);
            (name, Body::Authorization(policy_message(policy)))
        })
        .collect()
}

fn address(inner: workload::address::Type) -> Body {
    Body::Address(Box::new(workload::Address {
        r#type: Some(inner),
    }))
}

fn workload_message(mesh: &MeshFile, from: &Workload, protocol: Protocol) -> workload::Workload {
    let trust_domain = from.trust_domain.as_ref().unwrap_or(&mesh.trust_domain);
    workload::Workload {
        uid: from.uid(),
        name: from.name.clone(),
        namespace: from.namespace.clone(),
        addresses: from.addresses.iter().map(bytes_of).collect(),
        network: network_of(mesh, from).to_owned(),
        tunnel_protocol: match protocol {
            Protocol::None => workload::TunnelProtocol::None,
            Protocol::Hbone => workload::TunnelProtocol::Hbone,
        }
        .into(),
        // As Istio: left out when it is the default.
        trust_domain: Some(trust_domain)
            .filter(|name| *name != "cluster.local")
            .cloned()
            .unwrap_or_default(),
        service_account: from.service_account.clone(),
        waypoint: from.waypoint.as_ref().map(|to| gateway(mesh, to)),
        node: from.node.clone(),
        application_tunnel: from.application_tunnel.map(application_tunnel),
        canonical_name: from.name.clone(),
        canonical_revision: "latest".to_owned(),
        workload_type: workload::WorkloadType::Pod.into(),
        workload_name: from.name.clone(),
        authorization_policies: from.authorization_policies.clone(),
        status: match from.status {
            Health::Healthy => workload::WorkloadStatus::Healthy,
            Health::Unhealthy => workload::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: CLUSTER.to_owned(),
        hostname: from.hostname.clone().unwrap_or_default(),
        network_mode: match from.host_network {
            true => workload::NetworkMode::HostNetwork,
            false => workload::NetworkMode::Standard,
        }
        .into(),
        network_gateway: from.network_gateway.as_ref().map(|to| gateway(mesh, to)),
        services: memberships(mesh, from),
        capacity: from.capacity,
        ..workload::Workload::default()
    }
}

fn application_tunnel(from: ApplicationTunnel) -> workload::ApplicationTunnel {
    use workload::application_tunnel::Protocol;
    workload::ApplicationTunnel {
        protocol: match from.protocol {
            ApplicationProtocol::None => Protocol::None,
            ApplicationProtocol::Proxy => Protocol::Proxy,
        }
        .into(),
        port: from.port.unwrap_or_default().into(),
    }
}

/// The cluster that all workloads belong to.
pub(crate) const CLUSTER: &str = "Kubernetes";

fn memberships(
    mesh: &MeshFile,
    of: &Workload,
) -> std::collections::HashMap<String, workload::PortList> {
    let key = of.key();
    mesh.services
        .iter()
        .filter(|service| service.workload_keys().any(|member| member == key))
        .map(|service| {
            let name = format!("{}/{}", service.namespace, service.hostname());
            (
                name,
                workload::PortList {
                    ports: ports(service),
                },
            )
        })
        .collect()
}

fn ports(service: &Service) -> Vec<workload::Port> {
    service
        .ports
        .iter()
        .map(|(&port, &target)| workload::Port {
            service_port: port.into(),
            target_port: target.into(),
            app_protocol: workload::AppProtocol::Unknown.into(),
        })
        .collect()
}

fn service_message(mesh: &MeshFile, from: &Service) -> workload::Service {
    workload::Service {
        name: from.name.clone(),
        namespace: from.namespace.clone(),
        hostname: from.hostname(),
        addresses: from
            .addresses
            .iter()
            .map(|ip| network_address(&mesh.network, ip))
            .chain(from.address_blocks.iter().map(|block| {
                let mut address = network_address(&mesh.network, &block.address);
                address.length = Some(block.length.into());
                address
            }))
            .collect(),
        ports: ports(from),
        subject_alt_names: from.subject_alt_names.clone(),
        waypoint: from.waypoint.as_ref().map(|to| gateway(mesh, to)),
        weighted_waypoints: from
            .weighted_waypoints
            .iter()
            .map(|waypoint| workload::WeightedWaypoint {
                destination: Some(gateway(mesh, &waypoint.to)),
                weight: waypoint.weight,
            })
            .collect(),
        load_balancing: from.load_balancing.as_ref().map(|balancing| {
            use workload::load_balancing as lb;
            workload::LoadBalancing {
                routing_preference: balancing
                    .routing_preference
                    .iter()
                    .map(|scope| scope_number(*scope).into())
                    .collect(),
                mode: match balancing.mode {
                    BalancingMode::UnspecifiedMode => lb::Mode::UnspecifiedMode,
                    BalancingMode::Strict => lb::Mode::Strict,
                    BalancingMode::Failover => lb::Mode::Failover,
                    BalancingMode::Passthrough => lb::Mode::Passthrough,
                }
                .into(),
                health_policy: if balancing.allow_unhealthy {
                    lb::HealthPolicy::AllowAll
                } else {
                    lb::HealthPolicy::OnlyHealthy
                }
                .into(),
            }
        }),
        ip_families: match from.ip_families.unwrap_or_default() {
            IpFamilies::Automatic => workload::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => workload::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => workload::IpFamilies::Ipv6Only,
            IpFamilies::Dual => workload::IpFamilies::Dual,
        }
        .into(),
        canonical: true,
        visibility: if from.namespace_only {
            workload::service::Visibility::Namespace
        } else {
            workload::service::Visibility::Public
        }
        .into(),
        ..workload::Service::default()
    }
}

fn scope_number(scope: Scope) -> workload::load_balancing::Scope {
    use workload::load_balancing::Scope as Wire;
    match scope {
        Scope::Region => Wire::Region,
        Scope::Zone => Wire::Zone,
        Scope::Subzone => Wire::Subzone,
        Scope::Node => Wire::Node,
        Scope::Cluster => Wire::Cluster,
        Scope::Network => Wire::Network,
    }
}

fn gateway(mesh: &MeshFile, from: &Gateway) -> workload::GatewayAddress {
    use workload::gateway_address::Destination;
    let destination = match (&from.address, &from.hostname) {
        (Some(ip), _) => Some(Destination::Address(network_address(&mesh.network, ip))),
        (None, Some(name)) => {
            let (namespace, hostname) = name.split_once('/').unwrap_or(("", name));
            Some(Destination::Hostname(workload::NamespacedHostname {
                namespace: namespace.to_owned(),
                hostname: hostname.to_owned(),
            }))
        }
        (None, None) => None,
    };
    workload::GatewayAddress {
        destination,
        hbone_mtls_port: from.port.into(),
    }
}

fn network_of<'a>(mesh: &'a MeshFile, workload: &'a Workload) -> &'a str {
    workload.network.as_ref().unwrap_or(&mesh.network)
}

fn network_address(network: &str, ip: &IpAddr) -> workload::NetworkAddress {
    workload::NetworkAddress {
        network: network.to_owned(),
        address: bytes_of(ip),
        length: None,
    }
}

fn bytes_of(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn policy_message(from: &Policy) -> security::Authorization {
    let rules = from.rules.iter().map(|clauses| security::Rule {
        clauses: clauses
            .iter()
            .map(|matches| security::Clause {
                matches: matches.iter().map(match_message).collect(),
            })
            .collect(),
    });
    security::Authorization {
        name: from.name.clone(),
        namespace: from.namespace.clone(),
        scope: match from.scope {
            PolicyScope::Global => security::Scope::Global,
            PolicyScope::Namespace => security::Scope::Namespace,
            PolicyScope::WorkloadSelector => security::Scope::WorkloadSelector,
        }
        .into(),
        action: match from.action {
            PolicyAction::Allow => security::Action::Allow,
            PolicyAction::Deny => security::Action::Deny,
        }
        .into(),
        rules: rules.collect(),
        dry_run: from.dry_run,
        extensions: Vec::new(),
    }
}

fn match_message(from: &Match) -> security::Match {
    security::Match {
        namespaces: strings(&from.namespaces),
        not_namespaces: strings(&from.not_namespaces),
        principals: strings(&from.principals),
        not_principals: strings(&from.not_principals),
        source_ips: blocks(&from.source_ips),
        not_source_ips: blocks(&from.not_source_ips),
        destination_ips: blocks(&from.destination_ips),
        not_destination_ips: blocks(&from.not_destination_ips),
        destination_ports: numbers(&from.destination_ports),
        not_destination_ports: numbers(&from.not_destination_ports),
        service_accounts: accounts(&from.service_accounts),
        not_service_accounts: accounts(&from.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn strings(from: &[String]) -> Vec<security::StringMatch> {
    use security::string_match::MatchType;
    from.iter()
        .map(|text| security::StringMatch {
            match_type: Some(if text == "*" {
                MatchType::Presence(())
            } else if let Some(suffix) = text.strip_prefix('*') {
                MatchType::Suffix(suffix.to_owned())
            } else if let Some(prefix) = text.strip_suffix('*') {
                MatchType::Prefix(prefix.to_owned())
            } else {
                MatchType::Exact(text.clone())
            }),
        })
        .collect()
}

fn blocks(from: &[Cidr]) -> Vec<security::Address> {
    from.iter()
        .map(|block| security::Address {
            address: bytes_of(&block.address),
            length: block.length.into(),
        })
        .collect()
}

fn numbers(from: &[u16]) -> Vec<u32> {
    from.iter().copied().map(u32::from).collect()
}

fn accounts(from: &[String]) -> Vec<security::ServiceAccountMatch> {
    from.iter()
        .map(|text| {
            let (namespace, account) = text.split_once('/').unwrap_or(("", text));
            security::ServiceAccountMatch {
                namespace: namespace.to_owned(),
                service_account: account.to_owned(),
            }
        })
        .collect()
}
