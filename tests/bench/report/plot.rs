//! One figure as a picture: a bar to the median, a line from the lowest to the highest, a dot for each round.
//!
//! A line for each contestant: its name, a track, its figures. Positions in the track are parts of its width, so that
//! the picture has any width and its letters have one size.

use std::fmt::Write as _;

use super::{short, spread};
use crate::contestants::Who;
use crate::rows::Row;

/// Height of a track.
const HEIGHT: u32 = 22;

/// Without anything from elsewhere. None when there is nothing to show.
pub(super) fn html(row: &Row, columns: &[Who]) -> Option<String> {
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
    // A bar far off says nothing that the table does not say.
    let bar = row.target.map(|target| target.absolute.bar);
    let bar = bar.filter(|bar| *bar <= most * 2.0);
    let most = bar.map_or(most, |bar| bar.max(most));
    let x = |value: f64| format!("{:.2}%", value.clamp(0.0, most) / most * 100.0);
    let mut page = "<div class=\"plot\">\n".to_owned();
    for who in shown {
        let summary = row.summary(who)?;
        let middle = HEIGHT / 2;
        let _ = write!(
            page,
            "<span>{}</span><svg height=\"{HEIGHT}\" role=\"img\" aria-label=\"{} {}\">\
             <rect class=\"{}\" y=\"3\" width=\"{}\" height=\"{}\"/>",
            who.name(),
            short(summary.median),
            row.unit,
            class(who),
            x(summary.median),
            HEIGHT - 6,
        );
        if let Some(bar) = bar {
            let _ = write!(
                page,
                "<line class=\"bar\" x1=\"{0}\" x2=\"{0}\" y1=\"0\" y2=\"{HEIGHT}\"/>",
                x(bar)
            );
        }
        let _ = write!(
            page,
            "<line class=\"spread\" x1=\"{}\" x2=\"{}\" y1=\"{middle}\" y2=\"{middle}\"/>",
            x(summary.min),
            x(summary.max)
        );
        for value in row.values.get(&who)?.values() {
            let _ = write!(
                page,
                "<circle cx=\"{}\" cy=\"{middle}\" r=\"2.5\"/>",
                x(*value)
            );
        }
        let _ = writeln!(page, "</svg><span>{}</span>", spread(&summary));
    }
    let _ = writeln!(
        page,
        "<span></span><span class=\"axis\"><i>0</i><i>{} {}</i></span><span class=\"axis\">{}</span>",
        short(most),
        row.unit,
        bar.map_or_else(String::new, |bar| format!("<i class=\"bad\">bar {bar}</i>")),
    );
    page.push_str("</div>");
    Some(page)
}

fn class(who: Who) -> &'static str {
    match who {
        Who::NoMesh => "bare",
        Who::Ours | Who::OursAgain => "ours",
        Who::EnvoyTcp => "tcp",
        Who::EnvoyHttp => "http",
    }
}
