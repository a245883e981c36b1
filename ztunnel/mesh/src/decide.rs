//! Chooses where one outbound connection goes.
//!
//! Invariants: reads one snapshot, so a decision never mixes two versions of the mesh. No I/O, no clock, no
//! global random source. Never panics on control-plane data. Plain TCP goes only to addresses the mesh does not
//! know, to services that ask for it, and to workloads without a tunnel; what needs a path that cannot be built
//! is refused.
//!
//! There are two lookups with different precedence: whether an address is a service's or a workload's asks for the
//! workload first, on the proxy's own network; where the connection goes asks for the service first, on the
//! client's network. They differ only where the same address is both, or where the two networks differ.
//!
//! A service's waypoint is for connections to the service, a workload's for connections to the workload: neither
//! stands in for the other. Whatever refers to a waypoint or a gateway that cannot be found is refused.
//! No shortcut for the same node: it is decided like any other.
//!
//! In a partial mesh an address that is not there means nothing until the control plane was asked for it, on both
//! networks. A waypoint or gateway that is not there is asked for when a connection needs it.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use crate::addr::{OrigDst, PROXY_PORTS};
use crate::balance::{Picked, Purpose, Rng, pick, sample_waypoint};
use crate::name::Identity;
use crate::partial::Key;
use crate::reason::Reason;
pub use crate::reason::Refusal;
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::step::{Is, Lookup, Role, Step};
use crate::workload::{GatewayAddress, TunnelProtocol, Workload};

mod reference;
mod resolved;
mod route;

use reference::{Unresolved, is_client, resolve};
use route::Hop;
pub use route::{DoubleHboneRoute, HboneRoute, NamedRoute, Route};

/// What to do with an outbound connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Go {
        route: Route,
        /// Who is behind the next hop, if others could be there instead: a refusal of the hop is to be held against it,
        /// and another decision may find another one.
        drawn: Option<Drawn>,
    },
    Refuse(Refusal),
    /// The mesh is partial, and this has to be asked for first. Then decide again.
    Lookup(Key),
}

/// An endpoint of a service, drawn among all that fit, or one of several waypoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    pub uid: Arc<str>,
    /// Where it takes the connection: an app's port, or the HBONE port of one that passes connections on.
    pub port: u16,
    /// It is a waypoint or a gateway: what it refuses may be the fault of those behind it.
    pub passes_on: bool,
}

/// Decides about a connection of the pod `from`, wherever its packets say they come from.
pub fn decide(
    mesh: &Mesh,
    own_network: &str,
    from: &Workload,
    to: OrigDst,
    rng: &mut impl Rng,
) -> Decision {
    let to = OrigDst(SocketAddr::new(to.0.ip().to_canonical(), to.0.port()));
    if to.0.ip().is_loopback() && PROXY_PORTS.contains(&to.0.port()) {
        rng.step(Step::OwnPort { to });
        let detail = format!("{to} is a port of the proxy itself");
        return Decision::Refuse(Refusal::new(Reason::Loop, detail));
    }
    let lacking = [own_network, &*from.network]
        .iter()
        .find_map(|network| mesh.lacks_address(network, to.0.ip()));
    if let Some(key) = lacking {
        return Decision::Lookup(key);
    }
    let connection = Connection {
        mesh,
        own_network,
        from,
        to: to.0,
    };
    match connection.route(rng) {
        Ok((route, drawn)) => Decision::Go { route, drawn },
        Err(Stop::Refuse(refusal)) => Decision::Refuse(refusal),
        Err(Stop::Lookup(key)) => Decision::Lookup(key),
    }
}

/// What is decided about.
struct Connection<'a> {
    mesh: &'a Mesh,
    own_network: &'a str,
    from: &'a Workload,
    to: SocketAddr,
}

type Found = (Route, Option<Drawn>);

/// Why there is no route.
enum Stop {
    Refuse(Refusal),
    Lookup(Key),
}

/// What the app addressed.
#[derive(Clone, Copy)]
enum Addressed<'a> {
    Workload(&'a Workload),
    Service(&'a Service),
    Unknown,
}

/// The workload that takes the connection, its port, and the service it was chosen for.
struct Chosen<'a> {
    workload: &'a Workload,
    port: u16,
    service: Option<&'a Service>,
    /// The address that it was chosen for: of its own, this or one like this is used.
    asked: IpAddr,
}

impl Chosen<'_> {
    fn drawn(&self, passes_on: bool) -> Drawn {
        Drawn {
            uid: Arc::clone(&self.workload.uid),
            port: self.port,
            passes_on,
        }
    }
}

