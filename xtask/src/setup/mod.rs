//! `cargo xtask setup`: whatever a fresh Debian machine with rustup lacks, and nothing it has.
//!
//! Looks before it acts, so a second run costs a few milliseconds, and a machine that has everything needs neither
//! root nor a network.

mod apt;
mod browser;
mod envoy;
mod linker;
mod toolchain;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, Failure, Outcome};
use crate::workspace::Workspace;
pub(crate) use browser::browser;
pub(crate) use envoy::{envoy, redirection};
pub(crate) use toolchain::Toolchain;

/// What compiles and links eBPF programs.
pub(crate) struct Bpf {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: PathBuf,
}

/// Programs of the end-to-end tests and of the build, with the package that brings each.
const PROGRAMS: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("nginx", "nginx-light"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
    ("gcc", "gcc"),
];

pub(crate) fn setup(workspace: &Workspace) -> Outcome<Bpf> {
    let installed = apt::Installed::read();
    let mut missing: Vec<String> = Vec::new();
    for (program, package) in PROGRAMS {
        if apt::program(program).is_none() {
            missing.push((*package).to_owned());
        }
    }
    let mut found = Toolchain::find();
    if found.is_none() {
        missing.extend(toolchain::PACKAGES.map(String::from));
    }
    missing.extend(installed.lacks(&["ca-certificates", "libc6-dev"]));
    apt::install(&missing)?;

    check_nginx()?;
    components()?;
    if found.is_none() {
        found = Toolchain::find();
    }
    let toolchain = found.ok_or_else(toolchain::none)?;
    let linker = linker::ensure(workspace, &toolchain, &installed)?;
    Ok(Bpf { toolchain, linker })
}

fn check_nginx() -> Outcome {
    let nginx = apt::program("nginx")
        .ok_or_else(|| Failure::new("nginx is installed but not to be found"))?;
    shell::quiet(Command::new(nginx).arg("-v")).map(drop)
}

/// `clippy` and `rustfmt` are missing from rustup's minimal profile.
fn components() -> Outcome {
    let cargo = env::var_os("CARGO").unwrap_or_default();
    for (program, component) in [("cargo-clippy", "clippy"), ("cargo-fmt", "rustfmt")] {
        if !Path::new(&cargo).with_file_name(program).exists() {
            println!("setup: adding {component} to the Rust toolchain");
            shell::quiet(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}
