//! The dashboard and the alerts in `deploy/`: all that they ask for is what daemons expose.

mod promql;

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use promql::{Known, Labels};

const DASHBOARD: &str = include_str!("../../../deploy/grafana/ztunnel.json");
const ALERTS: &str = include_str!("../../../deploy/alerts.yaml");
/// What every panel and every variable takes its values from.
const DATASOURCE: &str = "${datasource}";

/// The labels between braces: `{{label}}`, or `{{ $labels.label }}`.
fn mentioned(text: &str) -> Vec<&str> {
    let braces = text.split("{{").skip(1);
    let inside = braces.map(|rest| rest.split_once("}}").unwrap().0.trim());
    inside
        .filter(|inside| !inside.starts_with("$value"))
        .map(|inside| inside.strip_prefix("$labels.").unwrap_or(inside))
        .collect()
}

fn assert_mentions(place: &str, text: &str, labels: &Labels) {
    for label in mentioned(text) {
        assert!(labels.contains(label), "{place}: no {label} in {labels:?}");
    }
}

#[test]
fn expressions_that_ask_for_what_is_not_there_are_found() {
    let known = Known::read();
    let labels = known.check("sum by (reason) (rate(ztunnel_connections_total[5m])) > 0.1");
    assert_eq!(labels, Ok(Labels::from(["reason".to_owned()])));
    for (wrong, said) in [
        ("sum(", "unclosed"),
        ("rate(ztunnel_connection_total[5m])", "not in the reference"),
        ("ztunnel_connect_duration_seconds", "not in the reference"),
        ("ztunnel_ready_bucket", "not in the reference"),
        ("ztunnel_pods{mood=\"bad\"}", "no label mood"),
        ("ztunnel_pods{state=\"bad\"}", "never has state=bad"),
        (
            "ztunnel_connections_total{reason=~\"COMPLETE|COMPLET\"}",
            "never has reason=COMPLET",
        ),
        ("sum by (reason) (ztunnel_pods)", "there is no"),
        ("ztunnel_pods / ztunnel_ready", "is alike"),
        ("ztunnel_pods and on (state) ztunnel_ready", "there is no"),
        (
            "histogram_quantile(0.9, sum(rate(ztunnel_connect_duration_seconds_bucket[5m])))",
            "lost its buckets",
        ),
    ] {
        let err = known.check(wrong).expect_err(wrong);
        assert!(err.contains(said), "{wrong}: {err}");
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let known = Known::read();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: BTreeSet<_> = variables
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "namespace", "node"].into());
    for variable in variables.iter().filter(|v| v["type"] == "query") {
        assert_eq!(variable["datasource"]["uid"], DATASOURCE, "{variable}");
        let query = variable["query"]["query"].as_str().unwrap();
        let values = query.strip_prefix("label_values(").unwrap();
        let (metric, label) = values.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
        let labels = known.check(metric).unwrap();
        assert!(labels.contains(label), "{query}");
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id is there twice");
    let rows: Vec<_> = panels.iter().filter(|p| p["type"] == "row").collect();
    assert_eq!(rows.len(), 4);
    let mut occupied = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|at| panel["gridPos"][at].as_u64().unwrap());
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(
                cell.0 < 24 && occupied.insert(cell),
                "{title} lies on another"
            );
        }
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], DATASOURCE, "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], DATASOURCE, "{title}");
            let expr = target["expr"].as_str().unwrap();
            // Each of them looks at the nodes that were chosen.
            for chosen in ["namespace=~\"$namespace\"", "node=~\"$node\""] {
                assert!(expr.contains(chosen), "{title}: {expr}");
            }
            let expr = expr.replace("$__rate_interval", "5m");
            let labels = known.check(&expr);
            let labels = labels.unwrap_or_else(|err| panic!("{title}: {expr}: {err}"));
            assert_mentions(title, target["legendFormat"].as_str().unwrap(), &labels);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    lasting: Option<String>,
    labels: Severity,
    annotations: Annotations,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Severity {
    severity: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    summary: String,
    description: String,
}

#[test]
fn the_alerts_ask_for_what_there_is_and_say_what_to_do() {
    let known = Known::read();
    let rules: Rules = serde_saphyr::from_str(ALERTS).unwrap();
    let mut names = BTreeSet::new();
    assert_eq!(rules.groups.len(), 1);
    let Group { name, rules } = &rules.groups[0];
    assert_eq!(name, "ztunnel");
    for rule in rules {
        let alert = &*rule.alert;
        assert!(
            alert.starts_with("Ztunnel") && names.insert(alert),
            "{alert}"
        );
        let labels = known.check(&rule.expr);
        let labels = labels.unwrap_or_else(|err| panic!("{alert}: {}: {err}", rule.expr));
        let severities = ["critical", "warning", "info"];
        assert!(severities.contains(&&*rule.labels.severity), "{alert}");
        let lasting = rule.lasting.as_deref().unwrap_or("0m");
        let minutes: Result<u32, _> = lasting.trim_end_matches('m').parse();
        assert!(
            minutes.is_ok_and(|minutes| minutes <= 15),
            "{alert}: {lasting}"
        );
        let Annotations {
            summary,
            description,
        } = &rule.annotations;
        for text in [summary, description] {
            assert_mentions(alert, text, &labels);
        }
        // Where it is, and what to do there.
        assert!(
            mentioned(summary).contains(&"instance"),
            "{alert}: {summary}"
        );
        assert!(
            description.len() > 60 && description.ends_with('.'),
            "{alert}"
        );
    }
}
