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
//! Absent for now, and refused as `NoRoute`: waypoints, other networks behind gateways, workloads known by
//! hostname only. No shortcut for the same node: it is decided like any other.
//!
//! In a partial mesh an address that is not there means nothing until the control plane was asked for it, on both
//! networks.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use crate::addr::{HBONE_PORT, HboneAddr, OrigDst, PROXY_PORTS};
use crate::balance::{Picked, Rng, pick};
use crate::name::Identity;
use crate::partial::Key;
use crate::reason::Reason;
pub use crate::reason::Refusal;
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::workload::{TunnelProtocol, Workload};

/// What to do with an outbound connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Go(Route),
    Refuse(Refusal),
    /// The mesh is partial, and this has to be asked for first. Then decide again.
    Lookup(Key),
}

/// How to reach the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Plain TCP.
    Direct {
        to: SocketAddr,
    },
    Hbone(HboneRoute),
}

/// A CONNECT to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HboneRoute {
    pub peer: HboneAddr,
    /// What to ask the peer for.
    pub authority: SocketAddr,
    /// The peer must prove one of these.
    pub expected: Arc<[Identity]>,
    /// Hostname of the service the peer was chosen for.
    pub service: Option<Arc<str>>,
}

/// Decides about a connection of the pod `from`, wherever its packets say they come from.
pub fn decide(
    mesh: &Mesh,
    own_network: &str,
    from: &Workload,
    to: OrigDst,
    rng: &mut impl Rng,
) -> Decision {
    let to = SocketAddr::new(to.0.ip().to_canonical(), to.0.port());
    if to.ip().is_loopback() && PROXY_PORTS.contains(&to.port()) {
        let detail = format!("{to} is a port of the proxy itself");
        return Decision::Refuse(Refusal::new(Reason::Loop, detail));
    }
    let lacking = [own_network, &*from.network]
        .iter()
        .find_map(|network| mesh.lacks_address(network, to.ip()));
    if let Some(key) = lacking {
        return Decision::Lookup(key);
    }
    match route(mesh, own_network, from, to, rng) {
        Ok(route) => Decision::Go(route),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn route(
    mesh: &Mesh,
    own_network: &str,
    from: &Workload,
    to: SocketAddr,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    let addressed = addressed(mesh, own_network, from, to.ip());
    if let Addressed::Service(service) = addressed
        && service.has_waypoint()
    {
        let detail = format!(
            "service {} for {to} is reached through a waypoint, which is not supported yet",
            service.key
        );
        return Err(Refusal::new(Reason::NoRoute, detail));
    }
    match upstream(mesh, from, to, rng) {
        Upstream::Chosen(upstream) => through(&upstream, addressed, from, to),
        Upstream::Nothing(service) => otherwise(addressed, service, from, to),
    }
}

/// What the app addressed.
#[derive(Clone, Copy)]
enum Addressed<'a> {
    Workload(&'a Workload),
    Service(&'a Service),
    Unknown,
}

fn addressed<'a>(mesh: &'a Mesh, network: &str, from: &Workload, ip: IpAddr) -> Addressed<'a> {
    if let Some(workload) = mesh.workload_by_ip(network, ip) {
        Addressed::Workload(workload)
    } else if let Some(service) = mesh.service_by_vip(network, ip, &from.namespace) {
        Addressed::Service(service)
    } else {
        Addressed::Unknown
    }
}

/// The workload that takes the connection, its port, and the service it was chosen for.
struct Chosen<'a> {
    workload: &'a Workload,
    port: u16,
    service: Option<&'a Service>,
}

enum Upstream<'a> {
    Chosen(Chosen<'a>),
    /// With the service that has no endpoint for it.
    Nothing(Option<&'a Service>),
}

fn upstream<'a>(
    mesh: &'a Mesh,
    from: &Workload,
    to: SocketAddr,
    rng: &mut impl Rng,
) -> Upstream<'a> {
    let (network, ip) = (&from.network, to.ip());
    if let Some(service) = mesh.service_by_vip(network, ip, &from.namespace) {
        if service.is_passthrough() {
            return Upstream::Nothing(Some(service));
        }
        match pick(mesh, service, to.port(), from, rng) {
            Some(Picked { endpoint, port }) => Upstream::Chosen(Chosen {
                workload: &endpoint.workload,
                port,
                service: Some(service),
            }),
            None => Upstream::Nothing(Some(service)),
        }
    } else if let Some(workload) = mesh.workload_by_ip(network, ip) {
        Upstream::Chosen(Chosen {
            workload,
            port: to.port(),
            service: None,
        })
    } else {
        Upstream::Nothing(None)
    }
}

/// No upstream: out in the clear only if the mesh has nothing to say about the address, or says just that.
fn otherwise(
    addressed: Addressed<'_>,
    service: Option<&Service>,
    from: &Workload,
    to: SocketAddr,
) -> Result<Route, Refusal> {
    let direct = Ok(Route::Direct { to });
    let service = match (addressed, service) {
        (Addressed::Unknown, None) => return direct,
        (Addressed::Service(service), _) | (_, Some(service)) => service,
        (Addressed::Workload(workload), None) => {
            let detail = format!(
                "{to} belongs to workload {} on network {:?}, but not on network {:?} of the client",
                workload.uid, workload.network, from.network
            );
            return Err(Refusal::new(Reason::NoRoute, detail));
        }
    };
    if service.is_passthrough() {
        return direct;
    }
    let detail = if service.has_port(to.port()) {
        format!(
            "service {} has no healthy endpoint for port {} that this client may use",
            service.key,
            to.port()
        )
    } else {
        format!("service {} has no port {}", service.key, to.port())
    };
    Err(Refusal::new(Reason::NoHealthyEndpoint, detail))
}

fn through(
    upstream: &Chosen<'_>,
    addressed: Addressed<'_>,
    from: &Workload,
    to: SocketAddr,
) -> Result<Route, Refusal> {
    let Chosen {
        workload,
        port,
        service,
    } = *upstream;
    let uid = &workload.uid;
    let no_route = |detail| Err(Refusal::new(Reason::NoRoute, detail));
    if workload.network != from.network {
        return no_route(format!(
            "workload {uid} for {to} is on network {:?}: network gateways are not supported yet",
            workload.network
        ));
    }
    if let Some(waypoint) = &workload.waypoint
        && !matches!(addressed, Addressed::Service(_))
    {
        return no_route(format!(
            "workload {uid} at {to} is reached through the waypoint at {waypoint}, which is not supported yet"
        ));
    }
    let Some(ip) = address(workload, service, to.ip()) else {
        return no_route(if workload.hostname.is_empty() {
            format!("workload {uid} for {to} has no address its service may use")
        } else {
            format!(
                "workload {uid} for {to} is known as {:?} only: resolving it is not supported yet",
                workload.hostname
            )
        });
    };
    Ok(match workload.tunnel {
        TunnelProtocol::None => Route::Direct {
            to: SocketAddr::new(ip, port),
        },
        TunnelProtocol::Hbone => Route::Hbone(HboneRoute {
            peer: HboneAddr(SocketAddr::new(ip, HBONE_PORT)),
            authority: SocketAddr::new(ip, port),
            expected: expected(workload, service),
            service: service.map(|service| Arc::clone(&service.key.hostname)),
        }),
    })
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

fn expected(workload: &Workload, service: Option<&Service>) -> Arc<[Identity]> {
    let names = service.map_or(&[][..], |service| &service.subject_alt_names);
    let mut expected: Vec<_> = names.to_vec();
    expected.push(workload.identity());
    expected.into()
}

#[cfg(test)]
mod tests;
