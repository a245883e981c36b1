//! The connect hooks of the node and the table of enrolled pods they read.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, HashMap, MapError};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use ztunnel_abi::ABI_VERSION;
use ztunnel_abi::connect::PodEntry;
use ztunnel_sys::bpffs;
use ztunnel_sys::cgroup::OwnCgroup;

use super::CaptureError;
use super::objects::{Loader, NODE, Owned, pin_over};
use super::pod::PodCaptures;

const HOOKS: [&str; 2] = ["connect4", "connect6"];

/// The right to capture on this node. One daemon has it at a time, until it lets go or dies; a second one must find
/// that out before it changes anything.
#[derive(Debug)]
pub struct NodeClaim {
    base: PathBuf,
    _lock: File,
}

impl NodeClaim {
    /// Takes it for `base`, the directory of pins.
    ///
    /// # Errors
    /// [`CaptureError::Taken`] when another daemon has it.
    pub fn take(base: &Path) -> Result<Self, CaptureError> {
        bpffs::ensure(base).map_err(|source| CaptureError::Directory {
            path: base.to_owned(),
            source,
        })?;
        let path = |source| CaptureError::Path {
            path: base.to_owned(),
            source,
        };
        let taken = || CaptureError::Taken {
            path: base.to_owned(),
        };
        let lock = File::open(base).map_err(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken()),
            Err(TryLockError::Error(source)) => return Err(path(source)),
        }
        // Another daemon that was ending may have removed the directory in between: the lock would be worth nothing.
        let there = fs::metadata(base).and_then(|there| Ok((there, lock.metadata()?)));
        let (there, locked) = there.map_err(path)?;
        if (there.dev(), there.ino()) != (locked.dev(), locked.ino()) {
            return Err(taken());
        }
        Ok(Self {
            base: base.to_owned(),
            _lock: lock,
        })
    }
}

/// A daemon that did not get as far as capturing leaves no directory behind.
impl Drop for NodeClaim {
    fn drop(&mut self) {
        // Fails while there is something in it, which is right.
        drop(fs::remove_dir(&self.base));
    }
}

/// The capture of one node.
pub struct NodeCapture {
    base: PathBuf,
    loader: Arc<Loader>,
    pods: HashMap<Owned, u64, PodEntry>,
}

impl NodeCapture {
    /// Loads the hooks, takes over the table that an earlier daemon left, and attaches them at the root of the
    /// cgroup hierarchy in place of its hooks.
    ///
    /// # Errors
    /// When the kernel refuses; nothing that was there before is lost then.
    pub fn start(claim: &NodeClaim, daemon: &OwnCgroup) -> Result<Self, CaptureError> {
        let dir = versioned(&claim.base);
        bpffs::ensure(&dir).map_err(|source| CaptureError::Directory {
            path: dir.clone(),
            source,
        })?;
        let loader = Arc::new(Loader::new());
        let mut ebpf = loader.load(&NODE, &dir)?;
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
            base: claim.base.clone(),
            loader,
            pods,
        })
    }

    /// Where the pins of this version are.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        versioned(&self.base)
    }

    /// What the captures of this node's pods are made with.
    #[must_use]
    pub fn pods(&self) -> PodCaptures {
        PodCaptures {
            directory: self.directory(),
            loader: Arc::clone(&self.loader),
        }
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

    /// Whether the hooks are there.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        let directory = self.directory();
        HOOKS.iter().all(|hook| directory.join(hook).exists())
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
