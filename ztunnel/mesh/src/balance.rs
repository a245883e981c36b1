//! Picks one endpoint of a service for one connection.
//!
//! Health, port and locality are judged here, at the moment of the pick, from what the snapshot says. The endpoints
//! lie in groups that share all of that (see `endpoints`), so a pick looks at groups, not at endpoints, and
//! allocates nothing. What the caller avoids is in no snapshot: see `avoid`.

use crate::endpoints::{AppTunnel, Endpoint, Endpoints, Group, Kind, Reach};
use crate::service::{HealthPolicy, LoadBalancingMode, Scope, Service};
use crate::snapshot::Mesh;
use crate::step::{Kindred, Step};
use crate::workload::{GatewayAddress, Health, Workload};

mod avoid;

/// Randomness, supplied by the caller so that a decision can be repeated.
pub trait Rng {
    fn next_u32(&mut self) -> u32;

    /// Is told each step of the decision. Who does not explain decisions leaves it as it is.
    #[inline]
    fn step(&mut self, step: Step<'_>) {
        let _ = step;
    }

    /// Whether another endpoint is better than this port of the workload, as far as the caller has found out. That makes
    /// it less preferred than all others that may be used; it never forbids it.
    fn avoids(&self, uid: &str, port: u16) -> bool {
        let _ = (uid, port);
        false
    }
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
    if !service.has_port(port) && purpose == Purpose::Destination {
        rng.step(Step::NoSuchPort { service, port });
        return None;
    }
    let picked = pick_any(mesh, service, port, client, purpose, rng);
    if picked.is_none() {
        rng.step(Step::NoEndpoint { service });
    }
    picked
}

fn pick_any<'a>(
    mesh: &'a Mesh,
    service: &Service,
    port: u16,
    client: &Workload,
    purpose: Purpose,
    rng: &mut impl Rng,
) -> Option<Picked<'a>> {
    let pick = Pick {
        mesh,
        service,
        port,
        client,
        purpose,
        endpoints: mesh.arranged_endpoints(&service.key)?,
    };
    let picked = pick.draw(pick.endpoints.scopes(), rng)?;
    if rng.avoids(&picked.endpoint.workload.uid, picked.port) {
        return Some(pick.instead_of(picked, rng));
    }
    Some(picked)
}

/// What one endpoint is picked for, and from what.
struct Pick<'a, 'b> {
    mesh: &'a Mesh,
    service: &'b Service,
    port: u16,
    client: &'b Workload,
    purpose: Purpose,
    endpoints: &'a Endpoints,
}

impl<'a> Pick<'a, '_> {
    /// Draws one of the endpoints that fit best, judged by `scopes`.
    fn draw(&self, scopes: &[Scope], rng: &mut impl Rng) -> Option<Picked<'a>> {
        let mut best = Best::default();
        for (kind, group) in self.endpoints.groups() {
            let Some(port) = self.port_of(kind) else {
                rng.step(Step::LeftOut(Kindred {
                    service: self.service,
                    client: self.client,
                    kind,
                    group,
                    port: self.port,
                }));
                continue;
            };
            best.port = port;
            self.fitting(scopes, group, &mut best, rng);
        }
        let (group, port) = best.chosen?;
        let endpoint = group.pick(below(group.weight(), rng)?)?;
        let of = best.weight;
        rng.step(Step::Drawn { endpoint, port, of });
        Some(Picked { endpoint, port })
    }

    /// The groups of endpoints that can take the connection, with their port for it.
    fn usable(&self) -> impl Iterator<Item = (u16, &'a Group)> {
        let groups = self.endpoints.groups();
        groups.filter_map(|(kind, group)| Some((self.port_of(kind)?, group)))
    }

    /// The port of endpoints of this kind, if they can take the connection.
    fn port_of(&self, kind: &Kind) -> Option<u16> {
        let Self { service, port, .. } = *self;
        if !can_take(service, self.client, kind) {
            return None;
        }
        let known_port = kind.target_port(port).or(service.target_port(port));
        match self.purpose {
            Purpose::Destination => known_port,
            Purpose::Waypoint if !service.has_port(port) && kind.app_tunnel == AppTunnel::None => {
                None
            }
            Purpose::Waypoint => {
                known_port.or((kind.app_tunnel == AppTunnel::ToPort).then_some(port))
            }
        }
    }

    /// Finds the parts of `group` that fit the service's preferences best, with how well: how many of `scopes` in a
    /// row, from the first, they share with the client. Nothing of it when it must not be used at all.
    fn fitting(&self, scopes: &[Scope], group: &'a Group, best: &mut Best<'a>, rng: &mut impl Rng) {
        let in_a_row = |group, scopes: &[Scope]| in_a_row(self.mesh, self.client, group, scopes);
        match (self.service.load_balancing.mode, scopes) {
            (LoadBalancingMode::Strict, _) => {
                let (shared, group) = in_a_row(group, scopes);
                if shared == scopes.len() {
                    best.consider(0, group, rng);
                } else {
                    let weight = group.weight();
                    rng.step(Step::TooFar { weight, scopes });
                }
            }
            // Same network beats any other, and among the others the rest of the list still ranks.
            (_, [Scope::Network, rest @ ..]) => {
                let own = group.part(self.mesh.hasher(), &self.client.network);
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
}

/// The waypoint for one connection to the service, when it has any: drawn by weight if weights are given.
pub(crate) fn sample_waypoint<'a>(
    service: &'a Service,
    rng: &mut impl Rng,
) -> Option<&'a GatewayAddress> {
    let weighted = &service.weighted_waypoints;
    let total = weighted.iter().map(|w| u64::from(w.weight)).sum();
    let Some(mut at) = below(total, rng) else {
        let waypoint = service.waypoint.as_ref();
        rng.step(match waypoint {
            None => Step::NoWaypoint { service },
            Some(waypoint) => Step::Waypoint {
                service,
                waypoint,
                drawn: None,
            },
        });
        return waypoint;
    };
    let drawn = weighted.iter().find(|w| {
        let weight = u64::from(w.weight);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    });
    let drawn = drawn?;
    rng.step(Step::Waypoint {
        service,
        waypoint: &drawn.destination,
        drawn: Some((drawn.weight.into(), total)),
    });
    Some(&drawn.destination)
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
        let beaten = rank < self.rank && self.chosen.is_some();
        rng.step(Step::Fitting {
            weight,
            rank,
            beaten,
        });
        // Endpoints that are never chosen must not keep others from being chosen.
        if weight == 0 || beaten {
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