enum Upstream<'a> {
    Chosen(Chosen<'a>),
    /// With the service that has no endpoint for it.
    Nothing(Option<&'a Service>),
}

impl<'a> Connection<'a> {
    fn route(&self, rng: &mut impl Rng) -> Result<Found, Stop> {
        let addressed = self.addressed(rng);
        if let Addressed::Service(service) = addressed
            && let Some(waypoint) = sample_waypoint(service, rng)
        {
            let first = self.through_waypoint_of(service, waypoint, rng)?;
            return Ok(self.or_another_waypoint_of(service, first, rng));
        }
        let to = OrigDst(self.to);
        match self.upstream(&self.from.network, to, Purpose::Destination, rng) {
            Upstream::Chosen(chosen) => self.to_workload(&chosen, addressed, rng),
            Upstream::Nothing(service) => {
                let route = self.otherwise(addressed, service, rng)?;
                Ok((route, None))
            }
        }
    }

    fn addressed(&self, rng: &mut impl Rng) -> Addressed<'a> {
        let (network, ip) = (self.own_network, self.to.ip());
        let (addressed, is) = if let Some(workload) = self.mesh.workload_by_ip(network, ip) {
            (Addressed::Workload(workload), Is::Workload(workload))
        } else if let Some(service) = self.mesh.service_by_vip(network, ip, &self.from.namespace) {
            (Addressed::Service(service), Is::Service(service))
        } else {
            (Addressed::Unknown, Is::Nothing)
        };
        rng.step(Step::Addressed(self.lookup(network, ip, is)));
        addressed
    }

    fn lookup<'b>(&'b self, network: &'b str, ip: IpAddr, is: Is<'b>) -> Lookup<'b> {
        Lookup {
            mesh: self.mesh,
            network,
            ip,
            namespace: &self.from.namespace,
            is,
        }
    }

    /// Who takes connections to `to` on `network`.
    fn upstream(
        &self,
        network: &str,
        to: OrigDst,
        purpose: Purpose,
        rng: &mut impl Rng,
    ) -> Upstream<'a> {
        let (ip, port) = (to.0.ip(), to.0.port());
        let Self { mesh, from, .. } = *self;
        let chosen = |workload, port, service| {
            Upstream::Chosen(Chosen {
                workload,
                port,
                service,
                asked: ip,
            })
        };
        if let Some(service) = mesh.service_by_vip(network, ip, &from.namespace) {
            rng.step(Step::Taken(self.lookup(network, ip, Is::Service(service))));
            if service.is_passthrough() {
                return Upstream::Nothing(Some(service));
            }
            match pick(mesh, service, port, from, purpose, rng) {
                Some(Picked { endpoint, port }) => chosen(&endpoint.workload, port, Some(service)),
                None => Upstream::Nothing(Some(service)),
            }
        } else if let Some(workload) = mesh.workload_by_ip(network, ip) {
            rng.step(Step::Taken(self.lookup(
                network,
                ip,
                Is::Workload(workload),
            )));
            chosen(workload, port, None)
        } else {
            rng.step(Step::Taken(self.lookup(network, ip, Is::Nothing)));
            Upstream::Nothing(None)
        }
    }

    /// No upstream: out in the clear only if the mesh has nothing to say about the address, or says just that.
    fn otherwise(
        &self,
        addressed: Addressed<'_>,
        service: Option<&Service>,
        rng: &mut impl Rng,
    ) -> Result<Route, Stop> {
        let Self { from, to, .. } = *self;
        let service = match (addressed, service) {
            (Addressed::Unknown, None) => {
                rng.step(Step::Outside { to });
                return Ok(Route::Direct { to });
            }
            (Addressed::Service(service), _) | (_, Some(service)) => service,
            (Addressed::Workload(workload), None) => {
                return Err(no_gateway(format!(
                    "{to} belongs to workload {} on network {:?}, but not on network {:?} of the client",
                    workload.uid, workload.network, from.network
                )));
            }
        };
        if service.is_passthrough() {
            rng.step(Step::Passthrough { service });
            return Ok(Route::Direct { to });
        }
        let (key, port) = (&service.key, to.port());
        let refusal = if service.has_port(port) {
            let detail = format!(
                "service {key} has no healthy endpoint for port {port} that this client may use"
            );
            Refusal::new(Reason::NoHealthyEndpoint, detail)
        } else {
            let detail = format!("service {key} has no port {port}");
            Refusal::new(Reason::NoSuchPort, detail)
        };
        Err(Stop::Refuse(refusal))
    }

    fn through_waypoint_of(
        &self,
        service: &Service,
        reference: &GatewayAddress,
        rng: &mut impl Rng,
    ) -> Result<Found, Stop> {
        let waypoint = self.waypoint(&service.key, "service", reference, rng)?;
        rng.step(via(Role::Waypoint, &waypoint));
        if waypoint.workload.network != self.from.network {
            return self.across_networks(&waypoint, Addressed::Service(service), rng);
        }
        let (route, drawn) = self
            .to_waypoint(&waypoint, Some(service))
            .map_err(|why| self.no_waypoint(&service.key, "service", reference, why))?;
        // It may be the only one at its address, but the address was drawn.
        let is_one_of_many = !service.weighted_waypoints.is_empty();
        let drawn = drawn.or_else(|| is_one_of_many.then(|| waypoint.drawn(true)));
        Ok((route, drawn))
    }

    /// Draws again among weighted waypoints when the `first` is one to avoid.
    fn or_another_waypoint_of(&self, service: &Service, first: Found, rng: &mut impl Rng) -> Found {
        const DRAWS: usize = 8;
        let avoided = |rng: &mut _, (_, drawn): &Found| {
            let drawn = drawn.as_ref();
            drawn.is_some_and(|drawn| Rng::avoids(rng, &drawn.uid, drawn.port))
        };
        if service.weighted_waypoints.is_empty() || !avoided(rng, &first) {
            return first;
        }
        for _ in 0..DRAWS {
            let another = sample_waypoint(service, rng)
                .and_then(|reference| self.through_waypoint_of(service, reference, rng).ok())
                .filter(|another| !avoided(rng, another));
            if let Some(another) = another {
                return another;
            }
        }
        first
    }

    fn to_workload(
        &self,
        chosen: &Chosen<'_>,
        addressed: Addressed<'_>,
        rng: &mut impl Rng,
    ) -> Result<Found, Stop> {
        let Chosen {
            workload,
            port,
            service,
            ..
        } = *chosen;
        if workload.network != self.from.network {
            return self.across_networks(chosen, addressed, rng);
        }
        if workload.waypoint.is_some() && matches!(addressed, Addressed::Service(_)) {
            rng.step(Step::WaypointOfOthers { workload });
        } else if let Some(reference) = &workload.waypoint {
            let of = &workload.uid;
            let itself = is_client(self, reference);
            let itself = itself.map_err(|why| self.no_waypoint(of, "workload", reference, why))?;
            if itself {
                rng.step(Step::IsTheWaypoint { workload });
            } else {
                let role = Role::Waypoint;
                rng.step(Step::Reference {
                    role,
                    of: workload,
                    reference,
                });
                let waypoint = self.waypoint(of, "workload", reference, rng)?;
                rng.step(via(role, &waypoint));
                if waypoint.workload.network != self.from.network {
                    let why = Unresolved::Missing(format!(
                        "it is on network {:?}, and only connections to services cross networks",
                        waypoint.workload.network
                    ));
                    return Err(self.no_waypoint(of, "workload", reference, why));
                }
                return self
                    .to_waypoint(&waypoint, service)
                    .map_err(|why| self.no_waypoint(of, "workload", reference, why));
            }
        }
        rng.step(Step::Destination { workload, port });
        let hop = match workload.tunnel {
            TunnelProtocol::None => Hop::Direct { port },
            TunnelProtocol::Hbone => Hop::Workload {
                port,
                expected: expected(chosen),
                service: service.map(|service| Arc::clone(&service.key.hostname)),
            },
        };
        next(chosen, hop).map_err(|why| no_route(format!("for {}, {why}", self.to)))
    }

    /// To a workload, or the waypoint in front of it, on another network.
    fn across_networks(
        &self,
        far: &Chosen<'_>,
        addressed: Addressed<'_>,
        rng: &mut impl Rng,
    ) -> Result<Found, Stop> {
        let (to, workload) = (self.to, far.workload);
        let (uid, network) = (&workload.uid, &workload.network);
        let client = &*self.from.network;
        rng.step(Step::OtherNetwork { workload, client });
        let Addressed::Service(service) = addressed else {
            return Err(no_gateway(format!(
                "workload {uid} for {to} is on network {network:?}: only connections to services cross networks"
            )));
        };
        let Some(reference) = &workload.network_gateway else {
            return Err(no_gateway(format!(
                "workload {uid} for {to} is on network {network:?} and has no network gateway"
            )));
        };
        // The workload stands for what the far network has: only the service knows who that may be.
        let inner: Arc<[Identity]> = far.service.map_or(&[][..], names).into();
        if inner.is_empty() {
            return Err(no_gateway(format!(
                "workload {uid} for {to} is on network {network:?}, and its service does not say who takes \
                 connections there (subject_alt_names)"
            )));
        }
        rng.step(Step::Reference {
            role: Role::Gateway,
            of: workload,
            reference,
        });
        let nowhere = |why| {
            let what = format!("workload {uid} for {to} is on network {network:?}, reached");
            unresolved(&what, Role::Gateway, reference, why)
        };
        let gateway = resolve(self, reference, Purpose::Destination, rng).map_err(nowhere)?;
        rng.step(via(Role::Gateway, &gateway));
        let hop = Hop::Gateway {
            port: gateway.port,
            service: Arc::clone(&service.key.hostname),
            service_port: to.port(),
            outer: expected(&gateway),
            inner,
        };
        let (route, drawn) =
            next(&gateway, hop).map_err(|why| nowhere(Unresolved::Missing(why)))?;
        // The only one there is: then another endpoint may have another.
        let drawn = drawn.or_else(|| far.service.map(|_| far.drawn(true)));
        Ok((route, drawn))
    }

    fn waypoint(
        &self,
        of: &dyn fmt::Display,
        kind: &str,
        reference: &GatewayAddress,
        rng: &mut impl Rng,
    ) -> Result<Chosen<'a>, Stop> {
        resolve(self, reference, Purpose::Waypoint, rng)
            .map_err(|why| self.no_waypoint(of, kind, reference, why))
    }

    fn no_waypoint(
        &self,
        of: &dyn fmt::Display,
        kind: &str,
        reference: &GatewayAddress,
        why: Unresolved,
    ) -> Stop {
        let what = format!("{kind} {of} for {} is reached", self.to);
        unresolved(&what, Role::Waypoint, reference, why)
    }

    fn to_waypoint(
        &self,
        waypoint: &Chosen<'_>,
        service: Option<&Service>,
    ) -> Result<Found, Unresolved> {
        let hop = Hop::Waypoint {
            port: waypoint.port,
            authority: self.to,
            expected: expected(waypoint),
            service: service.map(|service| Arc::clone(&service.key.hostname)),
        };
        next(waypoint, hop).map_err(Unresolved::Missing)
    }
}

