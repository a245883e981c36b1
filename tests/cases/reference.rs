//! The reference of metrics in `deploy/`, read as a person would.

use std::collections::{BTreeMap, BTreeSet};

/// By name.
pub(crate) struct Reference(pub(crate) BTreeMap<String, Family>);

pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) labels: BTreeSet<String>,
    /// Names the values of labels, where they are few.
    pub(crate) help: String,
}

impl Reference {
    pub(crate) fn read() -> Self {
        let text = include_str!("../../deploy/metrics.md");
        let (_, traffic) = text.split_once("\n## The labels called traffic\n").unwrap();
        let traffic = quoted(traffic.trim_start().lines().next().unwrap());
        let rows = text.lines().filter(|line| line.starts_with("| `"));
        let family = |row: &str| {
            let cells: Vec<_> = row.split(" | ").collect();
            let [name, kind, labels, _, help] = cells[..] else {
                panic!("{row}");
            };
            let labels = match labels {
                "traffic" => traffic.clone(),
                labels => quoted(labels),
            };
            let kind = kind.to_owned();
            let name = quoted(name).pop_first().unwrap();
            let help = help.to_owned();
            (name, Family { kind, labels, help })
        };
        Self(rows.map(family).collect())
    }

    /// The family that a series belongs to.
    pub(crate) fn of(&self, series: &str) -> Option<(&str, &Family)> {
        let parts = ["", "_bucket", "_sum", "_count"];
        parts.iter().find_map(|part| {
            let (name, family) = self.0.get_key_value(series.strip_suffix(part)?)?;
            (part.is_empty() != (family.kind == "histogram")).then_some((name.as_str(), family))
        })
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}
