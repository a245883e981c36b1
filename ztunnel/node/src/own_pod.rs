//! The pod whose connections are served: what the mesh knows of it, its certificate, its sockets.
//!
//! Invariants: whose connection it is follows from the listener that took it, never from an address. What the mesh
//! says of the pod is looked up for every connection, so a change is seen by the next one.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ztunnel_hbone::Baggage;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::PodPolicies;
use ztunnel_mesh::name::{Identity, PodName};
use ztunnel_mesh::service::Service;
use ztunnel_mesh::workload::PortPair;
use ztunnel_mesh::{Mesh, Workload};

use crate::connections::{Registry, Watch};
use crate::identity::{Identities, IdentityError, IdentityHold};
use crate::state::MeshReader;
use crate::task::PodNet;
use crate::telemetry::{Party, Telemetry};
use crate::tls::Credential;

/// How long a connection waits for the control plane to tell about its pod.
pub const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// What all pods of this node have in common.
#[derive(Clone, Debug)]
pub struct OwnNode {
    pub name: Arc<str>,
    pub network: Arc<str>,
    pub mesh: MeshReader,
    pub identities: Identities,
    pub telemetry: Telemetry,
    pub watch: Watch,
}

/// One enrolled pod, as one worker thread sees it.
#[derive(Debug)]
pub struct OwnPod {
    pub name: PodName,
    /// The node it runs on.
    pub node: Arc<str>,
    /// The network of this node.
    pub network: Arc<str>,
    pub mesh: MeshReader,
    pub net: PodNet,
    /// Those that are open now.
    pub connections: Rc<Registry>,
    /// The ports of the proxy's listeners in the pod.
    ports: Arc<[u16]>,
    identities: Identities,
    /// The policies that applied last.
    policies: RefCell<Option<Rc<PodPolicies>>>,
    /// The identity known last: its certificate is at hand without a lock.
    hold: RefCell<Option<Rc<IdentityHold>>>,
}

/// The control plane has not told about a pod in time.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the control plane does not know pod {pod} with service account {service_account:?} on node {node}, even after \
     {WORKLOAD_WAIT:?}"
)]
pub struct WorkloadUnknown {
    pod: PodName,
    service_account: Arc<str>,
    node: Arc<str>,
}

impl OwnPod {
    #[must_use]
    pub fn new(name: PodName, node: OwnNode, net: PodNet, ports: Arc<[u16]>) -> Self {
        Self {
            connections: Registry::watched(name.clone(), node.telemetry, node.watch),
            name,
            node: node.name,
            network: node.network,
            mesh: node.mesh,
            net,
            ports,
            identities: node.identities,
            policies: RefCell::default(),
            hold: RefCell::default(),
        }
    }

    /// Whether it is one of the proxy's own listeners that listens on `port` of the pod.
    #[must_use]
    pub fn is_listener(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// What the mesh knows of it; waits a bounded time for the control plane.
    ///
    /// # Errors
    /// When that was in vain.
    pub async fn workload(&self) -> Result<Arc<Workload>, WorkloadUnknown> {
        if let Some(workload) = self.workload_in(&self.mesh.load()) {
            return Ok(Arc::clone(workload));
        }
        self.mesh
            .wait_for(WORKLOAD_WAIT, |mesh| self.workload_in(mesh).cloned())
            .await
            .ok_or_else(|| self.unknown())
    }

    /// What one snapshot knows of it.
    #[must_use]
    pub fn workload_in<'a>(&self, mesh: &'a Mesh) -> Option<&'a Arc<Workload>> {
        mesh.local_workload(&self.node, &self.name)
    }

    /// What one snapshot knows of it, for a decision that must not mix two.
    ///
    /// # Errors
    /// When that is nothing.
    pub fn known_in<'a>(&self, mesh: &'a Mesh) -> Result<&'a Arc<Workload>, WorkloadUnknown> {
        self.workload_in(mesh).ok_or_else(|| self.unknown())
    }

    fn unknown(&self) -> WorkloadUnknown {
        WorkloadUnknown {
            pod: self.name.clone(),
            service_account: Arc::clone(&self.name.service_account),
            node: Arc::clone(&self.node),
        }
    }

    /// Who connects from an address, for telemetry: what the mesh knows there, or else what was said.
    #[must_use]
    pub fn party_at(&self, mesh: &Mesh, client: ClientAddr, otherwise: Party) -> Party {
        let known = mesh.workload_by_ip(&self.network, client.0.ip());
        known.map_or(otherwise, |workload| Party::Workload(Arc::clone(workload)))
    }

    /// The service that a connection to `app` was for, for telemetry: the one that the client names if `workload`, which
    /// is this pod's, is part of it; else the first that has this port there.
    #[must_use]
    pub fn service_for(
        &self,
        mesh: &Mesh,
        workload: &Workload,
        named: Option<&str>,
        app: AppAddr,
    ) -> Option<Arc<Service>> {
        let own = || workload.memberships.iter();
        let named = named.and_then(|name| own().find(|m| *m.service.hostname == *name));
        if let Some(membership) = named {
            return mesh.service(&membership.service).cloned();
        }
        let port = app.0.port();
        own().find_map(|membership| {
            let service = mesh.service(&membership.service)?;
            let leads_there = |pair: &PortPair| {
                let target = membership.target_port(pair.service);
                target.or(service.target_port(pair.service)) == Some(port)
            };
            service
                .ports
                .iter()
                .any(leads_there)
                .then(|| Arc::clone(service))
        })
    }

    /// Has the certificate fetched before the first connection needs it. Waits for the control plane as long as it
    /// takes: a pod may be enrolled long before it is known there.
    pub async fn prefetch(&self) {
        const PATIENCE: Duration = Duration::from_hours(24 * 365);
        let find = |mesh: &Mesh| self.workload_in(mesh).cloned();
        if let Some(workload) = self.mesh.wait_for(PATIENCE, find).await {
            self.hold(workload.identity());
        }
    }

    /// The policies of `workload`, which is this pod's. Collected again only when they have changed.
    #[must_use]
    pub fn policies(&self, mesh: &Mesh, workload: &Arc<Workload>) -> Rc<PodPolicies> {
        let mut known = self.policies.borrow_mut();
        match &*known {
            Some(policies) if policies.is_current(mesh, workload) => Rc::clone(policies),
            _ => Rc::clone(known.insert(Rc::new(PodPolicies::new(mesh, workload)))),
        }
    }

    /// The certificate of `workload`, which is this pod's; waits a bounded time for the CA.
    ///
    /// # Errors
    /// When that was in vain.
    pub async fn credential(&self, workload: &Workload) -> Result<Arc<Credential>, IdentityError> {
        self.hold(workload.identity()).credential().await
    }

    fn hold(&self, identity: Identity) -> Rc<IdentityHold> {
        let mut hold = self.hold.borrow_mut();
        if let Some(held) = hold.as_ref()
            && *held.identity() == identity
        {
            return Rc::clone(held);
        }
        Rc::clone(hold.insert(Rc::new(self.identities.hold(identity))))
    }
}

/// What peers are told about `workload`.
#[must_use]
pub fn baggage(workload: &Workload) -> Baggage<'_> {
    Baggage {
        cluster: &workload.place.cluster_id,
        namespace: &workload.namespace,
        workload_type: workload.app.workload_type.as_str(),
        workload_name: &workload.app.workload_name,
        service_name: &workload.app.canonical_name,
        service_version: &workload.app.canonical_revision,
        region: &workload.place.locality.region,
        zone: &workload.place.locality.zone,
    }
}
