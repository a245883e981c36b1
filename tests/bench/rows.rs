//! From what was measured to what is reported: one row for each figure, with a value for each contestant and round.

use std::collections::BTreeMap;

mod push;

use serde::Serialize;

use crate::contestants::Who;
use crate::plan::{Plan, Scenario};
use crate::report::thousands;
use crate::rounds::{Measurements, Memory, When, Window};
use crate::stats::{Ratio, Summary};
use crate::targets::{self, Target};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// What it is a figure of.
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) target: Option<Target>,
    /// By contestant and round. A run that failed is not there.
    pub(crate) values: BTreeMap<Who, BTreeMap<usize, f64>>,
}

impl Row {
    pub(crate) fn summary(&self, who: Who) -> Option<Summary> {
        let values: Vec<f64> = self.values.get(&who)?.values().copied().collect();
        Summary::of(&values)
    }

    /// Of the rounds that both have.
    pub(crate) fn ratio(&self, above: Who, below: Who) -> Option<Ratio> {
        let (above, below) = (self.values.get(&above)?, self.values.get(&below)?);
        let pairs = above
            .iter()
            .filter_map(|(round, above)| Some((*above, *below.get(round)?)));
        Ratio::of(&pairs.collect::<Vec<_>>())
    }

    /// How many times worse ours is than `other`, where the rounds tell them apart and it is worse.
    pub(crate) fn loss_to(&self, other: Who) -> Option<f64> {
        let ratio = self.ratio(Who::Ours, other)?;
        let worse = match self.better {
            Better::Lower => ratio.median,
            Better::Higher => 1.0 / ratio.median,
        };
        (ratio.is_difference() && worse > 1.0).then_some(worse)
    }
}

pub(crate) fn rows(plan: &Plan, found: &Measurements) -> Vec<Row> {
    let mut rows = Vec::new();
    for &scenario in &plan.scenarios {
        for figure in figures(scenario) {
            let of_scenario = found.windows.iter().filter(|w| w.scenario == scenario);
            let mut values: BTreeMap<Who, BTreeMap<usize, f64>> = BTreeMap::new();
            for window in of_scenario {
                // Nothing has no proxies to account for.
                if figure.of_proxies && window.proxies.is_empty() {
                    continue;
                }
                let of_window = (figure.value)(window);
                values
                    .entry(window.who)
                    .or_default()
                    .insert(window.round, of_window);
            }
            rows.push(Row {
                group: scenario.name(),
                name: figure.name.to_owned(),
                unit: figure.unit,
                better: figure.better,
                target: targets::of(scenario, figure.name),
                values,
            });
        }
    }
    rows.extend(memory_rows(plan, &found.memory));
    for &scenario in &plan.scenarios {
        if let Scenario::Push(workloads) = scenario {
            rows.extend(push::rows(workloads, &found.pushes));
        }
    }
    rows
}

struct Figure {
    name: &'static str,
    unit: &'static str,
    better: Better,
    of_proxies: bool,
    value: fn(&Window) -> f64,
}

pub(crate) const PROXY_CPU: &str = "CPU of both proxies";
pub(crate) const PROXY_CPU_EACH: &str = "CPU of a proxy";
pub(crate) const P99: &str = "p99";
pub(crate) const OTHERS: &str = "throughput of the others";
pub(crate) const IDLE: &str = "idle";
pub(crate) const AFTER_LOAD_SIZE: &str = "after load";
pub(crate) const AFTER_LOAD: &str = "after load, above idle";
const MACHINE_CPU: &str = "CPU of the machine";

