//! What the control plane has told about, as rows.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ztunnel_mesh::policy::{Action, PolicyScope};
use ztunnel_mesh::workload::{GatewayAddress, Health, TunnelProtocol};
use ztunnel_mesh::{Mesh, Policy, Service, Workload};

use super::{End, WantedOfMesh};

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRow {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub addresses: Vec<IpAddr>,
    /// When it has no address, or besides.
    pub hostname: Option<String>,
    pub network: String,
    pub node: String,
    pub identity: String,
    /// `HBONE`, or `TCP` when it takes no tunnels.
    pub protocol: String,
    pub healthy: bool,
    pub waypoint: Option<String>,
    /// `namespace/hostname` of those it is an endpoint of.
    pub services: Vec<String>,
    /// Policies that select it.
    pub policies: Vec<String>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    /// Addresses and ranges; those of other networks with the network in front.
    pub addresses: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub endpoints: usize,
    pub healthy_endpoints: usize,
    pub waypoint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    pub port: u16,
    /// None when each endpoint has its own.
    pub target: Option<u16>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    pub namespace: String,
    pub name: String,
    pub action: String,
    /// What it applies to: `all workloads`, `namespace` or `selected workloads`.
    pub scope: String,
    /// It decides nothing.
    pub dry_run: bool,
    pub rules: usize,
}

pub(super) fn workloads(mesh: &Mesh, wanted: &WantedOfMesh) -> (Vec<Arc<Workload>>, End) {
    let on = |workload: &Workload| {
        let node = wanted.node.as_ref();
        node.is_none_or(|node| *workload.place.node == **node)
    };
    let (total, ..) = mesh.counts();
    chosen(
        total,
        mesh.workloads(),
        wanted,
        |w| &w.namespace,
        on,
        |a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)),
    )
}

pub(super) fn services(mesh: &Mesh, wanted: &WantedOfMesh) -> (Vec<Arc<Service>>, End) {
    let (_, total, _) = mesh.counts();
    let all = mesh.services();
    let by_key = |a: &Service, b: &Service| a.key.cmp(&b.key);
    chosen(total, all, wanted, |s| &s.key.namespace, |_| true, by_key)
}

pub(super) fn policies(mesh: &Mesh, wanted: &WantedOfMesh) -> (Vec<Arc<Policy>>, End) {
    let (.., total) = mesh.counts();
    let by_key = |a: &Policy, b: &Policy| a.key.cmp(&b.key);
    let all = mesh.policies();
    chosen(total, all, wanted, |p| &p.key.namespace, |_| true, by_key)
}

/// The first of those that are wanted, in order.
fn chosen<'a, T: 'a>(
    total: usize,
    all: impl Iterator<Item = &'a Arc<T>>,
    wanted: &WantedOfMesh,
    namespace: impl Fn(&T) -> &str,
    also: impl Fn(&T) -> bool,
    order: impl Fn(&T, &T) -> std::cmp::Ordering,
) -> (Vec<Arc<T>>, End) {
    let there = |one: &T| {
        let wanted = wanted.namespace.as_ref();
        wanted.is_none_or(|wanted| namespace(one) == wanted) && also(one)
    };
    let mut found: Vec<&Arc<T>> = all.filter(|one| there(one)).collect();
    found.sort_unstable_by(|a, b| order(a, b));
    let matched = found.len();
    found.truncate(wanted.limit);
    let end = End::new(total, matched, found.len());
    (found.into_iter().cloned().collect(), end)
}

impl WorkloadRow {
    pub(super) fn new(workload: &Workload) -> Self {
        let hostname = &workload.hostname;
        let services = workload.memberships.iter();
        Self {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            uid: workload.uid.to_string(),
            addresses: workload.addresses.to_vec(),
            hostname: (!hostname.is_empty()).then(|| hostname.to_string()),
            network: workload.network.to_string(),
            node: workload.place.node.to_string(),
            identity: workload.identity().to_string(),
            protocol: match workload.tunnel {
                TunnelProtocol::Hbone => "HBONE".to_owned(),
                TunnelProtocol::None => "TCP".to_owned(),
            },
            healthy: workload.health == Health::Healthy,
            waypoint: workload.waypoint.as_ref().map(|to| to.to_string()),
            services: services.map(|one| one.service.to_string()).collect(),
            policies: workload.policies.iter().map(ToString::to_string).collect(),
        }
    }
}

impl ServiceRow {
    pub(super) fn new(mesh: &Mesh, service: &Service) -> Self {
        let endpoints = mesh.endpoints(&service.key);
        let healthy = endpoints
            .iter()
            .filter(|endpoint| endpoint.workload.health == Health::Healthy)
            .count();
        let addresses = service.vips.iter().map(|vip| {
            let net = match vip.exact() {
                Some(ip) => ip.to_string(),
                None => vip.net().to_string(),
            };
            match &*vip.network {
                "" => net,
                network => format!("{network}/{net}"),
            }
        });
        let ports = service.ports.iter().map(|pair| ServicePort {
            port: pair.service,
            target: (pair.target != 0).then_some(pair.target),
        });
        Self {
            namespace: service.key.namespace.to_string(),
            name: service.name.to_string(),
            hostname: service.key.hostname.to_string(),
            addresses: addresses.collect(),
            ports: ports.collect(),
            endpoints: endpoints.len(),
            healthy_endpoints: healthy,
            waypoint: service.waypoint.as_ref().map(GatewayAddress::to_string),
        }
    }
}

impl PolicyRow {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            namespace: policy.key.namespace.to_string(),
            name: policy.key.name.to_string(),
            action: match policy.action {
                Action::Allow => "ALLOW".to_owned(),
                Action::Deny => "DENY".to_owned(),
            },
            scope: match policy.scope {
                PolicyScope::Global => "all workloads".to_owned(),
                PolicyScope::Namespace => "namespace".to_owned(),
                PolicyScope::WorkloadSelector => "selected workloads".to_owned(),
            },
            dry_run: policy.dry_run,
            rules: policy.rules.len(),
        }
    }
}
