//! `cargo xtask test`: all that CI asks, in the order in which it fails fastest.
//!
//! Every step selects the same crates with the same flags, so that nothing is compiled for one step and again,
//! with other features, for the next.

use std::process::Command;
use std::time::Instant;

use crate::build::{self, Profile};
use crate::shell::{self, Outcome};
use crate::{setup, workspace::Workspace};

pub(crate) fn test(workspace: &Workspace) -> Outcome {
    let mut steps = Steps {
        began: Instant::now(),
        number: 0,
    };
    let cargo = |args: &[&str]| {
        let mut cargo = workspace.cargo();
        cargo.args(args);
        cargo
    };
    steps.announce("setup");
    let bpf = setup::setup(workspace)?;
    setup::browser()?;
    setup::envoy(workspace)?;
    // `--all` reaches ebpf/programs too, which is not a default member.
    steps.run("format", cargo(&["fmt", "--all", "--check"]))?;
    steps.announce("eBPF programs");
    build::programs(workspace, &bpf)?;
    steps.announce("build");
    build::daemon(workspace, Profile::Dev)?;
    steps.run(
        "clippy",
        cargo(&[
            "clippy",
            "--locked",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    steps.run(
        "unit tests",
        cargo(&["test", "--locked", "--lib", "--bins", "--", "--quiet"]),
    )?;
    steps.run(
        "end-to-end tests",
        cargo(&["test", "--locked", "--test", "*"]),
    )?;
    println!(
        "\n== all {} steps passed in {} s",
        Steps::COUNT,
        steps.began.elapsed().as_secs()
    );
    Ok(())
}

struct Steps {
    began: Instant,
    number: usize,
}

impl Steps {
    const COUNT: usize = 7;

    fn announce(&mut self, name: &str) {
        self.number += 1;
        println!(
            "\n== {}/{} {name} ({} s)",
            self.number,
            Self::COUNT,
            self.began.elapsed().as_secs()
        );
    }

    fn run(&mut self, name: &str, mut command: Command) -> Outcome {
        self.announce(name);
        shell::show(&mut command)
            .map_err(|failure| failure.hint(format!("that was step {}: {name}", self.number)))
    }
}
