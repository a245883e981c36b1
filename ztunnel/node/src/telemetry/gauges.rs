//! Values that are kept elsewhere, read when somebody scrapes.

use std::collections::HashMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, IntCounter, IntGauge, IntGaugeVec};

use super::catalogue::{Family, Kind};

/// A family of gauges with one label, made anew for every scrape: what is gone leaves no series behind.
pub struct Gauges<F> {
    /// By which the registry tells collectors apart.
    desc: Desc,
    family: &'static Family,
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
    pub fn new(family: &'static Family, read: F) -> prometheus::Result<Self> {
        let desc = desc(family)?;
        Ok(Self { desc, family, read })
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
        let Ok(family) = IntGaugeVec::new(self.family.opts(), self.family.labels) else {
            return Vec::new();
        };
        for (label, value) in (self.read)() {
            // There is none when the family has another number of labels.
            if let Ok(gauge) = family.get_metric_with_label_values(&[label]) {
                gauge.set(value);
            }
        }
        family.collect()
    }
}

/// Counters of fractions with one label, counted by somebody else.
pub struct CountersOf<F> {
    desc: Desc,
    family: &'static Family,
    read: F,
}

impl<F: Fn() -> Vec<f64> + Send + Sync> CountersOf<F> {
    /// `read` says all values; the label is the place of each.
    ///
    /// # Errors
    /// When the name, the help or the label cannot be exposed.
    pub fn new(family: &'static Family, read: F) -> prometheus::Result<Self> {
        let desc = desc(family)?;
        Ok(Self { desc, family, read })
    }
}

impl<F: Fn() -> Vec<f64> + Send + Sync> Collector for CountersOf<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(family) = CounterVec::new(self.family.opts(), self.family.labels) else {
            return Vec::new();
        };
        for (place, value) in (self.read)().into_iter().enumerate() {
            // There is none when the family has another number of labels.
            if let Ok(counter) = family.get_metric_with_label_values(&[place.to_string()]) {
                counter.inc_by(value);
            }
        }
        family.collect()
    }
}

/// A counter that somebody else counts, or a single gauge.
pub struct ValueOf<F> {
    desc: Desc,
    family: &'static Family,
    read: F,
}

impl<F: Fn() -> u64 + Send + Sync> ValueOf<F> {
    /// `read` says how many.
    ///
    /// # Errors
    /// When the name or the help cannot be exposed.
    pub fn new(family: &'static Family, read: F) -> prometheus::Result<Self> {
        let desc = desc(family)?;
        Ok(Self { desc, family, read })
    }
}

impl<F: Fn() -> u64 + Send + Sync> Collector for ValueOf<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (opts, value) = (self.family.opts(), (self.read)());
        let collected = match self.family.kind {
            Kind::Counter => IntCounter::with_opts(opts).map(|counter| {
                counter.inc_by(value);
                counter.collect()
            }),
            Kind::Gauge | Kind::Histogram => IntGauge::with_opts(opts).map(|gauge| {
                gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
                gauge.collect()
            }),
        };
        collected.unwrap_or_default()
    }
}

pub(super) fn desc(family: &Family) -> prometheus::Result<Desc> {
    let labels = family.labels.iter().map(|label| (*label).to_owned());
    let Family { name, help, .. } = *family;
    Desc::new(name.into(), help.into(), labels.collect(), HashMap::new())
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
