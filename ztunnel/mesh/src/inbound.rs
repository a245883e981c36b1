//! Where in a pod the bytes of an inbound connection go.
//!
//! An address in a CONNECT must be one that belongs here: the pod's own, or that of something whose waypoint this pod
//! is. Only its port is used, the bytes always go to the address the connection came to, or to the pod's loopback
//! address. Ports of the proxy are refused: a connection to them would come back.
//!
//! What policy is asked about is the pod's address and the port that the app gets, also where the last step goes to
//! loopback: a policy about the pod's address must not end to hold because its app listens elsewhere.
//!
//! Absent on purpose: weighted waypoints in the check of whom an address belongs to, as in other implementations.

use alloc::format;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use crate::addr::Authority;
use crate::addr::{AppAddr, PROXY_PORTS};
use crate::partial::Key;
use crate::reason::{Reason, Refusal};
use crate::service::Service;
use crate::snapshot::Mesh;
use crate::workload::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Workload,
};

/// A CONNECT to a pod.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// The network of this node.
    pub own_network: &'a str,
    pub pod: &'a Workload,
    pub authority: &'a Authority,
    /// The address of the pod that its tunnel came to.
    pub local: SocketAddr,
    /// Whether apps behind a PROXY header are reached on loopback.
    pub localhost_app_tunnel: bool,
}

/// Where a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The app as policy knows it: an address of the pod, and the port that the app gets.
    pub app: AppAddr,
    pub hop: LastHop,
    /// What the PROXY header names as the destination, when there has to be such a header.
    pub proxy_to: Option<SocketAddr>,
}

/// How the connection to the app is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastHop {
    /// As the client, to the pod's address.
    AsClient,
    /// From loopback to loopback.
    Loopback(SocketAddr),
}

/// What has to be asked for before the target of a CONNECT can be told: in a partial mesh the node's own workloads are
/// known, but neither the services they are endpoints of nor what they are the waypoint of. Which services those are
/// the pod says; a name that is none of them is not worth a question.
#[must_use]
pub fn lacking(mesh: &Mesh, connect: &Connect<'_>) -> Option<Key> {
    let Connect {
        own_network, pod, ..
    } = *connect;
    match connect.authority {
        Authority::Host { host, .. } => {
            let own = pod.memberships.iter().map(|m| &m.service);
            own.filter(|service| *service.hostname == **host)
                .map(|service| Key::Service(service.clone()))
                .find(|key| mesh.lacks(key))
        }
        Authority::Ip(asked) => {
            let asked = asked.ip().to_canonical();
            if pod.application_tunnel.is_some() || asked == connect.local.ip().to_canonical() {
                return None;
            }
            mesh.lacks_address(own_network, asked).or_else(|| {
                let references = waypoints_of(mesh, own_network, asked);
                references
                    .filter_map(|reference| match &reference.destination {
                        GatewayDestination::Address { network, ip } => {
                            mesh.lacks_address(network, *ip)
                        }
                        GatewayDestination::Hostname(name) => mesh.lacks_service(name),
                    })
                    .next()
            })
        }
    }
}

/// The app that a CONNECT is for, and the way to it.
///
/// # Errors
/// `BadRequest` when the authority does not belong here; `Loop` for the proxy's own ports; `NoRoute` when the port, or
/// the address to name in a PROXY header, cannot be told.
pub fn target(mesh: &Mesh, connect: &Connect<'_>) -> Result<Target, Refusal> {
    let pod = connect.pod;
    let ip = connect.local.ip().to_canonical();
    let (port, asked_for) = match connect.authority {
        Authority::Ip(asked) => {
            let asked = SocketAddr::new(asked.ip().to_canonical(), asked.port());
            if !belongs_here(mesh, connect, asked.ip(), ip) {
                let detail = format!("{asked} was asked for, but this is {ip}");
                return Err(Refusal::new(Reason::BadRequest, detail));
            }
            (asked.port(), asked)
        }
        Authority::Host { host, port } => {
            let service = service(mesh, pod, host)?;
            let vip = match pod.application_tunnel {
                None => ip,
                Some(_) => vip_of(service, connect.own_network)?,
            };
            (port_of(service, pod, *port)?, SocketAddr::new(vip, *port))
        }
    };
    let direct = refuse_proxy_ports(SocketAddr::new(ip, port))?;
    let Some(ApplicationTunnel {
        protocol,
        port: tunnel_port,
    }) = pod.application_tunnel
    else {
        return Ok(Target {
            app: direct,
            hop: LastHop::AsClient,
            proxy_to: None,
        });
    };
    let app = AppAddr(SocketAddr::new(ip, tunnel_port.unwrap_or(port)));
    Ok(match protocol {
        ApplicationProtocol::None => Target {
            app,
            hop: LastHop::AsClient,
            proxy_to: None,
        },
        ApplicationProtocol::Proxy => Target {
            app,
            hop: if connect.localhost_app_tunnel {
                LastHop::Loopback(loopback(app))
            } else {
                LastHop::AsClient
            },
            proxy_to: Some(asked_for),
        },
    })
}

