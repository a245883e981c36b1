//! How a service and its endpoints look in a dump.

use std::collections::BTreeMap;

use serde::Serialize;
use ztunnel_mesh::service::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Visibility,
};
use ztunnel_mesh::workload::{Health, PortPair};
use ztunnel_mesh::{Endpoint, Service};

use super::workload::{ShownGateway, health};

/// The fields in the order of their names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownService<'a> {
    canonical: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<ShownRange<'a>>,
    endpoints: ShownEndpoints<'a>,
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<ShownBalancing>,
    name: &'a str,
    namespace: &'a str,
    ports: BTreeMap<String, u16>,
    subject_alt_names: Vec<String>,
    vips: Vec<String>,
    visibility: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<ShownGateway>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<ShownWeighted>,
}

/// By the uids of the workloads.
pub(super) type ShownEndpoints<'a> = BTreeMap<&'a str, ShownEndpoint<'a>>;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownEndpoint<'a> {
    port: BTreeMap<String, u16>,
    status: &'static str,
    workload_uid: &'a str,
}

#[derive(Debug, Serialize)]
struct ShownRange<'a> {
    cidr: String,
    network: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownBalancing {
    health_policy: &'static str,
    mode: &'static str,
    routing_preferences: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct ShownWeighted {
    destination: ShownGateway,
    weight: u32,
}

impl<'a> ShownService<'a> {
    /// Of all `endpoints`, those that connections may go to.
    pub(super) fn new(
        service: &'a Service,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
    ) -> Self {
        let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
        let endpoints = endpoints
            .into_iter()
            .filter(|endpoint| all || endpoint.workload.health == Health::Healthy);
        let (exact, ranges): (Vec<_>, Vec<_>) =
            service.vips.iter().partition(|vip| vip.exact().is_some());
        Self {
            canonical: service.canonical,
            cidr_vips: ranges
                .iter()
                .map(|vip| ShownRange {
                    cidr: vip.net().to_string(),
                    network: &vip.network,
                })
                .collect(),
            endpoints: shown_endpoints(endpoints),
            hostname: &service.key.hostname,
            ip_families: match service.ip_families {
                IpFamilies::Automatic => None,
                IpFamilies::V4Only => Some("IPv4"),
                IpFamilies::V6Only => Some("IPv6"),
                IpFamilies::Dual => Some("Dual"),
            },
            load_balancer: balancing(&service.load_balancing),
            name: &service.name,
            namespace: &service.key.namespace,
            ports: ports(&service.ports),
            subject_alt_names: service
                .subject_alt_names
                .iter()
                .map(ToString::to_string)
                .collect(),
            vips: exact
                .iter()
                .map(|vip| format!("{}/{}", vip.network, vip.net().addr()))
                .collect(),
            visibility: match service.visibility {
                Visibility::Public => "Public",
                Visibility::Namespace => "Namespace",
            },
            waypoint: service.waypoint.as_ref().map(ShownGateway::from),
            weighted_waypoints: service
                .weighted_waypoints
                .iter()
                .map(|waypoint| ShownWeighted {
                    destination: (&waypoint.destination).into(),
                    weight: waypoint.weight,
                })
                .collect(),
        }
    }
}

pub(super) fn shown_endpoints<'a>(
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> ShownEndpoints<'a> {
    let shown = |endpoint: &'a Endpoint| {
        let uid = &*endpoint.workload.uid;
        let shown = ShownEndpoint {
            port: ports(&endpoint.membership().ports),
            status: health(endpoint.workload.health),
            workload_uid: uid,
        };
        (uid, shown)
    };
    endpoints.into_iter().map(shown).collect()
}

fn ports(pairs: &[PortPair]) -> BTreeMap<String, u16> {
    let shown = |pair: &PortPair| (pair.service.to_string(), pair.target);
    pairs.iter().map(shown).collect()
}

/// Nothing where the control plane has said nothing, or just that.
fn balancing(balancing: &LoadBalancing) -> Option<ShownBalancing> {
    if *balancing == LoadBalancing::default() {
        return None;
    }
    Some(ShownBalancing {
        health_policy: match balancing.health_policy {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        },
        mode: match balancing.mode {
            LoadBalancingMode::Unspecified => "Standard",
            LoadBalancingMode::Strict => "Strict",
            LoadBalancingMode::Failover => "Failover",
            LoadBalancingMode::Passthrough => "Passthrough",
        },
        routing_preferences: balancing.preferences.iter().copied().map(scope).collect(),
    })
}

const fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Region => "Region",
        Scope::Zone => "Zone",
        Scope::Subzone => "Subzone",
        Scope::Node => "Node",
        Scope::Cluster => "Cluster",
        Scope::Network => "Network",
    }
}
