//! Every metric of the daemon. Rooms count in handles that they are given; what is only known when somebody asks (a
//! gauge of something that is kept elsewhere) is a collector that a room registers.
//!
//! Label values come from closed lists, or from the names of things that are bounded themselves; the traffic of pairs
//! has a table of its own ([`SeriesTable`]). Names and what they mean are in [`catalogue`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use ztunnel_mesh::reason::Reason;

use super::catalogue::{self, Family};
use super::names::NameTable;
use super::rooms::{CaMetrics, CrlMetrics, PodMetrics, PoolMetrics, TunnelMetrics, XdsMetrics};
use super::series::SeriesTable;
use super::{Direction, Reporter};

/// Pairs that have series of their own, unless the configuration says otherwise.
pub const MOST_PAIRS: usize = 5_000;

/// Until a connection can carry bytes, from 0.1 ms to 10 s.
const CONNECT_SECONDS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0,
];

/// All of them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub traffic: SeriesTable,
    /// Ended connections and their bytes, by reporter and reason.
    ended: Vec<[ByReason; 2]>,
    /// By direction.
    connect_seconds: [Histogram; 3],
    /// Accepted from apps, and from peers.
    pub sockets_open: [IntGauge; 2],
    pub xds: XdsMetrics,
    /// Connections that ended well and are not told about.
    pub sampled_out: IntCounter,
    pub tunnels: TunnelMetrics,
    pub pool: Arc<PoolMetrics>,
    pub pods: PodMetrics,
    pub ca: CaMetrics,
    /// Names that were resolved for connections.
    pub names: NameTable,
}

#[derive(Debug)]
struct ByReason {
    connections: IntCounter,
    bytes: IntCounter,
}

/// Makes metrics of the catalogue and registers them. So neither fails.
pub(super) struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("names and labels are valid");
        let added = self.0.register(Box::new(made.clone()));
        added.expect("names are unique");
        made
    }

    pub(super) fn counter(&self, family: &Family) -> IntCounter {
        self.add(IntCounter::with_opts(family.opts()))
    }

    pub(super) fn counters(&self, family: &Family) -> IntCounterVec {
        self.add(IntCounterVec::new(family.opts(), family.labels))
    }

    pub(super) fn gauge(&self, family: &Family) -> IntGauge {
        self.add(IntGauge::with_opts(family.opts()))
    }

    pub(super) fn gauges(&self, family: &Family) -> IntGaugeVec {
        self.add(IntGaugeVec::new(family.opts(), family.labels))
    }

    pub(super) fn seconds(&self, family: &Family) -> Histogram {
        self.add(Histogram::with_opts(Self::histogram(family)))
    }

    fn many_seconds(&self, family: &Family) -> HistogramVec {
        self.add(HistogramVec::new(Self::histogram(family), family.labels))
    }

    fn histogram(family: &Family) -> HistogramOpts {
        HistogramOpts::from(family.opts()).buckets(CONNECT_SECONDS.to_vec())
    }
}

impl Family {
    pub(super) fn opts(&self) -> Opts {
        Opts::new(self.name, self.help)
    }
}

impl Metrics {
    /// `version` is what `istio_build` says.
    #[must_use]
    pub fn new(version: &str, most_pairs: usize) -> Arc<Self> {
        let registry = Registry::new();
        // Descriptors, memory and CPU time, under the names that every exporter uses.
        let own = registry.register(Box::new(ProcessCollector::for_self()));
        own.expect("nothing else is called process_*");
        let make = Make(&registry);
        make.gauges(catalogue::BUILD)
            .with_label_values(&["ztunnel", version])
            .set(1);
        let overflowed = make.counter(catalogue::METRICS_OVERFLOWED);
        let connections = make.counters(catalogue::CONNECTIONS);
        let bytes = make.counters(catalogue::CONNECTION_BYTES);
        let ended = Reason::ALL.iter().map(|reason| {
            [Reporter::Source, Reporter::Destination].map(|reporter| {
                let labels = [reporter.as_str(), reason.code()];
                ByReason {
                    connections: connections.with_label_values(&labels),
                    bytes: bytes.with_label_values(&labels),
                }
            })
        });
        let ended = ended.collect();
        let seconds = make.many_seconds(catalogue::CONNECT_SECONDS);
        let connect_seconds = ["outbound", "inbound_hbone", "inbound_plaintext"]
            .map(|path| seconds.with_label_values(&[path]));
        let sockets = make.gauges(catalogue::SOCKETS_OPEN);
        let sockets_open = [Reporter::Source, Reporter::Destination]
            .map(|reporter| sockets.with_label_values(&[reporter.as_str()]));
        let xds = XdsMetrics::new(&make);
        let crl = CrlMetrics::new(&make);
        let tunnels = TunnelMetrics::new(&make, crl.clone());
        let pool = Arc::new(PoolMetrics::new(&make, crl));
        let names = NameTable::default();
        let added = registry.register(Box::new(names.clone()));
        added.expect("its name is unique");
        let pods = PodMetrics::new(&make);
        Arc::new(Self {
            traffic: SeriesTable::new(most_pairs, overflowed),
            ended,
            connect_seconds,
            sockets_open,
            xds,
            tunnels,
            pool,
            pods,
            ca: CaMetrics::new(&make),
            sampled_out: make.counter(catalogue::LOG_SAMPLED_OUT),
            names,
            registry,
        })
    }

    /// Adds what is asked for at every scrape.
    ///
    /// # Errors
    /// When such a metric is there already.
    pub fn register<C: Collector + 'static>(
        &self,
        collector: prometheus::Result<C>,
    ) -> prometheus::Result<()> {
        self.registry.register(Box::new(collector?))
    }

    /// A connection has ended.
    pub fn ended(&self, direction: Direction, reason: Reason, bytes: u64) {
        let row = self.ended.get(reason as usize);
        if let Some(row) = row {
            let counters = &row[direction.reporter() as usize];
            counters.connections.inc();
            counters.bytes.inc_by(bytes);
        }
    }

    /// How many connections have ended, by reason.
    #[must_use]
    pub fn ended_by_reason(&self) -> Vec<u64> {
        let sum = |row: &[ByReason; 2]| row.iter().map(|side| side.connections.get()).sum();
        self.ended.iter().map(sum).collect()
    }

    /// A connection can carry bytes now.
    pub fn connected(&self, direction: Direction, after: Duration) {
        self.connect_seconds[direction as usize].observe(after.as_secs_f64());
    }

    /// All metrics in the text format of Prometheus, piece by piece.
    pub fn expose(&self) -> impl Iterator<Item = Bytes> + Send + use<> {
        let mut text = String::new();
        // It only fails for families without a metric, which are not gathered.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        std::iter::once(Bytes::from(text)).chain(self.traffic.expose())
    }
}
