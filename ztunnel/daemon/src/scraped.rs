//! Metrics of what the rooms keep anyway, read when somebody scrapes.

use std::sync::Arc;

use tracing::warn;
use ztunnel_node::identity::{Identities, KnownIdentity};
use ztunnel_node::task::Budget;
use ztunnel_node::telemetry::catalogue::{self, Family};
use ztunnel_node::telemetry::{Gauges, Metrics, Telemetry, ValueOf};

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

    fn gauges<F>(&self, family: &'static Family, read: F)
    where
        F: Fn() -> Vec<(String, i64)> + Send + Sync + 'static,
    {
        if let Err(error) = self.0.register(Gauges::new(family, read)) {
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

fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
