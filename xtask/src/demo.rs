//! `cargo xtask demo`: builds what the demo needs and becomes the demo.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::build::{self, Profile};
use crate::setup;
use crate::shell::{Failure, Outcome};
use crate::workspace::Workspace;

pub(crate) fn demo(workspace: &Workspace, args: &[&str]) -> Outcome {
    build::build(workspace, Profile::Dev)?;
    if args.contains(&"--picture") {
        setup::browser()?;
    }
    let program = workspace.target("debug/demo");
    // In our place, so that an interrupt reaches it alone and the prompt comes back after it has cleaned up.
    let err = Command::new(&program).args(args).exec();
    Err(Failure::new(format!(
        "cannot run {}: {err}",
        program.display()
    )))
}
