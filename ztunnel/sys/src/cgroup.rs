//! The cgroup-v2 hierarchy: where it is, and a cgroup of the daemon's own in it.
//!
//! The connect hooks tell the daemon from the apps by its cgroup id, so the daemon must not share its cgroup.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;

/// Leaf cgroups of ours start with this.
const PREFIX: &str = "ztunnel.";

/// The daemon's own cgroup. Its directory is removed by the successor: a process cannot remove the cgroup it is in.
#[derive(Debug)]
pub struct OwnCgroup {
    /// The root of the hierarchy, where the hooks are attached.
    pub root: PathBuf,
    /// What `bpf_get_current_cgroup_id` says in this process.
    pub id: u64,
}

/// Why the daemon has no cgroup of its own.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no cgroup-v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    NoHierarchy,
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "create a cgroup under {path}, and the present one is the root of the hierarchy, which is everybody's; \
         start the daemon in a cgroup of its own or make the hierarchy writable"
    )]
    Shared { path: PathBuf, source: io::Error },
}

/// Moves this process into a new leaf of the cgroup it is in, and removes the leaves that dead daemons left
/// beside it. Where the hierarchy cannot be written (an ordinary container) the present cgroup is the daemon's own
/// already, unless it is the root.
///
/// # Errors
/// When there is no cgroup-v2 hierarchy, or only its root.
pub fn enter_own() -> Result<OwnCgroup, CgroupError> {
    let root = root()?;
    let parent = present(&root)?;
    remove_empty_leaves(&parent);
    let leaf = parent.join(format!("{PREFIX}{}", process::id()));
    let entered = fs::create_dir(&leaf)
        .and_then(|()| fs::write(leaf.join("cgroup.procs"), process::id().to_string()));
    let own = match entered {
        Ok(()) => leaf,
        Err(_) if parent != root => {
            drop(fs::remove_dir(&leaf));
            parent
        }
        Err(source) => {
            return Err(CgroupError::Shared {
                path: parent,
                source,
            });
        }
    };
    // The inode number of a cgroup directory is its id (kernfs, 64-bit).
    let id = fs::metadata(&own)
        .map_err(|source| CgroupError::Read { path: own, source })?
        .ino();
    Ok(OwnCgroup { root, id })
}

/// Leaves the daemon's own cgroup for its parent and removes it.
///
/// # Errors
/// When the process may not move.
pub fn leave_own() -> io::Result<()> {
    let Ok(root) = root() else { return Ok(()) };
    let Ok(own) = relative().map(|path| root.join(path)) else {
        return Ok(());
    };
    let ours = own
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    match own.parent() {
        Some(parent) if ours => {
            fs::write(parent.join("cgroup.procs"), process::id().to_string())?;
            fs::remove_dir(&own)
        }
        _ => Ok(()),
    }
}

/// What `bpf_get_current_cgroup_id` says in this process.
///
/// # Errors
/// When there is no cgroup-v2 hierarchy, or it cannot be read.
pub fn current_id() -> Result<u64, CgroupError> {
    let root = root()?;
    let path = relative().map(|path| root.join(path));
    let read = path.and_then(|path| Ok(fs::metadata(path)?.ino()));
    read.map_err(|source| CgroupError::Read { path: root, source })
}

/// Removes the leaf of a process that has ended, which was started by this one.
pub fn remove_leaf_of(pid: u32) {
    if let Ok(parent) = root().and_then(|root| present(&root)) {
        drop(fs::remove_dir(parent.join(format!("{PREFIX}{pid}"))));
    }
}

/// Where the cgroup-v2 hierarchy is mounted: on hybrid systems not at `/sys/fs/cgroup`.
///
/// # Errors
/// When there is none.
pub fn root() -> Result<PathBuf, CgroupError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let mounts = fs::read_to_string(&path).map_err(|source| CgroupError::Read { path, source })?;
    mounts
        .lines()
        .find_map(|line| {
            // proc(5): fields, then " - ", then the type of the file system.
            let (fields, rest) = line.split_once(" - ")?;
            rest.starts_with("cgroup2 ")
                .then(|| fields.split(' ').nth(4).map(PathBuf::from))?
        })
        .ok_or(CgroupError::NoHierarchy)
}

fn present(root: &Path) -> Result<PathBuf, CgroupError> {
    let relative = relative().map_err(|source| CgroupError::Read {
        path: "/proc/self/cgroup".into(),
        source,
    })?;
    let present = root.join(relative);
    // Started by a process that is in such a leaf itself: a leaf beside it, not below it.
    let leaf = present
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    Ok(match present.parent() {
        Some(parent) if leaf => parent.to_owned(),
        _ => present,
    })
}

/// This process's cgroup, relative to the root of the hierarchy.
fn relative() -> io::Result<String> {
    let cgroups = fs::read_to_string("/proc/self/cgroup")?;
    let path = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    Ok(path.to_owned())
}

fn remove_empty_leaves(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        // A living daemon may have made its leaf and not entered it yet.
        if !Path::new("/proc").join(pid).exists() {
            // Fails while a process is in it, which is what we want.
            drop(fs::remove_dir(entry.path()));
        }
    }
}
