//! Somewhere in the lab where programs run and sockets are opened: a pod, a node, or the outside.

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Doing, LabError, Result};
use crate::fingerprint::{Fingerprint, listening_ports};
use crate::net::Namespace;
use crate::process::{Output, Process, Program};

/// How long a listener may take to appear.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A namespace, and a directory for what its programs write.
#[derive(Clone, Debug)]
pub struct Place {
    ns: Arc<Namespace>,
    dir: PathBuf,
}

impl Place {
    pub(crate) fn new(ns: Arc<Namespace>, dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).doing(|| format!("make {}", dir.display()))?;
        Ok(Self { ns, dir })
    }

    /// What it is called: `namespace/name` of a pod, the node's name, `outside`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.ns.name()
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.ns
    }

    /// Its directory, gone when the lab ends.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started or takes too long. How it ended is not judged.
    pub fn run<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        Program::new(argv).run(&self.ns)
    }

    /// Starts a program.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Process> {
        Program::new(argv).spawn(&self.ns)
    }

    /// Opens a TCP connection from here.
    ///
    /// # Errors
    /// Those of the connect.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.ns.connect(to, timeout)
    }

    /// Listens for TCP here.
    ///
    /// # Errors
    /// Those of the bind.
    pub fn listen(&self, on: SocketAddr) -> io::Result<TcpListener> {
        self.ns.listen(on)
    }

    /// Waits until something listens on TCP `port`, without connecting to it.
    ///
    /// # Errors
    /// When nothing does in time.
    pub fn wait_for_listener(&self, port: u16) -> Result<()> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while !self.ns.enter(listening_ports)??.contains(&port) {
            if Instant::now() > deadline {
                return Err(LabError::new(format!(
                    "nothing listens on port {port} in {} after {LISTEN_TIMEOUT:?}",
                    self.name()
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Everything about the namespace that capture might change.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        Fingerprint::take(&self.ns)
    }
}
