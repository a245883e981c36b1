//! What the figures belong to: the machine, the programs, the commit.

use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::contestants::Envoy;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) machine: String,
    pub(crate) kernel: String,
    pub(crate) commit: String,
    pub(crate) envoy: String,
    pub(crate) command: String,
}

impl Facts {
    pub(crate) fn find(envoy: &Envoy) -> Self {
        let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let model = first_field("/proc/cpuinfo", "model name");
        let memory = first_field("/proc/meminfo", "MemTotal");
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            machine: format!("{processors} processors ({model}), {memory}"),
            kernel: format!("Linux {}", release.trim()),
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            envoy: match envoy {
                Envoy::At(program) => {
                    let version = said(&program.to_string_lossy(), &["--version"]);
                    let version = version.split_once("version:").map_or(&*version, |(_, v)| v);
                    version.trim().to_owned()
                }
                Envoy::Missing(why) => format!("none: {why}"),
            },
            command: command(std::env::args().skip(1)),
        }
    }

    pub(crate) fn lines(&self) -> [String; 3] {
        [
            format!("Machine: {}, {}.", self.machine, self.kernel),
            format!("Commit: {}. Command: `{}`.", self.commit, self.command),
            format!("Envoy: {}.", self.envoy),
        ]
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self::find(&Envoy::Missing("an example".to_owned()))
    }
}

/// As a person would type it: what `xtask` has added is not.
fn command(args: impl Iterator<Item = String>) -> String {
    let mut line = "cargo xtask bench".to_owned();
    let mut args = args;
    while let Some(arg) = args.next() {
        if arg == "--envoy" {
            args.next();
        } else if !arg.starts_with("--no-envoy") {
            line = line + " " + &arg;
        }
    }
    line
}

fn first_field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value
        .map_or("unknown", |(_, value)| value.trim())
        .to_owned()
}

/// What a program prints; empty when there is none.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_the_one_that_was_typed() {
        let shown = |args: &[&str]| command(args.iter().map(|&arg| arg.to_owned()));
        assert_eq!(
            shown(&["--quick", "--envoy", "/x/envoy", "--rounds", "2"]),
            "cargo xtask bench --quick --rounds 2"
        );
        assert_eq!(shown(&["--no-envoy=no network"]), "cargo xtask bench");
    }
}
