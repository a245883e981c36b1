//! The connect hooks of the node and the table of enrolled pods they read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, MapError};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use ztunnel_abi::ABI_VERSION;
use ztunnel_abi::connect::PodEntry;
use ztunnel_sys::bpffs;
use ztunnel_sys::cgroup::OwnCgroup;

use super::CaptureError;
use super::objects::{NODE, Owned, pin_over};

const HOOKS: [&str; 2] = ["connect4", "connect6"];

/// The capture of one node.
pub struct NodeCapture {
    base: PathBuf,
    pods: HashMap<Owned, u64, PodEntry>,
}

impl NodeCapture {
    /// Loads the hooks, takes over the table that an earlier daemon left, and attaches them at the root of the
    /// cgroup hierarchy in place of its hooks.
    ///
    /// # Errors
    /// When the kernel refuses; nothing that was there before is lost then.
    pub fn start(base: &Path, daemon: &OwnCgroup) -> Result<Self, CaptureError> {
        let dir = versioned(base);
        bpffs::ensure(&dir).map_err(|source| CaptureError::Directory {
            path: dir.clone(),
            source,
        })?;
        let mut ebpf = NODE.load(&dir)?;
        let pods = NODE.map(&mut ebpf, "PODS")?;
        let mut owner: Array<_, u64> = NODE.map(&mut ebpf, "DAEMON")?;
        owner
            .set(0, daemon.id, 0)
            .map_err(|source| CaptureError::Map {
                map: "DAEMON",
                source,
            })?;

        let root = File::open(&daemon.root).map_err(|source| CaptureError::Path {
            path: daemon.root.clone(),
            source,
        })?;
        for hook in HOOKS {
            let program: &mut CgroupSockAddr = NODE.program(&mut ebpf, hook)?;
            let attach = |program: &mut CgroupSockAddr| -> Result<FdLink, ProgramError> {
                program.load()?;
                // Links to a cgroup stack by nature; other modes are for the older way of attaching.
                let id = program.attach(&root, CgroupAttachMode::Single)?;
                // Only kernels before 5.7 have another kind of link.
                program
                    .take_link(id)?
                    .try_into()
                    .map_err(|_: LinkError| ProgramError::NotAttached)
            };
            let link = attach(program).map_err(|source| CaptureError::Attach {
                program: hook,
                source,
            })?;
            pin_over(link, &dir.join(hook))?;
        }
        Ok(Self {
            base: base.to_owned(),
            pods,
        })
    }

    /// Where the pins of this version are.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        versioned(&self.base)
    }

    /// Makes the hooks treat the namespace with this cookie as `entry` says, from the next connect on.
    ///
    /// # Errors
    /// When the table is full.
    pub fn set(&mut self, cookie: u64, entry: PodEntry) -> Result<(), CaptureError> {
        self.pods
            .insert(cookie, entry, 0)
            .map_err(|source| CaptureError::Map {
                map: "PODS",
                source,
            })
    }

    /// Makes the hooks leave the namespace alone, from the next connect on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(&mut self, cookie: u64) -> Result<(), CaptureError> {
        match self.pods.remove(&cookie) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(err))
                if err.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(source) => Err(CaptureError::Map {
                map: "PODS",
                source,
            }),
        }
    }

    /// What the hooks do with the namespace.
    #[must_use]
    pub fn entry(&self, cookie: u64) -> Option<PodEntry> {
        self.pods.get(&cookie, 0).ok()
    }

    /// The namespaces that the hooks know.
    #[must_use]
    pub fn cookies(&self) -> Vec<u64> {
        self.pods.keys().filter_map(Result::ok).collect()
    }

    /// Removes what daemons with other map layouts left. To be called when every pod is captured by this one.
    pub fn remove_other_versions(&self) {
        let own = self.directory();
        for entry in fs::read_dir(&self.base).into_iter().flatten().flatten() {
            if entry.path() != own {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Detaches the hooks and removes every pin.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove(self) -> Result<(), CaptureError> {
        fs::remove_dir_all(&self.base).map_err(|source| CaptureError::Path {
            path: self.base,
            source,
        })
    }
}

fn versioned(base: &Path) -> PathBuf {
    base.join(format!("v{ABI_VERSION}"))
}
