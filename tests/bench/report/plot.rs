//! One figure as a picture: a bar to the median, a line from the lowest to the highest, a dot for each round.

use std::fmt::Write as _;

use super::short;
use crate::contestants::Who;
use crate::rows::Row;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 80.0;
const LINE: f64 = 24.0;

/// SVG, without anything from elsewhere. None when there is nothing to show.
pub(super) fn svg(row: &Row, columns: &[Who]) -> Option<String> {
    let shown: Vec<Who> = columns
        .iter()
        .copied()
        .filter(|who| row.values.contains_key(who))
        .collect();
    let most = shown.iter().filter_map(|who| Some(row.summary(*who)?.max));
    let most = most.fold(0.0_f64, f64::max);
    if most <= 0.0 {
        return None;
    }
    let x = |value: f64| LEFT + value.max(0.0) / most * (WIDTH - LEFT - RIGHT);
    let height = LINE * shown.len() as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n"
    );
    for (line, who) in shown.iter().enumerate() {
        let summary = row.summary(*who)?;
        let middle = LINE * (line as f64 + 0.5);
        let (class, top) = (class(*who), middle - 8.0);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"16\"/>\
             <path class=\"spread\" d=\"M{:.1} {middle:.1}H{:.1}\"/>",
            LEFT - 8.0,
            middle + 4.0,
            who.name(),
            x(summary.median) - LEFT,
            x(summary.min),
            x(summary.max),
        );
        for value in row.values.get(who)?.values() {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2.5\"/>",
                x(*value)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x(summary.max) + 8.0,
            middle + 4.0,
            short(summary.median)
        );
    }
    svg.push_str("</svg>");
    Some(svg)
}

fn class(who: Who) -> &'static str {
    match who {
        Who::NoMesh => "bare",
        Who::Ours | Who::OursAgain => "ours",
        Who::EnvoyTcp => "tcp",
        Who::EnvoyHttp => "http",
    }
}
