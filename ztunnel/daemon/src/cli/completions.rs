//! `ztunnel completions`: what a shell needs to complete the command line.

use std::process::ExitCode;

use clap::{CommandFactory as _, ValueEnum};
use clap_complete::generate;

use super::{Cli, print};

/// Print what a shell needs to complete this command.
///
/// Example: ztunnel completions bash > /etc/bash_completion.d/ztunnel
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "ztunnel", &mut script);
    print(String::from_utf8_lossy(&script).trim_end());
    ExitCode::SUCCESS
}
