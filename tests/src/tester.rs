//! The TCP tester, as tests see it: what it serves, what it can check, what it reports.
//!
//! The program itself is `tester/`; it shares the types here, so what it prints is what a test reads.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, LabError, Result};
use crate::place::Place;
use crate::process::{Process, Program};

/// How long one check may take, unless it says otherwise.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to say something it was asked about.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server does with a connection. Each has a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Sends back what it gets, and ends when the client does.
    Echo,
    /// Speaks first, a line; then echoes.
    Banner,
    /// Reads to the end and reports how much it was.
    Sink,
    /// Sends a mebibyte of the pattern as soon as it is connected, and ends.
    Source,
    /// Answers only after the client has ended its half.
    AfterFin,
    /// Sends a line and ends its half at once; then reads to the end and reports how much it was.
    EarlyFin,
    /// Reads a byte, then resets the connection.
    Reset,
    /// Says which client address it sees.
    Peer,
    /// Takes and sends patterns of lengths the client chooses, both at once, and gives its verdict.
    Duplex,
    /// Says what stands in the PROXY header that has to come first, then echoes.
    Proxied,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Echo,
        Self::Banner,
        Self::Sink,
        Self::Source,
        Self::AfterFin,
        Self::EarlyFin,
        Self::Reset,
        Self::Peer,
        Self::Duplex,
        Self::Proxied,
    ];

    /// Its port.
    #[must_use]
    pub const fn port(self) -> u16 {
        7001 + self as u16
    }
}

/// What a client did, as it saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it went.
    pub outcome: Outcome,
    /// More about it, for people.
    pub detail: String,
    /// Whether the connect itself succeeded.
    pub connected: bool,
    /// Its own address.
    pub local: Option<SocketAddr>,
    /// The address of the other side, as `getpeername` says.
    pub peer: Option<SocketAddr>,
    /// The client address that the server saw, where the check asks for it.
    pub seen_as: Option<SocketAddr>,
    /// Bytes written.
    pub sent: u64,
    /// Bytes read.
    pub received: u64,
    /// Connections for which all went well.
    pub good: u32,
    /// From start to end.
    pub elapsed_ms: u64,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should.
    Good,
    /// `ECONNREFUSED`.
    Refused,
    /// `ECONNRESET` or `EPIPE`.
    Reset,
    /// The other side ended before it should have.
    Ended,
    /// Nothing happened for too long.
    TimedOut,
    /// No route, or a prohibition by the network.
    Unreachable,
    /// `EACCES` or `EPERM`.
    Forbidden,
    /// The bytes were not the right ones.
    Wrong,
    /// Anything else.
    Failed,
}

/// Something a server noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What it does with the connection.
    pub service: Service,
    /// The client's address.
    pub peer: SocketAddr,
    /// Its own address of this connection.
    pub local: SocketAddr,
    /// Bytes read to the end.
    pub received: u64,
    /// How it ended; good means with the client's FIN.
    pub outcome: Outcome,
}

/// What a client does.
#[derive(Clone, Debug)]
pub struct Check {
    service: Service,
    args: Vec<String>,
    timeout: Duration,
}

impl Check {
    /// Uses a service the plain way: a short exchange that must go right in every detail.
    #[must_use]
    pub fn of(service: Service) -> Self {
        Self {
            service,
            args: Vec::new(),
            timeout: CHECK_TIMEOUT,
        }
    }

    /// Exchanges a line with [`Service::Echo`].
    #[must_use]
    pub fn echo(text: &str) -> Self {
        Self::of(Service::Echo).arg("--text", text)
    }

    /// Sends and receives patterns of these lengths at the same time.
    #[must_use]
    pub fn duplex(up: u64, down: u64) -> Self {
        Self::of(Service::Duplex)
            .arg("--up", up)
            .arg("--down", down)
            .timeout(Duration::from_secs(60))
    }

    /// Opens that many connections, exchanges something on each while all are open, and closes them.
    #[must_use]
    pub fn parallel(count: u32) -> Self {
        Self::of(Service::Echo)
            .arg("--parallel", count)
            .timeout(Duration::from_secs(30))
    }

