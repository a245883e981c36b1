//! The `ztunnel` binary: the node daemon, and the commands that talk to a running one.

mod admin;
mod cli;
mod config;
mod run;
mod scraped;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
