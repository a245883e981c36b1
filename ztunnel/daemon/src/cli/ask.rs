//! Asks the running daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ztunnel_node::enroll::{ApiError, Outcome, Request, call, call_list};
use ztunnel_node::inspect::{End, List, Rows};
use ztunnel_node::telemetry::chain;

use super::{Daemon, Format, fail, json, print};
use crate::config;

/// How long the daemon may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why there is no answer, and what to do about it.
#[derive(Debug)]
pub(super) struct NoAnswer {
    pub(super) problem: String,
    pub(super) next_step: String,
}

/// A list as JSON.
#[derive(serde::Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    rows: &'a Rows,
    #[serde(flatten)]
    end: End,
}

impl NoAnswer {
    fn new(problem: &impl ToString, next_step: &str) -> Self {
        Self {
            problem: problem.to_string(),
            next_step: next_step.to_owned(),
        }
    }
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}", self.problem, self.next_step)
    }
}

impl Daemon {
    pub(super) fn socket(&self) -> Result<PathBuf, NoAnswer> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None => config::api_socket()
                .map_err(|err| NoAnswer::new(&err, "Correct it, or give the path with --socket.")),
        }
    }

    /// The answer to a request that does not take long.
    pub(super) fn answer(&self, request: &Request) -> Result<Outcome, NoAnswer> {
        let socket = self.socket()?;
        asked(Some(PATIENCE), call(&socket, request))
    }

    /// The answer to a request that takes as long as it takes: a pod may have connections that end.
    pub(super) fn done(&self, request: &Request) -> Result<Outcome, NoAnswer> {
        let socket = self.socket()?;
        asked(None, call(&socket, request))
    }

    /// Lists something; `table` makes it readable.
    pub(super) fn list(
        &self,
        list: List,
        output: Format,
        table: impl FnOnce(&Rows, End) -> String,
    ) -> ExitCode {
        let listed = self
            .socket()
            .and_then(|socket| asked(None, call_list(&socket, list)));
        match listed {
            Ok(Ok((rows, end))) => {
                print(&match output {
                    Format::Table => table(&rows, end),
                    Format::Json => json(&Listed { rows: &rows, end }),
                });
                ExitCode::SUCCESS
            }
            Ok(Err(Outcome::Refused { code, reason })) => fail(&format!("{code}: {reason}")),
            Ok(Err(_)) => fail(&"the daemon gave another answer: its version is another one"),
            Err(err) => fail(&err),
        }
    }
}

fn asked<T>(
    within: Option<Duration>,
    call: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, NoAnswer> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| NoAnswer::new(&err, "Try again when the machine has resources left."))?;
    let within = within.unwrap_or(Duration::MAX);
    match runtime.block_on(async { tokio::time::timeout(within, call).await }) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(err)) => Err(NoAnswer::new(&chain(&err), next_step(&err))),
        Err(_) => Err(NoAnswer::new(
            &format!("the daemon does not answer within {within:?}"),
            "See its log, and whether the node has CPU time left for it.",
        )),
    }
}

fn next_step(err: &ApiError) -> &'static str {
    match err {
        ApiError::Connect { source, .. } => match source.kind() {
            std::io::ErrorKind::PermissionDenied => "Only root may ask: run it as root.",
            _ => {
                "The daemon is not running, or has another socket (--socket). To find it: \
                 `kubectl -n istio-system get pods -l app=ztunnel -o wide`; its log says why it ended."
            }
        },
        ApiError::Talk { .. } | ApiError::Listen { .. } => {
            "It may be starting again, or be of another version than this command: try again, then see its log."
        }
    }
}
