//! Debian packages: what is there, and installing what is not.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, Failure, Outcome};

/// The packages that dpkg calls installed. Empty where there is no dpkg.
pub(super) struct Installed(BTreeSet<String>);

impl Installed {
    pub(super) fn read() -> Self {
        let list = shell::quiet(Command::new("dpkg-query").args([
            "-W",
            "-f",
            "${db:Status-Status} ${Package}\n",
        ]));
        let list = list.unwrap_or_default();
        Self(
            list.lines()
                .filter_map(|line| line.strip_prefix("installed "))
                .map(String::from)
                .collect(),
        )
    }

    pub(super) fn lacks(&self, packages: &[&str]) -> Vec<String> {
        packages
            .iter()
            .filter(|name| !self.0.contains(**name))
            .map(|name| (*name).to_owned())
            .collect()
    }
}

/// Where a program is. A root shell does not always have the `sbin` folders in its path.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

pub(super) fn install(packages: &[String]) -> Outcome {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if program("apt-get").is_none() {
        return Err(Failure::new(format!("missing here, by their names in Debian: {names}"))
            .hint("setup knows how to install on Debian only: install these by hand, then run it again"));
    }
    if fs::metadata("/proc/self").map(|own| own.uid()).ok() != Some(0) {
        return Err(
            Failure::new(format!("missing packages: {names}")).hint(format!(
                "run `cargo xtask setup` as root, or: sudo apt-get install {names}"
            )),
        );
    }
    println!("setup: installing {names}");
    let _quiet = NoServices::enforce()?;
    // A fresh machine has no lists, an old one has lists of versions that are gone. One dead source among several
    // is no reason to stop: what counts is whether the packages can be had.
    let update = shell::quiet(apt_get().arg("update"));
    let install = shell::quiet(
        apt_get()
            .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
            .args(packages),
    );
    install.map(drop).map_err(|failure| match update {
        Err(update) => failure.hint(format!("before that, {update}")),
        Ok(_) => failure.hint(
            "check that the package sources (Debian's own, with security updates) are listed and can be reached;\n\
             if apt says that something must be removed first, that package conflicts: remove it and run setup again",
        ),
    })?;
    if packages.iter().any(|name| name.starts_with("nginx")) && program("systemctl").is_some() {
        // Only the tests start it, in namespaces of their own: it must not take port 80 at the next boot either.
        // Not all systems that have systemctl were booted by it.
        let _ = shell::quiet(Command::new("systemctl").args(["disable", "nginx.service"]));
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    apt
}

/// While this lives, installing a package starts no service: Debian asks `policy-rc.d` first.
struct NoServices(bool);

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str =
    "#!/bin/sh\n# Made by `cargo xtask setup` while it installs packages.\nexit 101\n";

impl NoServices {
    fn enforce() -> Outcome<Self> {
        let theirs = fs::read_to_string(POLICY).is_ok_and(|text| text != POLICY_TEXT);
        if !theirs {
            let failed = |err| Failure::new(format!("cannot write {POLICY}: {err}"));
            fs::write(POLICY, POLICY_TEXT).map_err(failed)?;
            fs::set_permissions(Path::new(POLICY), fs::Permissions::from_mode(0o755))
                .map_err(failed)?;
        }
        Ok(Self(!theirs))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.0
            && let Err(err) = fs::remove_file(POLICY)
        {
            eprintln!("setup: cannot remove {POLICY}, which keeps services from starting: {err}");
        }
    }
}
