//! The socket lookup of one pod: its program, its listeners, its settings.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use aya::maps::{Array, SockMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, SkLookup};
use ztunnel_abi::lookup::{Listener, MAX_ADDRESSES, PodSettings, listener_slot};
use ztunnel_sys::netns::NetNs;

use super::CaptureError;
use super::objects::{Loader, Owned, POD, pin_over};

const LINK: &str = "link";
const PROGRAM: &str = "pod";

/// The listeners of one worker in one pod.
#[derive(Debug)]
pub struct ListenerSet {
    pub outbound: OwnedFd,
    pub inbound: OwnedFd,
    pub hbone: OwnedFd,
}

/// Makes and removes the captures of a node's pods.
#[derive(Clone)]
pub struct PodCaptures {
    pub(super) directory: PathBuf,
    pub(super) loader: Arc<Loader>,
}

impl PodCaptures {
    /// Creates the maps of a pod, or takes over those that an earlier daemon left. Nothing is attached yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(&self, netns: &NetNs) -> Result<PodCapture, CaptureError> {
        let directory = self.directory.join(netns.cookie().to_string());
        fs::create_dir_all(&directory).map_err(|source| CaptureError::Path {
            path: directory.clone(),
            source,
        })?;
        let mut ebpf = self.loader.load(&POD, &directory)?;
        Ok(PodCapture {
            listeners: POD.map(&mut ebpf, "LISTENERS")?,
            settings: POD.map(&mut ebpf, "SETTINGS")?,
            loader: Arc::clone(&self.loader),
            directory,
        })
    }

    /// Whether a program is attached to the namespace with this cookie.
    #[must_use]
    pub fn is_attached(&self, cookie: u64) -> bool {
        let directory = self.directory.join(cookie.to_string());
        directory.join(LINK).exists()
    }

    /// Detaches the program of the pod whose namespace has, or had, this cookie, and removes its maps.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove(&self, cookie: u64) -> Result<(), CaptureError> {
        let directory = self.directory.join(cookie.to_string());
        // The link first: without it the program is gone before its listeners are.
        drop(fs::remove_file(directory.join(LINK)));
        match fs::remove_dir_all(&directory) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(CaptureError::Path {
                    path: directory,
                    source,
                })
            }
            _ => Ok(()),
        }
    }
}

/// The capture of one pod.
pub struct PodCapture {
    directory: PathBuf,
    loader: Arc<Loader>,
    listeners: SockMap<Owned>,
    settings: Array<Owned, PodSettings>,
}

impl PodCapture {
    /// Gives new connections to `workers` from now on, on every port at once.
    ///
    /// # Errors
    /// When a socket is not a listening TCP socket.
    pub fn set_listeners(&mut self, workers: &[ListenerSet]) -> Result<(), CaptureError> {
        for (worker, set) in (0u32..).zip(workers) {
            for (kind, fd) in [
                (Listener::Outbound, &set.outbound),
                (Listener::Inbound, &set.inbound),
                (Listener::Hbone, &set.hbone),
            ] {
                self.listeners
                    .set(listener_slot(kind, worker), fd, 0)
                    .map_err(|source| CaptureError::Map {
                        map: "LISTENERS",
                        source,
                    })?;
            }
        }
        Ok(())
    }

    /// Tells the program about its pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_settings(&mut self, settings: &PodSettings) -> Result<(), CaptureError> {
        self.settings
            .set(0, settings, 0)
            .map_err(|source| CaptureError::Map {
                map: "SETTINGS",
                source,
            })
    }

    /// What the program knows about its pod.
    #[must_use]
    pub fn settings(&self) -> Option<PodSettings> {
        self.settings.get(&0, 0).ok()
    }

    /// Attaches a new program to the namespace in place of the one that may be there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&self, netns: &NetNs) -> Result<(), CaptureError> {
        let mut ebpf = self.loader.load(&POD, &self.directory)?;
        let program: &mut SkLookup = POD.program(&mut ebpf, PROGRAM)?;
        let attach = |program: &mut SkLookup| -> Result<FdLink, ProgramError> {
            program.load()?;
            let id = program.attach(netns)?;
            Ok(program.take_link(id)?.into())
        };
        let link = attach(program).map_err(|source| CaptureError::Attach {
            program: PROGRAM,
            source,
        })?;
        pin_over(link, &self.directory.join(LINK))
    }
}

/// The settings of a pod with these addresses, of which as many count as fit.
#[must_use]
pub fn settings(addresses: &[std::net::IpAddr], workers: usize, flags: u32) -> PodSettings {
    let mut own = [[0; 4]; MAX_ADDRESSES];
    for (slot, ip) in own.iter_mut().zip(addresses) {
        *slot = ztunnel_abi::address(*ip);
    }
    PodSettings {
        flags,
        workers: u32::try_from(workers).unwrap_or(0),
        addresses: own,
    }
}
