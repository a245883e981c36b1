//! Compiles the `.proto` files without a `protoc`.

use std::error::Error;

const FILES: [&str; 5] = [
    "workload.proto",
    "authorization.proto",
    "citadel.proto",
    "discovery.proto",
    "zds.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
