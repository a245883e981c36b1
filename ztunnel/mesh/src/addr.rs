//! Addresses that say whose they are. A bare `SocketAddr` in a signature does not.

use core::fmt;
use core::net::SocketAddr;

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
