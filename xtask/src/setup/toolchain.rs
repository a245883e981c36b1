//! A Rust toolchain that can compile for the kernel.
//!
//! No toolchain brings a compiled `core` for `bpfel-unknown-none`; it needs the sources, and permission for
//! `-Z build-std`. Debian packages both (`RUSTC_BOOTSTRAP=1` is the permission). A toolchain of rustup's with the
//! component `rust-src` does as well, where Debian's packages cannot be had.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, Failure};

pub(super) const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "cargo-web"];

pub(crate) struct Toolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// The linker for the programs must be made with the same one.
    pub(crate) llvm_major: u32,
}

impl Toolchain {
    pub(super) fn find() -> Option<Self> {
        let mut places = vec![PathBuf::from("/usr")];
        places.extend(rustup_toolchains());
        places.iter().find_map(|place| Self::at(place))
    }

    fn at(sysroot: &Path) -> Option<Self> {
        if !sysroot
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
        {
            return None;
        }
        let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
        let mut version = Command::new(&rustc);
        version
            .arg("-vV")
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("RUSTUP_TOOLCHAIN");
        let version = shell::quiet(&mut version).ok()?;
        let llvm_major = usable_llvm(&version)?;
        cargo.exists().then_some(Self {
            cargo,
            rustc,
            llvm_major,
        })
    }
}

fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let Some(entries) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// The LLVM major of a compiler that is new enough for this workspace.
fn usable_llvm(version: &str) -> Option<u32> {
    let field = |name: &str| {
        version
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let wanted = numbers(env!("CARGO_PKG_RUST_VERSION"));
    if numbers(field("release:")?) < wanted {
        return None;
    }
    numbers(field("LLVM version:")?).first().copied()
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split(['.', '-'])
        .map_while(|part| part.parse().ok())
        .collect()
}

pub(super) fn none() -> Failure {
    Failure::new(format!(
        "no toolchain can compile the eBPF programs: it takes rustc {} or newer with the sources of `core`",
        env!("CARGO_PKG_RUST_VERSION")
    ))
    .hint(format!("Debian has them in {} (security updates must be among the package sources)", PACKAGES.join(", ")))
    .hint("elsewhere, `rustup component add rust-src` gives them to the toolchain that rustup manages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_major_is_read_from_the_compiler() {
        let text =
            |release: &str| format!("rustc {release}\nrelease: {release}\nLLVM version: 22.1.8\n");
        assert_eq!(usable_llvm(&text("1.96.0")), Some(22));
        assert_eq!(usable_llvm(&text("1.97.0-nightly")), Some(22));
        assert_eq!(usable_llvm(&text("1.95.0")), Some(22));
        assert_eq!(usable_llvm(&text("1.85.0")), None);
        assert_eq!(usable_llvm("not a compiler"), None);
    }
}
