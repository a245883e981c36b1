//! Services from the wire.

use ipnet::IpNet;
use ztunnel_mesh::Upsert;
use ztunnel_mesh::name::{Identity, ServiceName};
use ztunnel_mesh::service::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service, Vip, Visibility,
    WeightedWaypoint,
};
use ztunnel_proto::istio::workload as wire;

use super::{ConvertError, Converted, Converter, ip, known, port_pairs};

impl Converter {
    pub(super) fn service(&mut self, s: wire::Service) -> Result<Converted, ConvertError> {
        let vips = s.addresses.iter().map(|address| self.vip(address));
        let vips = vips.collect::<Result<_, _>>()?;
        let waypoint = s
            .waypoint
            .map(|g| self.gateway("waypoint", g))
            .transpose()?;
        let weighted_waypoints = s
            .weighted_waypoints
            .into_iter()
            .map(|w| self.weighted_waypoint(w))
            .collect::<Result<_, _>>()?;
        let load_balancing = s.load_balancing.map(load_balancing).transpose()?;
        let ip_families = match known("ip_families", s.ip_families)? {
            wire::IpFamilies::Automatic => IpFamilies::Automatic,
            wire::IpFamilies::Ipv4Only => IpFamilies::V4Only,
            wire::IpFamilies::Ipv6Only => IpFamilies::V6Only,
            wire::IpFamilies::Dual => IpFamilies::Dual,
        };
        let visibility = match wire::service::Visibility::try_from(s.visibility) {
            Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
            Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
        };

        let mut warnings = Vec::new();
        let mut identity = |uri: &String| {
            let parsed: Result<Identity, _> = uri.parse();
            parsed
                .map_err(|err| warnings.push(format!("subject_alt_names: {err}: left out")))
                .ok()
        };
        let subject_alt_names = s
            .subject_alt_names
            .iter()
            .filter_map(&mut identity)
            .collect();
        let service = Service {
            key: ServiceName {
                namespace: self.names.shared(&*s.namespace),
                hostname: self.names.shared(&*s.hostname),
            },
            name: self.names.shared(&*s.name),
            vips,
            ports: port_pairs(&s.ports),
            subject_alt_names,
            waypoint,
            weighted_waypoints,
            load_balancing: load_balancing.unwrap_or_default(),
            ip_families,
            canonical: s.canonical,
            visibility,
        };
        Ok(Converted {
            upsert: Upsert::Service(service.into()),
            warnings,
        })
    }

    // An absent length is the whole address; zero is everything.
    fn vip(&mut self, address: &wire::NetworkAddress) -> Result<Vip, ConvertError> {
        let ip = ip("addresses", &address.address)?;
        let net = match address.length {
            None => IpNet::from(ip),
            Some(length) => u8::try_from(length)
                .ok()
                .and_then(|length| IpNet::new(ip, length).ok())
                .ok_or(ConvertError::PrefixLength {
                    field: "addresses",
                    ip,
                    length,
                })?,
        };
        Ok(Vip::new(self.names.shared(&*address.network), net))
    }

    fn weighted_waypoint(
        &mut self,
        w: wire::WeightedWaypoint,
    ) -> Result<WeightedWaypoint, ConvertError> {
        const FIELD: &str = "weighted_waypoints.destination";
        let destination = w.destination.ok_or(ConvertError::Unset(FIELD))?;
        Ok(WeightedWaypoint {
            destination: self.gateway(FIELD, destination)?,
            weight: w.weight,
        })
    }
}

fn load_balancing(lb: wire::LoadBalancing) -> Result<LoadBalancing, ConvertError> {
    use wire::load_balancing as w;
    let preference = |&value: &i32| {
        const FIELD: &str = "load_balancing.routing_preference";
        Ok(match known(FIELD, value)? {
            w::Scope::UnspecifiedScope => {
                return Err(ConvertError::UnknownValue {
                    field: FIELD,
                    value,
                });
            }
            w::Scope::Region => Scope::Region,
            w::Scope::Zone => Scope::Zone,
            w::Scope::Subzone => Scope::Subzone,
            w::Scope::Node => Scope::Node,
            w::Scope::Cluster => Scope::Cluster,
            w::Scope::Network => Scope::Network,
        })
    };
    // Endpoints are grouped by what is preferred, one level for each. What is preferred twice says nothing new.
    let mut preferences = Vec::new();
    for value in &lb.routing_preference {
        let scope = preference(value)?;
        if !preferences.contains(&scope) {
            preferences.push(scope);
        }
    }
    Ok(LoadBalancing {
        mode: match known("load_balancing.mode", lb.mode)? {
            w::Mode::UnspecifiedMode => LoadBalancingMode::Unspecified,
            w::Mode::Strict => LoadBalancingMode::Strict,
            w::Mode::Failover => LoadBalancingMode::Failover,
            w::Mode::Passthrough => LoadBalancingMode::Passthrough,
        },
        preferences: preferences.into(),
        health_policy: match known("load_balancing.health_policy", lb.health_policy)? {
            w::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
            w::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
        },
    })
}