/// The route with a workload as its next hop, or what that lacks.
fn next(chosen: &Chosen<'_>, hop: Hop) -> Result<Found, String> {
    let Chosen {
        workload,
        service,
        asked,
        ..
    } = *chosen;
    let passes_on = matches!(hop, Hop::Waypoint { .. } | Hop::Gateway { .. });
    let drawn = service.map(|_| chosen.drawn(passes_on));
    if let Some(ip) = address(workload, service, asked) {
        return Ok((hop.at(ip), drawn));
    }
    if workload.hostname.is_empty() {
        let uid = &workload.uid;
        return Err(format!("workload {uid} has no address that may be used"));
    }
    let route = Route::Named(NamedRoute {
        hostname: Arc::clone(&workload.hostname),
        families: service
            .map(|service| service.ip_families)
            .unwrap_or_default(),
        prefer_v4: asked.is_ipv4(),
        hop,
    });
    Ok((route, drawn))
}

/// The address of the workload to use: the one that was asked for, else one of the same family, else any.
fn address(workload: &Workload, service: Option<&Service>, asked: IpAddr) -> Option<IpAddr> {
    if workload.addresses.contains(&asked) {
        return Some(asked);
    }
    let allowed = || {
        let addresses = workload.addresses.iter().copied();
        addresses.filter(|ip| service.is_none_or(|service| service.ip_families.allow(*ip)))
    };
    allowed()
        .find(|ip| ip.is_ipv4() == asked.is_ipv4())
        .or_else(|| allowed().next())
}

