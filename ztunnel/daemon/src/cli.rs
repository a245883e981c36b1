//! The command line. Every command but `run` is a client of the local API.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use ztunnel_node::enroll::{Outcome, PodState, PodStatus, Request, call};
use ztunnel_node::telemetry::chain;

use crate::{config, run};

/// Node proxy of an ambient service mesh.
#[derive(Debug, Parser)]
#[command(name = "ztunnel", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node daemon. Its settings come from the environment.
    #[command(alias = "proxy")]
    Run {
        /// Accepted for compatibility with the arguments of Istio's chart; not used.
        #[arg(hide = true)]
        ignored: Vec<String>,
    },
    /// Capture the traffic of a pod.
    Enroll {
        /// Pod uid.
        #[arg(long)]
        uid: String,
        /// Path of the pod's network namespace.
        #[arg(long)]
        netns: PathBuf,
        #[arg(long)]
        namespace: String,
        #[arg(long)]
        name: String,
        #[arg(long, default_value = "default")]
        service_account: String,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Stop capturing the traffic of a pod; its connections get time to end.
    Unenroll {
        /// Pod uid.
        #[arg(long)]
        uid: String,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// List the enrolled pods, as measured in the kernel.
    Pods {
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Unenroll every pod, remove every trace from the node, and end the daemon.
    ///
    /// (A daemon that gets SIGTERM leaves the capture in place, so that nothing leaves its pods in plaintext
    /// until the next daemon has taken them over.)
    Stop {
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Print the reference of all settings, in Markdown.
    Settings,
}

#[derive(Debug, clap::Args)]
struct Daemon {
    /// Socket of the daemon [default: that of `ZTUNNEL_API_SOCKET`].
    #[arg(long)]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(crate) fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { ignored: _ } => run::main(),
        Command::Settings => {
            print(config::reference().trim_end());
            ExitCode::SUCCESS
        }
        Command::Enroll {
            uid,
            netns,
            namespace,
            name,
            service_account,
            daemon,
        } => {
            // The daemon has another working directory.
            let netns = std::path::absolute(&netns).unwrap_or(netns);
            ask(
                daemon,
                &Request::Enroll {
                    uid,
                    netns,
                    namespace,
                    name,
                    service_account,
                },
                |_| {},
            )
        }
        Command::Unenroll { uid, daemon } => ask(daemon, &Request::Unenroll { uid }, |_| {}),
        Command::Stop { daemon } => ask(daemon, &Request::Stop {}, |_| {}),
        Command::Pods { output, daemon } => ask(daemon, &Request::Pods {}, |pods| match output {
            Format::Table => print(&table(pods)),
            Format::Json => print(&serde_json::to_string_pretty(pods).unwrap_or_default()),
        }),
    }
}

/// Sends `request`; `show` gets the pods when the answer is a list of them.
fn ask(daemon: Daemon, request: &Request, show: impl Fn(&[PodStatus])) -> ExitCode {
    let socket = match daemon.socket.map_or_else(config::api_socket, Ok) {
        Ok(socket) => socket,
        Err(err) => return fail(&err),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(err) => return fail(&err),
    };
    match runtime.block_on(call(&socket, request)) {
        Ok(Outcome::Done { changed: true }) => ExitCode::SUCCESS,
        Ok(Outcome::Done { changed: false }) => {
            print("nothing to do: it is so already");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Pods(pods)) => {
            show(&pods);
            ExitCode::SUCCESS
        }
        Ok(Outcome::Refused { code, reason }) => fail(&format!("{code}: {reason}")),
        Err(err) => fail(&chain(&err)),
    }
}

fn table(pods: &[PodStatus]) -> String {
    let mut rows = vec![[
        "POD".into(),
        "SERVICE ACCOUNT".into(),
        "ADDRESSES".into(),
        "STATE".into(),
    ]];
    rows.extend(pods.iter().map(|pod| {
        let state = match (pod.state, &pod.problem) {
            (PodState::Captured, _) => "captured".into(),
            (PodState::Leaving, _) => "leaving".into(),
            (PodState::Defective, problem) => {
                format!("DEFECTIVE: {}", problem.as_deref().unwrap_or("unknown"))
            }
        };
        let addresses: Vec<String> = pod
            .addresses
            .iter()
            .filter(|ip| !is_link_local(ip))
            .map(ToString::to_string)
            .collect();
        let name = format!("{}/{}", pod.namespace, pod.name);
        [
            name,
            pod.service_account.clone(),
            addresses.join(","),
            state,
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let lines: Vec<String> = rows
        .iter()
        .map(|[pod, account, addresses, state]| {
            let [a, b, c] = widths;
            format!("{pod:a$}  {account:b$}  {addresses:c$}  {state}")
        })
        .collect();
    lines.join("\n")
}

fn is_link_local(ip: &std::net::IpAddr) -> bool {
    matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn print(text: &str) {
    // A closed pipe is the reader's decision.
    drop(writeln!(std::io::stdout(), "{text}"));
}

pub(crate) fn fail(err: &dyn std::fmt::Display) -> ExitCode {
    drop(writeln!(std::io::stderr(), "ztunnel: {err}"));
    ExitCode::FAILURE
}
