//! `cargo xtask build`: the eBPF programs first, since the daemon carries them inside, then the workspace.

use std::fs;
use std::path::Path;

use crate::setup::{self, Bpf};
use crate::shell::{self, Failure, Outcome};
use crate::workspace::Workspace;

const TARGET: &str = "bpfel-unknown-none";
/// The binaries of package `ztunnel-bpf`, each an object that the kernel loads.
const PROGRAMS: [&str; 2] = ["node", "pod"];

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

pub(crate) fn build(workspace: &Workspace, profile: Profile) -> Outcome {
    let bpf = setup::setup(workspace)?;
    programs(workspace, &bpf)?;
    daemon(workspace, profile)
}

/// `<target>/bpf/<program>.o`, always optimized: the verifier counts instructions.
pub(crate) fn programs(workspace: &Workspace, bpf: &Bpf) -> Outcome {
    let out = workspace.target("bpf-build");
    let linker = format!("linker={}", bpf.linker.display());
    // BTF is made from the debug information; without it neither maps nor programs tell the kernel their types.
    let flags = ["-C", "debuginfo=2", "-C", "link-arg=--btf", "-C", &linker].join("\x1f");
    let mut cargo = workspace.foreign_cargo(&bpf.toolchain.cargo, &bpf.toolchain.rustc);
    cargo
        .args([
            "build",
            "--package",
            "ztunnel-bpf",
            "--release",
            "--locked",
            "--target",
            TARGET,
        ])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&out)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // The release profile of the workspace is made for the daemon.
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    shell::show(&mut cargo)
        .map_err(|failure| failure.hint("these are the eBPF programs in ebpf/programs"))?;
    for name in PROGRAMS {
        let built = out.join(TARGET).join("release").join(name);
        place(&built, &workspace.target("bpf").join(format!("{name}.o")))?;
    }
    Ok(())
}

pub(crate) fn daemon(workspace: &Workspace, profile: Profile) -> Outcome {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    shell::show(&mut cargo)
}

/// Copies when the content differs, so that cargo sees a change only where there is one.
fn place(from: &Path, to: &Path) -> Outcome {
    let failed = |err| {
        Failure::new(format!(
            "cannot copy {} to {}: {err}",
            from.display(),
            to.display()
        ))
    };
    let new = fs::read(from).map_err(failed)?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    // A build that reads it now must see the old one or the new one whole.
    let partial = to.with_extension("partial");
    fs::write(&partial, new).map_err(failed)?;
    fs::rename(&partial, to).map_err(failed)
}
