//! Metrics of what the rooms keep anyway, read when somebody scrapes.

use std::sync::Arc;

use tracing::warn;
use ztunnel_node::admin::Readiness;
use ztunnel_node::discovery::Link;
use ztunnel_node::identity::{Identities, KnownIdentity};
use ztunnel_node::outbound::Resolver;
use ztunnel_node::pod::Workers;
use ztunnel_node::state::MeshReader;
use ztunnel_node::task::Budget;
use ztunnel_node::telemetry::catalogue::{self, Family};
use ztunnel_node::telemetry::{CountersOf, Gauges, Log, Metrics, Telemetry, ValueOf};

/// Where they are added.
pub(crate) struct Scraped(Arc<Metrics>);

impl Scraped {
    /// Adds those of telemetry itself.
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        let this = Self(Arc::clone(&telemetry.metrics));
        let log = telemetry.log.clone();
        this.value(catalogue::LOG_DROPPED, move || log.dropped());
        let metrics = Arc::downgrade(&telemetry.metrics);
        this.gauges(catalogue::METRICS_PAIRS, move || {
            let Some(metrics) = metrics.upgrade() else {
                return Vec::new();
            };
            let pairs = &metrics.traffic;
            vec![
                ("known".to_owned(), number(pairs.len())),
                ("limit".to_owned(), number(pairs.limit())),
            ]
        });
        this
    }

    pub(crate) fn certificates(&self, identities: Identities) {
        self.gauges(catalogue::CERTIFICATE_SECONDS_LEFT, move || {
            let known = identities.known().into_iter();
            let left = |one: KnownIdentity| Some((one.identity.to_string(), one.seconds_left()?));
            known.filter_map(left).collect()
        });
    }

    pub(crate) fn tunnel_memory(&self, memory: Budget) {
        self.gauges(catalogue::TUNNEL_MEMORY, move || {
            vec![
                ("reserved".to_owned(), number(memory.taken())),
                ("limit".to_owned(), number(memory.limit())),
            ]
        });
    }

    pub(crate) fn control_plane(&self, link: Link) {
        let of = link.clone();
        let connected = move || u64::from(of.status().connected_seconds.is_some());
        self.value(catalogue::CONTROL_PLANE_CONNECTED, connected);
        let rejected = move || link.status().rejected as u64;
        self.value(catalogue::CONTROL_PLANE_REJECTED, rejected);
    }

    pub(crate) fn readiness(&self, readiness: Readiness) {
        let ready = move || u64::from(readiness.names().is_empty());
        self.value(catalogue::READY, ready);
    }

    pub(crate) fn workers(&self, workers: Workers) {
        let (busy, parked) = (workers.clone(), workers.clone());
        self.value(catalogue::WORKERS, move || workers.count() as u64);
        self.counters(catalogue::WORKER_BUSY, move || {
            let busy = busy.busy().into_iter();
            busy.map(|worker| worker.busy.as_secs_f64()).collect()
        });
        self.counters(catalogue::WORKER_PARKED, move || {
            let busy = parked.busy().into_iter();
            busy.map(|worker| worker.parked as f64).collect()
        });
    }

    pub(crate) fn queues(&self, queues: Queues) {
        let queues = Arc::new(queues);
        let of = Arc::clone(&queues);
        self.gauges(catalogue::QUEUE_LENGTH, move || {
            let all = of.lengths().into_iter();
            all.map(|(queue, length, _)| (queue, number(length)))
                .collect()
        });
        self.gauges(catalogue::QUEUE_LIMIT, move || {
            let all = queues.lengths().into_iter();
            all.filter_map(|(queue, _, limit)| Some((queue, number(limit?))))
                .collect()
        });
    }

    fn gauges<F>(&self, family: &'static Family, read: F)
    where
        F: Fn() -> Vec<(String, i64)> + Send + Sync + 'static,
    {
        if let Err(error) = self.0.register(Gauges::new(family, read)) {
            warn!(metric = family.name, %error, "metric is not exposed");
        }
    }

    fn counters<F>(&self, family: &'static Family, read: F)
    where
        F: Fn() -> Vec<f64> + Send + Sync + 'static,
    {
        if let Err(error) = self.0.register(CountersOf::new(family, read)) {
            warn!(metric = family.name, %error, "metric is not exposed");
        }
    }

    fn value<F>(&self, family: &'static Family, read: F)
    where
        F: Fn() -> u64 + Send + Sync + 'static,
    {
        if let Err(error) = self.0.register(ValueOf::new(family, read)) {
            warn!(metric = family.name, %error, "metric is not exposed");
        }
    }
}

/// Where something may wait.
pub(crate) struct Queues {
    pub(crate) log: Log,
    pub(crate) mesh: MeshReader,
    pub(crate) identities: Identities,
    pub(crate) resolver: Resolver,
    pub(crate) workers: Workers,
}

impl Queues {
    /// How much waits in each, and how much may, if that is bounded by itself.
    fn lengths(&self) -> Vec<(String, usize, Option<usize>)> {
        let certificates = ("certificates".to_owned(), self.identities.queued(), None);
        let bounded = |name: String, (length, limit)| (name, length, Some(limit));
        let mut all = vec![
            bounded("log".to_owned(), self.log.queued()),
            bounded("lookups".to_owned(), self.mesh.queued()),
            bounded("names".to_owned(), self.resolver.queued()),
            certificates,
        ];
        let workers = self.workers.queued().into_iter().enumerate();
        all.extend(workers.map(|(at, queued)| bounded(format!("worker-{at}"), queued)));
        all
    }
}

fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
