//! The file system that keeps programs, links and maps alive while no daemon runs.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes sure that `directory` exists and is on a BPF file system, mounting that at its usual place if need be.
///
/// # Errors
/// When it is elsewhere, or mounting is not permitted.
pub fn ensure(directory: &Path) -> io::Result<()> {
    if directory.starts_with(MOUNT_POINT) && !is_bpffs(Path::new(MOUNT_POINT)) {
        fs::create_dir_all(MOUNT_POINT)?;
        mount(
            Some("bpf"),
            MOUNT_POINT,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )?;
    }
    fs::create_dir_all(directory)?;
    if is_bpffs(directory) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} is not on a BPF file system; choose a directory below {MOUNT_POINT}",
        directory.display()
    )))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}
