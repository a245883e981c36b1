//! Why there is nothing to explain.

use std::net::{IpAddr, SocketAddr};

use ztunnel_mesh::name::BadIdentity;

/// What is wrong with a question, and how to ask it.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("{text:?} is no pod: give it as `ztunnel pods` shows it, namespace/name")]
    PodName { text: String },
    #[error(
        "{text:?} is no address with a port, such as 10.96.0.10:80 or [fd00::1]:80; a name is resolved by \
         `kubectl get service NAME`, or in the pod by `getent hosts NAME`"
    )]
    Address { text: String },
    #[error("{text:?} is no address: give the client's, without a port")]
    FromIp { text: String },
    #[error("{source}, nor `plaintext`")]
    Peer {
        #[from]
        source: BadIdentity,
    },
    #[error(
        "{to} is a loopback address: such connections stay in the pod, and never come to the proxy"
    )]
    Loopback { to: SocketAddr },
    #[error("pod {pod} is on node {node}: ask the ztunnel there")]
    Elsewhere { pod: String, node: String },
    #[error(
        "pod {pod} is not enrolled on this node: nothing of it is captured; `ztunnel pods` lists who is"
    )]
    NotEnrolled { pod: String },
    #[error("pod {pod} is leaving, or could not be taken over: `ztunnel pods` says which")]
    NotServed { pod: String },
    #[error(
        "{ip} is an address of service {service}, not of a pod: explain it with --from, or take the address of one \
         of its pods on this node (`ztunnel pods`)"
    )]
    ServiceAddress { ip: IpAddr, service: String },
    #[error("{ip} is no address of a pod that is enrolled on this node: `ztunnel pods` lists them")]
    NobodysAddress { ip: IpAddr },
}

impl ExplainError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::PodName { .. } => "INVALID_POD",
            Self::Address { .. } | Self::FromIp { .. } => "INVALID_ADDRESS",
            Self::Peer { .. } => "INVALID_IDENTITY",
            Self::Loopback { .. } => "NOT_CAPTURED",
            Self::Elsewhere { .. } => "OTHER_NODE",
            Self::NotEnrolled { .. } => "NOT_ENROLLED",
            Self::NotServed { .. } => "NOT_SERVED",
            Self::ServiceAddress { .. } | Self::NobodysAddress { .. } => "NO_POD",
        }
    }
}
