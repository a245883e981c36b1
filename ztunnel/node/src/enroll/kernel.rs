//! The kernel side of enrolling and unenrolling one pod. Blocking: runs on threads for that.
//!
//! ```text
//! enroll:    record → listeners → maps → sk_lookup → sysctls → routes, rules → cookie into the table
//! unenroll:  cookie out → sk_lookup passes → (connections end) → rules, routes → sysctls → sk_lookup, maps → record
//! ```
//! The cookie is the switch: until it is in the table no connect is marked, after it is out none is. So a pod
//! that is being enrolled behaves as before until everything is in place, and what fails half-way is undone by
//! the same code that unenrolls, which removes whatever it finds.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{error, warn};
use ztunnel_abi::connect::{MAX_INTERFACES, PodEntry, STATE_CAPTURE, STATE_REFUSE};
use ztunnel_abi::lookup::FLAG_BYPASS_INBOUND;
use ztunnel_abi::{ANSWER_MARK, CAPTURE_MARK, DELIVERY_MARK};
use ztunnel_sys::interface::{Interface, LO, interfaces, is_link_local};
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::policy_routing::{self, Marks};
use ztunnel_sys::socket::Liveness;
use ztunnel_sys::sysctl;

use super::EnrollError;
use super::record::{Phase, Record, Records};
use crate::capture::{NodeCapture, PodCapture, PodCaptures, settings};
use crate::pod::{Listeners, open_listeners};

const MARKS: Marks = Marks {
    capture: CAPTURE_MARK,
    delivery: DELIVERY_MARK,
    answer: ANSWER_MARK,
};

/// Make the app's answers on connections that the daemon opened carry the daemon's mark: those of accepted sockets,
/// and resets from ports that are closed.
const SYSCTLS: [&str; 3] = [
    "net.ipv4.tcp_fwmark_accept",
    "net.ipv4.fwmark_reflect",
    "net.ipv6.fwmark_reflect",
];

/// The hooks, the records and the number of workers: what every pod's transaction needs.
pub(super) struct Kernel {
    node: Mutex<Option<NodeCapture>>,
    captures: PodCaptures,
    records: Records,
    workers: usize,
    liveness: Liveness,
}

/// A pod whose capture is in place.
pub(super) struct Captured {
    pub(super) capture: PodCapture,
    pub(super) listeners: Listeners,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) record: Record,
}

impl Kernel {
    pub(super) fn new(
        node: NodeCapture,
        records: Records,
        workers: usize,
        liveness: Liveness,
    ) -> Self {
        let captures = node.pods();
        Self {
            node: Mutex::new(Some(node)),
            captures,
            records,
            workers,
            liveness,
        }
    }

    pub(super) fn records(&self) -> &Records {
        &self.records
    }

    /// Captures the pod, or takes over what an earlier daemon left of its capture.
    pub(super) fn capture(
        &self,
        netns: &NetNs,
        mut record: Record,
    ) -> Result<Captured, EnrollError> {
        let taken_over = record.phase == Phase::Captured;
        match self.try_capture(netns, &mut record) {
            Ok((capture, listeners, addresses)) => Ok(Captured {
                capture,
                listeners,
                addresses,
                record,
            }),
            Err(err) => {
                // A pod that was captured must not fall back to plaintext; one that was not goes on as before.
                let undone = if taken_over {
                    self.refuse(&record)
                } else {
                    self.release(Some(netns), &record)
                };
                if let Err(err) = undone {
                    error!(uid = record.uid, error = %err, "undoing a failed enrollment left traces");
                }
                Err(err)
            }
        }
    }

    /// `record` gets what has to be known to undo it, however far this comes.
    fn try_capture(
        &self,
        netns: &NetNs,
        record: &mut Record,
    ) -> Result<(PodCapture, Listeners, Vec<IpAddr>), EnrollError> {
        let (interfaces, before) = netns
            .run(|| io::Result::Ok((interfaces()?, changed_sysctls()?)))
            .and_then(|inspected| inspected)
            .map_err(|source| unreadable(netns, source))?;
        let addresses = own_addresses(&interfaces);
        if addresses.iter().all(|ip| is_link_local(*ip)) {
            return Err(EnrollError::NoAddress {
                path: netns.path().to_owned(),
            });
        }
        for (name, value) in before {
            record.sysctls.entry(name).or_insert(value);
        }
        self.records.put(record).map_err(EnrollError::Record)?;

        let listeners =
            open_listeners(netns, self.workers, self.liveness).map_err(EnrollError::Listen)?;
        let mut capture = self.captures.open(netns)?;
        capture.set_settings(&settings(&addresses, self.workers, 0))?;
        capture.set_listeners(&listeners.sets)?;
        capture.attach(netns)?;
        self.route(netns, record, &interfaces)?;
        record.phase = Phase::Captured;
        self.records.put(record).map_err(EnrollError::Record)?;
        Ok((capture, listeners, addresses))
    }

    /// The last steps: from here on connections take the way through the daemon.
    fn route(
        &self,
        netns: &NetNs,
        record: &Record,
        interfaces: &[Interface],
    ) -> Result<(), EnrollError> {
        netns
            .run(|| {
                record
                    .sysctls
                    .keys()
                    .try_for_each(|name| sysctl::write(name, "1"))?;
                policy_routing::install(interfaces, MARKS)
            })
            .and_then(|outcome| outcome)
            .map_err(EnrollError::Routing)?;
        self.set(record.cookie, entry(STATE_CAPTURE, interfaces))
    }

