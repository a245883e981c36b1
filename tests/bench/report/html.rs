//! The page: what ours is worse at first, then the targets, then a picture of every figure. One file.

use std::fmt::Write as _;

use super::{Report, plot, short};
use crate::contestants::Who;
use crate::rows::Row;
use crate::targets::{ELSEWHERE, Limits, Met, Verdict};

pub(super) fn write(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>ztunnel: benchmark</title>\n<style>{STYLE}</style></head><body>\n<h1>What the mesh costs</h1>\n"
    );
    for line in report.about() {
        let _ = writeln!(page, "<p class=\"about\">{}</p>", escape(&line));
    }
    list(&mut page, "The machine was noisy", &report.noise);
    list(
        &mut page,
        "Failed, and in no figure",
        &report.measurements.failures,
    );
    losses(report, &mut page);
    targets(report, &mut page);
    for group in report.groups() {
        let _ = writeln!(page, "<h2>{}</h2>", escape(group));
        if let Some(note) = report.note(group) {
            let _ = writeln!(page, "<p class=\"about\">{}</p>", escape(&note));
        }
        for row in report.rows.iter().filter(|row| row.group == group) {
            figure(report, row, &mut page);
        }
    }
    page.push_str("</body></html>\n");
    page
}

fn list(page: &mut String, heading: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h2 class=\"bad\">{heading}</h2>\n<ul>");
    for line in lines {
        let _ = writeln!(page, "<li>{}</li>", escape(line));
    }
    page.push_str("</ul>\n");
}

fn losses(report: &Report, page: &mut String) {
    page.push_str("<h2>Where ours is worse</h2>\n");
    let losses = report.losses();
    if losses.is_empty() {
        page.push_str("<p>Nowhere, as far as the rounds can tell.</p>\n");
    }
    let mut shown: Vec<&Row> = Vec::new();
    for loss in &losses {
        let _ = writeln!(
            page,
            "<p class=\"bad\">{}, {}: {} times worse than {}</p>",
            escape(&loss.row.group),
            escape(&loss.row.name),
            short(loss.times),
            loss.to.name()
        );
        // Once, also if it lost to both.
        if !shown.iter().any(|row| std::ptr::eq(*row, loss.row)) {
            shown.push(loss.row);
            picture(report, loss.row, page);
        }
    }
}

fn targets(report: &Report, page: &mut String) {
    page.push_str("<h2>Targets</h2>\n<table><tr><th></th><th>ours</th><th>bar; aim</th><th></th><th>ours / Envoy TCP</th><th>bar; aim</th><th></th></tr>\n");
    for row in &report.rows {
        let Some(target) = row.target else { continue };
        let verdict = Verdict::of(row);
        let ratio = target
            .of_envoy
            .and(row.ratio(Who::Ours, Who::EnvoyTcp))
            .map_or_else(String::new, |ratio| {
                format!(
                    "{} ({} to {})",
                    short(ratio.median),
                    short(ratio.low),
                    short(ratio.high)
                )
            });
        let _ = writeln!(
            page,
            "<tr><td>{}: {}, {}</td><td>{}</td><td>{}</td>{}<td>{ratio}</td><td>{}</td>{}</tr>",
            escape(&row.group),
            escape(&row.name),
            row.unit,
            row.summary(Who::Ours)
                .map_or("not measured".to_owned(), |s| short(s.median)),
            limits(Some(target.absolute)),
            met(verdict.as_ref().map(|v| v.absolute)),
            limits(target.of_envoy),
            met(verdict.as_ref().and_then(|v| v.of_envoy)),
        );
    }
    for (what, place) in ELSEWHERE {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td colspan=\"6\">{}</td></tr>",
            escape(what),
            escape(place)
        );
    }
    page.push_str("</table>\n");
}

fn figure(report: &Report, row: &Row, page: &mut String) {
    let _ = writeln!(page, "<h3>{}, {}</h3>", escape(&row.name), row.unit);
    picture(report, row, page);
}

fn picture(report: &Report, row: &Row, page: &mut String) {
    match plot::svg(row, &report.columns) {
        Some(svg) => {
            let _ = writeln!(page, "{svg}");
        }
        None => page.push_str("<p>nothing above zero was measured</p>\n"),
    }
}

fn limits(limits: Option<Limits>) -> String {
    limits.map_or_else(String::new, |l| format!("{}; {}", l.bar, l.aim))
}

fn met(met: Option<Met>) -> String {
    let class = match met {
        None => return "<td></td>".to_owned(),
        Some(Met::Missed) => "bad",
        Some(_) => "good",
    };
    format!("<td class=\"{class}\">{}</td>", met.map_or("", Met::text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
h2 { margin-top: 2em; border-bottom: 1px solid #ccc } h3 { margin: 1em 0 .2em; font-size: 1em }
.about { margin: .2em 0; color: #555 } .bad { color: #b3261e } .good { color: #1b6e3c }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: .2em .6em; text-align: left }
svg { display: block; max-width: 100%; height: auto; font-size: 12px }
.bare { fill: #b8bec6 } .ours { fill: #5b8def } .tcp { fill: #e9a15b } .http { fill: #d9776c }
.spread { stroke: #222; stroke-width: 1.5 } circle { fill: #222; fill-opacity: .55 }
";

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn the_page_is_whole_by_itself_and_shows_losses_first() {
        let page = example().html();
        for elsewhere in ["http://", "https://", "src=", "<script", "@import", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text}"));
        assert!(at("Where ours is worse") < at("<h2>Targets"));
        assert!(at("<h2>Targets") < at("<h2>bulk, 1 connection"));
        assert!(page.contains("&lt;new&gt; connections"));
        for tag in ["svg", "table", "body", "h2", "h3", "p"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
