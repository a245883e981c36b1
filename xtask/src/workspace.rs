//! Where things are: the repository, the target directory, and cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{Failure, Outcome};

pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Outcome<Self> {
        let root = env::var_os("CARGO_MANIFEST_DIR")
            .and_then(|dir| Path::new(&dir).parent().map(PathBuf::from))
            .ok_or_else(|| Failure::new("run me as `cargo xtask`, not directly"))?;
        // Cargo takes a relative one from where it was started, and so do we.
        let target = match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => std::path::absolute(&dir).map_err(|err| {
                Failure::new(format!("CARGO_TARGET_DIR={}: {err}", dir.display()))
            })?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    pub(crate) fn target(&self, below: &str) -> PathBuf {
        self.target.join(below)
    }

    /// Tools that we build for ourselves, so that nothing of the user's is changed.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target("tools")
    }

    /// The cargo that runs us, at the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(describes_xtask) {
                cargo.env_remove(name);
            }
        }
        cargo.env("CARGO_TARGET_DIR", &self.target);
        cargo
    }

    /// A cargo of another toolchain: nothing that rustup or the outer cargo set may reach it.
    pub(crate) fn foreign_cargo(&self, cargo: &Path, rustc: &Path) -> Command {
        let mut command = Command::new(cargo);
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| describes_xtask(name) || chooses_toolchain(name))
            {
                command.env_remove(name);
            }
        }
        command.env("RUSTC", rustc);
        command
    }
}

/// Set by `cargo run` for the program it runs.
fn describes_xtask(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || ["CARGO", "CARGO_BIN_NAME", "CARGO_CRATE_NAME"].contains(&name)
}

/// Would change which compiler runs, or what it makes. `LD_LIBRARY_PATH` leads to the libraries of the outer
/// toolchain, and two compilers with the same LLVM major call theirs by the same name.
fn chooses_toolchain(name: &str) -> bool {
    [
        "RUSTUP_",
        "RUSTC",
        "RUSTDOC",
        "CARGO_BUILD_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_UNSTABLE_",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
        || [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_INCREMENTAL",
            "LD_LIBRARY_PATH",
        ]
        .contains(&name)
}
