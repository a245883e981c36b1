//! The one record of a connection, from accept to end, and its line in the access log.
//!
//! Invariants: every record writes exactly one line, also when the connection is cut by dropping its future. It
//! has exactly one reason.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::info;
use ztunnel_hbone::Traceparent;
use ztunnel_mesh::addr::{ClientAddr, HboneAddr};
use ztunnel_mesh::name::{Identity, PodName};
use ztunnel_mesh::reason::Reason;

use super::{Traffic, chain};

/// Which way a connection crosses the pod's edge, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// An app of this pod connected.
    Outbound,
    /// A stream of a tunnel to this pod.
    InboundHbone,
    /// Plain TCP from outside the mesh, or a client that does not use the tunnel.
    InboundPlaintext,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::InboundHbone => "inbound",
            Self::InboundPlaintext => "inbound-plaintext",
        }
    }
}

/// Everything there is to say about one connection. Filled in as it becomes known.
#[derive(Debug)]
pub struct Record {
    pub direction: Direction,
    /// The pod of this node that is one end of it.
    pub pod: PodName,
    /// The TCP peer that connected.
    pub src: ClientAddr,
    pub src_identity: Option<Identity>,
    /// Where the client meant to connect.
    pub dst: Option<SocketAddr>,
    /// Hostname of the service the client asked for.
    pub dst_service: Option<Arc<str>>,
    pub dst_identity: Option<Identity>,
    /// The 15008 that the stream goes to, or came in by.
    pub hbone: Option<HboneAddr>,
    pub tls_cipher: Option<&'static str>,
    pub tls_key_exchange: Option<&'static str>,
    pub trace: Option<Traceparent>,
    pub traffic: Traffic,
    accepted: Instant,
    ended: bool,
}

impl Record {
    /// A connection of `src` was just accepted.
    #[must_use]
    pub fn start(direction: Direction, pod: &PodName, src: ClientAddr) -> Self {
        Self {
            direction,
            pod: pod.clone(),
            src,
            src_identity: None,
            dst: None,
            dst_service: None,
            dst_identity: None,
            hbone: None,
            tls_cipher: None,
            tls_key_exchange: None,
            trace: None,
            traffic: Traffic::default(),
            accepted: Instant::now(),
            ended: false,
        }
    }

    /// The connection ended as both sides wanted.
    pub fn complete(self) {
        self.end(Reason::Complete, None);
    }

    /// The connection ended or was refused, and why.
    pub fn failed(self, reason: Reason, error: &(dyn Error + 'static)) {
        self.end(reason, Some(chain(error)));
    }

    /// Nothing is to be told about it: others do.
    pub fn dismiss(mut self) {
        self.ended = true;
    }

    fn end(mut self, reason: Reason, error: Option<String>) {
        self.log(reason, error);
        self.ended = true;
    }

    fn log(&self, reason: Reason, error: Option<String>) {
        let duration_ms = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(
            target: "access",
            direction = self.direction.as_str(),
            pod = %self.pod,
            src = %self.src,
            src_identity = self.src_identity.as_ref().map(tracing::field::display),
            dst = self.dst.map(tracing::field::display),
            dst_service = self.dst_service.as_deref(),
            dst_identity = self.dst_identity.as_ref().map(tracing::field::display),
            hbone = self.hbone.map(tracing::field::display),
            tls_cipher = self.tls_cipher,
            tls_key_exchange = self.tls_key_exchange,
            trace = self.trace.as_ref().map(Traceparent::trace_id),
            bytes_out = self.traffic.sent(),
            bytes_in = self.traffic.received(),
            duration_ms,
            reason = reason.code(),
            error,
            "connection closed"
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.log(Reason::Drained, None);
        }
    }
}
