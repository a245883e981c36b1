//! Network namespaces: opening them, naming them, running code inside them.
//!
//! `setns` changes a thread. Code that may block runs inside a namespace on a thread made for it. What opens a socket
//! runs on the caller's own thread, which is back before the call returns, so an async task can never wake up in the
//! wrong one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::{process, thread};

use nix::sched::{CloneFlags, setns};

use crate::socket;

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

    /// Runs `job`, which must not block, inside the namespace on the calling thread, whose own is `home`. There and back
    /// is 2 µs. To have another thread do it took 10 µs and more of both threads' time, for waking one another.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn visit<T>(&self, home: &Self, job: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let _back = Return(home);
        Ok(job())
    }
}

/// Brings the thread back, even from a panic.
struct Return<'a>(&'a NetNs);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(err) = setns(&self.0.file, CloneFlags::CLONE_NEWNET) {
            // It would go on in the wrong namespace, with everything that this thread does. Capture stays: until there is a
            // new process, connections fail.
            eprintln!("a thread cannot get back to its network namespace: {err}");
            process::abort();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_namespace_has_a_cookie() {
        assert_ne!(NetNs::current().unwrap().cookie(), 0);
    }

    #[test]
    fn a_visitor_is_back_afterwards_whatever_happened() {
        let home = NetNs::current().unwrap();
        let there = home
            .run(|| {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
                NetNs::current()
            })
            .unwrap();
        let Ok(there) = there else {
            panic!("a namespace is made");
        };
        let seen = there.visit(&home, || NetNs::current().unwrap().cookie());
        assert_eq!(seen.unwrap(), there.cookie());
        assert_ne!(there.cookie(), home.cookie());
        let panicked = std::panic::catch_unwind(|| there.visit(&home, || panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(NetNs::current().unwrap().cookie(), home.cookie());
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        assert!(NetNs::open(Path::new("/etc/hostname")).is_err());
    }
}
