//! `cargo xtask bench`: builds everything as it is shipped, fetches Envoy, and becomes the benchmark.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::build::{self, Profile};
use crate::setup;
use crate::shell::{Failure, Outcome};
use crate::workspace::Workspace;

pub(crate) fn bench(workspace: &Workspace, args: &[&str]) -> Outcome {
    build::build(workspace, Profile::Release)?;
    let program = workspace.target("release/bench");
    let mut bench = Command::new(&program);
    bench.args(args);
    match setup::redirection().and_then(|()| setup::envoy(workspace)) {
        Ok(envoy) => bench.arg("--envoy").arg(envoy),
        Err(failure) => {
            // Without a network the rest is still worth having; the report says why this is not in it.
            eprintln!("xtask: no Envoy: {failure}");
            let text = failure.to_string();
            let why = text.lines().next().unwrap_or("cannot be installed");
            bench.arg(format!("--no-envoy={why}"))
        }
    };
    let err = bench.exec();
    Err(Failure::new(format!(
        "cannot run {}: {err}",
        program.display()
    )))
}
