//! What an explanation consists of, for people and for programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use ztunnel_mesh::Refusal;
use ztunnel_mesh::decide::{HboneRoute, Route};
use ztunnel_mesh::name::Identity;

/// What would become of a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The pod whose app connects, or the address that somebody connects from.
    pub from: String,
    /// Of the client; none for plaintext.
    pub identity: Option<String>,
    pub to: String,
    pub steps: Vec<Why>,
    pub verdict: Verdict,
    /// What the other side makes of it, when the mesh knows its pod.
    pub destination: Option<Destination>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    pub about: String,
    pub text: String,
}

/// The end of the steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It goes on its way.
    Go(Plan),
    /// The pod takes it.
    Permitted {
        app: SocketAddr,
        /// The policy that allowed it.
        policy: Option<String>,
    },
    /// A connection would ask the control plane for this first; an explanation asks nobody.
    LookUp {
        key: String,
    },
    Refused(Refused),
}

/// Why it would be refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The code that its line in the log would have.
    pub reason: String,
    pub detail: String,
    pub cause: String,
    pub next_step: String,
}

impl Refused {
    pub(super) fn new(Refusal { reason, detail }: Refusal) -> Self {
        Self {
            reason: reason.code().to_owned(),
            detail,
            cause: reason.cause().to_owned(),
            next_step: reason.next_step().to_owned(),
        }
    }
}

/// How it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Where the TCP connection of the proxy goes: an address, or a name to resolve, with the port.
    pub to: String,
    /// None for plain TCP.
    pub tunnel: Option<Tunnel>,
}

/// What is asked for there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// What the CONNECT is for.
    pub connect: String,
    /// Hostname of the service it is for.
    pub service: Option<String>,
    /// The peer must be one of these.
    pub expected: Vec<String>,
    /// Who must be at the end of a second tunnel inside of the first; empty when there is none.
    pub inner: Vec<String>,
}

/// What the destination makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    pub workload: String,
    pub node: String,
    pub steps: Vec<Why>,
    pub verdict: Verdict,
}

impl Plan {
    pub(super) fn of(route: Route) -> Self {
        match route {
            Route::Direct { to } => Self {
                to: to.to_string(),
                tunnel: None,
            },
            Route::Hbone(route) => Self::through(&route, &[]),
            Route::DoubleHbone(route) => Self::through(&route.outer, &route.inner),
            Route::Named(route) => {
                let hostname = route.hostname.clone();
                let unknown: IpAddr = if route.prefer_v4 {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                // Whatever the name leads to: all of the route but that is known.
                let by_name = |text: &str| {
                    let addr: Option<SocketAddr> = text.parse().ok();
                    match addr.filter(|addr| addr.ip() == unknown) {
                        Some(addr) => format!("{hostname}:{}", addr.port()),
                        None => text.to_owned(),
                    }
                };
                let Self { to, tunnel } = Self::of(route.at(unknown));
                Self {
                    to: by_name(&to),
                    tunnel: tunnel.map(|tunnel| Tunnel {
                        connect: by_name(&tunnel.connect),
                        ..tunnel
                    }),
                }
            }
        }
    }

    fn through(route: &HboneRoute, inner: &[Identity]) -> Self {
        Self {
            to: route.peer.to_string(),
            tunnel: Some(Tunnel {
                connect: route.authority.to_string(),
                service: route.service.as_deref().map(str::to_owned),
                expected: names(&route.expected),
                inner: names(inner),
            }),
        }
    }
}

fn names(identities: &[Identity]) -> Vec<String> {
    let mut names: Vec<_> = identities.iter().map(ToString::to_string).collect();
    names.sort();
    names.dedup();
    names
}
