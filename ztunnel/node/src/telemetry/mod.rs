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
mod recent;
mod rooms;
mod sample;
mod series;
mod span;
mod traffic;

use std::sync::Arc;

use ztunnel_mesh::reason::Reason;

pub use access::Ended;
pub use chain::chain;
pub use facts::{Direction, Facts, Reporter, Via};
pub use gauges::{CountersOf, Counting, Gauges, ValueOf};
pub use lately::Lately;
pub use log::{BadLevels, Log, LogFormat, LogLevels, directives, start_log};
pub use metrics::{MOST_PAIRS, Metrics};
pub use names::{KnownNames, NameTable};
pub use pair::Pair;
pub use pairs::KnownPairs;
pub use party::Party;
pub use recent::RecentFailures;
pub use rooms::{CaMetrics, PodMetrics, PoolMetrics, Retired, TunnelMetrics, XdsMetrics};
pub use sample::{BadShare, Sampler, Share};
pub use series::{SeriesTable, Talk, TalkEnd, Talks};
pub use span::within;
pub use traffic::Traffic;

/// Where everything that serves connections counts and tells.
#[derive(Clone, Debug)]
pub struct Telemetry {
    pub metrics: Arc<Metrics>,
    pub log: Log,
    /// Of the connections that ended well, those that are told about.
    pub told: Share,
}

impl Telemetry {
    /// A connection has ended: counts it, and says whether both its ends were known.
    pub fn ended(&self, direction: Direction, reason: Reason, traffic: &Traffic) -> bool {
        let metrics = &self.metrics;
        traffic.close(reason, metrics.traffic.now());
        metrics.ended(direction, reason, traffic.sent() + traffic.received());
        traffic.is_counted()
    }

    /// Whether there is to be a line about a connection that has ended: whatever failed, if the log wants to have it,
    /// and of the rest what `sampler` takes. Before anything is made for the line.
    #[must_use]
    pub fn tells(&self, reason: Reason, opened: bool, sampler: &Sampler) -> bool {
        if !log::tells(Ended::level(reason, opened)) {
            return false;
        }
        let told = !reason.is_success() || sampler.takes();
        if !told {
            self.metrics.sampled_out.inc();
        }
        told
    }

    /// All connections are told about.
    #[must_use]
    pub const fn new(metrics: Arc<Metrics>, log: Log) -> Self {
        let told = Share::ALL;
        Self { metrics, log, told }
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
