//! Who talks to whom, for those who look at a node: what the labels and the counters of the pairs say.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};
use ztunnel_mesh::reason::ResponseFlags;

use super::{IDLE, Series, SeriesTable};

/// What two workloads have said to each other, in one way of protection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Talk {
    pub source: TalkEnd,
    pub destination: TalkEnd,
    /// A service by which the source asked for it; one of them.
    pub service: Option<String>,
    pub mutual_tls: bool,
    /// From who connected, and back.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub connections: u64,
    /// Of those, how many ended otherwise than in order.
    pub failed: u64,
    /// Of those, how many are open.
    pub open: u64,
}

/// All of them, and how many connections of this node's pods are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Talks {
    /// In no order.
    pub pairs: Vec<Talk>,
    pub outbound: u64,
    pub inbound: u64,
}

/// One of the two; all of it is none when the mesh does not know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TalkEnd {
    pub namespace: Option<String>,
    pub workload: Option<String>,
    /// Proved by TLS.
    pub identity: Option<String>,
}

impl Talk {
    /// Both ways.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes_sent.saturating_add(self.bytes_received)
    }

    fn add(&mut self, series: &Series) {
        let load = |counter: &super::AtomicU64| counter.load(Ordering::Relaxed);
        let failed = ResponseFlags::ALL.iter().zip(&series.closed);
        let failed = failed.filter(|(flags, _)| **flags != ResponseFlags::Unflagged);
        self.bytes_sent += load(&series.received);
        self.bytes_received += load(&series.sent);
        self.connections += load(&series.opened);
        self.failed += failed.map(|(_, closed)| load(closed)).sum::<u64>();
        self.open += u64::from(series.open.load(Ordering::Relaxed));
    }

    /// The same connections as the other end has counted them: what is on the way is counted by one of the two only.
    fn agree(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.bytes_sent, other.bytes_sent),
            (&mut self.bytes_received, other.bytes_received),
            (&mut self.connections, other.connections),
            (&mut self.failed, other.failed),
            (&mut self.open, other.open),
        ] {
            *mine = theirs.max(*mine);
        }
    }
}

/// The ends, and whether it was under mutual TLS.
type Key = (TalkEnd, TalkEnd, bool);

impl SeriesTable {
    /// All pairs that talked lately. Two pods of this node are one pair, though both ends are counted here.
    #[must_use]
    pub fn talks(&self) -> Talks {
        let all: Vec<Arc<Series>> = {
            let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
            let all = pairs.by_labels.values().chain(pairs.overflow.values());
            all.cloned().collect()
        };
        let now = self.now();
        let talks_no_more = |series: &Series| {
            let idle = now.saturating_sub(series.used.load(Ordering::Relaxed));
            u64::from(idle) >= IDLE.as_secs() && series.open.load(Ordering::Relaxed) == 0
        };
        // As the source has counted, and as the destination has.
        let mut counted: [BTreeMap<Key, Talk>; 2] = Default::default();
        let mut open = [0; 2];
        for series in all.iter().filter(|series| !talks_no_more(series)) {
            let (from_source, talk) = named(series);
            let key = (
                talk.source.clone(),
                talk.destination.clone(),
                talk.mutual_tls,
            );
            open[usize::from(!from_source)] += u64::from(series.open.load(Ordering::Relaxed));
            let by = &mut counted[usize::from(!from_source)];
            by.entry(key).or_insert(talk).add(series);
        }
        let [mut talks, by_destination] = counted;
        for (key, talk) in by_destination {
            let both = talks.entry(key).or_insert_with(|| talk.clone());
            both.agree(&talk);
        }
        let [outbound, inbound] = open;
        Talks {
            pairs: talks.into_values().collect(),
            outbound,
            inbound,
        }
    }
}

/// Who it is, as the labels say, without a count; and whether the source has counted it.
fn named(series: &Series) -> (bool, Talk) {
    let (mut talk, mut from_source) = (Talk::default(), false);
    for (name, value) in series.labels.each() {
        let known = || (value != "unknown").then(|| value.to_string());
        match name {
            "reporter" => from_source = value == "source",
            "source_workload" => talk.source.workload = known(),
            "source_workload_namespace" => talk.source.namespace = known(),
            "source_principal" => talk.source.identity = known(),
            "destination_workload" => talk.destination.workload = known(),
            "destination_workload_namespace" => talk.destination.namespace = known(),
            "destination_principal" => talk.destination.identity = known(),
            "destination_service" => talk.service = known(),
            "connection_security_policy" => talk.mutual_tls = value == "mutual_tls",
            _ => {}
        }
    }
    (from_source, talk)
}

