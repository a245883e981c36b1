//! Runs `ip -batch` inside a namespace: one process for any number of changes.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::Namespace;
use crate::error::{Doing, LabError, Result};

/// Carries out `lines`, one `ip` command each, and stops at the first that fails.
pub(crate) fn ip_batch(ns: &Namespace, lines: &str) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let batch = lines.to_owned();
    let output = ns
        .on_keeper(move || {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            // `ip` reads all of it before it could fill the pipe of its own messages: it stops at the
            // first failure.
            if let Some(mut stdin) = child.stdin.take() {
                drop(stdin.write_all(batch.as_bytes()));
            }
            child.wait_with_output()
        })?
        .doing(|| format!("run ip in {} (is iproute2 installed?)", ns.name()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let line = said
        .rsplit_once("-:")
        .and_then(|(_, number)| number.trim().parse::<usize>().ok())
        .and_then(|number| lines.lines().nth(number.saturating_sub(1)))
        .unwrap_or("unknown line");
    Err(LabError::new(format!(
        "`ip {line}` failed in {}: {said}",
        ns.name()
    )))
}

/// What an `ip` command prints.
pub(crate) fn ip_output(ns: &Namespace, args: &'static [&'static str]) -> Result<String> {
    let output = ns
        .on_keeper(move || Command::new("ip").args(args).stdin(Stdio::null()).output())?
        .doing(|| format!("run ip in {} (is iproute2 installed?)", ns.name()))?;
    if !output.status.success() {
        return Err(LabError::new(format!(
            "`ip {}` failed in {}: {}",
            args.join(" "),
            ns.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
