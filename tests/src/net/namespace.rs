//! One machine of the lab: a network namespace and a mount namespace without a name.
//!
//! Invariants:
//! - Nothing outlives the process. The namespaces have no path of their own: they exist as long as a thread,
//!   a process or a descriptor of the lab does. Programs started inside die with the thread that started them
//!   (`PR_SET_PDEATHSIG`), so also after SIGKILL nothing stays behind.
//! - That is why one long-lived thread, the keeper, starts all programs: the kernel sends the death signal when
//!   the *thread* that forked ends, not the process. Sockets are opened on short-lived threads instead, so a slow
//!   connect never holds up a program start.
//! - No thread of the caller ever changes its namespace.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Doing, LabError, Result};

/// How long a program that is being started may have a copy of a listener.
const STILL_OPEN: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with its own mounts, and the thread that keeps it alive.
pub struct Namespace {
    name: String,
    net: File,
    mounts: File,
    keeper_tid: i32,
    jobs: Option<Sender<Job>>,
    keeper: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes an empty one: `lo` is down, there are no other interfaces; mounts are those of the machine.
    ///
    /// # Errors
    /// When the kernel refuses, most often because the caller is not root.
    pub fn new(name: &str) -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (ready_tx, ready_rx) = channel();
        let keeper = thread::Builder::new()
            .name(format!("ns-{name}"))
            .spawn(move || {
                let opened = enter_fresh_namespaces();
                let failed = opened.is_err();
                if ready_tx.send(opened).is_err() || failed {
                    return;
                }
                while let Ok(job) = queue.recv() {
                    job();
                }
            })
            .doing(|| format!("start the thread of namespace {name}"))?;
        let (net, mounts, keeper_tid) = ready_rx
            .recv()
            .doing(|| format!("make namespace {name}"))?
            .doing(|| format!("make namespace {name} (the lab needs root)"))?;
        Ok(Self {
            name: name.to_owned(),
            net,
            mounts,
            keeper_tid,
            jobs: Some(jobs),
            keeper: Some(keeper),
        })
    }

    /// What the lab calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where other processes of this machine can open the network namespace, while the lab lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.net.as_raw_fd()
        ))
    }

    /// The thread to name to `nsenter --target` in order to look around inside.
    #[must_use]
    pub fn keeper_tid(&self) -> i32 {
        self.keeper_tid
    }

    /// The inode number of the network namespace, as `/proc/<pid>/fd` shows it for descriptors of it.
    ///
    /// # Errors
    /// When the descriptor cannot be examined.
    pub fn inode(&self) -> Result<u64> {
        let meta = self.net.metadata();
        Ok(meta
            .doing(|| format!("examine the namespace of {}", self.name))?
            .ino())
    }

    /// Runs `job` on the long-lived thread. For starting programs, and for what must happen in order.
    ///
    /// # Errors
    /// When the job panicked.
    pub fn on_keeper<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (tx, rx) = channel();
        let job: Job = Box::new(move || {
            let done = catch_unwind(AssertUnwindSafe(job));
            drop(tx.send(done));
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .ok_or_else(|| LabError::new(format!("the thread of namespace {} ended", self.name)))?;
        rx.recv()
            .doing(|| format!("wait for the thread of namespace {}", self.name))?
            .map_err(|panic| self.panicked(&*panic))
    }

    /// Runs `job` inside, on a thread of its own that ends with it. Sockets it makes belong to the namespace and
    /// work on any thread afterwards. Programs must not be started here: they would die with the thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the job panicked.
    pub fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.net, CloneFlags::CLONE_NEWNET)?;
                // A mount namespace can only be joined by a thread with its own idea of `/` and the
                // working directory.
                unshare(CloneFlags::CLONE_FS)?;
                setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
                Ok::<T, nix::Error>(job())
            });
            inside
                .join()
                .map_err(|panic| self.panicked(&*panic))?
                .doing(|| format!("enter namespace {}", self.name))
        })
    }

    /// Connects a TCP socket from inside.
    ///
    /// # Errors
    /// Those of the connect itself, unchanged, so that a test can look at their kind.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&to, timeout))
            .map_err(io::Error::other)?
    }

    /// Listens for TCP inside. Waits a moment for a listener that was closed just now: a program that is being
    /// started, by whatever thread, has a copy of every descriptor of this process until its own code begins.
    ///
    /// # Errors
    /// Those of the bind itself.
    pub fn listen(&self, on: SocketAddr) -> io::Result<TcpListener> {
        let deadline = Instant::now() + STILL_OPEN;
        let bind = || {
            loop {
                match TcpListener::bind(on) {
                    Err(err)
                        if err.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                    {
                        thread::sleep(Duration::from_millis(2));
                    }
                    bound => return bound,
                }
            }
        };
        self.enter(bind).map_err(io::Error::other)?
    }

    /// Sets kernel parameters: the path below `/proc/sys`, and the value.
    ///
    /// # Errors
    /// Naming the parameter that could not be set.
    pub fn set_sysctls<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<()> {
        let values: Vec<_> = values.into_iter().collect();
        self.enter(|| {
            for (key, value) in values {
                fs::write(Path::new("/proc/sys").join(key), value)
                    .doing(|| format!("set {key} to {value} in {}", self.name))?;
            }
            Ok(())
        })?
    }

    /// Mounts a BPF file system of its own on `/sys/fs/bpf`: what is pinned there is seen by this namespace only
    /// and goes away with it.
    ///
    /// # Errors
    /// When the kernel refuses the mount.
    pub fn mount_bpffs(&self) -> Result<()> {
        self.on_keeper(|| {
            mount(
                Some("bpf"),
                "/sys/fs/bpf",
                Some("bpf"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=0700"),
            )
        })?
        .doing(|| format!("mount a BPF file system in {}", self.name))
    }

    /// Shows `file` as `over` to everything inside.
    ///
    /// # Errors
    /// When the kernel refuses the mount, most often because `over` does not exist.
    pub fn bind_mount(&self, file: &Path, over: &'static str) -> Result<()> {
        let from = file.to_owned();
        self.on_keeper(move || {
            mount(
                Some(&from),
                over,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
        })?
        .doing(|| format!("mount {} over {over} in {}", file.display(), self.name))
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> LabError {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        LabError::new(format!("a job inside {} panicked: {text}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The keeper ends when its queue closes, and with it every program it started.
        self.jobs = None;
        if let Some(keeper) = self.keeper.take() {
            drop(keeper.join());
        }
    }
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Namespace").field(&self.name).finish()
    }
}

/// Gives the calling thread namespaces of its own and opens them.
fn enter_fresh_namespaces() -> Result<(File, File, i32)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).doing(|| "unshare")?;
    // Slave, not private: what the machine unmounts must not stay mounted here. What we mount stays here.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .doing(|| "separate the mounts")?;
    let net = File::open("/proc/thread-self/ns/net").doing(|| "open the network namespace")?;
    let mounts = File::open("/proc/thread-self/ns/mnt").doing(|| "open the mount namespace")?;
    Ok((net, mounts, nix::unistd::gettid().as_raw()))
}
