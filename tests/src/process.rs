//! Programs inside a namespace: run to the end, or started and watched.
//!
//! Invariants: every wait has a deadline. A program dies with the lab (`setpriv --pdeathsig`), and with its
//! handle: dropping a [`Process`] kills its whole process group. Each has a group of its own, so Ctrl-C at the
//! terminal reaches the lab alone, which then ends them in order.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::error::{Doing, LabError, Result};
use crate::net::Namespace;

/// How long a program that is run to its end may take, unless it says otherwise.
const RUN_TIMEOUT: Duration = Duration::from_secs(20);
/// What is kept of the output of a program.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// A program to be started: arguments, environment, where its output goes.
#[derive(Clone, Debug)]
pub struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    clear_env: bool,
    stdin: Option<Vec<u8>>,
    log: Option<PathBuf>,
    dir: Option<PathBuf>,
    timeout: Duration,
    /// What each of its lines ends with.
    line_end: u8,
}

impl Program {
    /// A program and its arguments.
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv
                .into_iter()
                .map(|arg| arg.as_ref().to_owned())
                .collect(),
            env: Vec::new(),
            clear_env: false,
            stdin: None,
            log: None,
            dir: None,
            timeout: RUN_TIMEOUT,
            line_end: b'\n',
        }
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it with no environment but `PATH` and what [`env`](Self::env) sets.
    #[must_use]
    pub fn clear_env(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Text for its standard input, when run to the end.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Appends standard output and error to a file instead of keeping them.
    #[must_use]
    pub fn log(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }

    /// Its lines, in and out, end with a zero byte instead of a newline.
    #[must_use]
    pub fn zero_terminated(mut self) -> Self {
        self.line_end = 0;
        self
    }

    /// Working directory.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// How long it may take, when run to the end.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it inside `ns` to its end.
    ///
    /// # Errors
    /// When it cannot be started, or is not done in time (it is killed then). How it ended is not judged here.
    pub fn run(&self, ns: &Namespace) -> Result<Output> {
        let (mut child, shown) = self.start(ns)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let input = self.stdin.clone().unwrap_or_default();
        let feeder = thread::spawn(move || {
            if let Some(mut stdin) = stdin {
                drop(stdin.write_all(&input)); // whoever does not read its input may do so
            }
        });
        let mut group = Group { child };
        let status = group.wait(self.timeout);
        if status.is_none() {
            group.end();
        }
        drop(feeder.join());
        let text = |reader: Option<JoinHandle<Vec<u8>>>| {
            let bytes = reader.and_then(|r| r.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        let Some(status) = status else {
            return Err(LabError::new(format!(
                "`{shown}` in {} was not done after {:?}; it said: {stdout}{stderr}",
                ns.name(),
                self.timeout
            )));
        };
        Ok(Output {
            program: shown,
            status,
            stdout,
            stderr,
        })
    }

    /// Starts it inside `ns` and returns at once.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, ns: &Namespace) -> Result<Process> {
        let (mut child, shown) = self.start(ns)?;
        let stdin = child.stdin.take();
        let line_end = self.line_end;
        let lines = child.stdout.take().map(|stdout| {
            let (tx, rx) = channel();
            thread::spawn(move || {
                for line in BufReader::new(stdout).split(line_end) {
                    let line = line.map(|line| String::from_utf8_lossy(&line).into_owned());
                    if line.is_err() || line.is_ok_and(|line| tx.send(line).is_err()) {
                        break;
                    }
                }
            });
            rx
        });
        let stderr = child.stderr.take().map(collect);
        Ok(Process {
            shown,
            group: Group { child },
            stdin,
            lines,
            stderr,
            line_end,
        })
    }

    fn start(&self, ns: &Namespace) -> Result<(Child, String)> {
        let shown = self.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(&self.argv);
        if self.clear_env {
            command.env_clear();
            command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.process_group(0).stdin(Stdio::piped());
        match &self.log {
            Some(path) => {
                let (out, err) = open_log(path)?;
                command.stdout(out).stderr(err);
            }
            None => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        let child = ns
            .on_keeper(move || command.spawn())?
            .doing(|| format!("start `{shown}` in {} (is setpriv installed?)", ns.name()))?;
        wait_until_bound(child.id());
        Ok((child, shown))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, arg) in self.argv.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{}", arg.to_string_lossy())?;
        }
        Ok(())
    }
}

/// How a program ended and what it printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line.
    pub program: String,
    /// Its exit.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Itself, if the program ended with success.
    ///
    /// # Errors
    /// With everything it printed, if not.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        Err(LabError::new(format!(
            "`{}` ended with {}; it said: {}{}",
            self.program, self.status, self.stdout, self.stderr
        )))
    }
}

