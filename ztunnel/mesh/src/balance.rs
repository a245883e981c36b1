//! Picks one endpoint of a service for one connection.
//!
//! Health, port and locality are judged here, at the moment of the pick, from what the snapshot says. The endpoints
//! lie in groups that share all of that (see `endpoints`), so a pick looks at groups, not at endpoints, and
//! allocates nothing.

use crate::endpoints::{AppTunnel, Endpoint, Endpoints, Group, Kind, Reach};
use crate::service::{HealthPolicy, LoadBalancingMode, Scope, Service};
use crate::snapshot::Mesh;
use crate::workload::{GatewayAddress, Health, Workload};

/// Randomness, supplied by the caller so that a decision can be repeated.
pub trait Rng {
    fn next_u32(&mut self) -> u32;
}

/// An endpoint and its port for the connection.
#[derive(Clone, Copy, Debug)]
pub struct Picked<'a> {
    pub endpoint: &'a Endpoint,
    pub port: u16,
}

/// What an endpoint is picked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To take the connection, or to be a network gateway: the service must have the port.
    Destination,
    /// To be a waypoint. One that has an application tunnel takes connections for ports its service does not have.
    Waypoint,
}

/// Picks at random, by capacity, among the endpoints that can take a connection of `client` to `port` of the
/// service and that its load balancing prefers most.
pub fn pick<'a>(
    mesh: &'a Mesh,
    service: &Service,
    port: u16,
    client: &Workload,
    purpose: Purpose,
    rng: &mut impl Rng,
) -> Option<Picked<'a>> {
    let has_port = service.has_port(port);
    if !has_port && purpose == Purpose::Destination {
        return None;
    }
    let endpoints = mesh.arranged_endpoints(&service.key)?;
    let common_port = service.target_port(port);
    let mut best = Best::default();
    for (kind, group) in endpoints.groups() {
        if !can_take(service, client, kind) {
            continue;
        }
        let known_port = kind.target_port(port).or(common_port);
        let target_port = match purpose {
            Purpose::Destination => known_port,
            Purpose::Waypoint if !has_port && kind.app_tunnel == AppTunnel::None => None,
            Purpose::Waypoint => {
                known_port.or((kind.app_tunnel == AppTunnel::ToPort).then_some(port))
            }
        };
        let Some(target_port) = target_port else {
            continue;
        };
        best.port = target_port;
        fitting(mesh, service, endpoints, client, group, &mut best, rng);
    }
    let (group, port) = best.chosen?;
    let endpoint = group.pick(below(group.weight(), rng)?)?;
    Some(Picked { endpoint, port })
}

/// The waypoint for one connection to the service, when it has any: drawn by weight if weights are given.
pub(crate) fn sample_waypoint<'a>(
    service: &'a Service,
    rng: &mut impl Rng,
) -> Option<&'a GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let total = weighted.iter().map(|w| u64::from(w.weight)).sum();
    let Some(mut at) = below(total, rng) else {
        return service.waypoint.as_ref();
    };
    let drawn = weighted.iter().find(|w| {
        let weight = u64::from(w.weight);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    });
    drawn.map(|w| &w.destination)
}

/// The group to draw from: of the groups that fit best one, by weight.
#[derive(Default)]
struct Best<'a> {
    /// The port of the endpoints that are looked at now.
    port: u16,
    rank: usize,
    weight: u64,
    chosen: Option<(&'a Group, u16)>,
}

impl<'a> Best<'a> {
    fn consider(&mut self, rank: usize, group: &'a Group, rng: &mut impl Rng) {
        let weight = group.weight();
        // Endpoints that are never chosen must not keep others from being chosen.
        if weight == 0 || (rank < self.rank && self.chosen.is_some()) {
            return;
        }
        if rank > self.rank {
            (self.rank, self.weight) = (rank, 0);
        }
        self.weight += weight;
        if self.weight == weight || below(self.weight, rng).is_some_and(|at| at < weight) {
            self.chosen = Some((group, self.port));
        }
    }
}

fn can_take(service: &Service, client: &Workload, kind: &Kind) -> bool {
    let healthy = match service.load_balancing.health_policy {
        HealthPolicy::AllowAll => true,
        HealthPolicy::OnlyHealthy => kind.health == Health::Healthy,
    };
    healthy
        && match &kind.reach {
            Reach::Anywhere => true,
            Reach::OtherNetworks(network) => **network != *client.network,
            Reach::Nowhere => false,
        }
}

/// Finds the parts of `group` that fit the service's preferences best, with how well: how many scopes in a row,
/// from the first, they share with the client. Nothing of it when it must not be used at all.
fn fitting<'a>(
    mesh: &Mesh,
    service: &Service,
    endpoints: &Endpoints,
    client: &Workload,
    group: &'a Group,
    best: &mut Best<'a>,
    rng: &mut impl Rng,
) {
    let in_a_row = |group, scopes: &[Scope]| in_a_row(mesh, client, group, scopes);
    let scopes = endpoints.scopes();
    match (service.load_balancing.mode, scopes) {
        (LoadBalancingMode::Strict, _) => {
            let (shared, group) = in_a_row(group, scopes);
            if shared == scopes.len() {
                best.consider(0, group, rng);
            }
        }
        // Same network beats any other, and among the others the rest of the list still ranks.
        (_, [Scope::Network, rest @ ..]) => {
            let own = group.part(mesh.hasher(), &client.network);
            if let Some(own) = own.filter(|own| own.weight() > 0) {
                let (shared, group) = in_a_row(own, rest);
                best.consider(1 + shared + rest.len(), group, rng);
            } else if let Group::Parts(networks) = group {
                for network in networks.iter() {
                    let (shared, group) = in_a_row(&network.group, rest);
                    best.consider(shared, group, rng);
                }
            }
        }
        _ => {
            let (shared, group) = in_a_row(group, scopes);
            best.consider(shared, group, rng);
        }
    }
}

/// The smallest part of `group` that shares scopes with the client and can be drawn from, and how many.
fn in_a_row<'a>(
    mesh: &Mesh,
    client: &Workload,
    group: &'a Group,
    scopes: &[Scope],
) -> (usize, &'a Group) {
    let (mut shared, mut smallest) = (0, group);
    for scope in scopes {
        match smallest.part(mesh.hasher(), scope.of(client)) {
            Some(part) if part.weight() > 0 => (shared, smallest) = (shared + 1, part),
            _ => break,
        }
    }
    (shared, smallest)
}

/// A number in `0..bound`, as good as uniform: the bias is under bound / 2^64. Nothing when there is no such
/// number.
pub(crate) fn below(bound: u64, rng: &mut impl Rng) -> Option<u64> {
    if bound == 0 {
        return None;
    }
    let random = u64::from(rng.next_u32()) << 32 | u64::from(rng.next_u32());
    u64::try_from((u128::from(random) * u128::from(bound)) >> 64).ok()
}

#[cfg(test)]
mod tests;
