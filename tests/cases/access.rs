//! The access log of a daemon: one line for each connection, when it has ended.

use std::thread;
use std::time::{Duration, Instant};

use lab::Node;

/// How long a line may take to be written after the connection's end was seen.
const WRITTEN: Duration = Duration::from_secs(10);

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Access(String);

impl Access {
    /// The value of a field; empty when the line has no such field.
    pub(crate) fn field(&self, name: &str) -> &str {
        let starts = [format!(" {name}="), format!("\t{name}=")];
        let rest = starts.iter().find_map(|start| self.0.split_once(start));
        let Some((_, rest)) = rest else {
            return "";
        };
        match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or_default(),
            None => rest.split(' ').next().unwrap_or_default(),
        }
    }

    fn says(&self, fields: &[(&str, &str)]) -> bool {
        fields
            .iter()
            .all(|&(name, expected)| self.field(name) == expected)
    }

    /// Whether it has the text, wherever.
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.0.contains(text)
    }
}

/// All lines so far that say this.
pub(crate) fn lines(node: &Node, fields: &[(&str, &str)]) -> Vec<Access> {
    let log = node.log();
    let lines = log.lines().filter(|line| line.contains("\taccess\t"));
    let lines = lines.map(|line| Access(line.to_owned()));
    lines.filter(|line| line.says(fields)).collect()
}

/// Waits for the first line that says this.
///
/// # Panics
/// When none does in time.
pub(crate) fn line(node: &Node, fields: &[(&str, &str)]) -> Access {
    let deadline = Instant::now() + WRITTEN;
    loop {
        if let Some(line) = lines(node, fields).into_iter().next() {
            return line;
        }
        assert!(
            Instant::now() < deadline,
            "{} has no line with {fields:?}, only {:#?}",
            node.name(),
            lines(node, &[])
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `done`.
///
/// # Panics
/// When that takes too long.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WRITTEN;
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