/// A running program. Dropping it kills the program and what it started.
pub struct Process {
    shown: String,
    group: Group,
    stdin: Option<ChildStdin>,
    lines: Option<Receiver<String>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    line_end: u8,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.child.id()
    }

    /// The next line of its standard output.
    ///
    /// # Errors
    /// When none comes in time, or there will be none.
    pub fn line(&mut self, timeout: Duration) -> Result<String> {
        let lines = self.lines.as_ref().ok_or_else(|| {
            LabError::new(format!("the output of `{}` goes to a file", self.shown))
        })?;
        match lines.recv_timeout(timeout) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(LabError::new(format!(
                "`{}` printed nothing for {timeout:?}",
                self.shown
            ))),
            Err(RecvTimeoutError::Disconnected) => {
                self.group.end();
                let said = self.stderr.take().and_then(|reader| reader.join().ok());
                Err(LabError::new(format!(
                    "`{}` closed its output; it said: {}",
                    self.shown,
                    String::from_utf8_lossy(&said.unwrap_or_default())
                )))
            }
        }
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it no longer reads.
    pub fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .ok_or_else(|| LabError::new(format!("the input of `{}` is closed", self.shown)))?;
        let line = [line.as_bytes(), &[self.line_end]].concat();
        stdin
            .write_all(&line)
            .and_then(|()| stdin.flush())
            .doing(|| format!("write to `{}`", self.shown))
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal. After SIGSTOP it has stopped.
    ///
    /// # Errors
    /// When it is gone, or does not stop in time.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Err(LabError::new(format!("`{}` has already ended", self.shown)));
        }
        kill(self.group.pid(), signal).doing(|| format!("send {signal} to `{}`", self.shown))?;
        if signal == Signal::SIGSTOP {
            self.wait_until_stopped()?;
        }
        Ok(())
    }

    /// Its threads go on after the signal was sent, on a busy machine for many milliseconds: until the one that the kernel
    /// chose to take it has had a processor, and then each until it has heard of it.
    fn wait_until_stopped(&self) -> Result<()> {
        const WITHIN: Duration = Duration::from_secs(10);
        // Its end is for the child's handle to see.
        let what = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let deadline = Instant::now() + WITHIN;
        loop {
            let status = waitid(Id::Pid(self.group.pid()), what)
                .doing(|| format!("wait until `{}` has stopped", self.shown))?;
            if status != WaitStatus::StillAlive {
                return Ok(());
            }
            if Instant::now() > deadline {
                let shown = &self.shown;
                return Err(LabError::new(format!(
                    "`{shown}` was not stopped within {WITHIN:?}"
                )));
            }
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.group.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time. It goes on then.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.group
            .wait(timeout)
            .ok_or_else(|| LabError::new(format!("`{}` still runs after {timeout:?}", self.shown)))
    }

    /// Kills it and what it started, and waits for its end.
    pub fn kill(&mut self) {
        self.group.end();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({}: {})", self.group.child.id(), self.shown)
    }
}

/// A child that leads a process group.
struct Group {
    child: Child,
}

impl Group {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(1);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                _ if Instant::now() >= deadline => return None,
                _ => thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    fn end(&mut self) {
        // The group's number cannot have been given to anybody else while its leader is not reaped; after that
        // it can only name what the leader left running.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// Waits until `setpriv` has arranged the death signal and become the program: only from then on is it sure that the
/// program does not outlive the lab.
fn wait_until_bound(pid: u32) {
    let still_setpriv = || {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
        exe.is_ok_and(|exe| exe.file_name() == Some(OsStr::new("setpriv")))
    };
    for _ in 0..10_000 {
        if !still_setpriv() {
            return;
        }
        thread::sleep(Duration::from_micros(100));
    }
}

fn collect(from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(from.take(OUTPUT_LIMIT).read_to_end(&mut bytes));
        bytes
    })
}

fn open_log(path: &Path) -> Result<(File, File)> {
    let open = || {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok((file.try_clone()?, file))
    };
    open().map_err(|err: std::io::Error| {
        LabError::because(format!("open the log {}", path.display()), err)
    })
}
