//! `bpf-linker`, built for the LLVM of the compiler whose output it links.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::apt::{self, Installed};
use super::toolchain::Toolchain;
use crate::shell::{self, Failure, Outcome};
use crate::workspace::Workspace;

const VERSION: &str = "0.13.0";
/// The LLVM majors it has a feature for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

pub(super) fn ensure(
    workspace: &Workspace,
    toolchain: &Toolchain,
    installed: &Installed,
) -> Outcome<PathBuf> {
    let major = toolchain.llvm_major;
    let tools = workspace.tools();
    let linker = tools.join("bin/bpf-linker");
    let stamp = tools.join("bpf-linker.stamp");
    let wanted = format!("{VERSION} llvm-{major}\n");
    // It loads LLVM when it starts, so it stops working when that library is removed.
    let works = || shell::quiet(Command::new(&linker).arg("--version")).is_ok();
    if fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) && works() {
        return Ok(linker);
    }
    if !LLVM.contains(&major) {
        return Err(Failure::new(format!(
            "{} uses LLVM {major}, and bpf-linker {VERSION} knows LLVM {} to {} only",
            toolchain.rustc.display(),
            LLVM.start(),
            LLVM.end()
        ))
        .hint(
            "a newer bpf-linker may know it: raise VERSION and LLVM in xtask/src/setup/linker.rs",
        ));
    }
    let (llvm, polly) = (format!("llvm-{major}-dev"), format!("libpolly-{major}-dev"));
    let headers = [
        "libzstd-dev",
        "zlib1g-dev",
        "libxml2-dev",
        "libffi-dev",
        "g++",
    ];
    apt::install(&installed.lacks(&[&[&*llvm, &*polly], &headers[..]].concat()))?;

    println!("setup: building bpf-linker {VERSION} for LLVM {major} (about a minute)");
    let prefix = format!("/usr/lib/llvm-{major}");
    let build = tools.join("bpf-linker-build");
    let mut cargo = workspace.cargo();
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{major}"),
        ])
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(&build)
        .env("LLVM_PREFIX", &prefix)
        // The variable of llvm-sys carries the minor version too, which is 1 in every LLVM since 18.
        .env(format!("LLVM_SYS_{major}1_PREFIX"), &prefix);
    shell::quiet(&mut cargo)?;
    if !works() {
        return Err(Failure::new(format!(
            "{} was built, but does not run",
            linker.display()
        )));
    }
    let written = fs::write(&stamp, wanted);
    written.map_err(|err| Failure::new(format!("cannot write {}: {err}", stamp.display())))?;
    // Only the program is wanted. Left there, it costs space and nothing else.
    let _ = fs::remove_dir_all(&build);
    Ok(linker)
}
