//! What the control plane's references to waypoints and network gateways lead to.
//!
//! A reference that leads nowhere is an error that says so; there is no other way around it.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::net::SocketAddr;

use super::{Chosen, Connection, Upstream};
use crate::addr::OrigDst;
use crate::balance::{Picked, Purpose, Rng, pick};
use crate::name::ServiceName;
use crate::partial::Key;
use crate::service::Service;
use crate::step::{Is, Step};
use crate::workload::{GatewayAddress, GatewayDestination, Workload};

/// Why a reference leads nowhere, at least now.
pub(super) enum Unresolved {
    Lookup(Key),
    /// What is wrong with it, to stand behind its name.
    Missing(String),
}

/// The workload behind a reference, for this connection. Its port is where it speaks HBONE.
pub(super) fn resolve<'a>(
    c: &Connection<'a>,
    reference: &GatewayAddress,
    purpose: Purpose,
    rng: &mut impl Rng,
) -> Result<Chosen<'a>, Unresolved> {
    lacking(c, reference)?;
    let port = reference.hbone_port;
    let no_endpoint = |service: &Service| {
        Unresolved::Missing(if service.has_port(port) {
            format!(
                "service {} has no healthy endpoint for that port",
                service.key
            )
        } else {
            format!("service {} has no such port", service.key)
        })
    };
    match &reference.destination {
        GatewayDestination::Address { network, ip } => {
            let at = OrigDst(SocketAddr::new(*ip, port));
            match c.upstream(network, at, purpose, rng) {
                Upstream::Chosen(chosen) => Ok(chosen),
                Upstream::Nothing(Some(service)) => Err(no_endpoint(service)),
                Upstream::Nothing(None) => Err(Unresolved::Missing(
                    "no service or workload has that address".into(),
                )),
            }
        }
        GatewayDestination::Hostname(name) => match told(name, behind_hostname(c, name), rng) {
            Some(Behind::Service(service)) => {
                let picked = pick(c.mesh, service, port, c.from, purpose, rng);
                let Picked { endpoint, port } = picked.ok_or_else(|| no_endpoint(service))?;
                Ok(Chosen {
                    workload: &endpoint.workload,
                    port,
                    service: Some(service),
                    asked: c.to.ip(),
                })
            }
            Some(Behind::Workload(workload)) => Ok(Chosen {
                workload,
                port,
                service: None,
                asked: c.to.ip(),
            }),
            None => Err(Unresolved::Missing(
                "no service or workload has that name".into(),
            )),
        },
    }
}

/// Whether the client itself is what a reference leads to: its connections are those that the waypoint makes.
pub(super) fn is_client(
    c: &Connection<'_>,
    reference: &GatewayAddress,
) -> Result<bool, Unresolved> {
    lacking(c, reference)?;
    let behind = match &reference.destination {
        GatewayDestination::Address { network, ip } => {
            if let Some(workload) = c.mesh.workload_by_ip(network, *ip) {
                Some(Behind::Workload(workload))
            } else {
                let service = c.mesh.service_by_vip(network, *ip, &c.from.namespace);
                service.map(Behind::Service)
            }
        }
        GatewayDestination::Hostname(name) => behind_hostname(c, name),
    };
    Ok(match behind {
        // What a workload is an endpoint of, its own record says: no need to go through all endpoints.
        Some(Behind::Service(service)) => c.from.membership(&service.key).is_some(),
        Some(Behind::Workload(workload)) => same(workload, c.from),
        None => false,
    })
}

/// Whether two records are of one workload: an address alone does not say who has it, nor an identity which of all
/// that share it.
fn same(workload: &Workload, client: &Workload) -> bool {
    let shared = |ip| client.addresses.contains(ip);
    workload.uid == client.uid
        || (workload.identity() == client.identity()
            && workload.network == client.network
            && workload.addresses.iter().any(shared))
}

enum Behind<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

fn told<'a>(
    name: &ServiceName,
    behind: Option<Behind<'a>>,
    rng: &mut impl Rng,
) -> Option<Behind<'a>> {
    let is = match &behind {
        Some(Behind::Service(service)) => Is::Service(service),
        Some(Behind::Workload(workload)) => Is::Workload(workload),
        None => Is::Nothing,
    };
    rng.step(Step::Named { name, is });
    behind
}

fn behind_hostname<'a>(c: &Connection<'a>, name: &ServiceName) -> Option<Behind<'a>> {
    match c.mesh.service(name) {
        Some(service) => Some(Behind::Service(service)),
        None => c.mesh.workload_by_hostname(name).map(Behind::Workload),
    }
}

fn lacking(c: &Connection<'_>, reference: &GatewayAddress) -> Result<(), Unresolved> {
    let key = match &reference.destination {
        GatewayDestination::Address { network, ip } => c.mesh.lacks_address(network, *ip),
        GatewayDestination::Hostname(name) => c.mesh.lacks_service(name),
    };
    key.map_or(Ok(()), |key| Err(Unresolved::Lookup(key)))
}
