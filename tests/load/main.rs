//! The load generator of the benchmark: a server and a client in one program, one thread each.
//!
//! What matters is that it takes little CPU, since client, server and two proxies share the machine's: plain sockets
//! and epoll, no allocation for a request, no byte looked at that need not be. The server's half of the protocol is
//! `GET /<length of the body>`.

mod client;
mod connection;
mod histogram;
mod server;
mod slow_reader;
mod steady;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::load::Load;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answers until it is killed.
    Serve { port: u16 },
    /// Asks for as long as the load says, and reports.
    Run { load: String },
    /// Opens connections, asks once on each; again when standard input ends.
    Hold { load: String },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve { port } => server::serve(port),
        Command::Run { load } => read(&load).and_then(run),
        Command::Hold { load } => read(&load).and_then(client::hold),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("load: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(load: Load) -> std::io::Result<()> {
    match (load.every, load.stall) {
        (Some(every), _) => steady::run(load, every),
        (None, Some(stall)) => slow_reader::run(load, stall),
        (None, None) => client::run(load),
    }
}

fn read(load: &str) -> std::io::Result<Load> {
    serde_json::from_str(load).map_err(std::io::Error::other)
}