    /// Connects from this port.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        self.arg("--source-port", port)
    }

    /// Connects from this address.
    #[must_use]
    pub fn from_ip(self, ip: IpAddr) -> Self {
        self.arg("--source-ip", ip)
    }

    /// Sets `SO_MARK` before it connects.
    #[must_use]
    pub fn marked(self, mark: u32) -> Self {
        self.arg("--mark", mark)
    }

    /// Binds to an interface before it connects.
    #[must_use]
    pub fn on_device(self, device: &str) -> Self {
        self.arg("--device", device)
    }

    /// Uses a dual-stack socket: an IPv4 destination is connected as its IPv6-mapped form.
    #[must_use]
    pub fn v4_mapped(mut self) -> Self {
        self.args.push("--v4-mapped".to_owned());
        self
    }

    /// Connects by Fast Open: the first bytes are in the SYN if the kernel can.
    #[must_use]
    pub fn fast_open(mut self) -> Self {
        self.args.push("--fast-open".to_owned());
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn arg(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.args.push(format!("{name}={value}"));
        self
    }

    fn program(&self, verb: &str, to: SocketAddr) -> Result<Program> {
        let mut argv = vec![
            program()?.into_os_string(),
            verb.into(),
            to.to_string().into(),
        ];
        let service = serde_json::to_value(self.service).doing(|| "name a service")?;
        argv.push(format!("--service={}", service.as_str().unwrap_or_default()).into());
        argv.push(format!("--timeout-ms={}", self.timeout.as_millis()).into());
        argv.extend(self.args.iter().map(Into::into));
        Ok(Program::new(argv).timeout(self.timeout + Duration::from_secs(5)))
    }
}

impl Place {
    /// Serves everything the tester can, each on its port, until the result is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn serve(&self) -> Result<Server> {
        let program = Program::new([program()?.into_os_string(), "serve".into()]);
        let mut process = program.spawn(self.namespace())?;
        process.line(EVENT_TIMEOUT)?; // says that it listens
        Ok(Server { process })
    }

    /// Makes a check against the tester at `ip`.
    ///
    /// # Errors
    /// When the tester cannot be run. What it found is in the report, good or bad.
    pub fn check(&self, ip: IpAddr, check: &Check) -> Result<Report> {
        self.check_at(SocketAddr::new(ip, check.service.port()), check)
    }

    /// Makes a check against a port of one's choice, such as that of a service.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_at(&self, to: SocketAddr, check: &Check) -> Result<Report> {
        let output = check.program("check", to)?.run(self.namespace())?;
        serde_json::from_str(&output.stdout).map_err(|err| {
            let said = format!("{}{}", output.stdout, output.stderr);
            LabError::because(
                format!("read the report of `{}`: {said}", output.program),
                err,
            )
        })
    }

    /// Opens a connection to the echo service at `to` and holds it, for exchanges on command.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn hold(&self, to: SocketAddr) -> Result<Held> {
        let check = Check::of(Service::Echo).timeout(Duration::from_secs(600));
        let mut process = check.program("hold", to)?.spawn(self.namespace())?;
        let report = read_report(&mut process)?;
        if report.outcome != Outcome::Good {
            return Err(LabError::new(format!(
                "hold a connection to {to}: {report:?}"
            )));
        }
        Ok(Held { process, report })
    }

    /// Takes connections to `listen` and carries each to the next of `to`, as kube-proxy does for services, except
    /// that the server sees this place's address.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn forward(&self, listen: SocketAddr, to: &[SocketAddr]) -> Result<Process> {
        let mut argv = vec![program()?.into_os_string(), "forward".into()];
        argv.push(listen.to_string().into());
        argv.extend(to.iter().map(|to| to.to_string().into()));
        let mut process = Program::new(argv).spawn(self.namespace())?;
        process.line(EVENT_TIMEOUT)?;
        Ok(process)
    }
}

/// A tester that serves.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

impl Server {
    /// The next thing it noticed: a connection to a service that reads to the end has ended.
    ///
    /// # Errors
    /// When nothing happens in time.
    pub fn event(&mut self) -> Result<Event> {
        let line = self.process.line(EVENT_TIMEOUT)?;
        serde_json::from_str(&line).doing(|| format!("read the event `{line}`"))
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A connection that is held open.
#[derive(Debug)]
pub struct Held {
    process: Process,
    report: Report,
}

impl Held {
    /// What was known when it was connected.
    #[must_use]
    pub fn opened(&self) -> &Report {
        &self.report
    }

    /// Sends a line and expects it back.
    ///
    /// # Errors
    /// When the program is gone. How the exchange went is in the report.
    pub fn exchange(&mut self, line: &str) -> Result<Report> {
        self.process.write_line(line)?;
        read_report(&mut self.process)
    }

    /// Ends it in order, and expects the other side to do so too.
    ///
    /// # Errors
    /// When the program does not answer.
    pub fn close(mut self) -> Result<Report> {
        self.process.close_stdin();
        read_report(&mut self.process)
    }
}

fn read_report(process: &mut Process) -> Result<Report> {
    let line = process.line(EVENT_TIMEOUT + CHECK_TIMEOUT)?;
    serde_json::from_str(&line).doing(|| format!("read the report `{line}`"))
}

fn program() -> Result<PathBuf> {
    crate::binary::find("tester", "ZTUNNEL_TESTER", "cargo build -p ztunnel-lab")
}
