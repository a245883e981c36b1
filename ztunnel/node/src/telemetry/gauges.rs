//! Values that are kept elsewhere, read when somebody scrapes.

use std::collections::HashMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts};

/// A family of gauges, made anew for every scrape: what is gone leaves no series behind.
pub struct Gauges<F> {
    /// By which the registry tells collectors apart.
    desc: Desc,
    name: &'static str,
    help: &'static str,
    label: &'static str,
    read: F,
}

impl<F> Gauges<F>
where
    F: Fn() -> Vec<(String, i64)> + Send + Sync,
{
    /// `read` says all values and the label of each.
    ///
    /// # Errors
    /// When the name, the help or the label cannot be exposed.
    pub fn new(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: F,
    ) -> prometheus::Result<Self> {
        let labels = vec![label.to_owned()];
        Ok(Self {
            desc: Desc::new(name.into(), help.into(), labels, HashMap::new())?,
            name,
            help,
            label,
            read,
        })
    }
}

impl<F> Collector for Gauges<F>
where
    F: Fn() -> Vec<(String, i64)> + Send + Sync,
{
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(family) = IntGaugeVec::new(Opts::new(self.name, self.help), &[self.label]) else {
            return Vec::new();
        };
        for (label, value) in (self.read)() {
            family.with_label_values(&[label]).set(value);
        }
        family.collect()
    }
}

/// A counter that somebody else counts.
pub struct CounterOf<F> {
    desc: Desc,
    name: &'static str,
    help: &'static str,
    read: F,
}

impl<F: Fn() -> u64 + Send + Sync> CounterOf<F> {
    /// `read` says how many.
    ///
    /// # Errors
    /// When the name or the help cannot be exposed.
    pub fn new(name: &'static str, help: &'static str, read: F) -> prometheus::Result<Self> {
        Ok(Self {
            desc: Desc::new(name.into(), help.into(), Vec::new(), HashMap::new())?,
            name,
            help,
            read,
        })
    }
}

impl<F: Fn() -> u64 + Send + Sync> Collector for CounterOf<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(counter) = IntCounter::new(self.name, self.help) else {
            return Vec::new();
        };
        counter.inc_by((self.read)());
        counter.collect()
    }
}

/// Counts one for as long as it lives.
#[derive(Debug)]
pub struct Counting(IntGauge);

impl Counting {
    #[must_use]
    pub fn one(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.dec();
    }
}
