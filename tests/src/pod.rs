//! A pod: a place with addresses and an identity.

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use crate::error::{LabError, Result};
use crate::fingerprint::Fingerprint;
use crate::mesh_file::Workload;
use crate::net::{Namespace, PodNet};
use crate::place::Place;
use crate::tap::Tap;

/// A handle to a pod. As long as one exists the pod's namespace does too.
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    workload: Workload,
    identity: String,
    uid: String,
    net: PodNet,
    node: Arc<Namespace>,
    before: Mutex<Option<Fingerprint>>,
}

impl Pod {
    pub(crate) fn new(
        place: Place,
        workload: Workload,
        identity: String,
        net: PodNet,
        node: Arc<Namespace>,
    ) -> Self {
        // As Kubernetes: never the same twice, also for a pod that takes the name of another.
        let random: u128 = rand::random();
        let hex = format!("{random:032x}");
        let uid = format!(
            "{}-{}-4{}-8{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[13..16],
            &hex[17..20],
            &hex[20..]
        );
        Self {
            inner: Arc::new(Inner {
                place,
                workload,
                identity,
                uid,
                net,
                node,
                before: Mutex::new(None),
            }),
        }
    }

    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        self.inner.workload.key()
    }

    /// Kubernetes' unique id of it.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.inner.uid
    }

    /// What the mesh file said of it when it was built.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        &self.inner.workload
    }

    /// Its SPIFFE id.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.inner.identity
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &str {
        self.inner.node.name()
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// When it has none.
    pub fn v4(&self) -> Result<IpAddr> {
        let ip = self.inner.workload.v4();
        ip.ok_or_else(|| LabError::new(format!("{} has no IPv4 address", self.key())))
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// When it has none.
    pub fn v6(&self) -> Result<IpAddr> {
        let ip = self.inner.workload.v6();
        ip.ok_or_else(|| LabError::new(format!("{} has no IPv6 address", self.key())))
    }

    /// All its addresses.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        &self.inner.workload.addresses
    }

    /// A port of it, at each of its addresses.
    pub fn ports(&self, port: u16) -> impl Iterator<Item = SocketAddr> + '_ {
        self.ips().iter().map(move |&ip| SocketAddr::new(ip, port))
    }

    /// Watches the link between the pod and its node.
    ///
    /// # Errors
    /// When the capture cannot be started.
    pub fn tap(&self, markers: &[&str]) -> Result<Tap> {
        Tap::start(&self.inner.node, &self.inner.net.link, markers)
    }

    pub(crate) fn net(&self) -> &PodNet {
        &self.inner.net
    }

    pub(crate) fn before(&self) -> &Mutex<Option<Fingerprint>> {
        &self.inner.before
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.inner.place
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.workload.key())
    }
}
