//! `cargo xtask`: everything a developer or CI does with this repository, behind one command.
//!
//! Standard library only, so that the first thing anybody runs compiles in a second. It does what a careful person
//! would type by hand and prints the command whenever one fails.

mod bench;
mod build;
mod demo;
mod setup;
mod shell;
mod test;
mod workspace;

use std::process::ExitCode;

use shell::{Failure, Outcome};
use workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask <command>

  setup              install what building and testing needs (Debian, as root); quick when nothing is missing
  build [--release]  compile the eBPF programs, then the workspace
  demo [--keep]      setup, build, then one request with and without the mesh, and what was on the wire
  demo --picture FILE [--dark] [--width PIXELS]
                     setup, build, then a picture of the page of a node in a small mesh (deploy/page.png)
  test               setup, build, format check, clippy, unit tests, end-to-end tests
  bench [--quick]    release build, then what the mesh costs beside no mesh and Envoy sidecars; --help for more
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nxtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Outcome {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if matches!(args[..], [] | ["help" | "--help" | "-h"]) {
        print!("{USAGE}");
        return Ok(());
    }
    let workspace = Workspace::find()?;
    match args[..] {
        ["setup"] => {
            setup::setup(&workspace)?;
            setup::browser()?;
            setup::envoy(&workspace)?;
            println!("setup: everything is in place");
            Ok(())
        }
        ["build"] => build::build(&workspace, build::Profile::Dev),
        ["build", "--release"] => build::build(&workspace, build::Profile::Release),
        ["demo", ref options @ ..] => demo::demo(&workspace, options),
        ["test"] => test::test(&workspace),
        ["bench", ref options @ ..] => bench::bench(&workspace, options),
        _ => Err(Failure::new(format!(
            "unknown: {}\n\n{USAGE}",
            args.join(" ")
        ))),
    }
}
