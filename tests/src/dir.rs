//! The directory of one lab on disk, and what to do about labs that died without cleaning up.
//!
//! Namespaces, programs and pinned BPF objects vanish with the process by themselves. What does not is this
//! directory and the cgroups that daemons make; the directory lists those. A living lab holds a lock on its
//! directory, so a lock that can be had means a dead lab, whatever became of its process id.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Doing, LabError, Result};

const PREFIX: &str = "zt-lab-";
/// Lists the cgroups of the lab's daemons.
const CGROUPS: &str = "cgroups";
/// Cgroups are only removed if they are called like this: a wrong line must not remove somebody else's.
const CGROUP_PREFIX: &str = "ztunnel";

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct LabDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl LabDir {
    /// Removes what dead labs left, then makes a new directory.
    pub(crate) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        sweep();
        for _ in 0..100 {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{PREFIX}{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            // A sweep elsewhere may have taken it for a dead one's before it was locked.
            if let Some(lock) = lock(&path) {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(LabError::new(format!(
            "make a directory below {}",
            std::env::temp_dir().display()
        )))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes note of a daemon's cgroup, to remove it when the daemon is gone.
    pub(crate) fn note_cgroup(&self, cgroup: &Path) -> Result<()> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path.join(CGROUPS))
            .and_then(|mut file| writeln!(file, "{}", cgroup.display()))
            .doing(|| "take note of a cgroup")
    }

    /// Cgroups of this lab's daemons that are still there.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        cgroups(&self.path)
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Where the cgroup-v2 hierarchy is mounted.
pub(crate) fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").doing(|| "read the mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (at, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(at))
        })
        .next()
        .ok_or_else(|| LabError::new("no cgroup-v2 hierarchy is mounted"))
}

fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let is_lab = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_lab && lock(&entry.path()).is_some() {
            remove(&entry.path());
        }
    }
}

/// The lock of the directory that is at `path`, unless somebody holds it.
fn lock(path: &Path) -> Option<Flock<File>> {
    let file = File::open(path).ok()?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    same(locked.metadata().ok()?, fs::metadata(path).ok()?).then_some(locked)
}

fn remove(path: &Path) {
    for cgroup in cgroups(path) {
        // Fails while a process is in it, which is right.
        drop(fs::remove_dir(cgroup));
    }
    drop(fs::remove_dir_all(path));
}

fn cgroups(path: &Path) -> Vec<PathBuf> {
    let noted = fs::read_to_string(path.join(CGROUPS)).unwrap_or_default();
    noted
        .lines()
        .map(PathBuf::from)
        .filter(|cgroup| {
            let name = cgroup.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(CGROUP_PREFIX) && cgroup.is_dir()
        })
        .collect()
}