fn figures(scenario: Scenario) -> Vec<Figure> {
    use Better::{Higher, Lower};
    let figure = |name, unit, better, of_proxies, value| Figure {
        name,
        unit,
        better,
        of_proxies,
        value,
    };
    let each = figure(
        PROXY_CPU_EACH,
        match scenario {
            Scenario::Connect => "µs/connection",
            _ => "µs/request",
        },
        Lower,
        true,
        |w| both(w) / requests(w) * 1e6 / w.proxies.len() as f64,
    );
    let (p50, p99, p999) = (
        figure("p50", "ms", Lower, false, |w| w.load.p50_ms),
        figure(P99, "ms", Lower, false, |w| w.load.p99_ms),
        figure("p99.9", "ms", Lower, false, |w| w.load.p999_ms),
    );
    match scenario {
        Scenario::Bulk(_) => vec![
            figure("throughput", "Gbit/s", Higher, false, |w| {
                w.load.bytes as f64 * 8e-9 / w.load.seconds
            }),
            figure(PROXY_CPU, "s/GB", Lower, true, |w| both(w) / gigabytes(w)),
            figure(MACHINE_CPU, "s/GB", Lower, false, |w| {
                w.machine / gigabytes(w)
            }),
        ],
        Scenario::Requests(_) => vec![
            figure("rate", "1/s", Higher, false, rate),
            p50,
            p99,
            p999,
            each,
            figure(PROXY_CPU, "s/10,000", Lower, true, |w| {
                both(w) / requests(w) * 1e4
            }),
            figure(MACHINE_CPU, "s/10,000", Lower, false, |w| {
                w.machine / requests(w) * 1e4
            }),
        ],
        Scenario::Connect => vec![
            figure("rate", "1/s", Higher, false, rate),
            p50,
            p99,
            each,
            figure(PROXY_CPU, "s/1,000", Lower, true, |w| {
                both(w) / requests(w) * 1e3
            }),
            figure(MACHINE_CPU, "s/1,000", Lower, false, |w| {
                w.machine / requests(w) * 1e3
            }),
        ],
        Scenario::SlowReader(_) => vec![
            figure(OTHERS, "%", Higher, false, |w| {
                w.load
                    .stalled
                    .map_or(0.0, |stalled| stalled.others / stalled.all * 100.0)
            }),
            figure(
                "throughput while all are read",
                "Gbit/s",
                Higher,
                false,
                |w| w.load.stalled.map_or(0.0, |stalled| stalled.all * 8e-9),
            ),
        ],
        // It has windows of its own.
        Scenario::Push(_) => Vec::new(),
    }
}

fn both(window: &Window) -> f64 {
    window.proxies.iter().sum()
}

/// A window without an answer has failed and is not here; the guard keeps a mistake from becoming infinity.
fn requests(window: &Window) -> f64 {
    window.load.requests.max(1) as f64
}

fn rate(window: &Window) -> f64 {
    window.load.requests as f64 / window.load.seconds
}

fn gigabytes(window: &Window) -> f64 {
    window.load.bytes.max(1) as f64 / 1e9
}

pub(crate) const MEMORY: &str = "private memory of a proxy";

fn memory_rows(plan: &Plan, memory: &[Memory]) -> Vec<Row> {
    let row = |name: String, unit, target, value: &dyn Fn(&Memory) -> Option<f64>| {
        let mut values: BTreeMap<Who, BTreeMap<usize, f64>> = BTreeMap::new();
        for memory in memory {
            if let Some(value) = value(memory) {
                values
                    .entry(memory.who)
                    .or_default()
                    .insert(memory.round, value);
            }
        }
        Row {
            group: MEMORY.to_owned(),
            name,
            unit,
            better: Better::Lower,
            target,
            values,
        }
    };
    let idle_of = |who| {
        let idle = memory.iter().find(|m| m.who == who && m.when == When::Idle);
        idle.map(mean_kib)
    };
    let mut rows = vec![row(IDLE.into(), "MiB", targets::idle(), &|m| {
        (m.when == When::Idle).then(|| mean_kib(m) / 1024.0)
    })];
    for &planned in &plan.idle {
        let held = |m: &Memory| match m.when {
            When::Holding { planned: p, open } if p == planned => Some(open),
            _ => None,
        };
        let connections = thousands(planned);
        rows.push(row(
            format!("with {connections} idle connections"),
            "MiB",
            None,
            &|m| held(m).map(|_| mean_kib(m) / 1024.0),
        ));
        rows.push(row(
            for_each_idle(planned),
            "KiB",
            targets::per_connection(),
            &|m| Some((mean_kib(m) - idle_of(m.who)?) / held(m)? as f64),
        ));
    }
    rows.push(row(AFTER_LOAD_SIZE.into(), "MiB", None, &|m| {
        (m.when == When::AfterLoad).then(|| mean_kib(m) / 1024.0)
    }));
    rows.push(row(AFTER_LOAD.into(), "%", targets::after_load(), &|m| {
        let idle = idle_of(m.who)?;
        (m.when == When::AfterLoad).then(|| (mean_kib(m) / idle - 1.0) * 100.0)
    }));
    rows
}

/// Name of a figure.
pub(crate) fn for_each_idle(planned: usize) -> String {
    format!("for each of {} idle connections", thousands(planned))
}

fn mean_kib(memory: &Memory) -> f64 {
    memory.kib.iter().sum::<f64>() / memory.kib.len().max(1) as f64
}

#[cfg(test)]
pub(crate) mod tests {
    use lab::load::{LoadReport, Stalled};

    use super::*;
    use crate::push::Pushed;

    pub(crate) fn window(round: usize, who: Who, scenario: Scenario, cpu: f64) -> Window {
        Window {
            round,
            who,
            scenario,
            load: LoadReport {
                seconds: 2.0,
                bytes: 4_000_000_000,
                requests: 20_000,
                p50_ms: 0.1,
                p99_ms: 1.0,
                p999_ms: 2.0,
                max_ms: 3.0,
                stalled: Some(Stalled {
                    all: 1e9,
                    others: 0.97e9,
                    waiting: 100,
                    waited: 100,
                }),
                errors: 0,
                first_error: None,
            },
            proxies: match who {
                Who::NoMesh => Vec::new(),
                _ => vec![cpu / 2.0; 2],
            },
            machine: 3.0,
            stolen: 0.0,
            others: 0.0,
        }
    }