#[cfg(test)]
mod tests {
    use ztunnel_mesh::Workload;
    use ztunnel_mesh::addr::HboneAddr;
    use ztunnel_mesh::reason::Reason;

    use super::super::IntCounter;
    use super::*;
    use crate::telemetry::{Direction, Facts, KnownPairs, Party, Traffic, Via};

    fn pod(name: &str) -> Party {
        let mut pod = Workload::new(&format!("cluster//Pod/shop/{name}"));
        pod.namespace = "shop".into();
        let mut app = (*pod.app).clone();
        app.workload_name = name.into();
        pod.app = Arc::new(app);
        Party::Workload(Arc::new(pod))
    }

    fn talk(
        table: &SeriesTable,
        direction: Direction,
        [from, to]: [&str; 2],
        hbone: bool,
    ) -> Traffic {
        let ends = [from, to].map(|name| match name {
            "" => Party::Unknown,
            name => pod(name),
        });
        let [src, dst] = ends;
        let facts = Facts {
            src,
            dst,
            via: match hbone {
                true => Via::Hbone(HboneAddr(([10, 0, 0, 2], 15008).into())),
                false => Via::Unknown,
            },
            ..Facts::default()
        };
        let traffic = Traffic::default();
        KnownPairs::default().open(table, direction, &facts, &traffic);
        traffic
    }

    fn table() -> SeriesTable {
        SeriesTable::new(100, IntCounter::new("overflowed", "In tests.").unwrap())
    }

    #[test]
    fn a_connection_within_the_node_is_one_although_both_ends_count_it() {
        let table = table();
        let there = talk(&table, Direction::Outbound, ["web", "db"], true);
        let here = talk(&table, Direction::InboundHbone, ["web", "db"], true);
        there.add_sent(100);
        here.add_received(100);
        here.add_sent(7_000);
        there.add_received(6_000);
        there.close(Reason::Reset, table.now());
        let talks = table.talks();
        let [one] = &talks.pairs[..] else {
            panic!("{talks:?}");
        };
        assert_eq!(
            (talks.outbound, talks.inbound),
            (0, 1),
            "one end has closed it"
        );
        assert_eq!(
            (one.bytes_sent, one.bytes_received, one.bytes()),
            (100, 7_000, 7_100)
        );
        assert_eq!((one.connections, one.failed, one.open), (1, 1, 1));
        assert_eq!(one.source.workload.as_deref(), Some("web"));
        assert_eq!(one.destination.namespace.as_deref(), Some("shop"));
        assert!(one.mutual_tls);
    }

    #[test]
    fn plaintext_is_apart_and_those_outside_have_no_name() {
        let table = table();
        talk(&table, Direction::Outbound, ["web", "db"], true).add_sent(1);
        talk(&table, Direction::Outbound, ["web", "db"], false).add_sent(20);
        talk(&table, Direction::Outbound, ["web", ""], false).add_sent(300);
        let talks = table.talks().pairs;
        let find = |mutual_tls, known: bool| {
            let found = talks.iter().find(|talk| {
                talk.mutual_tls == mutual_tls && talk.destination.workload.is_some() == known
            });
            found.map(Talk::bytes)
        };
        assert_eq!(talks.len(), 3, "{talks:?}");
        assert_eq!(
            (find(true, true), find(false, true), find(false, false)),
            (Some(1), Some(20), Some(300))
        );
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        for name in [
            "a\"b",
            "a\\",
            "\\\"",
            "a\nb",
            "é,x=\"y\",",
            "source_workload=\"evil\"",
        ] {
            let table = table();
            talk(&table, Direction::Outbound, [name, "db"], true);
            let talks = table.talks().pairs;
            assert_eq!(talks[0].source.workload.as_deref(), Some(name));
            assert_eq!(talks[0].destination.workload.as_deref(), Some("db"));
        }
    }
}