fn via<'a>(role: Role, next: &Chosen<'a>) -> Step<'a> {
    let workload = next.workload;
    Step::Via { role, workload }
}

fn names(service: &Service) -> &[Identity] {
    &service.subject_alt_names
}

/// Who a workload may prove to be: itself, or what the service it was chosen for says.
fn expected(chosen: &Chosen<'_>) -> Arc<[Identity]> {
    let mut expected: Vec<_> = chosen.service.map_or(&[][..], names).to_vec();
    expected.push(chosen.workload.identity());
    expected.into()
}

fn no_route(detail: String) -> Stop {
    Stop::Refuse(Refusal::new(Reason::NoRoute, detail))
}

fn no_gateway(detail: String) -> Stop {
    Stop::Refuse(Refusal::new(Reason::NoGateway, detail))
}

fn unresolved(what: &str, role: Role, reference: &GatewayAddress, why: Unresolved) -> Stop {
    match why {
        Unresolved::Lookup(key) => Stop::Lookup(key),
        Unresolved::Missing(why) => {
            let reason = match role {
                Role::Waypoint => Reason::NoWaypoint,
                Role::Gateway => Reason::NoGateway,
            };
            let detail = format!("{what} through the {role} {reference}: {why}");
            Stop::Refuse(Refusal::new(reason, detail))
        }
    }
}

#[cfg(test)]
mod tests;
