//! Picks one endpoint of a service for one connection.
//!
//! Health, port and locality are judged here, at the moment of the pick, from what the snapshot says. Costs two
//! passes over the endpoints and allocates nothing; a table made once for each snapshot can replace it behind the
//! same function.

use crate::service::{HealthPolicy, LoadBalancingMode, Scope, Service};
use crate::snapshot::{Endpoint, Mesh};
use crate::workload::{Health, Workload};

/// Randomness, supplied by the caller so that a decision can be repeated.
pub trait Rng {
    fn next_u32(&mut self) -> u32;
}

/// An endpoint and its port for the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picked<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) port: u16,
}

/// Picks at random, by capacity, among the endpoints that can take a connection of `client` to `port` of the
/// service and that its load balancing prefers most.
pub(crate) fn pick<'a>(
    mesh: &'a Mesh,
    service: &Service,
    port: u16,
    client: &Workload,
    rng: &mut impl Rng,
) -> Option<Picked<'a>> {
    if !service.has_port(port) {
        return None;
    }
    let common_port = service.target_port(port);
    let usable = || {
        let endpoints = mesh.endpoints(&service.key).iter();
        endpoints.filter_map(move |endpoint| {
            let port = endpoint.membership().target_port(port).or(common_port)?;
            let rank = rank(service, client, &endpoint.workload)?;
            can_take(service, client, &endpoint.workload)
                .then_some((rank, Picked { endpoint, port }))
        })
    };

    let (mut best, mut total) = (0, 0_u64);
    for (rank, picked) in usable() {
        let weight = u64::from(picked.endpoint.workload.capacity);
        // An endpoint that is never chosen must not keep others from being chosen.
        if weight == 0 || rank < best {
            continue;
        }
        if rank > best {
            (best, total) = (rank, 0);
        }
        total += weight;
    }
    let mut left = below(total, rng)?;
    usable()
        .filter(|(rank, _)| *rank == best)
        .map(|(_, picked)| picked)
        .find(|picked| {
            let weight = u64::from(picked.endpoint.workload.capacity);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        })
}

fn can_take(service: &Service, client: &Workload, endpoint: &Workload) -> bool {
    let healthy = match service.load_balancing.health_policy {
        HealthPolicy::AllowAll => true,
        HealthPolicy::OnlyHealthy => endpoint.health == Health::Healthy,
    };
    let nameless = endpoint.addresses.is_empty() && endpoint.hostname.is_empty();
    let behind_gateway = endpoint.network != client.network && endpoint.network_gateway.is_some();
    healthy && (!nameless || behind_gateway)
}

/// How well an endpoint fits the service's preferences; nothing when it must not be used at all.
fn rank(service: &Service, client: &Workload, endpoint: &Workload) -> Option<usize> {
    let preferences = &service.load_balancing.preferences;
    let matched = || {
        let Some((first, rest)) = preferences.split_first() else {
            return 0;
        };
        let in_a_row = |scopes: &[Scope]| {
            let matching = |scope: &&Scope| same(**scope, client, endpoint);
            scopes.iter().take_while(matching).count()
        };
        match (first, same(*first, client, endpoint)) {
            // Same network beats any other, and among the others the rest of the list still ranks.
            (Scope::Network, true) => 1 + in_a_row(rest) + rest.len(),
            (Scope::Network, false) => in_a_row(rest),
            (_, true) => 1 + in_a_row(rest),
            (_, false) => 0,
        }
    };
    match service.load_balancing.mode {
        LoadBalancingMode::Unspecified => Some(0),
        LoadBalancingMode::Failover | LoadBalancingMode::Passthrough => Some(matched()),
        LoadBalancingMode::Strict => preferences
            .iter()
            .all(|scope| same(*scope, client, endpoint))
            .then_some(0),
    }
}

fn same(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster_id == b.cluster_id,
        Scope::Network => a.network == b.network,
    }
}

/// A number in `0..bound`, as good as uniform: the bias is under bound / 2^64. Nothing when there is no such
/// number.
fn below(bound: u64, rng: &mut impl Rng) -> Option<u64> {
    if bound == 0 {
        return None;
    }
    let random = u64::from(rng.next_u32()) << 32 | u64::from(rng.next_u32());
    u64::try_from((u128::from(random) * u128::from(bound)) >> 64).ok()
}
