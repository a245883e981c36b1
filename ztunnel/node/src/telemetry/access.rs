//! The access log: one line for each connection that has ended.
//!
//! The names and the order of the fields are those of Istio's node proxy, ours follow before `error`, the last one. The
//! line is formatted by the log's own thread.

use std::error::Error;
use std::fmt::Display;
use std::time::{Duration, SystemTime};

use tracing::Level;
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::name::PodName;
use ztunnel_mesh::reason::Reason;

use super::line::Line;
use super::{Direction, Facts, chain};

/// What the lines are filtered by.
pub(super) const TARGET: &str = "access";

/// A connection that has ended.
#[derive(Debug)]
pub struct Ended {
    pub at: SystemTime,
    pub direction: Direction,
    /// The pod of this node that is one end of it.
    pub pod: PodName,
    /// The TCP peer that connected.
    pub client: ClientAddr,
    pub facts: Facts,
    /// By the app of the pod.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub duration: Duration,
    /// It came as far as both ends being known.
    pub opened: bool,
    pub reason: Reason,
    pub error: Option<Box<dyn Error + Send + Sync>>,
}

impl Ended {
    /// How loud it is: a connection that was cut or refused is somebody's to look at.
    #[must_use]
    pub fn level(reason: Reason, opened: bool) -> Level {
        match (reason, opened) {
            (Reason::Complete, _) => Level::INFO,
            (_, true) => Level::ERROR,
            (_, false) => Level::WARN,
        }
    }

    pub(super) fn write(&self, line: &mut dyn Line) {
        let Self { facts, .. } = self;
        let level = Self::level(self.reason, self.opened);
        let message = if level == Level::WARN {
            "connection failed"
        } else {
            "connection complete"
        };
        line.begin(self.at, level, TARGET, message);
        let (src, dst) = (facts.src.named(), facts.dst.named());
        line.value("src.addr", &self.client);
        line.text("src.workload", src.name);
        line.text("src.namespace", src.namespace);
        line.maybe("src.identity", shown(&facts.src_identity));
        line.text("src.cluster", src.cluster);
        if let Some(addr) = facts.via.addr().or(facts.dst_addr) {
            line.value("dst.addr", &addr);
        }
        if let Some(authority) = &facts.authority {
            line.value("dst.hbone_addr", authority);
        }
        match (&facts.service, &facts.told_service) {
            (Some(service), _) => line.text("dst.service", &service.key.hostname),
            (None, Some(told)) => line.text("dst.service", told),
            (None, None) => {}
        }
        line.text("dst.workload", dst.name);
        line.text("dst.namespace", dst.namespace);
        if facts.via.is_hbone() {
            line.maybe("dst.identity", shown(&facts.dst_identity));
        }
        line.text("dst.cluster", dst.cluster);
        line.text("direction", self.direction.as_str());
        line.number("bytes_sent", self.bytes_sent);
        line.number("bytes_recv", self.bytes_received);
        line.text("duration", &format!("{}ms", self.duration.as_millis()));
        line.text("protocol", facts.protocol());
        line.maybe("pod", Some(&self.pod));
        if let Some(addr) = facts.dst_addr {
            line.value("dst.orig_addr", &addr);
        }
        line.text("tls.cipher", facts.tls_cipher.unwrap_or_default());
        line.text(
            "tls.key_exchange",
            facts.tls_key_exchange.unwrap_or_default(),
        );
        if let Some(trace) = &facts.trace {
            line.maybe("trace", Some(&trace.trace_id()));
        }
        line.text("reason", self.reason.code());
        if let Some(error) = &self.error {
            line.text("error", &chain(error.as_ref()));
        }
        line.end();
    }
}

fn shown(value: &Option<impl Display>) -> Option<&dyn Display> {
    value.as_ref().map(|value| value as &dyn Display)
}
