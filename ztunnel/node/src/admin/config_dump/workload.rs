//! How a workload looks in a dump.

use std::net::IpAddr;

use serde::Serialize;
use ztunnel_mesh::Workload;
use ztunnel_mesh::workload::{
    ApplicationProtocol, GatewayAddress, GatewayDestination, Health, NetworkMode, TunnelProtocol,
};

/// The fields in the order of their names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownWorkload<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<ShownTunnel>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
    capacity: u32,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<ShownLocality<'a>>,
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<ShownGateway>,
    network_mode: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trust_domain: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<ShownGateway>,
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    workload_type: &'static str,
}

#[derive(Debug, Serialize)]
struct ShownTunnel {
    port: Option<u16>,
    protocol: &'static str,
}

#[derive(Debug, Serialize)]
struct ShownLocality<'a> {
    region: &'a str,
    subzone: &'a str,
    zone: &'a str,
}

/// A waypoint or a network gateway.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownGateway {
    /// `<namespace>/<hostname>` or `<network>/<ip>`, with the slash also where the network is empty.
    destination: String,
    hbone_mtls_port: u16,
}

impl<'a> From<&'a Workload> for ShownWorkload<'a> {
    fn from(workload: &'a Workload) -> Self {
        let (place, app) = (&*workload.place, &*workload.app);
        let locality = &place.locality;
        let somewhere = [&locality.region, &locality.zone, &locality.subzone]
            .into_iter()
            .any(|part| !part.is_empty());
        Self {
            application_tunnel: workload.application_tunnel.map(|tunnel| ShownTunnel {
                port: tunnel.port,
                protocol: match tunnel.protocol {
                    ApplicationProtocol::None => "NONE",
                    ApplicationProtocol::Proxy => "PROXY",
                },
            }),
            authorization_policies: workload.policies.iter().map(ToString::to_string).collect(),
            canonical_name: &app.canonical_name,
            canonical_revision: &app.canonical_revision,
            capacity: workload.capacity,
            cluster_id: &place.cluster_id,
            hostname: &workload.hostname,
            locality: somewhere.then(|| ShownLocality {
                region: &locality.region,
                subzone: &locality.subzone,
                zone: &locality.zone,
            }),
            name: &workload.name,
            namespace: &workload.namespace,
            native_tunnel: workload.native_tunnel,
            network: &workload.network,
            network_gateway: workload.network_gateway.as_deref().map(ShownGateway::from),
            network_mode: match workload.network_mode {
                NetworkMode::Standard => "Standard",
                NetworkMode::HostNetwork => "HostNetwork",
            },
            node: &place.node,
            protocol: match workload.tunnel {
                TunnelProtocol::None => "TCP",
                TunnelProtocol::Hbone => "HBONE",
            },
            service_account: &workload.service_account,
            services: workload
                .memberships
                .iter()
                .map(|membership| membership.service.to_string())
                .collect(),
            status: health(workload.health),
            trust_domain: &workload.trust_domain,
            uid: &workload.uid,
            waypoint: workload.waypoint.as_deref().map(ShownGateway::from),
            workload_ips: &workload.addresses,
            workload_name: &app.workload_name,
            workload_type: app.workload_type.as_str(),
        }
    }
}

impl From<&GatewayAddress> for ShownGateway {
    fn from(gateway: &GatewayAddress) -> Self {
        Self {
            destination: match &gateway.destination {
                GatewayDestination::Address { network, ip } => format!("{network}/{ip}"),
                GatewayDestination::Hostname(name) => name.to_string(),
            },
            hbone_mtls_port: gateway.hbone_port,
        }
    }
}

pub(super) const fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}