/// The loopback address of the same family.
fn loopback(app: AppAddr) -> SocketAddr {
    let ip: IpAddr = match app.0 {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, app.0.port())
}

/// Whether a connection to `ip` of the pod may ask for `asked`.
fn belongs_here(mesh: &Mesh, connect: &Connect<'_>, asked: IpAddr, ip: IpAddr) -> bool {
    let Connect {
        own_network, pod, ..
    } = *connect;
    asked == ip
        // Whatever is asked for is for the app to make sense of.
        || pod.application_tunnel.is_some()
        || waypoints_of(mesh, own_network, asked)
            .any(|reference| leads_to(mesh, reference, pod, ip))
}

/// The waypoints of whatever has the address. A workload comes before services, which may be several: clients of
/// different namespaces mean different ones by it.
fn waypoints_of<'a>(
    mesh: &'a Mesh,
    network: &str,
    ip: IpAddr,
) -> impl Iterator<Item = &'a GatewayAddress> {
    let workload = mesh.workload_by_ip(network, ip);
    let services = workload
        .is_none()
        .then(|| mesh.services_at(network, ip))
        .into_iter()
        .flatten();
    let of_workload = workload.and_then(|workload| workload.waypoint.as_deref());
    of_workload
        .into_iter()
        .chain(services.filter_map(|service| service.waypoint.as_ref()))
}

/// Whether a reference is to `pod`, which has the address `ip`, or to a service that it is an endpoint of.
fn leads_to(mesh: &Mesh, reference: &GatewayAddress, pod: &Workload, ip: IpAddr) -> bool {
    let is_pod =
        |workload: &Workload| workload.network == pod.network && workload.addresses.contains(&ip);
    let has_pod = |service: &Service| pod.membership(&service.key).is_some();
    match &reference.destination {
        GatewayDestination::Address { network, ip } => match mesh.workload_by_ip(network, *ip) {
            Some(workload) => is_pod(workload),
            None => mesh
                .services_at(network, *ip)
                .any(|service| has_pod(service)),
        },
        GatewayDestination::Hostname(name) => match mesh.service(name) {
            Some(service) => has_pod(service),
            None => mesh
                .workload_by_hostname(name)
                .is_some_and(|workload| is_pod(workload)),
        },
    }
}

/// The app that a plaintext connection to `orig_dst` is for.
///
/// # Errors
/// `Loop` for the proxy's own ports.
pub fn plaintext_target(orig_dst: SocketAddr) -> Result<AppAddr, Refusal> {
    let ip = orig_dst.ip().to_canonical();
    refuse_proxy_ports(SocketAddr::new(ip, orig_dst.port()))
}

fn refuse_proxy_ports(target: SocketAddr) -> Result<AppAddr, Refusal> {
    if PROXY_PORTS.contains(&target.port()) {
        let detail = format!("{target} is a port of the proxy itself");
        return Err(Refusal::new(Reason::Loop, detail));
    }
    Ok(AppAddr(target))
}

fn no_route(detail: alloc::string::String) -> Refusal {
    Refusal::new(Reason::NoRoute, detail)
}

fn service<'a>(mesh: &'a Mesh, pod: &Workload, host: &str) -> Result<&'a Service, Refusal> {
    let service = mesh.service_by_hostname(host, &pod.namespace);
    service
        .map(|service| &**service)
        .ok_or_else(|| no_route(format!("no service is known by the name {host:?}")))
}

/// The port of `pod` for a port of the service.
fn port_of(service: &Service, pod: &Workload, port: u16) -> Result<u16, Refusal> {
    let own = pod.membership(&service.key);
    own.and_then(|own| own.target_port(port))
        .or_else(|| service.target_port(port))
        .ok_or_else(|| {
            no_route(format!(
                "port {port} of service {} is no port of workload {}",
                service.key, pod.uid
            ))
        })
}

/// An address that stands for the service: on this node's network rather than elsewhere, IPv4 rather than IPv6.
fn vip_of(service: &Service, own_network: &str) -> Result<IpAddr, Refusal> {
    let vips = service.vips.iter();
    vips.filter_map(|vip| Some((*vip.network != *own_network, vip.exact()?)))
        .min_by_key(|(elsewhere, ip)| (*elsewhere, ip.is_ipv6()))
        .map(|(_, ip)| ip)
        .ok_or_else(|| {
            let key = &service.key;
            no_route(format!("service {key} has no address to tunnel to"))
        })
}

#[cfg(test)]
mod tests;
