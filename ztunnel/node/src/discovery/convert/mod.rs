//! Turns what the control plane sends into what the mesh is made of, one resource at a time.
//!
//! Pure. A resource is taken whole or rejected whole, with the field and the value that made it impossible; it never
//! affects another resource. What has a tolerable meaning is tolerated: unknown fields, an unknown visibility
//! (public) or workload type (deployment), an identity that is none (left out, with a warning).
//!
//! Left out on purpose, because nothing here would follow from it: `extensions` of everything, `app_protocol` of a
//! port, `ingress_use_waypoint` of a service (for gateways), `length` of a gateway's address, and of a resource its
//! lifetime, caching hints, and the type its content claims (that of the response decides). Every other field of
//! `workload.proto` and `authorization.proto` is kept.
//!
//! Ports are the low 16 bits of what is said. In a list that has a port or a preference twice, the first counts. Of a
//! map on the wire that has a key twice, the last does, so a workload is an endpoint of a service once.

mod policy;
mod pool;
mod service;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use ztunnel_mesh::Upsert;
use ztunnel_mesh::name::{PolicyName, ServiceName};
use ztunnel_mesh::workload::{
    App, GatewayAddress, GatewayDestination, Membership, Place, PortPair,
};
use ztunnel_proto::istio::security::Authorization;
use ztunnel_proto::istio::workload as wire;

use pool::Pool;

/// The largest resource. What Kubernetes stores as one object is not larger, and one byte here can become a hundred
/// in memory: an empty match of a policy is two bytes on the wire.
const MAX_CONTENT: usize = 1024 * 1024;

/// Why a resource was rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("the resource has no content")]
    NoContent,
    #[error("the content has {0} bytes, more than {MAX_CONTENT}")]
    TooLarge(usize),
    #[error("the content is named {0:?}")]
    Named(String),
    #[error("the content is no such message: {0}")]
    Decode(prost::DecodeError),
    #[error("{0} is present, but empty")]
    Unset(&'static str),
    #[error("{field} has {len} bytes, an ip address has 4 or 16")]
    AddressLength { field: &'static str, len: usize },
    #[error("{field} has prefix length {length}, too long for {ip}")]
    PrefixLength {
        field: &'static str,
        ip: IpAddr,
        length: u32,
    },
    #[error("{field} has the unknown value {value}")]
    UnknownValue { field: &'static str, value: i32 },
    #[error("tunnel_protocol LEGACY_ISTIO_MTLS is not supported")]
    LegacyTunnel,
    #[error("services has the key {0:?}, which is not <namespace>/<hostname>")]
    ServiceKey(String),
}

/// A resource, and what was left out of it.
#[derive(Debug)]
pub struct Converted {
    pub upsert: Upsert,
    pub warnings: Vec<String>,
}

/// Keeps what many resources have in common, so that it is in memory once.
#[derive(Debug, Default)]
pub(super) struct Converter {
    names: Pool<str>,
    places: Pool<Place>,
    apps: Pool<App>,
    memberships: Pool<Membership>,
    policies: Pool<[PolicyName]>,
    gateways: Pool<GatewayAddress>,
}

impl Converter {
    /// Converts the content of one `istio.workload.Address`.
    pub(super) fn address(&mut self, content: &[u8]) -> Result<Converted, ConvertError> {
        let address: wire::Address = decode(content)?;
        match address.r#type.ok_or(ConvertError::Unset("type"))? {
            wire::address::Type::Workload(w) => self.workload(w),
            wire::address::Type::Service(s) => self.service(s),
        }
    }

    /// Converts the content of one `istio.security.Authorization`.
    pub(super) fn authorization(&mut self, content: &[u8]) -> Result<Converted, ConvertError> {
        self.policy(decode::<Authorization>(content)?)
    }

    /// Forgets what nothing uses any more.
    pub(super) fn tidy(&mut self) {
        self.places.tidy();
        self.apps.tidy();
        self.memberships.tidy();
        self.policies.tidy();
        self.gateways.tidy();
        // Last: the others are made of them.
        self.names.tidy();
    }

    fn name_or(&mut self, name: &str, default: &str) -> Arc<str> {
        self.names
            .shared(if name.is_empty() { default } else { name })
    }

    fn gateway(
        &mut self,
        field: &'static str,
        address: wire::GatewayAddress,
    ) -> Result<GatewayAddress, ConvertError> {
        use wire::gateway_address::Destination;
        let destination = match address.destination.ok_or(ConvertError::Unset(field))? {
            Destination::Hostname(name) => GatewayDestination::Hostname(ServiceName {
                namespace: self.names.shared(&*name.namespace),
                hostname: self.names.shared(&*name.hostname),
            }),
            Destination::Address(address) => GatewayDestination::Address {
                network: self.names.shared(&*address.network),
                ip: ip(field, &address.address)?,
            },
        };
        Ok(GatewayAddress {
            destination,
            hbone_port: port(address.hbone_mtls_port),
        })
    }
}

fn decode<M: prost::Message + Default>(content: &[u8]) -> Result<M, ConvertError> {
    if content.len() > MAX_CONTENT {
        return Err(ConvertError::TooLarge(content.len()));
    }
    M::decode(content).map_err(ConvertError::Decode)
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    let ip = parse_ip(bytes).ok_or(ConvertError::AddressLength {
        field,
        len: bytes.len(),
    })?;
    // Connections are looked up by canonical addresses.
    Ok(ip.to_canonical())
}

fn parse_ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn known<T: TryFrom<i32>>(field: &'static str, value: i32) -> Result<T, ConvertError> {
    T::try_from(value).map_err(|_| ConvertError::UnknownValue { field, value })
}

// Peers use the low 16 bits, so we mean the same port.
fn port(port: u32) -> u16 {
    port as u16
}

fn port_pairs(ports: &[wire::Port]) -> Box<[PortPair]> {
    let pair = |p: &wire::Port| PortPair {
        service: port(p.service_port),
        target: port(p.target_port),
    };
    ports.iter().map(pair).collect()
}

#[cfg(test)]
mod tests;
