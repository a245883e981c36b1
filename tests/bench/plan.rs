//! What is measured, how often and for how long.

use std::time::Duration;

use lab::load::{Load, Stall};
use lab::{LabError, Result};
use serde::Serialize;

use crate::report::thousands;

/// Body of a keep-alive answer: small, so that what a proxy does for each request is what counts.
const SMALL_BODY: u64 = 100;
/// Body of a bulk answer. One is followed by the next; it ends, so that a run can end in order.
const LARGE_BODY: u64 = 64 << 20;
/// Body of an answer where many connections have long ones: all of them come to their end soon.
const MIDDLE_BODY: u64 = 1 << 20;
/// Body of the answer that is not read. Each proxy and each kernel on its way holds a few MiB.
const UNREAD_BODY: u64 = 64 << 20;
/// Connections that take turns while workloads are pushed, and how often one of them asks. A path that stands still is
/// seen to that time; together they use a tenth of the machine.
const WATCHING: usize = 16;
const WATCH: Duration = Duration::from_micros(500);
/// Nothing has to warm up for that.
const WATCH_WARM: Duration = Duration::from_millis(250);
/// New connections that are on their way at the same time.
const CONNECTING: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// One long answer after the other, on so many connections.
    Bulk(usize),
    /// Small requests, on so many connections that stay open.
    Requests(usize),
    /// A new connection for each small request.
    Connect,
    /// Long answers on so many connections, one of which is not read for a while.
    SlowReader(usize),
    /// Small requests at a low rate, while so many workloads change.
    Push(usize),
}

impl Scenario {
    pub(crate) fn load(self, to: std::net::SocketAddr, plan: &Plan) -> Load {
        let (connections, body) = match self {
            Self::Bulk(connections) => (connections, LARGE_BODY),
            Self::Requests(connections) => (connections, SMALL_BODY),
            Self::Connect => (CONNECTING, SMALL_BODY),
            Self::SlowReader(connections) => (connections, MIDDLE_BODY),
            Self::Push(_) => (WATCHING, SMALL_BODY),
        };
        let load = Load {
            to,
            connections,
            body,
            reconnect: self == Self::Connect,
            every: None,
            stall: None,
            warm: plan.warm,
            measure: plan.measure,
        };
        match self {
            Self::SlowReader(_) => Load {
                stall: Some(Stall {
                    body: UNREAD_BODY,
                    settle: plan.stall_settle,
                }),
                measure: plan.measure / 2,
                ..load
            },
            Self::Push(_) => Load {
                every: Some(WATCH),
                warm: plan.warm.min(WATCH_WARM),
                measure: plan.push_window,
                ..load
            },
            Self::Bulk(_) | Self::Requests(_) | Self::Connect => load,
        }
    }

    /// For headings and keys.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Bulk(1) => "bulk, 1 connection".to_owned(),
            Self::Bulk(n) => format!("bulk, {n} connections"),
            Self::Requests(1) => "keep-alive requests, 1 connection".to_owned(),
            Self::Requests(n) => format!("keep-alive requests, {n} connections"),
            Self::Connect => "new connections".to_owned(),
            Self::SlowReader(n) => format!("one slow reader among {n} streams"),
            Self::Push(n) => format!("full push of {} workloads", thousands(n)),
        }
    }

    /// What the name does not say.
    pub(crate) fn note(self) -> Option<String> {
        match self {
            Self::SlowReader(connections) => Some(format!(
                "{connections} connections of one client read answers of {} MiB, one after the other. Then one of them stops \
                 to read, in the midst of {} MiB, until everything on its way is full; then it reads again, and gets all of \
                 it. Shown is what the other {} have together while it stands still, of what all have before and after in \
                 the same run. A run in which anything more reached the connection that is not read has failed.",
                MIDDLE_BODY >> 20,
                UNREAD_BODY >> 20,
                connections - 1
            )),
            Self::Push(workloads) => Some(format!(
                "A request every {} ms on {WATCHING} connections in turn, without any mesh and through ours at the same time, \
                 so that no queue is measured. The control plane changes address and contents of all {} workloads at both \
                 daemons; what it sends is encoded before, and what it does still gives way to everything else \
                 (SCHED_IDLE). Beside it, the longest in as long a time without a push, in the same round: that is the \
                 machine. So is the longest without a mesh: it shares the processors with the push, and nothing else.",
                WATCH.as_secs_f64() * 1e3,
                thousands(workloads)
            )),
            Self::Bulk(_) | Self::Requests(_) | Self::Connect => None,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) rounds: usize,
    pub(crate) warm: Duration,
    pub(crate) measure: Duration,
    pub(crate) scenarios: Vec<Scenario>,
    /// Idle connections to measure memory with.
    pub(crate) idle: Vec<usize>,
    /// Rounds in which memory is measured with idle connections.
    pub(crate) memory_rounds: usize,
    /// How long a proxy gets to give memory back before it is measured.
    pub(crate) settle: Duration,
    /// What passes between a connection that is no longer read and the time that is measured.
    pub(crate) stall_settle: Duration,
    /// How long requests are watched while workloads are pushed, and without that.
    pub(crate) push_window: Duration,
    /// Whether ours is measured a second time in each round: what differs then is noise.
    pub(crate) control: bool,
    /// Whether all of it runs on one processor: the length of the path, not what the machine can do.
    pub(crate) one_cpu: bool,
}

impl Plan {
    pub(crate) fn full() -> Self {
        Self {
            name: "full",
            rounds: 9,
            warm: Duration::from_secs(1),
            measure: Duration::from_secs(3),
            scenarios: ALL.to_vec(),
            idle: vec![1_000, 10_000],
            memory_rounds: 3,
            settle: Duration::from_secs(10),
            stall_settle: Duration::from_millis(700),
            push_window: Duration::from_secs(5),
            control: true,
            one_cpu: false,
        }
    }

    /// Within three minutes.
    pub(crate) fn quick() -> Self {
        Self {
            name: "quick",
            rounds: 3,
            warm: Duration::from_millis(250),
            measure: Duration::from_millis(700),
            memory_rounds: 1,
            settle: Duration::from_secs(2),
            stall_settle: Duration::from_millis(250),
            push_window: Duration::from_secs(3),
            control: false,
            ..Self::full()
        }
    }

    /// Leaves only the scenarios whose names contain `text`.
    pub(crate) fn keep(&mut self, text: &str) -> Result<()> {
        self.scenarios
            .retain(|scenario| scenario.name().contains(text));
        self.idle.clear();
        if self.scenarios.is_empty() {
            let names: Vec<String> = ALL.iter().map(|scenario| scenario.name()).collect();
            let names = names.join("; ");
            return Err(LabError::new(format!(
                "no scenario has {text:?} in its name; there are: {names}"
            )));
        }
        Ok(())
    }
}

const ALL: [Scenario; 8] = [
    Scenario::Bulk(1),
    Scenario::Bulk(8),
    Scenario::Requests(1),
    Scenario::Requests(16),
    Scenario::Requests(64),
    Scenario::Connect,
    Scenario::SlowReader(100),
    Scenario::Push(50_000),
];
