//! The daemon as a pod of its own: a tunnel port in its own namespace, through which clients in the mesh may read its
//! metrics, as themselves and as policy allows.
//!
//! Invariant: nothing but that one port can be asked for. Nothing is captured in the daemon's namespace, so nobody sees
//! the address of a client there.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ztunnel_mesh::addr::HBONE_PORT;
use ztunnel_mesh::name::PodName;
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::socket::{Liveness, listen_everywhere};

use crate::task::PodNet;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The daemon's own pod, ready to be served.
#[derive(Debug)]
pub struct DaemonPod {
    pub(super) pod: PodName,
    pub(super) net: PodNet,
    pub(super) listener: OwnedFd,
    pub(super) ports: Arc<[u16]>,
    /// Where the daemon tells its metrics.
    pub(super) stats_port: u16,
}

impl DaemonPod {
    /// Listens on the tunnel port of the namespace that the daemon runs in, on all addresses. Metrics are told on
    /// `stats_port` there.
    ///
    /// # Errors
    /// When the port is taken, or the kernel refuses.
    pub fn open(pod: PodName, liveness: Liveness, stats_port: u16) -> io::Result<Self> {
        let listener = listen_everywhere(HBONE_PORT, BACKLOG)?;
        let netns = Arc::new(NetNs::current()?);
        Ok(Self {
            pod,
            net: PodNet::new(Arc::clone(&netns), netns, liveness),
            listener,
            ports: [HBONE_PORT].into(),
            stats_port,
        })
    }
}
