//! How often each name that the control plane gives instead of an address was needed, by whom.
//!
//! Bounded: [`MOST`] series; then those that no pod refers to any more are dropped, and what still finds no room is
//! counted in one series for all.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::IntCounterVec;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use ztunnel_mesh::Workload;

use super::catalogue::ON_DEMAND_DNS;
use super::gauges::desc;

const MOST: usize = 1000;
/// Names that one pod on one thread remembers the series of.
const MOST_KNOWN: usize = 256;
const LABELS: usize = 9;

type Labels = [String; LABELS];
type Count = Arc<AtomicU64>;

/// All series. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NameTable {
    desc: Desc,
    counts: Arc<Mutex<HashMap<Labels, Count>>>,
}

impl Default for NameTable {
    fn default() -> Self {
        Self {
            desc: desc(ON_DEMAND_DNS).expect("name and labels are valid"),
            counts: Arc::default(),
        }
    }
}

impl NameTable {
    fn find(&self, source: &Workload, hostname: &str) -> Count {
        let labels = labels(source, hostname);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get(&labels) {
            return Arc::clone(count);
        }
        if counts.len() >= MOST {
            counts.retain(|_, count| Arc::strong_count(count) > 1);
        }
        let labels = if counts.len() < MOST {
            labels
        } else {
            [(); LABELS].map(|()| "overflow".to_owned())
        };
        Arc::clone(counts.entry(labels).or_default())
    }
}

impl Collector for NameTable {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(family) = IntCounterVec::new(ON_DEMAND_DNS.opts(), ON_DEMAND_DNS.labels) else {
            return Vec::new();
        };
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (labels, count) in &*counts {
            let counter = family.with_label_values(labels);
            counter.inc_by(count.load(Ordering::Relaxed));
        }
        family.collect()
    }
}

fn labels(source: &Workload, hostname: &str) -> Labels {
    let known = |text: &str| match text {
        "" => "unknown".to_owned(),
        text => text.to_owned(),
    };
    let app = &source.app;
    [
        known(&app.workload_name),
        known(&app.canonical_name),
        known(&app.canonical_revision),
        known(&source.namespace),
        source.identity().to_string(),
        known(&app.canonical_name),
        known(&app.canonical_revision),
        known(&source.place.cluster_id),
        known(hostname),
    ]
}

/// The series that one pod needed lately. Of one pod on one thread.
#[derive(Debug, Default)]
pub struct KnownNames(RefCell<HashMap<Arc<str>, Known>>);

/// What the mesh said of the pod, and what it was counted in.
type Known = (Arc<Workload>, Count);

impl KnownNames {
    /// A connection of `source` needs the addresses of `hostname`.
    pub fn count(&self, table: &NameTable, source: &Arc<Workload>, hostname: &Arc<str>) {
        let mut known = self.0.borrow_mut();
        if let Some((workload, count)) = known.get(hostname)
            // What the mesh says of it has not changed since.
            && Arc::ptr_eq(workload, source)
        {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        let count = table.find(source, hostname);
        count.fetch_add(1, Ordering::Relaxed);
        known.insert(Arc::clone(hostname), (Arc::clone(source), count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(namespace: &str) -> Arc<Workload> {
        let mut workload = Workload::new("Kubernetes//Pod/some/pod");
        workload.namespace = namespace.into();
        Arc::new(workload)
    }

    /// What it exposes.
    fn text(table: &NameTable) -> String {
        let text = prometheus::TextEncoder::new().encode_to_string(&table.collect());
        text.unwrap()
    }

    fn value(text: &str, label: &str, value: &str) -> Vec<u64> {
        let label = format!("{label}=\"{value}\"");
        let lines = text.lines().filter(|line| line.contains(&label));
        let value = |line: &str| line.rsplit_once(' ').unwrap().1.parse().unwrap();
        lines.map(value).collect()
    }

    #[test]
    fn each_need_is_counted_by_pod_and_name() {
        let (table, known, other) = (
            NameTable::default(),
            KnownNames::default(),
            KnownNames::default(),
        );
        let name = Arc::<str>::from("db.example");
        for _ in 0..3 {
            known.count(&table, &workload("web"), &name);
        }
        let pod = workload("api");
        for _ in 0..2 {
            other.count(&table, &pod, &name);
        }
        let text = text(&table);
        assert_eq!(value(&text, "source_workload_namespace", "web"), [3]);
        assert_eq!(value(&text, "source_workload_namespace", "api"), [2]);
        assert_eq!(value(&text, "hostname", "db.example").len(), 2, "{text}");
    }

    #[test]
    fn names_that_come_and_go_leave_a_bounded_number_of_series() {
        let (table, pod) = (NameTable::default(), workload("web"));
        let holders: Vec<_> = (0..8).map(|_| KnownNames::default()).collect();
        for number in 0..10 * MOST {
            let name = Arc::from(format!("{number}.example"));
            holders[number % holders.len()].count(&table, &pod, &name);
        }
        let exposed = text(&table);
        assert!(exposed.lines().count() <= MOST + 1 + 2, "with its head");
        assert_eq!(value(&exposed, "hostname", "overflow").len(), 1);
        // Nobody refers to any of them now: there is room again.
        drop(holders);
        let name = Arc::from("late.example");
        KnownNames::default().count(&table, &pod, &name);
        assert_eq!(value(&text(&table), "hostname", "late.example"), [1]);
    }
}
