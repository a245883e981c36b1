//! Figures of requests that were watched while workloads were pushed.

use std::collections::BTreeMap;

use super::{Better, Row};
use crate::contestants::Who;
use crate::plan::Scenario;
use crate::push::Pushed;
use crate::targets;

pub(super) fn rows(workloads: usize, pushes: &[Pushed]) -> Vec<Row> {
    let scenario = Scenario::Push(workloads);
    let row = |name: &str, unit, target, value: &dyn Fn(&Pushed) -> Option<f64>| {
        let mut values: BTreeMap<Who, BTreeMap<usize, f64>> = BTreeMap::new();
        for push in pushes {
            if let Some(value) = value(push) {
                values
                    .entry(push.who)
                    .or_default()
                    .insert(push.round, value);
            }
        }
        Row {
            group: scenario.name(),
            name: name.to_owned(),
            unit,
            better: Better::Lower,
            target,
            values,
        }
    };
    vec![
        row(
            "longest request meanwhile",
            "ms",
            targets::longest_stall(),
            &|p| Some(p.during.max_ms),
        ),
        row("longest request without a push", "ms", None, &|p| {
            Some(p.quiet.max_ms)
        }),
        row(
            "longest request, more than without a push",
            "ms",
            None,
            &|p| Some(p.during.max_ms - p.quiet.max_ms),
        ),
        row("p99.9 meanwhile", "ms", None, &|p| Some(p.during.p999_ms)),
        row("p99.9 without a push", "ms", None, &|p| {
            Some(p.quiet.p999_ms)
        }),
        row("until both proxies had it", "s", None, &|p| {
            (p.who == Who::Ours).then_some(p.took)
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::push;

    #[test]
    fn what_a_push_adds_is_taken_round_by_round() {
        let pushes = [
            push(0, Who::NoMesh, 1.5),
            push(0, Who::Ours, 3.0),
            push(1, Who::Ours, 10.0),
            push(2, Who::Ours, 2.5),
        ];
        let rows = rows(50_000, &pushes);
        let median = |at: usize, who| rows[at].summary(who).map(|summary| summary.median);
        assert_eq!(rows[0].group, "full push of 50,000 workloads");
        assert!(rows[0].target.is_some());
        assert_eq!(median(0, Who::Ours), Some(3.0));
        assert_eq!(median(1, Who::Ours), Some(1.0));
        assert_eq!(median(2, Who::Ours), Some(2.0));
        assert_eq!(median(2, Who::NoMesh), Some(0.5));
        assert_eq!(median(5, Who::Ours), Some(1.5));
        assert_eq!(median(5, Who::NoMesh), None);
    }
}
