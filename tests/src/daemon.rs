//! The node proxy under test: started, spoken to by its command line, stopped in every way there is.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::binary;
use crate::control_plane::{CLUSTER, ControlPlane, PROXY_ACCOUNT, PROXY_NAMESPACE};
use crate::dir::cgroup_root;
use crate::error::{Doing, LabError, Result};
use crate::place::Place;
use crate::pod::Pod;
use crate::process::{Output, Process, Program};

/// How long a daemon may take until it answers on its socket.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long `ztunnel stop` and the end after it may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Where a daemon pins its BPF objects, in a file system that only its node sees.
pub(crate) const BPF_DIR: &str = "/sys/fs/bpf/ztunnel";

/// What to start a daemon with, beyond what it always gets.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    env: Vec<(String, String)>,
}

impl DaemonOptions {
    /// Sets a variable of its environment, instead of what the lab would set.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<String>) -> Self {
        self.env.push((key.to_owned(), value.into()));
        self
    }
}

/// A running daemon. Dropping it kills it, without a chance to clean up.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    place: Place,
    cgroup: Option<PathBuf>,
}

impl Daemon {
    /// Starts one on the node and waits until it answers.
    pub(crate) fn start(
        place: &Place,
        control_plane: &ControlPlane,
        options: &DaemonOptions,
    ) -> Result<Self> {
        fs::create_dir_all(state_dir(place)).doing(|| "make the daemon's state directory")?;
        let process = program(place, control_plane, options)?.spawn(place.namespace())?;
        let mut daemon = Self {
            process,
            place: place.clone(),
            cgroup: None,
        };
        daemon.wait_until_ready()?;
        daemon.cgroup = cgroup_of(daemon.process.pid())?;
        Ok(daemon)
    }

    /// The cgroup that it made for itself.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Enrolls a pod, by the command line.
    ///
    /// # Errors
    /// With what the command said.
    pub fn enroll(&self, pod: &Pod) -> Result<()> {
        let workload = pod.workload();
        let netns = pod.namespace().path();
        let netns = netns.to_string_lossy();
        self.ask(&[
            "enroll",
            "--uid",
            pod.uid(),
            "--netns",
            &netns,
            "--namespace",
            &workload.namespace,
            "--name",
            &workload.name,
            "--service-account",
            &workload.service_account,
        ])?
        .success()
        .map(drop)
    }

    /// Unenrolls a pod, by the command line.
    ///
    /// # Errors
    /// With what the command said.
    pub fn unenroll(&self, pod: &Pod) -> Result<()> {
        self.ask(&["unenroll", "--uid", pod.uid()])?
            .success()
            .map(drop)
    }

    /// What `ztunnel pods --output json` says.
    ///
    /// # Errors
    /// When it fails, or prints no JSON.
    pub fn pods(&self) -> Result<serde_json::Value> {
        let output = self.ask(&["pods", "--output", "json"])?.success()?;
        serde_json::from_str(&output.stdout)
            .doing(|| format!("read what `{}` printed: {}", output.program, output.stdout))
    }

    /// Runs any subcommand against it. How it ended is not judged.
    ///
    /// # Errors
    /// When the command cannot be run.
    pub fn ask(&self, args: &[&str]) -> Result<Output> {
        ask(&self.place, args)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// `ztunnel stop`: it unenrolls all pods and ends.
    ///
    /// # Errors
    /// When the command fails, or the daemon does not end in time.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.ask(&["stop"])?.success()?;
        self.process.wait(STOP_TIMEOUT)
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// SIGTERM: it ends and leaves capture in place.
    ///
    /// # Errors
    /// When it does not end within `timeout`.
    pub fn terminate(mut self, timeout: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(timeout)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let socket = api_socket(&self.place);
        loop {
            // Connecting is cheaper than running the command, which then has the last word.
            if UnixStream::connect(&socket).is_ok() && self.ask(&["pods"])?.status.success() {
                return Ok(());
            }
            let ended = !self.process.is_running();
            if ended || Instant::now() > deadline {
                let what = if ended {
                    "ended at once"
                } else {
                    "does not answer"
                };
                let log = tail(&log_file(&self.place), 40);
                return Err(LabError::new(format!(
                    "the daemon of {} {what}; its log ends with:\n{log}",
                    self.place.name()
                )));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The socket that the daemon of a node listens on.
pub(crate) fn api_socket(place: &Place) -> PathBuf {
    place.dir().join("api.sock")
}

/// Where the daemon of a node remembers its pods.
pub(crate) fn state_dir(place: &Place) -> PathBuf {
    place.dir().join("pods")
}

/// Where the daemons of a node write their logs, one after the other.
pub(crate) fn log_file(place: &Place) -> PathBuf {
    place.dir().join("ztunnel.log")
}

pub(crate) fn ask(place: &Place, args: &[&str]) -> Result<Output> {
    let mut argv = vec![binary()?.into_os_string()];
    argv.extend(args.iter().map(Into::into));
    argv.push("--socket".into());
    argv.push(api_socket(place).into());
    Program::new(argv).clear_env().run(place.namespace())
}

fn program(
    place: &Place,
    control_plane: &ControlPlane,
    options: &DaemonOptions,
) -> Result<Program> {
    let mut program = Program::new([binary()?.into_os_string(), "run".into()])
        .clear_env()
        .dir(place.dir())
        .log(log_file(place))
        .env("ZTUNNEL_API_SOCKET", api_socket(place))
        .env("ZTUNNEL_STATE_DIR", state_dir(place))
        .env("ZTUNNEL_BPF_DIR", BPF_DIR)
        .env("ZTUNNEL_WORKER_THREADS", "2")
        .env("NODE_NAME", place.name())
        .env("POD_NAME", format!("ztunnel-{}", place.name()))
        .env("POD_NAMESPACE", PROXY_NAMESPACE)
        .env("SERVICE_ACCOUNT", PROXY_ACCOUNT)
        .env("CLUSTER_ID", CLUSTER)
        .env("NETWORK", control_plane.mesh().network)
        .env("XDS_ADDRESS", control_plane.uri())
        .env("CA_ADDRESS", control_plane.uri())
        .env("XDS_ROOT_CA", control_plane.root_file())
        .env("CA_ROOT_CA", control_plane.root_file())
        .env("AUTH_TOKEN", control_plane.token_file(place.name()))
        .env(
            "RUST_LOG",
            std::env::var("LAB_LOG").unwrap_or_else(|_| "info".to_owned()),
        )
        .env("RUST_BACKTRACE", "1");
    for (key, value) in &options.env {
        program = program.env(key, value);
    }
    Ok(program)
}

/// The program that labs run as the daemon.
///
/// # Errors
/// When it was not built.
pub fn binary() -> Result<PathBuf> {
    binary::find("ztunnel", "ZTUNNEL_BIN", "cargo xtask build")
}

/// The cgroup of a process, if it is one that a daemon made for itself.
fn cgroup_of(pid: u32) -> Result<Option<PathBuf>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .doing(|| "read the cgroup of the daemon")?;
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Ok(None);
    };
    let own = path
        .rsplit('/')
        .next()
        .is_some_and(|name| name.starts_with("ztunnel"));
    Ok(own.then_some(cgroup_root()?.join(path)))
}

/// The lines of a file that somebody writes to: the last one may be there in part, as far as a page goes.
pub(crate) fn whole_lines(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let end = text.iter().rposition(|byte| *byte == b'\n');
    String::from_utf8_lossy(&text[..end.map_or(0, |end| end + 1)]).into_owned()
}

/// The last lines of a file.
pub(crate) fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
