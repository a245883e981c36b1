//! What people and programs get: a table, a page, the raw figures.

mod html;
mod markdown;
mod plot;
mod sizing;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::contestants::Who;
use crate::facts::Facts;
use crate::noise;
use crate::plan::Plan;
use crate::rounds::{Measurements, When};
use crate::rows::{Row, rows};
use crate::stats::Summary;
use crate::targets::{Met, Target, Verdict};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) facts: Facts,
    /// Signs of a noisy machine.
    pub(crate) noise: Vec<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) summaries: Vec<BTreeMap<Who, Summary>>,
    pub(crate) measurements: Measurements,
    /// Who was measured, in the order of the columns.
    pub(crate) columns: Vec<Who>,
}

/// A figure of which ours is worse than somebody's.
pub(crate) struct Loss<'a> {
    pub(crate) row: &'a Row,
    pub(crate) to: Who,
    pub(crate) times: f64,
}

impl Report {
    pub(crate) fn new(plan: Plan, facts: Facts, measurements: Measurements) -> Self {
        let rows = rows(&plan, &measurements);
        let present = |who: &Who| rows.iter().any(|row| row.values.contains_key(who));
        let columns = [Who::NoMesh, Who::Ours, Who::EnvoyTcp, Who::EnvoyHttp];
        let columns: Vec<Who> = columns.into_iter().filter(present).collect();
        let summaries = rows
            .iter()
            .map(|row| {
                let of = |who: &Who| Some((*who, row.summary(*who)?));
                row.values.keys().filter_map(of).collect()
            })
            .collect();
        Self {
            noise: noise::signs(&measurements, &rows),
            plan,
            facts,
            rows,
            summaries,
            measurements,
            columns,
        }
    }

    pub(crate) fn markdown(&self) -> String {
        markdown::write(self)
    }

    pub(crate) fn html(&self) -> String {
        html::write(self)
    }

    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// The worst first.
    pub(crate) fn losses(&self) -> Vec<Loss<'_>> {
        let mut losses: Vec<Loss<'_>> = self
            .rows
            .iter()
            .flat_map(|row| [Who::EnvoyTcp, Who::EnvoyHttp].map(|to| (row, to)))
            .filter_map(|(row, to)| {
                let times = row.loss_to(to)?;
                Some(Loss { row, to, times })
            })
            .collect();
        losses.sort_by(|a, b| b.times.total_cmp(&a.times));
        losses
    }

    pub(crate) fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.rows.iter().map(|row| row.group.as_str()).collect();
        groups.dedup();
        groups
    }

    /// Figures with a target, those first that miss it.
    fn with_target(&self) -> Vec<(&Row, Target, Option<Verdict>)> {
        let rows = self.rows.iter();
        let mut rows: Vec<_> = rows
            .filter_map(|row| Some((row, row.target?, Verdict::of(row))))
            .collect();
        rows.sort_by_key(|(_, _, verdict)| {
            verdict.as_ref().map(Verdict::decides) != Some(Met::Missed)
        });
        rows
    }

    /// What is to be known about the figures of a group.
    fn note(&self, group: &str) -> Option<String> {
        let mut all = self.plan.scenarios.iter();
        all.find(|scenario| scenario.name() == group)?.note()
    }

    fn about(&self) -> Vec<String> {
        let seconds = self.plan.measure.as_secs_f64();
        let mut lines = vec![format!(
            "{} run: {} rounds, {seconds} s for each measurement, contestants in turn, one at a time; median (lowest to highest).",
            self.plan.name, self.plan.rounds
        )];
        if self.plan.one_cpu {
            lines.push(
                "Everything on one processor: the length of the path, not what the machine can do."
                    .to_owned(),
            );
        }
        lines.extend(self.facts.lines());
        for &planned in &self.plan.idle {
            let fewest = self
                .measurements
                .memory
                .iter()
                .filter_map(|m| match m.when {
                    When::Holding { planned: p, open } if p == planned => Some(open),
                    _ => None,
                });
            if let Some(open) = fewest.min().filter(|open| *open < planned) {
                lines.push(format!(
                    "Instead of {planned} idle connections there were {open}: a process may not have more descriptors here."
                ));
            }
        }
        lines
    }
}

