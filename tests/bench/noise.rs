//! Whether the machine was quiet enough for the figures to mean something. Says so, and judges nothing else by it.

use crate::contestants::Who;
use crate::rounds::{Measurements, Window};
use crate::rows::{Better, Row};

/// Processors that others may keep busy.
const OTHERS: f64 = 0.1;
/// Processors that may be taken away.
const STOLEN: f64 = 0.05;
/// How far the rounds of one thing without any proxy may be apart.
const SPREAD: f64 = 0.15;
/// How far ours may be from ours.
const CONTROL: f64 = 0.05;

/// Every sign of a noisy machine; none means quiet.
pub(crate) fn signs(found: &Measurements, rows: &[Row]) -> Vec<String> {
    let mut signs = Vec::new();
    signs.extend(too_much(
        found,
        |w| w.others,
        OTHERS,
        "programs that have no part in this used the CPU",
    ));
    signs.extend(too_much(
        found,
        |w| w.stolen,
        STOLEN,
        "the machine below took the CPU away (steal)",
    ));
    let robbed = found.pushes.iter().filter(|push| push.stolen > STOLEN);
    let robbed = robbed.count();
    if robbed > 0 {
        signs.push(format!(
            "the machine below took the CPU away (steal) in {robbed} of {} windows with a push",
            found.pushes.len()
        ));
    }
    for row in rows.iter().filter(|row| row.better == Better::Higher) {
        if let Some(summary) = row.summary(Who::NoMesh)
            && summary.spread() > SPREAD
        {
            signs.push(format!(
                "without any mesh, {} of {} differs between rounds by {:.0} % of its median",
                row.name,
                row.group,
                summary.spread() * 100.0
            ));
        }
    }
    for row in rows {
        if let Some(ratio) = row.ratio(Who::OursAgain, Who::Ours)
            && ratio.is_difference()
            && (ratio.median - 1.0).abs() > CONTROL
        {
            signs.push(format!(
                "ours differs from itself: {} of {} by {:+.0} %",
                row.name,
                row.group,
                (ratio.median - 1.0) * 100.0
            ));
        }
    }
    signs
}

fn too_much(
    found: &Measurements,
    processors: fn(&Window) -> f64,
    limit: f64,
    what: &str,
) -> Option<String> {
    let (all, over) = (&found.windows, processors);
    let count = all.iter().filter(|window| over(window) > limit).count();
    let worst = all.iter().map(over).fold(0.0, f64::max);
    (count > 0).then(|| {
        format!(
            "{what}: more than {limit} processors in {count} of {} measurements, {worst:.2} at worst",
            all.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Scenario};
    use crate::rows::{rows, tests::window};

    fn check(change: impl FnOnce(&mut Vec<Window>), expected: &[&str]) {
        let plan = Plan {
            scenarios: vec![Scenario::Bulk(1)],
            ..Plan::quick()
        };
        let both = [Who::NoMesh, Who::Ours, Who::OursAgain];
        let mut windows: Vec<Window> = (0..3)
            .flat_map(|round| both.map(|who| window(round, who, Scenario::Bulk(1), 1.0)))
            .collect();
        change(&mut windows);
        let found = Measurements {
            windows,
            ..Measurements::default()
        };
        let signs = signs(&found, &rows(&plan, &found));
        assert_eq!(signs.len(), expected.len(), "{signs:?}");
        for (sign, part) in signs.iter().zip(expected) {
            assert!(sign.contains(part), "{sign}");
        }
    }

    #[test]
    fn a_noisy_machine_is_noticed() {
        check(|_| {}, &[]);
        check(|w| w[4].others = 0.5, &["in 1 of 9 measurements, 0.50"]);
        check(|w| w[4].stolen = 0.5, &["steal"]);
        check(
            |w| w[0].load.bytes /= 2,
            &["differs between rounds by 50 %"],
        );
        check(
            |w| {
                let again = w.iter_mut().filter(|w| w.who == Who::OursAgain);
                again.for_each(|w| w.proxies = vec![0.6; 2]);
            },
            &["CPU of both proxies of bulk, 1 connection by +20 %"],
        );
    }
}
