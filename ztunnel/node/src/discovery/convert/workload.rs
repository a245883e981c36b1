//! Workloads from the wire.

use std::sync::Arc;

use ztunnel_mesh::Upsert;
use ztunnel_mesh::name::{DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN, PolicyName, ServiceName};
use ztunnel_mesh::workload::{
    App, ApplicationProtocol, ApplicationTunnel, DEFAULT_CLUSTER, GatewayAddress, Health, Locality,
    Membership, NetworkMode, Place, TunnelProtocol, Workload, WorkloadType,
};
use ztunnel_proto::istio::workload as wire;

use super::{ConvertError, Converted, Converter, ip, known, port, port_pairs};

impl Converter {
    pub(super) fn workload(&mut self, w: wire::Workload) -> Result<Converted, ConvertError> {
        let tunnel = match known("tunnel_protocol", w.tunnel_protocol)? {
            wire::TunnelProtocol::None => TunnelProtocol::None,
            wire::TunnelProtocol::Hbone => TunnelProtocol::Hbone,
            wire::TunnelProtocol::LegacyIstioMtls => return Err(ConvertError::LegacyTunnel),
        };
        let network_mode = match known("network_mode", w.network_mode)? {
            wire::NetworkMode::Standard => NetworkMode::Standard,
            wire::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
        };
        let health = match known("status", w.status)? {
            wire::WorkloadStatus::Healthy => Health::Healthy,
            wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
        };
        let workload_type = match wire::WorkloadType::try_from(w.workload_type) {
            Ok(wire::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
            Ok(wire::WorkloadType::Cronjob) => WorkloadType::CronJob,
            Ok(wire::WorkloadType::Pod) => WorkloadType::Pod,
            Ok(wire::WorkloadType::Job) => WorkloadType::Job,
        };
        let addresses = w.addresses.iter().map(|bytes| ip("addresses", bytes));
        let addresses = addresses.collect::<Result<_, _>>()?;
        let waypoint = w
            .waypoint
            .map(|g| self.shared_gateway("waypoint", g))
            .transpose()?;
        let network_gateway = w
            .network_gateway
            .map(|g| self.shared_gateway("network_gateway", g))
            .transpose()?;
        let application_tunnel = w.application_tunnel.map(application_tunnel).transpose()?;
        let mut memberships = w
            .services
            .iter()
            .map(|(key, ports)| self.membership(key, ports))
            .collect::<Result<Vec<_>, _>>()?;
        memberships.sort_unstable_by(|a, b| a.service.cmp(&b.service));

        let mut warnings = Vec::new();
        let policies = self.policy_names(&w.authorization_policies, &mut warnings);
        let locality = w.locality.unwrap_or_default();
        let place = Place {
            node: self.names.shared(&*w.node),
            cluster_id: self.name_or(&w.cluster_id, DEFAULT_CLUSTER),
            locality: Locality {
                region: self.names.shared(&*locality.region),
                zone: self.names.shared(&*locality.zone),
                subzone: self.names.shared(&*locality.subzone),
            },
        };
        let app = App {
            workload_type,
            workload_name: self.names.shared(&*w.workload_name),
            canonical_name: self.names.shared(&*w.canonical_name),
            canonical_revision: self.names.shared(&*w.canonical_revision),
        };
        let workload = Workload {
            uid: w.uid.into(),
            name: w.name.into(),
            namespace: self.names.shared(&*w.namespace),
            trust_domain: self.name_or(&w.trust_domain, DEFAULT_TRUST_DOMAIN),
            service_account: self.name_or(&w.service_account, DEFAULT_SERVICE_ACCOUNT),
            network: self.names.shared(&*w.network),
            addresses,
            hostname: self.names.shared(&*w.hostname),
            network_mode,
            tunnel,
            native_tunnel: w.native_tunnel,
            application_tunnel,
            waypoint,
            network_gateway,
            health,
            capacity: w.capacity.unwrap_or(1),
            place: self.places.shared(place),
            policies,
            memberships: memberships.into(),
            app: self.apps.shared(app),
        };
        Ok(Converted {
            upsert: Upsert::Workload(workload.into()),
            warnings,
        })
    }

    fn membership(
        &mut self,
        key: &str,
        ports: &wire::PortList,
    ) -> Result<Arc<Membership>, ConvertError> {
        let (namespace, hostname) = key
            .split_once('/')
            .ok_or_else(|| ConvertError::ServiceKey(key.into()))?;
        let membership = Membership {
            service: ServiceName {
                namespace: self.names.shared(namespace),
                hostname: self.names.shared(hostname),
            },
            ports: port_pairs(&ports.ports),
        };
        Ok(self.memberships.shared(membership))
    }

    // A key without a slash names a policy that cannot exist. It stays, as such a policy, so that the workload
    // counts as one whose policies have not all arrived.
    fn policy_names(&mut self, keys: &[String], warnings: &mut Vec<String>) -> Arc<[PolicyName]> {
        let names = keys.iter().map(|key| {
            let (namespace, name) = key.split_once('/').unwrap_or_else(|| {
                warnings.push(format!(
                    "authorization_policies has {key:?}, which is not <namespace>/<name>: connections \
                     to the workload will be refused"
                ));
                (key, "")
            });
            PolicyName {
                namespace: self.names.shared(namespace),
                name: self.names.shared(name),
            }
        });
        let names: Vec<_> = names.collect();
        self.policies.shared(names)
    }

    fn shared_gateway(
        &mut self,
        field: &'static str,
        address: wire::GatewayAddress,
    ) -> Result<Arc<GatewayAddress>, ConvertError> {
        let gateway = self.gateway(field, address)?;
        Ok(self.gateways.shared(gateway))
    }
}

fn application_tunnel(t: wire::ApplicationTunnel) -> Result<ApplicationTunnel, ConvertError> {
    use wire::application_tunnel::Protocol;
    let port = port(t.port);
    Ok(ApplicationTunnel {
        protocol: match known("application_tunnel.protocol", t.protocol)? {
            Protocol::None => ApplicationProtocol::None,
            Protocol::Proxy => ApplicationProtocol::Proxy,
        },
        port: (port != 0).then_some(port),
    })
}
