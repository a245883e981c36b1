//! The `ztunnel` binary.
fn main() {}
