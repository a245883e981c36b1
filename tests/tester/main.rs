//! A TCP application whose every move is under the control of a test.
//!
//! `serve` offers all services on their ports and prints an event for each connection that a client ended.
//! `check` uses one service and prints one report. `hold` keeps a connection open and exchanges each line of its
//! standard input. Nothing waits for ever: a client is bound by its time limit, a server ends with its lab.

mod client;
mod connect;
mod forward;
mod pattern;
mod proxy_header;
mod read;
mod server;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use connect::Options;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Offer all services.
    Serve,
    /// Use one service and report.
    Check {
        to: SocketAddr,
        #[command(flatten)]
        options: Options,
    },
    /// Keep a connection to an echo service open.
    Hold {
        to: SocketAddr,
        #[command(flatten)]
        options: Options,
    },
    /// Carry connections on.
    Forward {
        listen: SocketAddr,
        to: Vec<SocketAddr>,
    },
}

fn main() -> ExitCode {
    match Args::parse().verb {
        Verb::Serve => server::serve(),
        Verb::Check { to, options } => client::check(to, options),
        Verb::Hold { to, options } => client::hold(to, options),
        Verb::Forward { listen, to } => forward::forward(listen, &to),
    }
}