    /// Puts back what is missing of a pod's capture, without harm to what is there. `false`: nothing was missing.
    /// The pod's new connections are refused when that is not possible.
    pub(super) fn repair(
        &self,
        netns: &NetNs,
        capture: &PodCapture,
        record: &Record,
    ) -> Result<bool, EnrollError> {
        let Some(defect) = self.defect(netns) else {
            return Ok(false);
        };
        warn!(uid = record.uid, defect, "repairing the capture of a pod");
        let repaired = self.try_repair(netns, capture, record);
        if repaired.is_err() {
            self.refuse(record)?;
        }
        repaired.map(|()| true)
    }

    fn try_repair(
        &self,
        netns: &NetNs,
        capture: &PodCapture,
        record: &Record,
    ) -> Result<(), EnrollError> {
        let interfaces = netns
            .run(interfaces)
            .and_then(|inspected| inspected)
            .map_err(|source| unreadable(netns, source))?;
        if !self.captures.is_attached(netns.cookie()) {
            capture.attach(netns)?;
        }
        self.route(netns, record, &interfaces)?;
        match self.defect(netns) {
            None => Ok(()),
            Some(defect) => Err(EnrollError::Defect {
                uid: record.uid.clone(),
                defect,
            }),
        }
    }

    /// Lets new connections of the pod through, past the daemon. The ones there are go on.
    pub(super) fn bypass(
        &self,
        record: &mut Record,
        capture: &mut PodCapture,
    ) -> Result<(), EnrollError> {
        record.phase = Phase::Leaving;
        self.records.put(record).map_err(EnrollError::Record)?;
        if let Some(node) = self.node().as_mut() {
            node.clear(record.cookie)?;
        }
        if let Some(mut settings) = capture.settings() {
            settings.flags |= FLAG_BYPASS_INBOUND;
            capture.set_settings(&settings)?;
        }
        Ok(())
    }

    /// Removes everything that capture left, in the namespace if there still is one, and the record last.
    pub(super) fn release(
        &self,
        netns: Option<&NetNs>,
        record: &Record,
    ) -> Result<(), EnrollError> {
        if let Some(node) = self.node().as_mut() {
            node.clear(record.cookie)?;
        }
        if let Some(netns) = netns {
            netns
                .run(|| {
                    policy_routing::remove()?;
                    record
                        .sysctls
                        .iter()
                        .try_for_each(|(name, value)| sysctl::write(name, value))
                })
                .and_then(|outcome| outcome)
                .map_err(EnrollError::Routing)?;
        }
        self.captures.remove(record.cookie)?;
        self.records
            .remove(&record.uid())
            .map_err(EnrollError::Record)
    }

    /// Refuses the pod's new connections until it is captured again.
    pub(super) fn refuse(&self, record: &Record) -> Result<(), EnrollError> {
        self.set(record.cookie, entry(STATE_REFUSE, &[]))
    }

    /// What is missing for the pod to be captured, as the kernel has it now. `None`: nothing.
    pub(super) fn defect(&self, netns: &NetNs) -> Option<&'static str> {
        let entry = self
            .node()
            .as_ref()
            .and_then(|node| node.entry(netns.cookie()));
        if !self.node().as_ref().is_some_and(NodeCapture::is_attached) {
            return Some("the connect hooks are not attached to the node; restart the daemon");
        }
        match entry.map(|entry| entry.state) {
            Some(STATE_CAPTURE) => {}
            Some(_) => return Some("the connect hooks refuse the pod's connections"),
            None => return Some("the connect hooks do not know the pod"),
        }
        if !self.captures.is_attached(netns.cookie()) {
            return Some("no socket lookup program is attached to the network namespace");
        }
        match netns.run(|| interfaces().and_then(|found| policy_routing::is_complete(&found))) {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => Some("policy routing is incomplete"),
            _ => Some("the network namespace cannot be inspected"),
        }
    }

    /// Removes what daemons with other map layouts left; every pod is captured by this one now.
    pub(super) fn forget_other_versions(&self) {
        if let Some(node) = self.node().as_ref() {
            node.remove_other_versions();
        }
    }

    /// Detaches the hooks and removes every pin.
    pub(super) fn remove(&self) -> Result<(), EnrollError> {
        match self.node().take() {
            Some(node) => Ok(node.remove()?),
            None => Ok(()),
        }
    }

    fn set(&self, cookie: u64, entry: PodEntry) -> Result<(), EnrollError> {
        match self.node().as_mut() {
            Some(node) => Ok(node.set(cookie, entry)?),
            None => Err(EnrollError::Stopping),
        }
    }

    fn node(&self) -> MutexGuard<'_, Option<NodeCapture>> {
        // Every change of it is one system call: a panic elsewhere cannot leave it half-way.
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses by which the pod is known, in the order in which the lookup program should get them.
fn own_addresses(interfaces: &[Interface]) -> Vec<IpAddr> {
    let real = interfaces.iter().filter(|interface| interface.index != LO);
    real.flat_map(|interface| interface.addresses.iter().copied())
        .collect()
}

fn unreadable(netns: &NetNs, source: io::Error) -> EnrollError {
    EnrollError::Inspect {
        path: netns.path().to_owned(),
        source,
    }
}

fn entry(state: u32, interfaces: &[Interface]) -> PodEntry {
    let mut entry = PodEntry {
        state,
        interfaces: [0; MAX_INTERFACES],
    };
    let real = interfaces.iter().filter(|interface| interface.index != LO);
    for (slot, interface) in entry.interfaces.iter_mut().zip(real) {
        *slot = interface.index;
    }
    entry
}

/// The sysctls to change, with their present values.
fn changed_sysctls() -> io::Result<BTreeMap<String, String>> {
    let mut present = BTreeMap::new();
    for name in SYSCTLS {
        // A namespace without IPv6 does not have all of them.
        if let Some(value) = sysctl::read(name)? {
            present.insert(name.to_owned(), value);
        }
    }
    Ok(present)
}
