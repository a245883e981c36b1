//! The page: what ours is worse at first, then the targets, then a picture of every figure. One file.

use std::fmt::Write as _;

use super::{Report, plot, short, sizing};
use crate::contestants::Who;
use crate::rows::{Better, Row};
use crate::targets::{ELSEWHERE, Limits, Met};

pub(super) fn write(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>ztunnel: benchmark</title>\n<style>{STYLE}</style></head><body>\n<h1>What the mesh costs</h1>\n"
    );
    doubts(report, &mut page);
    losses(report, &mut page);
    targets(report, &mut page);
    sizing(report, &mut page);
    page.push_str("<h2>How it was measured</h2>\n");
    for line in report.about() {
        let _ = writeln!(page, "<p class=\"about\">{}</p>", text(&line));
    }
    list(&mut page, NOISE, &report.noise);
    list(&mut page, FAILURES, &report.measurements.failures);
    for group in report.groups() {
        let _ = writeln!(page, "<h2>{}</h2>", escape(group));
        if let Some(note) = report.note(group) {
            let _ = writeln!(page, "<p class=\"about\">{}</p>", text(&note));
        }
        for row in report.rows.iter().filter(|row| row.group == group) {
            figure(report, row, &mut page);
        }
    }
    page.push_str("</body></html>\n");
    page
}

/// Identifier and heading of what is wrong with the run.
const NOISE: (&str, &str) = ("noise", "The machine was noisy");
const FAILURES: (&str, &str) = ("failures", "Failed, and in no figure");

/// What to know before any figure, in a line; what it means stands below.
fn doubts(report: &Report, page: &mut String) {
    let all = [
        (NOISE, report.noise.len()),
        (FAILURES, report.measurements.failures.len()),
    ];
    for ((id, heading), count) in all.into_iter().filter(|(_, count)| *count > 0) {
        let _ = writeln!(
            page,
            "<p class=\"doubt\">{heading}: <a href=\"#{id}\">{count}, see below</a></p>"
        );
    }
    let _ = writeln!(
        page,
        "<p class=\"about\">In pictures: a bar to the median, a line from the lowest to the highest, a dot for each of \
         {} rounds. Figures: median (lowest to highest).</p>",
        report.plan.rounds
    );
}

fn list(page: &mut String, (id, heading): (&str, &str), lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h2 class=\"bad\" id=\"{id}\">{heading}</h2>\n<ul>");
    for line in lines {
        let _ = writeln!(page, "<li>{}</li>", text(line));
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
            "<p class=\"bad\">{}, {}, {}: {} times worse than {}</p>",
            escape(&loss.row.group),
            escape(&loss.row.name),
            loss.row.unit,
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
    page.push_str("<h2>Targets</h2>\n<p class=\"about\">The bar must be met, the aim is worth days. Where there is a ratio, it decides.</p>\n");
    page.push_str("<div class=\"wide\"><table><tr><th></th><th>ours</th><th>bar; aim</th><th></th><th>ours / Envoy TCP</th><th>bar; aim</th><th></th></tr>\n");
    for (row, target, verdict) in report.with_target() {
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
            "<tr><td>{}: {}, {}</td><td>{}</td><td class=\"limits\">{}</td>{}<td>{ratio}</td><td class=\"limits\">{}</td>{}</tr>",
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
            text(place)
        );
    }
    page.push_str("</table></div>\n");
}

fn sizing(report: &Report, page: &mut String) {
    let needs = sizing::needs(report);
    if needs.is_empty() {
        return;
    }
    page.push_str("<h2>What a proxy of ours needs</h2>\n<p class=\"about\">Traffic between two nodes needs it at both.</p>\n");
    page.push_str("<div class=\"wide\"><table>\n");
    for need in needs {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{} {}</td></tr>",
            escape(&need.what),
            short(need.of),
            need.unit
        );
    }
    let (what, place) = sizing::ELSEWHERE;
    let _ = writeln!(
        page,
        "<tr><td>{}</td><td>{}</td></tr>",
        escape(what),
        text(place)
    );
    page.push_str("</table></div>\n");
}

fn figure(report: &Report, row: &Row, page: &mut String) {
    let better = match row.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
    };
    let _ = writeln!(
        page,
        "<h3>{}, {} <small>{better}</small></h3>",
        escape(&row.name),
        row.unit
    );
    picture(report, row, page);
}

fn picture(report: &Report, row: &Row, page: &mut String) {
    match plot::html(row, &report.columns) {
        Some(plot) => {
            let _ = writeln!(page, "{plot}");
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

/// With what stands between backquotes as code.
fn text(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(|(at, part)| match at % 2 {
            0 => escape(part),
            _ => format!("<code>{}</code>", escape(part)),
        })
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const STYLE: &str = "
:root { color-scheme: light dark; --page: #fff; --ink: #222; --soft: #5a5f66; --line: #ccd0d5; --bad: #b3261e; --good: #1b6e3c;
  --bare: #b8bec6; --ours: #5b8def; --tcp: #e9a15b; --http: #d9776c; --track: #f3f4f6 }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e4e6ea; --soft: #a3a9b3; --line: #3a3f47; --bad: #ff8a80;
  --good: #7fd6a0; --bare: #6b7380; --ours: #4f7fdc; --tcp: #b8742f; --http: #b4554b; --track: #22262c } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: var(--ink); background: var(--page); overflow-wrap: anywhere }
h2 { margin: 2em 0 .6em; border-bottom: 1px solid var(--line) } h3 { margin: 1.2em 0 .3em; font-size: 1em }
small, .about { color: var(--soft) } small { font-weight: normal; margin-left: .5em } .about { margin: .2em 0 }
.bad { color: var(--bad) } .good { color: var(--good) } a { color: inherit }
.doubt { color: var(--bad); border: 1px solid; border-radius: 4px; padding: .3em .7em; margin: .6em 0 }
.wide { overflow-x: auto; margin-top: .6em } table { border-collapse: collapse; overflow-wrap: normal }
td, th { border: 1px solid var(--line); padding: .2em .6em; text-align: left } td:first-child { min-width: 11em } td.good, td.bad, td.limits { white-space: nowrap }
.plot { display: grid; grid-template-columns: 6em minmax(6em, 1fr) minmax(4em, 13em); column-gap: .7em; align-items: center; font-size: 13px; max-width: 52em }
.plot > span:nth-child(3n+1) { text-align: right; white-space: nowrap } .plot > span { font-variant-numeric: tabular-nums }
.plot svg { display: block; width: 100%; background: var(--track); overflow: visible }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: 12px } .axis i { font-style: normal } .axis .bad::before { content: \"\\250a \" }
.bare { fill: var(--bare) } .ours { fill: var(--ours) } .tcp { fill: var(--tcp) } .http { fill: var(--http) }
.spread { stroke: var(--ink); stroke-width: 1.5 } .bar { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 3 2 } circle { fill: var(--ink); fill-opacity: .6 }
@media (max-width: 30em) { .plot { grid-template-columns: 6em 1fr 5.5em } table { font-size: 12px } td, th { padding: .2em .35em } }
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
        assert!(
            page.contains("href=\"#failures\">1, see below</a>")
                && page.contains("id=\"failures\"")
        );
        for tag in [
            "svg", "div", "span", "code", "table", "body", "h2", "h3", "p",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
