//! What a decision can be: a way to the destination, as far as it is known without resolving names.

use alloc::string::ToString as _;
use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};

use crate::addr::{Authority, HBONE_PORT, HboneAddr};
use crate::name::Identity;
use crate::service::IpFamilies;

/// How to reach the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Plain TCP.
    Direct {
        to: SocketAddr,
    },
    Hbone(HboneRoute),
    DoubleHbone(DoubleHboneRoute),
    /// The next hop has a name instead of an address.
    Named(NamedRoute),
}

/// A CONNECT to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HboneRoute {
    pub peer: HboneAddr,
    /// What to ask the peer for.
    pub authority: Authority,
    /// The peer must prove one of these.
    pub expected: Arc<[Identity]>,
    /// Hostname of the service that the connection is for.
    pub service: Option<Arc<str>>,
}

/// A CONNECT to a network gateway, and inside of that stream another one, with the same authority, to whoever the
/// gateway connects it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoubleHboneRoute {
    pub outer: HboneRoute,
    /// The far end must prove one of these; never empty.
    pub inner: Arc<[Identity]>,
}

/// A route that is complete once a name is resolved. The name is one of the control plane's, not of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRoute {
    pub hostname: Arc<str>,
    /// Which addresses may be used.
    pub families: IpFamilies,
    /// Which family is better.
    pub prefer_v4: bool,
    pub(super) hop: Hop,
}

impl NamedRoute {
    /// The route by an address, whatever it is: a connection takes one that may be used, see `resolved`.
    #[must_use]
    pub fn at(self, ip: IpAddr) -> Route {
        self.hop.at(ip)
    }
}

/// A route but for the address of its next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    Direct {
        port: u16,
    },
    /// To the 15008 of the workload that is the destination.
    Workload {
        port: u16,
        expected: Arc<[Identity]>,
        service: Option<Arc<str>>,
    },
    Waypoint {
        port: u16,
        authority: SocketAddr,
        expected: Arc<[Identity]>,
        service: Option<Arc<str>>,
    },
    Gateway {
        port: u16,
        service: Arc<str>,
        service_port: u16,
        outer: Arc<[Identity]>,
        inner: Arc<[Identity]>,
    },
}

impl Hop {
    pub(super) fn at(self, ip: IpAddr) -> Route {
        match self {
            Self::Direct { port } => Route::Direct {
                to: SocketAddr::new(ip, port),
            },
            Self::Workload {
                port,
                expected,
                service,
            } => Route::Hbone(HboneRoute {
                peer: HboneAddr(SocketAddr::new(ip, HBONE_PORT)),
                authority: Authority::Ip(SocketAddr::new(ip, port)),
                expected,
                service,
            }),
            Self::Waypoint {
                port,
                authority,
                expected,
                service,
            } => Route::Hbone(HboneRoute {
                peer: HboneAddr(SocketAddr::new(ip, port)),
                authority: Authority::Ip(authority),
                expected,
                service,
            }),
            Self::Gateway {
                port,
                service,
                service_port,
                outer,
                inner,
            } => Route::DoubleHbone(DoubleHboneRoute {
                outer: HboneRoute {
                    peer: HboneAddr(SocketAddr::new(ip, port)),
                    authority: Authority::Host {
                        host: service.to_string(),
                        port: service_port,
                    },
                    expected: outer,
                    service: Some(service),
                },
                inner,
            }),
        }
    }
}
