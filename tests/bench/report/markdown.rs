//! The table, for a README or a terminal.

use std::fmt::Write as _;

use super::{Report, short, sizing, spread};
use crate::contestants::Who;
use crate::rows::Row;
use crate::stats::Ratio;
use crate::targets::{ELSEWHERE, Limits, Met};

pub(super) fn write(report: &Report) -> String {
    let mut text = String::new();
    for line in report.about() {
        let _ = writeln!(text, "{line}  ");
    }
    noise(report, &mut text);
    losses(report, &mut text);
    targets(report, &mut text);
    sizing(report, &mut text);
    figures(report, &mut text);
    text
}

fn noise(report: &Report, text: &mut String) {
    if report.noise.is_empty() {
        text.push_str("\nThe machine was quiet.\n");
    } else {
        text.push_str("\n**The machine was noisy:**\n");
    }
    for sign in &report.noise {
        let _ = writeln!(text, "- {sign}");
    }
    if !report.measurements.failures.is_empty() {
        text.push_str("\n**Failed, and in no figure:**\n");
    }
    for failure in &report.measurements.failures {
        let _ = writeln!(text, "- {failure}");
    }
}

fn losses(report: &Report, text: &mut String) {
    text.push_str("\n### Where ours is worse\n\n");
    let losses = report.losses();
    for loss in &losses {
        let _ = writeln!(
            text,
            "- {}, {}: {} times worse than {}",
            loss.row.group,
            loss.row.name,
            short(loss.times),
            loss.to.name()
        );
    }
    if losses.is_empty() {
        text.push_str("Nowhere, as far as the rounds can tell.\n");
    }
}

fn targets(report: &Report, text: &mut String) {
    text.push_str("\n### Targets\n\n| | ours | bar; aim | | ours / Envoy TCP | bar; aim | |\n|---|---|---|---|---|---|---|\n");
    for (row, target, verdict) in report.with_target() {
        let ours = row.summary(Who::Ours);
        let ratio = row.ratio(Who::Ours, Who::EnvoyTcp);
        let ratio = ratio.filter(|_| target.of_envoy.is_some());
        let _ = writeln!(
            text,
            "| {}: {}, {} | {} | {} | {} | {} | {} | {} |",
            row.group,
            row.name,
            row.unit,
            ours.map_or("not measured".to_owned(), |s| short(s.median)),
            limits(Some(target.absolute)),
            met(verdict.as_ref().map(|v| v.absolute)),
            ratio.map_or_else(String::new, |ratio| self::ratio(&ratio)),
            limits(target.of_envoy),
            met(verdict.as_ref().and_then(|v| v.of_envoy)),
        );
    }
    for (what, place) in ELSEWHERE {
        let _ = writeln!(text, "| {what} | {place} | | | | | |");
    }
}

fn sizing(report: &Report, text: &mut String) {
    let needs = sizing::needs(report);
    if needs.is_empty() {
        return;
    }
    text.push_str("\n### What a proxy of ours needs\n\n| | | |\n|---|---|---|\n");
    for need in needs {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            need.what,
            short(need.of),
            need.unit
        );
    }
    let (what, place) = sizing::ELSEWHERE;
    let _ = writeln!(text, "| {what} | {place} | |");
}

fn figures(report: &Report, text: &mut String) {
    text.push_str("\n### Figures\n\n| |");
    for who in &report.columns {
        let _ = write!(text, " {} |", who.name());
    }
    text.push_str(" ours / Envoy TCP |\n|---|");
    text.push_str(&"---|".repeat(report.columns.len() + 1));
    text.push('\n');
    for group in report.groups() {
        let _ = writeln!(
            text,
            "| **{group}** |{}",
            " |".repeat(report.columns.len() + 1)
        );
        for row in report.rows.iter().filter(|row| row.group == group) {
            figure(report, row, text);
        }
    }
    for group in report.groups() {
        if let Some(note) = report.note(group) {
            let _ = writeln!(text, "\n**{group}**: {note}");
        }
    }
}

fn figure(report: &Report, row: &Row, text: &mut String) {
    let _ = write!(text, "| {}, {} |", row.name, row.unit);
    for who in &report.columns {
        let shown = row.summary(*who).map_or_else(String::new, |s| spread(&s));
        let _ = write!(text, " {shown} |");
    }
    let shown = row
        .ratio(Who::Ours, Who::EnvoyTcp)
        .map_or_else(String::new, |r| ratio(&r));
    let _ = writeln!(text, " {shown} |");
}

fn ratio(ratio: &Ratio) -> String {
    format!(
        "{} ({} to {})",
        short(ratio.median),
        short(ratio.low),
        short(ratio.high)
    )
}

fn limits(limits: Option<Limits>) -> String {
    limits.map_or_else(String::new, |l| format!("{}; {}", l.bar, l.aim))
}

fn met(met: Option<Met>) -> String {
    match met {
        None => String::new(),
        Some(Met::Missed) => "**missed**".to_owned(),
        Some(met) => met.text().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn the_table_says_what_was_measured_and_judges_it() {
        let text = example().markdown();
        let expected = [
            "**Failed, and in no figure:**\n- round 2, Envoy TCP, <new> connections: 3 errors\n",
            "### Where ours is worse\n\n- new connections, CPU of a proxy: 3.00 times worse than Envoy HTTP\n",
            "| new connections: CPU of a proxy, µs/connection | 75.0 | 60; 40 | **missed** | 0.0750 (0.0750 to 0.0750) | 0.1; 0.07 | bar met |",
            "| bulk, 1 connection: CPU of both proxies, s/GB | 0.500 | 0.8; 0.65 | aim met | 0.400 (0.400 to 0.400) | 0.67; 0.54 | aim met |",
            "| | no mesh | ours | Envoy TCP | Envoy HTTP | ours / Envoy TCP |\n|---|---|---|---|---|---|\n",
            "| CPU of both proxies, s/GB |  | 0.500 (0.500 to 0.500) | 1.25 (1.25 to 1.25) |",
            "Instead of 10000 idle connections there were 9800",
            "| for each of 10,000 idle connections, KiB |  | 2.00 |",
            "The machine was quiet.",
            "| for each 1,000 new connections in a second | 0.0750 | processors |",
            "| full push of 50,000 workloads: longest request meanwhile, ms | 6.50 | 5; 1 | **missed** |",
            "\n**full push of 50,000 workloads**: A request every 0.5 ms on 16 connections",
        ];
        for part in expected {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
        let columns = |line: &str| line.matches('|').count();
        let table = text.split("### Figures").nth(1).unwrap();
        let mut rows = table.lines().filter(|line| line.starts_with('|'));
        assert!(rows.all(|line| columns(line) == 7), "{table}");
    }
}
