//! The `ztunnel` binary: the node daemon, and the commands that talk to a running one.

mod admin;
mod cli;
mod config;
mod run;
mod scraped;

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Gives memory back after load, which glibc's allocator does not, and can tell who holds what (`/debug/pprof/heap`). Its
/// settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
