//! Network namespaces: opening them, naming them, running code inside them.
//!
//! `setns` changes a thread. Nothing here ever moves the caller's thread: code runs inside a namespace only on
//! a thread that belongs to this module, so an async task can never wake up in the wrong one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::socket;

/// How many jobs may wait for the namespace thread. Each opens a socket in microseconds; a queue this long
/// means the node is out of descriptors or memory, and more waiting would not help.
const QUEUE: usize = 1024;

/// An open network namespace. Holding one keeps the namespace alive, so whoever holds it must let go when
/// the pod is gone.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    cookie: u64,
}

impl NetNs {
    /// Opens the namespace at `path` and asks the kernel for its cookie.
    ///
    /// # Errors
    /// When the path cannot be opened or is no network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let cookie = on_own_thread(file.as_fd(), socket::netns_cookie)??;
        Ok(Self {
            file,
            path: path.to_owned(),
            cookie,
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When procfs is not there.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The kernel's number for this namespace: unlike the inode it is never used again.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `job` inside the namespace, on a thread of its own that ends with it.
    ///
    /// # Errors
    /// When the thread cannot be made or cannot enter the namespace.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(self.file.as_fd(), job)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_own_thread<T: Send>(netns: BorrowedFd<'_>, job: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                Ok(job())
            })?
            .join()
            .unwrap_or_else(|_| {
                Err(io::Error::other(
                    "the job in the network namespace panicked",
                ))
            })
    })
}

type Job = Box<dyn FnOnce() + Send>;

/// One thread that enters namespaces all day, for callers that cannot block and cannot pay for a thread each.
#[derive(Clone, Debug)]
pub struct NetnsThread {
    jobs: SyncSender<(Arc<NetNs>, Job)>,
}

impl NetnsThread {
    /// Starts the thread; it ends when the last clone of the handle is dropped.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<(Arc<NetNs>, Job)>(QUEUE);
        thread::Builder::new()
            .name("netns-sockets".into())
            .spawn(move || {
                while let Ok((netns, job)) = queue.recv() {
                    // A job that was not run drops its reply channel, which tells the caller.
                    if setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).is_ok() {
                        job();
                    }
                }
            })?;
        Ok(Self { jobs })
    }

    /// Queues `job` to run inside `netns`. It must not block and must not panic.
    ///
    /// # Errors
    /// When the queue is full or the thread is gone.
    pub fn submit(
        &self,
        netns: &Arc<NetNs>,
        job: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.jobs
            .try_send((Arc::clone(netns), Box::new(job)))
            .map_err(|err| match err {
                TrySendError::Full(_) => io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "too many connections wait for a socket in a network namespace",
                ),
                TrySendError::Disconnected(_) => {
                    io::Error::other("the network namespace thread is gone")
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_namespace_has_a_cookie() {
        assert_ne!(NetNs::current().unwrap().cookie(), 0);
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        assert!(NetNs::open(Path::new("/etc/hostname")).is_err());
    }
}
