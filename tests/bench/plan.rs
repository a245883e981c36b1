//! What is measured, how often and for how long.

use std::time::Duration;

use lab::load::Load;
use lab::{LabError, Result};
use serde::Serialize;

/// Body of a keep-alive answer: small, so that what a proxy does for each request is what counts.
const SMALL_BODY: u64 = 100;
/// Body of a bulk answer. One is followed by the next; it ends, so that a run can end in order.
const LARGE_BODY: u64 = 64 << 20;
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
}

impl Scenario {
    pub(crate) fn load(self, to: std::net::SocketAddr, plan: &Plan) -> Load {
        let (connections, body, reconnect) = match self {
            Self::Bulk(connections) => (connections, LARGE_BODY, false),
            Self::Requests(connections) => (connections, SMALL_BODY, false),
            Self::Connect => (CONNECTING, SMALL_BODY, true),
        };
        Load {
            to,
            connections,
            body,
            reconnect,
            warm: plan.warm,
            measure: plan.measure,
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

const ALL: [Scenario; 6] = [
    Scenario::Bulk(1),
    Scenario::Bulk(8),
    Scenario::Requests(1),
    Scenario::Requests(16),
    Scenario::Requests(64),
    Scenario::Connect,
];
