//! Running commands, and saying which one failed, how, and how to repeat it.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// What went wrong, ready to be read by a person.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Adds what the person can do about it.
    pub(crate) fn hint(self, hint: impl fmt::Display) -> Self {
        Self(format!("{}\n{hint}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs a command whose output the person reads as it comes.
pub(crate) fn show(command: &mut Command) -> Outcome {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|err| Failure::new(format!("cannot run `{}`: {err}", line(command))))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "failed ({status})\nrepeat it with: {}",
        line(command)
    )))
}

/// Runs a command whose output matters only when it fails; returns what it printed to standard output.
pub(crate) fn quiet(command: &mut Command) -> Outcome<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|err| Failure::new(format!("cannot run `{}`: {err}", line(command))))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let status = output.status;
    Err(Failure::new(format!(
        "`{}` failed ({status}):\n{}",
        line(command),
        tail(&output)
    )))
}

fn tail(output: &Output) -> String {
    const LINES: usize = 20;
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    let all = String::from_utf8_lossy(&all);
    let lines: Vec<&str> = all.lines().filter(|line| !line.trim().is_empty()).collect();
    let skipped = lines.len().saturating_sub(LINES);
    lines[skipped..]
        .iter()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let env = command.get_envs().filter_map(|(name, value)| {
        // Every command has it, and a person who set it has it too.
        (name != "CARGO_TARGET_DIR").then_some(())?;
        Some(format!("{}={}", name.display(), quote(value?)))
    });
    let program = Path::new(command.get_program());
    // Ours is the cargo that the person typed. Any other is meant by its path.
    let program = match std::env::var_os("CARGO") {
        Some(ours) if program == Path::new(&ours) => "cargo".into(),
        _ => quote(program.as_os_str()),
    };
    let args = command.get_args().map(quote);
    env.chain([program])
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    // The separator of CARGO_ENCODED_RUSTFLAGS is a control character, which only this quoting can spell.
    format!(
        "$'{}'",
        word.replace('\\', "\\\\")
            .replace('\'', "\\'")
            .replace('\x1f', "\\x1f")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named_with_the_end_of_its_output() {
        let failure = quiet(Command::new("sh").args(["-c", "seq 30; echo broken >&2; exit 7"]));
        let text = failure.expect_err("it exits with 7").to_string();
        assert!(
            text.starts_with("`sh -c $'seq 30; echo broken >&2; exit 7'` failed (exit status: 7)"),
            "{text}"
        );
        assert!(text.ends_with("  | 30\n  | broken"), "{text}");
        assert!(!text.contains("  | 11\n"), "{text}");
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/usr/bin/cargo");
        command
            .args(["build", "it's"])
            .env("FLAGS", "-C\x1fx")
            .env_remove("OTHER");
        assert_eq!(
            line(&command),
            r"FLAGS=$'-C\x1fx' /usr/bin/cargo build $'it\'s'"
        );
    }
}
