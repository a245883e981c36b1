//! Finds the compiled eBPF programs, which `cargo xtask build` puts into `<target>/bpf`.

use std::env;
use std::path::PathBuf;
use std::process::exit;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    // <target>[/<triple>]/<profile>/build/<package>/out
    let Some(objects) = out
        .ancestors()
        .skip(4)
        .take(2)
        .map(|dir| dir.join("bpf"))
        .find(|dir| dir.is_dir())
    else {
        println!("cargo::error=the eBPF programs are not built yet: run `cargo xtask build`");
        exit(1);
    };
    println!("cargo::rerun-if-changed={}", objects.display());
    println!("cargo::rustc-env=ZTUNNEL_BPF_OBJECTS={}", objects.display());
}
