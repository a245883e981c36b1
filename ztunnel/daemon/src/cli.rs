//! The command line. Every command but `run` is a client of the local API.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use ztunnel_node::enroll::{Outcome, Request};
use ztunnel_node::explain::Question;
use ztunnel_node::explain::reason::{self, Reason};
use ztunnel_node::prove::SUBCOMMAND;
use ztunnel_node::telemetry::catalogue;

use crate::{config, run};

mod ask;
mod certificates;
mod completions;
mod connections;
mod explain;
mod page;
mod pods;
mod policies;
mod prove;
mod services;
mod status;
mod table;
mod text;
mod workloads;

/// Node proxy of an ambient service mesh.
///
/// Begin with `ztunnel status` on a node. Exit codes: 0 when all is well, 1 when a command failed or `status` has found
/// something that needs attention, 2 when the command line is wrong.
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
    ///
    /// Example: ztunnel enroll --uid 0d1c --netns /run/netns/web --namespace shop --name web-0
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
    ///
    /// Example: ztunnel unenroll --uid 0d1c
    Unenroll {
        /// Pod uid.
        #[arg(long)]
        uid: String,
        #[command(flatten)]
        daemon: Daemon,
    },
    Status(status::Args),
    Prove(prove::Args),
    Connections(connections::Args),
    Workloads(workloads::Args),
    Services(services::Args),
    Policies(policies::Args),
    Certificates(certificates::Args),
    Completions(completions::Args),
    /// List the enrolled pods, as measured in the kernel.
    ///
    /// Example: ztunnel pods --output json
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
    ///
    /// Example: ztunnel stop
    Stop {
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Say what would become of a connection, and why, step by step; nothing is connected.
    ///
    /// Either `--from POD --to ADDRESS:PORT`: where a connection of an app of a pod of this node would go. Or `--to
    /// ADDRESS:PORT --as WHO`: whether a pod of this node would take it from somebody. Or `--reason CODE`: what the
    /// reason of a line in the log means.
    ///
    /// Example: ztunnel explain --from shop/web-0 --to 10.96.0.10:80
    #[command(group = clap::ArgGroup::new("question").required(true).args(["from", "peer", "reason"]))]
    Explain {
        /// The pod that connects, as `ztunnel pods` shows it.
        #[arg(long, value_name = "NAMESPACE/POD", requires = "to")]
        from: Option<String>,
        /// Where it connects to.
        #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "reason")]
        to: Option<String>,
        /// Who connects: a SPIFFE id, or `plaintext` for somebody without a tunnel.
        #[arg(long = "as", value_name = "WHO", requires = "to")]
        peer: Option<String>,
        /// The address that it comes from, for policies that look at it.
        #[arg(long, value_name = "ADDRESS", requires = "peer")]
        from_ip: Option<String>,
        /// A reason from the log.
        #[arg(long, value_name = "CODE")]
        reason: Option<Reason>,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        output: Format,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Print the reference of all reasons, in Markdown, or the cause and next step of one.
    ///
    /// Example: ztunnel reasons POLICY_DENIED
    Reasons {
        /// A reason from the log.
        code: Option<Reason>,
    },
    /// Print the reference of all settings, in Markdown.
    Settings,
    /// Print the reference of all metrics, in Markdown.
    Metrics,
}

#[derive(Debug, clap::Args)]
struct Daemon {
    /// Socket of the daemon [default: that of `ZTUNNEL_API_SOCKET`].
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// How much is listed.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Limit {
    /// How many to list at most [default: 1000 in a table, in JSON all; connections never more than 10000].
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
}

impl Limit {
    fn of(self, output: Format) -> usize {
        self.limit.unwrap_or(match output {
            Format::Table => 1000,
            Format::Json => usize::MAX,
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

pub(crate) fn main() -> ExitCode {
    // No command for people: neither help nor completions should offer it.
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|command| command == SUBCOMMAND) {
        return prove::connect(prove::Connect::parse_from(args));
    }
    match Cli::parse().command {
        Command::Run { ignored: _ } => run::main(),
        Command::Status(args) => status::run(&args),
        Command::Prove(args) => prove::run(args),
        Command::Connections(args) => connections::run(args),
        Command::Workloads(args) => workloads::run(args),
        Command::Services(args) => services::run(args),
        Command::Policies(args) => policies::run(args),
        Command::Certificates(args) => certificates::run(args),
        Command::Completions(args) => completions::run(&args),
        Command::Settings => {
            print(config::reference().trim_end());
            ExitCode::SUCCESS
        }
        Command::Metrics => {
            print(catalogue::reference().trim_end());
            ExitCode::SUCCESS
        }
        Command::Reasons { code: None } => {
            print(reason::reference().trim_end());
            ExitCode::SUCCESS
        }
        Command::Reasons { code: Some(code) } => {
            print(&explain::reason(code));
            ExitCode::SUCCESS
        }
        Command::Explain {
            from,
            to,
            peer,
            from_ip,
            reason,
            output,
            daemon,
        } => {
            let question = match (reason, from, peer, to) {
                (Some(reason), ..) => {
                    print(&explain::reason(reason));
                    return ExitCode::SUCCESS;
                }
                (None, Some(from), None, Some(to)) => Question::Outbound { from, to },
                (None, None, Some(peer), Some(to)) => Question::Inbound { to, peer, from_ip },
                _ => return fail(&"give --from and --to, or --to and --as, or --reason"),
            };
            ask(&daemon, &Request::Explain(question), |outcome| {
                if let Outcome::Explained(explanation) = outcome {
                    print(&match output {
                        Format::Table => explain::text(explanation),
                        Format::Json => json(explanation),
                    });
                }
            })
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
                &daemon,
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
        Command::Unenroll { uid, daemon } => ask(&daemon, &Request::Unenroll { uid }, |_| {}),
        Command::Stop { daemon } => ask(&daemon, &Request::Stop {}, |_| {}),
        Command::Pods { output, daemon } => ask(&daemon, &Request::Pods {}, |outcome| {
            if let Outcome::Pods(pods) = outcome {
                print(&match output {
                    Format::Table => pods::table(pods),
                    Format::Json => json(pods),
                });
            }
        }),
    }
}

/// Sends `request`, and waits for as long as it takes; `show` gets the answer when it is one to be read.
fn ask(daemon: &Daemon, request: &Request, show: impl Fn(&Outcome)) -> ExitCode {
    match daemon.done(request) {
        Ok(Outcome::Done { changed: true }) => ExitCode::SUCCESS,
        Ok(Outcome::Done { changed: false }) => {
            print("nothing to do: it is so already");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Refused { code, reason }) => fail(&format!("{code}: {reason}")),
        Ok(outcome) => {
            show(&outcome);
            ExitCode::SUCCESS
        }
        Err(err) => fail(&err),
    }
}

fn json(answer: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string_pretty(answer).unwrap_or_default()
}

fn print(text: &str) {
    // A closed pipe is the reader's decision.
    drop(writeln!(std::io::stdout(), "{text}"));
}

pub(crate) fn fail(err: &dyn std::fmt::Display) -> ExitCode {
    drop(writeln!(std::io::stderr(), "ztunnel: {err}"));
    ExitCode::FAILURE
}