    pub(crate) fn memory(who: Who, when: When, kib: f64) -> Memory {
        Memory {
            round: 0,
            who,
            when,
            kib: vec![kib, kib],
        }
    }

    pub(crate) fn push(round: usize, who: Who, longest: f64) -> Pushed {
        let load = |max_ms| LoadReport {
            max_ms,
            p999_ms: max_ms / 2.0,
            ..LoadReport::default()
        };
        Pushed {
            round,
            who,
            workloads: 50_000,
            quiet: load(1.0),
            during: load(longest),
            took: 1.5,
            stolen: 0.0,
        }
    }

    #[test]
    fn figures_are_what_their_units_say() {
        let plan = Plan {
            scenarios: vec![
                Scenario::Bulk(1),
                Scenario::Requests(16),
                Scenario::Connect,
                Scenario::SlowReader(100),
            ],
            idle: vec![1_000],
            ..Plan::quick()
        };
        let holding = When::Holding {
            planned: 1_000,
            open: 500,
        };
        let found = Measurements {
            windows: plan
                .scenarios
                .iter()
                .flat_map(|s| [Who::NoMesh, Who::Ours].map(|who| window(0, who, *s, 1.0)))
                .collect(),
            memory: vec![
                memory(Who::Ours, When::Idle, 4_096.0),
                memory(Who::Ours, holding, 4_596.0),
                memory(Who::Ours, When::AfterLoad, 5_120.0),
            ],
            ..Measurements::default()
        };
        let rows = rows(&plan, &found);
        let check = |group: &str, name: &str, who, expected: Option<f64>| {
            let row = rows
                .iter()
                .find(|row| row.group == group && row.name == name);
            let median = row.unwrap().summary(who).map(|summary| summary.median);
            match (median, expected) {
                (Some(median), Some(expected)) => {
                    assert!(
                        (median - expected).abs() < 1e-9,
                        "{group}, {name}: {median}"
                    );
                }
                other => assert_eq!(other, (None, None), "{group}, {name}"),
            }
        };
        let bulk = "bulk, 1 connection";
        check(bulk, "throughput", Who::NoMesh, Some(16.0));
        check(bulk, PROXY_CPU, Who::Ours, Some(0.25));
        check(bulk, PROXY_CPU, Who::NoMesh, None);
        check(bulk, PROXY_CPU, Who::EnvoyTcp, None);
        check(bulk, MACHINE_CPU, Who::NoMesh, Some(0.75));
        let requests = "keep-alive requests, 16 connections";
        check(requests, "rate", Who::Ours, Some(10_000.0));
        check(requests, P99, Who::Ours, Some(1.0));
        check(requests, PROXY_CPU_EACH, Who::Ours, Some(25.0));
        check(requests, PROXY_CPU, Who::Ours, Some(0.5));
        check("new connections", PROXY_CPU, Who::Ours, Some(0.05));
        let slow = "one slow reader among 100 streams";
        check(slow, OTHERS, Who::Ours, Some(97.0));
        check(slow, OTHERS, Who::NoMesh, Some(97.0));
        check(slow, "throughput while all are read", Who::Ours, Some(8.0));
        check(MEMORY, IDLE, Who::Ours, Some(4.0));
        check(
            MEMORY,
            "for each of 1,000 idle connections",
            Who::Ours,
            Some(1.0),
        );
        check(MEMORY, AFTER_LOAD, Who::Ours, Some(25.0));
    }

    #[test]
    fn worse_is_a_loss_only_if_the_rounds_agree() {
        let values = |values: [f64; 3]| values.into_iter().enumerate().collect();
        let row = |better, ours, envoy| Row {
            group: String::new(),
            name: String::new(),
            unit: "",
            better,
            target: None,
            values: BTreeMap::from([(Who::Ours, values(ours)), (Who::EnvoyTcp, values(envoy))]),
        };
        let (one, two) = ([1.0, 1.1, 1.0], [2.0, 2.2, 2.1]);
        let loss = |better, ours, envoy| row(better, ours, envoy).loss_to(Who::EnvoyTcp);
        assert_eq!(loss(Better::Lower, one, two), None);
        assert_eq!(loss(Better::Lower, two, one), Some(2.0));
        assert_eq!(loss(Better::Higher, one, two), Some(2.0));
        assert_eq!(loss(Better::Lower, [0.9, 1.5, 1.2], [1.0, 1.0, 1.2]), None);
    }
}
