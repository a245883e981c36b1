//! Where in a pod the bytes of an inbound connection go.
//!
//! An address in a CONNECT must be the pod's own; only its port is used, the bytes always go to the address the
//! connection came to. Ports of the proxy are refused: a connection to them would come back.
//!
//! Absent for now, and refused: requests for what this pod is the waypoint of (a waypoint in front of its own node
//! proxy), and application tunnels that want a PROXY header.

use alloc::format;
use core::net::SocketAddr;

pub use crate::addr::Authority;
use crate::addr::{AppAddr, PROXY_PORTS};
use crate::partial::Key;
use crate::reason::{Reason, Refusal};
use crate::snapshot::Mesh;
use crate::workload::{ApplicationProtocol, ApplicationTunnel, Workload};

/// What has to be asked for before the target of a CONNECT to `pod` can be told: in a partial mesh the node's own
/// workloads are known, but not the services they are endpoints of. The pod says which these are; a name that is none
/// of them is not worth a question.
#[must_use]
pub fn lacking(mesh: &Mesh, pod: &Workload, authority: &Authority) -> Option<Key> {
    let Authority::Host { host, .. } = authority else {
        return None;
    };
    let own = pod.memberships.iter().map(|m| &m.service);
    own.filter(|service| *service.hostname == **host)
        .map(|service| Key::Service(service.clone()))
        .find(|key| mesh.lacks(key))
}

/// The app that a CONNECT to `pod`, received on `local`, is for.
///
/// # Errors
/// `BadRequest` when the authority is not the pod's; `Loop` for the proxy's own ports; `NoRoute` when the port
/// cannot be told or the way is not supported.
pub fn target(
    mesh: &Mesh,
    pod: &Workload,
    authority: &Authority,
    local: SocketAddr,
) -> Result<AppAddr, Refusal> {
    let ip = local.ip().to_canonical();
    let port = match authority {
        Authority::Ip(asked) => {
            if pod.application_tunnel.is_none() && asked.ip().to_canonical() != ip {
                let detail = format!("{asked} was asked for, but this is {ip}");
                return Err(Refusal::new(Reason::BadRequest, detail));
            }
            asked.port()
        }
        Authority::Host { host, port } => port_of_service(mesh, pod, host, *port)?,
    };
    let target = refuse_proxy_ports(SocketAddr::new(ip, port))?;
    match pod.application_tunnel {
        None => Ok(target),
        Some(ApplicationTunnel {
            protocol: ApplicationProtocol::None,
            port: tunnel_port,
        }) => Ok(AppAddr(SocketAddr::new(ip, tunnel_port.unwrap_or(port)))),
        Some(ApplicationTunnel {
            protocol: ApplicationProtocol::Proxy,
            ..
        }) => {
            let detail = format!(
                "workload {} wants a PROXY header in front of {authority}, which is not supported yet",
                pod.uid
            );
            Err(Refusal::new(Reason::NoRoute, detail))
        }
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

fn port_of_service(mesh: &Mesh, pod: &Workload, host: &str, port: u16) -> Result<u16, Refusal> {
    let no_route = |detail| Refusal::new(Reason::NoRoute, detail);
    let service = mesh
        .service_by_hostname(host, &pod.namespace)
        .ok_or_else(|| no_route(format!("no service is known by the name {host:?}")))?;
    if pod.application_tunnel.is_some() && !service.vips.iter().any(|vip| vip.exact().is_some()) {
        let key = &service.key;
        return Err(no_route(format!(
            "service {key} has no address to tunnel to"
        )));
    }
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

#[cfg(test)]
mod tests;
