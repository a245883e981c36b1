//! The load generator, as the benchmark sees it: what it serves, what it asks for, what it reports.
//!
//! The program itself is `load/`; it shares the types here, so what it prints is what the benchmark reads. It speaks
//! the least HTTP/1.1 that a proxy for HTTP accepts, so that one load does for all contestants.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, LabError, Result};
use crate::place::Place;
use crate::process::{Process, Program};

/// How long a program may take to start, beyond what it was told to do.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take until all its connections are open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// What every body consists of, again and again: something a capture can look for.
pub const MARKER: &str = "card-4111-1111-1111-1111;";

/// What a client does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Where it connects to.
    pub to: SocketAddr,
    /// Connections at the same time.
    pub connections: usize,
    /// Length of the body of each answer.
    pub body: u64,
    /// Whether each connection is used for one request only.
    pub reconnect: bool,
    /// Asks once in so long, on one connection after the other, whatever is still on its way. None: each asks again
    /// as soon as it has its answer.
    pub every: Option<Duration>,
    /// Stops to read one connection for a while.
    pub stall: Option<Stall>,
    /// How long it goes on before it measures.
    pub warm: Duration,
    /// How long it measures.
    pub measure: Duration,
}

/// One of the connections is not read for a while. First and last all of them are, half of [`Load::measure`] each; in
/// between, for as long as both together, one is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Length of the answer that is not read: more than what all buffers on its way hold.
    pub body: u64,
    /// What is left out after each change from one to the other. After the first, so often until nothing more comes,
    /// six times at most.
    pub settle: Duration,
}

/// What one connection that is not read did to the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stalled {
    /// Bytes of bodies in a second while all connections were read, of all.
    pub all: f64,
    /// The same while one was not, of the others.
    pub others: f64,
    /// What waited in the socket of that one when this was first measured.
    pub waiting: u64,
    /// What waited there at last. No more than before, so nothing came meanwhile.
    pub waited: u64,
}

/// What a client has seen while it measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// How long it measured.
    pub seconds: f64,
    /// Bytes of bodies.
    pub bytes: u64,
    /// Requests that were answered in full; where each has its own connection, also ended in order.
    pub requests: u64,
    /// From the first byte asked (or the connect) to the last byte answered, half of all.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1,000.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// What a connection that was not read did, if that was asked for.
    pub stalled: Option<Stalled>,
    /// Connections that broke or answered wrong, at any time.
    pub errors: u64,
    /// The first of them, for people.
    pub first_error: Option<String>,
}

/// What a client says on its way, a line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// It begins to measure now; or all connections that it is to hold are open.
    Began,
    /// It has measured. What was asked is still being answered.
    Measured,
    /// Everything that was asked is answered, or never will be.
    Done(LoadReport),
}

impl Load {
    /// From the beginning of what is measured to its end.
    #[must_use]
    pub fn takes(&self) -> Duration {
        match self.stall {
            Some(stall) => self.measure * 2 + stall.settle * 7,
            None => self.measure,
        }
    }
}

impl Place {
    /// Answers requests on `port` until the result is dropped.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn serve_load(&self, port: u16) -> Result<Process> {
        let mut process = program(&["serve".into(), port.to_string()])?.spawn(self.namespace())?;
        process.line(START_TIMEOUT)?;
        Ok(process)
    }

    /// Starts a client and waits until it begins to measure.
    ///
    /// # Errors
    /// When it cannot be started, or fails before.
    pub fn start_load(&self, load: &Load) -> Result<RunningLoad> {
        self.start_client("run", load, START_TIMEOUT + load.warm)
    }

    /// Opens `load.connections` connections, asks once on each, and holds them.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn hold_load(&self, load: &Load) -> Result<RunningLoad> {
        self.start_client("hold", load, OPEN_TIMEOUT)
    }

    fn start_client(&self, verb: &str, load: &Load, limit: Duration) -> Result<RunningLoad> {
        let json = serde_json::to_string(load).doing(|| "write down a load")?;
        let process = program(&[verb.into(), json])?.spawn(self.namespace())?;
        let mut running = RunningLoad {
            process,
            limit: load.takes() + START_TIMEOUT,
        };
        match running.hear(limit)? {
            Said::Began => Ok(running),
            Said::Done(LoadReport { first_error, .. }) => Err(LabError::new(format!(
                "the load ended before it began: {}",
                first_error.unwrap_or_default()
            ))),
            Said::Measured => Err(LabError::new("the load measured before it began")),
        }
    }
}

/// A client at work.
#[derive(Debug)]
pub struct RunningLoad {
    process: Process,
    limit: Duration,
}

impl RunningLoad {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until it has measured.
    ///
    /// # Errors
    /// When it ends early or too late.
    pub fn measured(&mut self) -> Result<()> {
        match self.hear(self.limit)? {
            Said::Measured => Ok(()),
            other => Err(LabError::new(format!("the load said {other:?} too early"))),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn report(mut self) -> Result<LoadReport> {
        match self.hear(START_TIMEOUT)? {
            Said::Done(report) => Ok(report),
            other => Err(LabError::new(format!("the load said {other:?} too late"))),
        }
    }

    /// Lets a client that holds connections ask once more on each of them, and end.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn release(mut self) -> Result<LoadReport> {
        self.process.close_stdin();
        match self.hear(OPEN_TIMEOUT)? {
            Said::Done(report) => Ok(report),
            other => Err(LabError::new(format!(
                "the load said {other:?} when let go"
            ))),
        }
    }

    fn hear(&mut self, limit: Duration) -> Result<Said> {
        let line = self.process.line(limit)?;
        serde_json::from_str(&line).doing(|| format!("read what the load said: {line}"))
    }
}

fn program(args: &[String]) -> Result<Program> {
    let program = crate::binary::find("load", "ZTUNNEL_LOAD", "cargo build -p ztunnel-lab")?;
    let mut argv = vec![program.into_os_string()];
    argv.extend(args.iter().map(Into::into));
    Ok(Program::new(argv))
}