/// Three digits that count.
pub(crate) fn short(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 999.5 => return grouped(value),
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.9995 => 2,
        size if size >= 0.0995 || size == 0.0 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

pub(crate) fn thousands(number: usize) -> String {
    grouped(number as f64)
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 {
        text.insert(0, '-');
    }
    text
}

fn spread(summary: &Summary) -> String {
    if summary.count < 2 {
        return short(summary.median);
    }
    format!(
        "{} ({} to {})",
        short(summary.median),
        short(summary.min),
        short(summary.max)
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::Scenario;
    use crate::rows::tests::{memory, push, window};

    /// Ours is cheaper for bulk, and dearer for connections than HTTP.
    pub(super) fn example() -> Report {
        let plan = Plan {
            scenarios: vec![Scenario::Bulk(1), Scenario::Connect, Scenario::Push(50_000)],
            idle: vec![10_000],
            ..Plan::quick()
        };
        let holding = When::Holding {
            planned: 10_000,
            open: 9_800,
        };
        let cost = |who, scenario| match (who, scenario) {
            (Who::Ours, Scenario::Bulk(_)) => 2.0,
            (Who::EnvoyTcp, Scenario::Bulk(_)) => 5.0,
            (Who::EnvoyTcp, _) => 40.0,
            (Who::EnvoyHttp, Scenario::Connect) => 1.0,
            _ => 3.0,
        };
        let all = [Who::NoMesh, Who::Ours, Who::EnvoyTcp, Who::EnvoyHttp];
        let windows = (0..3).flat_map(|round| {
            all.into_iter().flat_map(move |who| {
                [Scenario::Bulk(1), Scenario::Connect]
                    .map(|scenario| window(round, who, scenario, cost(who, scenario)))
            })
        });
        let found = Measurements {
            windows: windows.collect(),
            memory: vec![
                memory(Who::Ours, When::Idle, 4_096.0),
                memory(Who::Ours, holding, 23_696.0),
            ],
            pushes: (0..3)
                .flat_map(|round| [push(round, Who::NoMesh, 2.0), push(round, Who::Ours, 6.5)])
                .collect(),
            failures: vec!["round 2, Envoy TCP, <new> connections: 3 errors".to_owned()],
        };
        Report::new(plan, Facts::example(), found)
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let shown = [
            1_234_567.0,
            999.6,
            123.4,
            12.34,
            1.234,
            0.1234,
            0.01234,
            0.0,
        ];
        let shown: Vec<String> = shown.into_iter().map(short).collect();
        let expected = [
            "1,234,567",
            "1,000",
            "123",
            "12.3",
            "1.23",
            "0.123",
            "0.0123",
            "0.000",
        ];
        assert_eq!(shown, expected);
        assert_eq!(short(-1234.0), "-1,234");
    }

    #[test]
    fn losses_are_found_and_the_worst_is_first() {
        let report = example();
        let losses = report.losses();
        let shown: Vec<_> = losses.iter().map(|l| (l.to, l.row.name.as_str())).collect();
        assert_eq!(
            shown,
            [
                (Who::EnvoyHttp, "CPU of a proxy"),
                (Who::EnvoyHttp, "CPU of both proxies")
            ]
        );
        assert!((losses[0].times - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_raw_figures_can_be_read_again() {
        let json: serde_json::Value = serde_json::from_str(&example().json().unwrap()).unwrap();
        assert_eq!(json["plan"]["rounds"], 3);
        assert_eq!(
            json["measurements"]["windows"].as_array().unwrap().len(),
            24
        );
        assert_eq!(json["rows"][1]["values"]["envoy-tcp"]["0"], 1.25);
        assert_eq!(json["summaries"][1]["ours"]["median"], 0.5);
    }
}
