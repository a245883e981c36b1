//! The benchmark: no mesh, ours, and a pair of Envoy sidecars, on one machine, in one run.
//!
//! Started by `cargo xtask bench`, which builds and installs what it needs. The question: what does a mesh cost, in
//! CPU, time and memory, and how does ours compare in the same minute on the same machine. Read by which a figure
//! came about: `plan.rs` (what is asked), `rounds.rs` (how it is measured), `rows.rs` (what is computed).

mod builds;
mod contestants;
mod facts;
mod measure;
mod noise;
mod plan;
mod push;
mod report;
mod rounds;
mod rows;
#[cfg(test)]
mod smoke;
mod stats;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use lab::{Doing as _, LabError, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use contestants::Envoy;
use facts::Facts;
use plan::Plan;
use report::Report;

/// Measure what the mesh costs, beside no mesh and a pair of Envoy sidecars.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    /// A few short rounds, within three minutes.
    #[arg(long)]
    quick: bool,
    /// Number of rounds.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// Run everything on one processor: shows the length of the path.
    #[arg(long)]
    one_cpu: bool,
    /// Only the scenarios whose names contain this, and no idle connections: to work with a profiler.
    #[arg(long)]
    only: Option<String>,
    /// Directory for the report.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Envoy's program.
    #[arg(long, hide = true)]
    envoy: Option<PathBuf>,
    /// Why there is no Envoy.
    #[arg(long, hide = true, default_value = "not asked for")]
    no_envoy: String,
}

fn main() -> ExitCode {
    match bench(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("bench: {}", err.chain());
            ExitCode::FAILURE
        }
    }
}

/// Whether every measurement succeeded.
fn bench(cli: &Cli) -> Result<bool> {
    builds::refuse_debug(&lab::daemon_binary()?)?;
    let own = std::env::current_exe().doing(|| "find the running program")?;
    let mut plan = if cli.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    plan.rounds = cli.rounds.map_or(plan.rounds, usize::from);
    plan.one_cpu = cli.one_cpu;
    if let Some(text) = &cli.only {
        plan.keep(text)?;
    }
    if cli.one_cpu {
        stay_on_one_cpu()?;
    }
    let envoy = match &cli.envoy {
        Some(program) => Envoy::At(program.clone()),
        None => Envoy::Missing(cli.no_envoy.clone()),
    };
    let out = match &cli.out {
        Some(out) => out.clone(),
        // The target directory, two above.
        None => own
            .ancestors()
            .nth(2)
            .unwrap_or(Path::new("."))
            .join("bench"),
    };
    let report = run(plan, &envoy)?;
    write(&report, &out)?;
    println!("{}", report.markdown());
    println!(
        "Written to {}: report.html, report.md, report.json",
        out.display()
    );
    Ok(report.measurements.failures.is_empty())
}

fn run(plan: Plan, envoy: &Envoy) -> Result<Report> {
    let started = Instant::now();
    allow_descriptors()?;
    let facts = Facts::find(envoy);
    let progress = |what: &str| eprintln!("bench: {:>4} s  {what}", started.elapsed().as_secs());
    let measurements = rounds::run(&plan, envoy, &progress)?;
    Ok(Report::new(plan, facts, measurements))
}

fn write(report: &Report, out: &Path) -> Result<()> {
    fs::create_dir_all(out).doing(|| format!("make {}", out.display()))?;
    let json = report.json().doing(|| "write the figures as JSON")?;
    for (name, text) in [
        ("report.html", report.html()),
        ("report.md", report.markdown()),
        ("report.json", json),
    ] {
        let file = out.join(name);
        fs::write(&file, text).doing(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// As many descriptors as this process may have, for it and all it starts.
fn allow_descriptors() -> Result<()> {
    let failed = |err: nix::Error| LabError::because("raise the limit of descriptors", err);
    const ENOUGH: u64 = 65_536;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if hard < ENOUGH && setrlimit(Resource::RLIMIT_NOFILE, ENOUGH, ENOUGH).is_ok() {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)
}

/// Whatever is started later stays there too.
fn stay_on_one_cpu() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(0)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &one))
        .doing(|| "stay on one processor")
}
