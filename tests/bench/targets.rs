//! What ours is held to: a bar that must be met and an aim, absolute and against the pair of Envoys that relays TCP.
//!
//! Absolute figures are those of one kind of machine when quiet. Where there is a ratio, taken in the same rounds, it
//! decides.

use serde::Serialize;

use crate::contestants::Who;
use crate::plan::Scenario;
use crate::rows::{Better, OTHERS, P99, PROXY_CPU, PROXY_CPU_EACH, Row};

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Target {
    /// At most so much, or at least where more is better.
    pub(crate) absolute: Limits,
    /// The same as a part of what the Envoys have.
    pub(crate) of_envoy: Option<Limits>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Limits {
    pub(crate) bar: f64,
    pub(crate) aim: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Met {
    Aim,
    Bar,
    Missed,
}

impl Limits {
    pub(crate) fn judge(&self, value: f64, better: Better) -> Met {
        let reaches = |limit: f64| match better {
            Better::Lower => value <= limit,
            Better::Higher => value >= limit,
        };
        if reaches(self.aim) {
            Met::Aim
        } else if reaches(self.bar) {
            Met::Bar
        } else {
            Met::Missed
        }
    }
}

impl Met {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Aim => "aim met",
            Self::Bar => "bar met",
            Self::Missed => "missed",
        }
    }
}

/// How a row stands to its target.
pub(crate) struct Verdict {
    pub(crate) absolute: Met,
    pub(crate) of_envoy: Option<Met>,
}

impl Verdict {
    /// None without a target or a figure of ours.
    pub(crate) fn of(row: &Row) -> Option<Self> {
        let target = row.target?;
        let median = row.summary(Who::Ours)?.median;
        let ratio = row.ratio(Who::Ours, Who::EnvoyTcp);
        Some(Self {
            absolute: target.absolute.judge(median, row.better),
            of_envoy: Option::zip(target.of_envoy, ratio)
                .map(|(limits, ratio)| limits.judge(ratio.median, row.better)),
        })
    }

    pub(crate) fn decides(&self) -> Met {
        self.of_envoy.unwrap_or(self.absolute)
    }
}

/// What is asked for and not measured here, and where it is.
pub(crate) const ELSEWHERE: [(&str, &str); 1] = [(
    "mTLS handshake, CPU µs per side",
    "`cargo bench -p ztunnel-node --bench handshake`",
)];

pub(crate) fn of(scenario: Scenario, figure: &str) -> Option<Target> {
    let (absolute, of_envoy) = match (scenario, figure) {
        (Scenario::SlowReader(_), OTHERS) => return absolute((95.0, 95.0)),
        (Scenario::Bulk(1), PROXY_CPU) => ((0.80, 0.65), (0.67, 0.54)),
        (Scenario::Bulk(8), PROXY_CPU) => ((0.90, 0.70), (0.74, 0.57)),
        (Scenario::Requests(16), PROXY_CPU_EACH) => ((12.0, 9.0), (0.47, 0.35)),
        (Scenario::Requests(16), P99) => ((1.2, 0.7), (0.65, 0.4)),
        (Scenario::Connect, PROXY_CPU_EACH) => ((60.0, 40.0), (0.10, 0.07)),
        _ => return None,
    };
    Some(Target {
        absolute: limits(absolute),
        of_envoy: Some(limits(of_envoy)),
    })
}

/// Milliseconds that a request may take while workloads are pushed.
pub(crate) fn longest_stall() -> Option<Target> {
    absolute((5.0, 1.0))
}

/// MiB.
pub(crate) fn idle() -> Option<Target> {
    absolute((6.0, 3.0))
}

/// KiB for each end.
pub(crate) fn per_connection() -> Option<Target> {
    absolute((3.0, 1.0))
}

/// Percent above idle.
pub(crate) fn after_load() -> Option<Target> {
    absolute((20.0, 20.0))
}

fn absolute(of: (f64, f64)) -> Option<Target> {
    Some(Target {
        absolute: limits(of),
        of_envoy: None,
    })
}

fn limits((bar, aim): (f64, f64)) -> Limits {
    Limits { bar, aim }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan::Plan;
    use crate::rounds::Measurements;
    use crate::rows::rows;

    #[test]
    fn the_ratio_decides_where_there_is_one() {
        let values = |value: f64| BTreeMap::from([(0, value)]);
        let mut row = Row {
            group: String::new(),
            name: String::new(),
            unit: "s/GB",
            better: Better::Lower,
            target: of(Scenario::Bulk(1), PROXY_CPU),
            values: BTreeMap::from([(Who::Ours, values(1.2)), (Who::EnvoyTcp, values(2.0))]),
        };
        let verdict = Verdict::of(&row).unwrap();
        assert_eq!(verdict.absolute, Met::Missed);
        assert_eq!(verdict.decides(), Met::Bar);
        row.values.remove(&Who::EnvoyTcp);
        assert_eq!(Verdict::of(&row).unwrap().decides(), Met::Missed);
        row.values.insert(Who::Ours, values(0.6));
        assert_eq!(Verdict::of(&row).unwrap().decides(), Met::Aim);
        row.values.clear();
        assert!(Verdict::of(&row).is_none());
    }

    #[test]
    fn where_more_is_better_the_limit_is_the_least() {
        let of = |value| limits((95.0, 99.0)).judge(value, Better::Higher);
        assert_eq!(
            [94.9, 95.0, 99.0].map(of),
            [Met::Missed, Met::Bar, Met::Aim]
        );
    }

    #[test]
    fn every_target_has_a_row() {
        let rows = rows(&Plan::full(), &Measurements::default());
        let with_target = rows.iter().filter(|row| row.target.is_some()).count();
        assert_eq!(with_target, 5 + 1 + 2 + 1 + 2);
    }
}
