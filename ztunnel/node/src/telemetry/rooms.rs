//! The metrics that the rooms count in, each room in its own.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use ztunnel_mesh::reason::Reason;

use super::Reporter;
use super::catalogue;
use super::metrics::Make;

/// The stream from the control plane.
#[derive(Clone, Debug)]
pub struct XdsMetrics {
    pub terminations: IntCounterVec,
    pub messages: IntCounterVec,
    pub bytes: IntCounterVec,
}

/// Tunnels that peers make to pods of this node.
#[derive(Clone, Debug)]
pub struct TunnelMetrics {
    /// Those that are open.
    pub served: IntGauge,
    /// Handshakes that go on.
    pub accepting: IntGauge,
    pub accept_seconds: Histogram,
    refused: IntCounterVec,
    crl: CrlMetrics,
}

/// Tunnels of pods of this node to peers.
#[derive(Debug)]
pub struct PoolMetrics {
    /// Those that are open.
    pub open: IntGauge,
    /// Streams in them.
    pub streams: IntGauge,
    /// Connections that found a tunnel, had to make one, or waited for one that was being made.
    pub found: IntCounter,
    pub opened: IntCounter,
    pub waited: IntCounter,
    pub dial_seconds: Histogram,
    pub dials_failed: IntCounterVec,
    pub retired: IntCounterVec,
    crl: CrlMetrics,
}

/// Why a tunnel takes no more streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// It has as many as it may have.
    Full,
    /// Nobody needed it for long.
    Idle,
    /// Others needed its place in the pool.
    Evicted,
    /// The pod or the daemon stops.
    Stopping,
    /// The peer closed it.
    Closed,
    /// The peer does not answer.
    Silent,
    Broken,
    Revoked,
}

/// Requests to the CA.
#[derive(Clone, Debug)]
pub struct CaMetrics {
    pub seconds: Histogram,
    failed: IntCounterVec,
}

/// What revocation lists do.
#[derive(Clone, Debug)]
pub(super) struct CrlMetrics {
    rejections: IntCounterVec,
    untracked: IntCounterVec,
}

/// The pods of this node.
#[derive(Clone, Debug)]
pub struct PodMetrics {
    pub active: IntGauge,
    pub pending: IntGauge,
    pub started: IntCounter,
    pub stopped: IntCounter,
    by_state: IntGaugeVec,
}

impl XdsMetrics {
    pub(super) fn new(make: &Make<'_>) -> Self {
        Self {
            terminations: make.counters(catalogue::XDS_TERMINATIONS),
            messages: make.counters(catalogue::XDS_MESSAGES),
            bytes: make.counters(catalogue::XDS_BYTES),
        }
    }
}

impl PodMetrics {
    pub(super) fn new(make: &Make<'_>) -> Self {
        Self {
            active: make.gauge(catalogue::PODS_ACTIVE),
            pending: make.gauge(catalogue::PODS_PENDING),
            started: make.counter(catalogue::PODS_STARTED),
            stopped: make.counter(catalogue::PODS_STOPPED),
            by_state: make.gauges(catalogue::PODS),
        }
    }

    /// So many are in this state now.
    pub fn in_state(&self, state: &str, count: usize) {
        let gauge = self.by_state.with_label_values(&[state]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

impl TunnelMetrics {
    pub(super) fn new(make: &Make<'_>, crl: CrlMetrics) -> Self {
        Self {
            served: make.gauge(catalogue::TUNNELS_SERVED),
            accepting: make.gauge(catalogue::TUNNELS_ACCEPTING),
            accept_seconds: make.seconds(catalogue::TUNNEL_ACCEPT_SECONDS),
            refused: make.counters(catalogue::TUNNELS_REFUSED),
            crl,
        }
    }

    /// One did not come about. `untracked`: since no more can be watched for revocation.
    pub fn refused(&self, reason: Reason, untracked: bool) {
        self.refused.with_label_values(&[reason.code()]).inc();
        self.crl.failed(Reporter::Destination, reason, untracked);
    }

    /// One was cut, since the peer's certificate was revoked.
    pub fn revoked(&self) {
        self.crl.rejected(Reporter::Destination);
    }
}

impl PoolMetrics {
    pub(super) fn new(make: &Make<'_>, crl: CrlMetrics) -> Self {
        let checkouts = make.counters(catalogue::POOL_CHECKOUTS);
        let how = |how| checkouts.with_label_values(&[how]);
        Self {
            open: make.gauge(catalogue::POOL_TUNNELS),
            streams: make.gauge(catalogue::POOL_STREAMS),
            found: how("found"),
            opened: how("opened"),
            waited: how("waited"),
            dial_seconds: make.seconds(catalogue::POOL_DIAL_SECONDS),
            dials_failed: make.counters(catalogue::POOL_DIALS_FAILED),
            retired: make.counters(catalogue::POOL_RETIRED),
            crl,
        }
    }

    /// One could not be made. `untracked`: since no more can be watched for revocation.
    pub fn dial_failed(&self, reason: Reason, untracked: bool) {
        self.dials_failed.with_label_values(&[reason.code()]).inc();
        self.crl.failed(Reporter::Source, reason, untracked);
    }

    /// One takes no more streams.
    pub fn retired(&self, why: Retired) {
        self.retired.with_label_values(&[why.as_str()]).inc();
    }

    /// One was cut, since the peer's certificate was revoked.
    pub fn revoked(&self) {
        self.crl.rejected(Reporter::Source);
    }
}

impl Retired {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Stopping => "stopping",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::Revoked => "revoked",
        }
    }
}

impl CaMetrics {
    pub(super) fn new(make: &Make<'_>) -> Self {
        Self {
            seconds: make.seconds(catalogue::CA_SECONDS),
            failed: make.counters(catalogue::CA_FAILED),
        }
    }

    /// A request failed.
    pub fn failed(&self, reason: Reason) {
        self.failed.with_label_values(&[reason.code()]).inc();
    }
}

impl CrlMetrics {
    pub(super) fn new(make: &Make<'_>) -> Self {
        Self {
            rejections: make.counters(catalogue::CRL_REJECTIONS),
            untracked: make.counters(catalogue::CRL_UNTRACKED),
        }
    }

    fn rejected(&self, reporter: Reporter) {
        let labels = [reporter.as_str()];
        self.rejections.with_label_values(&labels).inc();
    }

    fn failed(&self, reporter: Reporter, reason: Reason, untracked: bool) {
        if reason == Reason::PeerRevoked {
            self.rejected(reporter);
        }
        if untracked {
            let labels = [reporter.as_str()];
            self.untracked.with_label_values(&labels).inc();
        }
    }
}
