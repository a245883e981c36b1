//! What is known of one connection.

use std::net::SocketAddr;
use std::sync::Arc;

use ztunnel_hbone::{Authority, Traceparent};
use ztunnel_mesh::addr::HboneAddr;
use ztunnel_mesh::name::Identity;
use ztunnel_mesh::service::Service;

use super::{Pair, Party};

/// Which way a connection crosses the pod's edge, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// An app of this pod connected.
    Outbound,
    /// A stream of a tunnel to this pod.
    InboundHbone,
    /// Plain TCP from outside the mesh, or a client that does not use the tunnel.
    InboundPlaintext,
}

/// Which end of a connection tells about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    Source,
    Destination,
}

impl Direction {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::InboundHbone | Self::InboundPlaintext => "inbound",
        }
    }

    #[must_use]
    pub const fn reporter(self) -> Reporter {
        match self {
            Self::Outbound => Reporter::Source,
            Self::InboundHbone | Self::InboundPlaintext => Reporter::Destination,
        }
    }
}

impl Reporter {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How a connection crosses the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// Not known, or just as it came.
    #[default]
    Unknown,
    /// In plain TCP, really to this address.
    Tcp(SocketAddr),
    /// In a stream that goes to this 15008, or came in by it.
    Hbone(HboneAddr),
}

impl Via {
    /// Where that is.
    #[must_use]
    pub const fn addr(self) -> Option<SocketAddr> {
        match self {
            Self::Unknown => None,
            Self::Tcp(addr) | Self::Hbone(HboneAddr(addr)) => Some(addr),
        }
    }

    #[must_use]
    pub const fn is_hbone(self) -> bool {
        matches!(self, Self::Hbone(_))
    }
}

/// Everything there is to say about one connection, filled in as it becomes known.
#[derive(Debug, Default)]
pub struct Facts {
    pub src: Party,
    /// Proved by TLS, or that of the pod itself when it is the source and TLS is used.
    pub src_identity: Option<Identity>,
    pub dst: Party,
    pub dst_identity: Option<Identity>,
    /// The service that the client asked for.
    pub service: Option<Arc<Service>>,
    /// Hostname of a service that only the client knows of.
    pub told_service: Option<Box<str>>,
    /// Where the client meant to connect: what the app dialed, or the app that is connected to.
    pub dst_addr: Option<SocketAddr>,
    pub via: Via,
    /// Whether there is a second tunnel inside of the first.
    pub double: bool,
    /// What the CONNECT asks for.
    pub authority: Option<Authority>,
    pub tls_cipher: Option<&'static str>,
    pub tls_key_exchange: Option<&'static str>,
    pub trace: Option<Traceparent>,
}

impl Facts {
    /// What carries it between nodes.
    #[must_use]
    pub const fn protocol(&self) -> &'static str {
        match self.via {
            Via::Hbone(_) => "HBONE",
            Via::Tcp(_) | Via::Unknown => "TCP",
        }
    }

    pub(super) fn pair(&self, direction: Direction) -> Pair<'_> {
        Pair {
            direction,
            source: &self.src,
            source_identity: self.src_identity.as_ref(),
            destination: &self.dst,
            destination_identity: self.dst_identity.as_ref(),
            service: self.service.as_deref(),
            mutual_tls: self.via.is_hbone(),
        }
    }
}
