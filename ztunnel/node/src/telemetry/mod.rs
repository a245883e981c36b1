//! What is counted and told: metrics, the log, and in both of them connections.
//!
//! Invariants: a connection that ends is counted once and told once. Nothing here makes a connection wait: counters are
//! atomics that were found when the connection began, lines are formatted by the log's own thread.

mod access;
pub mod catalogue;
mod chain;
mod event;
mod facts;
mod gauges;
mod lately;
mod line;
mod log;
mod metrics;
mod names;
mod pair;
mod pairs;
mod party;
mod rooms;
mod series;
mod traffic;

use std::sync::Arc;

pub use access::Ended;
pub use chain::chain;
pub use facts::{Direction, Facts, Reporter};
pub use gauges::{Counting, Gauges, ValueOf};
pub use lately::Lately;
pub use log::{BadLevels, Log, LogFormat, LogLevels, directives, start_log, tells};
pub use metrics::{MOST_PAIRS, Metrics};
pub use names::{KnownNames, NameTable};
pub use pair::Pair;
pub use pairs::KnownPairs;
pub use party::Party;
pub use rooms::{CaMetrics, PodMetrics, PoolMetrics, Retired, TunnelMetrics, XdsMetrics};
pub use series::SeriesTable;
pub use traffic::Traffic;

/// Where everything that serves connections counts and tells.
#[derive(Clone, Debug)]
pub struct Telemetry {
    pub metrics: Arc<Metrics>,
    pub log: Log,
}

impl Telemetry {
    /// A connection has ended: counts it, and tells about it if such are told about.
    pub fn ended(&self, traffic: &Traffic, mut ended: Box<Ended>) {
        let metrics = &self.metrics;
        traffic.close(ended.reason, metrics.traffic.now());
        (ended.bytes_sent, ended.bytes_received) = (traffic.sent(), traffic.received());
        ended.opened = traffic.is_counted();
        let bytes = ended.bytes_sent + ended.bytes_received;
        metrics.ended(ended.direction, ended.reason, bytes);
        if tells(Ended::level(ended.reason, ended.opened)) {
            self.log.connection(ended);
        }
    }

    /// All connections are told about.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, log: Log) -> Self {
        Self { metrics, log }
    }
}

impl Default for Telemetry {
    /// Counts, and nobody asks; tells, and nobody listens.
    fn default() -> Self {
        Self::new(Metrics::new("unknown", MOST_PAIRS), Log::unread())
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod written;
