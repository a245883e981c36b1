//! The listeners of a pod: for every worker one of each kind, inside the pod's namespace.
//!
//! Their ports are whatever the kernel gives: connections come to them by `sk_lookup` alone. Whoever
//! finds out a port and connects to it is refused.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use ztunnel_abi::ANSWER_MARK;
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::socket::{Family, Liveness, listen_any, local_port, set_mark};

use crate::capture::ListenerSet;

/// Connections that may wait to be accepted, per worker and kind. More means the worker is stuck.
const BACKLOG: i32 = 1024;

/// All listeners of a pod.
#[derive(Debug)]
pub struct Listeners {
    /// One for each worker.
    pub sets: Vec<ListenerSet>,
    /// The ports that they happen to have. A connection delivered to one of them would come back.
    pub ports: Arc<[u16]>,
}

/// Opens the listeners for `workers` workers.
///
/// # Errors
/// When a socket cannot be opened in the namespace.
pub fn open_listeners(netns: &NetNs, workers: usize, liveness: Liveness) -> io::Result<Listeners> {
    netns.run(|| {
        // A dual-stack socket serves both families; a pod may be without IPv6 altogether.
        let family = match listen_any(Family::V6, BACKLOG, liveness) {
            Ok(_) => Family::V6,
            Err(_) => Family::V4,
        };
        let listen = || listen_any(family, BACKLOG, liveness);
        let set = |_| {
            let outbound = listen()?;
            set_mark(outbound.as_fd(), ANSWER_MARK)?;
            Ok(ListenerSet {
                outbound,
                inbound: listen()?,
                hbone: listen()?,
            })
        };
        let sets = (0..workers).map(set).collect::<io::Result<Vec<_>>>()?;
        let fds = sets
            .iter()
            .flat_map(|set| [&set.outbound, &set.inbound, &set.hbone]);
        let ports = fds.map(|fd| local_port(fd.as_fd()));
        let ports = ports.collect::<io::Result<_>>()?;
        Ok(Listeners { sets, ports })
    })?
}
