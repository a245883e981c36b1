//! Addresses that say whose they are. A bare `SocketAddr` in a signature does not.

use alloc::string::String;
use core::fmt;
use core::net::SocketAddr;

/// Where every HBONE server listens.
pub const HBONE_PORT: u16 = 15008;
/// The proxy's own ports in a pod: outbound, plaintext inbound, HBONE. Traffic to them through the proxy would
/// come back to it.
pub const PROXY_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(pub SocketAddr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address! {
    /// Where the app meant to connect, before capture changed it.
    OrigDst
}
address! {
    /// The 15008 listener of a peer: a pod, a waypoint or a gateway.
    HboneAddr
}
address! {
    /// Where the app in a pod of this node listens.
    AppAddr
}
address! {
    /// The TCP peer that connected to a pod: what the app will see as its client.
    ClientAddr
}

/// What a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authority {
    Ip(SocketAddr),
    /// A hostname of a service and a port of that service.
    Host {
        host: String,
        port: u16,
    },
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
