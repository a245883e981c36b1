//! The `ztunnel` binary.
#[expect(dead_code, reason = "the wiring of the daemon follows")]
mod config;

fn main() {}
