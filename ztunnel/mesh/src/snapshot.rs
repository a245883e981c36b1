//! The mesh at one moment: everything the control plane said, indexed for the questions a connection asks.
//!
//! Invariants: a `Mesh` never changes; `apply` makes the next one and shares with it what did not change. The
//! result depends on what the control plane said, not on the order it said it in: endpoints may come before
//! their service, and ties are broken by name, never by arrival. Nothing is filtered here (unhealthy endpoints
//! are kept): a later change of the service must be able to bring them back.
//!
//! What a change costs: for each index it touches, one shard (see `shard`), and for each service the workload
//! belongs to, one list of endpoints (16 bytes each). A delta rebuilds a list once however many endpoints
//! change. CIDR addresses are one list per network, searched from end to end.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::IpAddr;

use hashbrown::{Equivalent, HashMap};

use crate::listed::Listed;
use crate::name::{PodName, PolicyName, ServiceName};
use crate::partial::Partial;
use crate::policy::{Policy, PolicyScope};
use crate::service::{Service, Vip};
use crate::shard::ShardMap;
use crate::workload::{Membership, NetworkMode, Workload, or_default};

/// An immutable snapshot; a clone is a few reference counts.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: ShardMap<Arc<str>, Arc<Workload>>,
    /// Highest rank first.
    workloads_by_ip: Listed<NetIp, Workload>,
    workloads_by_pod: Listed<PodKey, Workload>,
    services: ShardMap<ServiceName, Arc<Service>>,
    services_by_vip: Listed<NetIp, Service>,
    services_by_hostname: Listed<Arc<str>, Service>,
    /// Services with a range among their addresses, by network.
    services_with_range: Listed<Arc<str>, Service>,
    /// Also of services that are not known yet. Sorted by uid, so that a seeded pick repeats.
    endpoints: ShardMap<ServiceName, Arc<[Endpoint]>>,
    policies: ShardMap<PolicyName, Arc<Policy>>,
    global_policies: Listed<(), Policy>,
    namespace_policies: Listed<Arc<str>, Policy>,
    /// None when everything is known.
    pub(crate) partial: Option<Partial>,
}

/// One response of the control plane: upserts take effect before removals.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    pub upserts: Vec<Upsert>,
    pub removals: Vec<Removal>,
}

/// Something new, or the replacement of the record with the same key.
#[derive(Clone, Debug, PartialEq)]
pub enum Upsert {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
    Policy(Arc<Policy>),
}

/// The key of something that is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// A workload's uid or a service's `<namespace>/<hostname>`: the wire does not say which.
    Address(Arc<str>),
    Policy(PolicyName),
}

/// A workload as one of the endpoints of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    /// Which of the workload's memberships made it one.
    membership: usize,
}

impl Endpoint {
    /// What the workload says about itself as this endpoint.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.workload.memberships[self.membership]
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NetIp {
    network: Arc<str>,
    ip: IpAddr,
}

#[derive(Hash)]
struct NetIpRef<'a> {
    network: &'a str,
    ip: IpAddr,
}

impl Equivalent<NetIp> for NetIpRef<'_> {
    fn equivalent(&self, key: &NetIp) -> bool {
        *self.network == *key.network && self.ip == key.ip
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PodKey {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl Mesh {
    /// The workload of a pod on `node`, as enrolment names the pod. A service account must match too: another
    /// one would be another identity.
    #[must_use]
    pub fn local_workload(&self, node: &str, pod: &PodName) -> Option<Arc<Workload>> {
        let key = PodKey {
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
        };
        let account = or_default(&pod.service_account, crate::name::DEFAULT_SERVICE_ACCOUNT);
        self.workloads_by_pod
            .get(&key)
            .iter()
            .find(|w| *w.node == *node && w.identity().service_account == account)
            .cloned()
    }

    /// The workload with this uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that owns an address; of several, a pod before anything else, then one that speaks HBONE.
    /// Never one that shares its node's addresses.
    #[must_use]
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_ip.get(&NetIpRef { network, ip }).first()
    }

    /// Whether a workload or a service has exactly this address, whoever may use it.
    pub(crate) fn has_address(&self, network: &str, ip: IpAddr) -> bool {
        let key = NetIpRef { network, ip };
        !self.workloads_by_ip.get(&key).is_empty() || !self.services_by_vip.get(&key).is_empty()
    }

    /// The service with this key.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service a client in `namespace` means by an address: one with exactly this address before one with a
    /// range around it. Of several, the one in the client's namespace, then (ranges) the narrowest, then a
    /// canonical one.
    #[must_use]
    pub fn service_by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<Service>> {
        let exact = self.services_by_vip.get(&NetIpRef { network, ip });
        best(exact.iter().map(|service| (service, 0)), namespace).or_else(|| {
            let ranges = self.services_with_range.get(network).iter();
            let around = ranges.filter_map(|service| {
                let nets = service.vips.iter().filter(|vip| *vip.network == *network);
                let nets = nets.filter(|vip| vip.net.contains(&ip));
                Some((service, nets.map(|vip| vip.net.prefix_len()).max()?))
            });
            best(around, namespace)
        })
    }

    /// The service a client in `namespace` means by a hostname: one in its own namespace, then a canonical one.
    #[must_use]
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let named = self.services_by_hostname.get(hostname).iter();
        best(named.map(|service| (service, 0)), namespace)
    }

    /// All endpoints of a service, healthy or not.
    #[must_use]
    pub fn endpoints(&self, service: &ServiceName) -> &[Endpoint] {
        self.endpoints
            .get(service)
            .map_or(&[], |endpoints| endpoints)
    }

    /// The policy with this key.
    #[must_use]
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.policies.get(name)
    }

    /// The policies that apply to every workload of a namespace.
    pub fn policies_of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        self.global_policies
            .get(&())
            .iter()
            .chain(self.namespace_policies.get(namespace))
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter().map(|(_, w)| w)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter().map(|(_, s)| s)
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter().map(|(_, p)| p)
    }

    /// How many workloads, services and policies there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (
            self.workloads.len(),
            self.services.len(),
            self.policies.len(),
        )
    }

    /// The mesh after a response of the control plane. This one stays as it is.
    #[must_use]
    pub fn apply(&self, delta: Delta) -> Self {
        let mut next = self.clone();
        let mut changes = EndpointChanges::default();
        for upsert in delta.upserts {
            match upsert {
                Upsert::Workload(workload) => next.put_workload(workload, &mut changes),
                Upsert::Service(service) => next.put_service(service),
                Upsert::Policy(policy) => next.put_policy(policy),
            }
        }
        for removal in delta.removals {
            match removal {
                Removal::Address(name) => next.remove_address(&name, &mut changes),
                Removal::Policy(name) => next.remove_policy(&name),
            }
        }
        for (service, changes) in changes {
            next.change_endpoints(service, changes);
        }
        next
    }

    fn put_workload(&mut self, workload: Arc<Workload>, changes: &mut EndpointChanges) {
        self.remove_workload(&workload.uid, changes);
        for key in ip_keys(&workload) {
            let order = |w: &Workload| (core::cmp::Reverse(w.rank()), Arc::clone(&w.uid));
            self.workloads_by_ip.insert(&key, &workload, order);
        }
        let by_uid = |w: &Workload| Arc::clone(&w.uid);
        self.workloads_by_pod
            .insert(&pod_key(&workload), &workload, by_uid);
        for (membership, m) in workload.memberships.iter().enumerate() {
            let endpoint = Endpoint {
                workload: Arc::clone(&workload),
                membership,
            };
            let changes = changes.entry(m.service.clone()).or_default();
            changes.insert(Arc::clone(&workload.uid), Some(endpoint));
        }
        self.workloads.insert(Arc::clone(&workload.uid), workload);
    }

    fn remove_workload(&mut self, uid: &str, changes: &mut EndpointChanges) {
        let Some(old) = self.workloads.remove(uid) else {
            return;
        };
        for key in ip_keys(&old) {
            self.workloads_by_ip.remove(&key, &old);
        }
        self.workloads_by_pod.remove(&pod_key(&old), &old);
        for membership in &old.memberships {
            let changes = changes.entry(membership.service.clone()).or_default();
            changes.insert(Arc::clone(&old.uid), None);
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        self.remove_service(&service.key);
        let by_key = |s: &Service| s.key.clone();
        for vip in &service.vips {
            match vip_key(vip) {
                Some(key) => self.services_by_vip.insert(&key, &service, by_key),
                None => self
                    .services_with_range
                    .insert(&vip.network, &service, by_key),
            }
        }
        self.services_by_hostname
            .insert(&service.key.hostname, &service, by_key);
        self.services.insert(service.key.clone(), service);
    }

    fn remove_service(&mut self, name: &ServiceName) {
        let Some(old) = self.services.remove(name) else {
            return;
        };
        for vip in &old.vips {
            match vip_key(vip) {
                Some(key) => self.services_by_vip.remove(&key, &old),
                None => self.services_with_range.remove(&vip.network, &old),
            }
        }
        self.services_by_hostname.remove(&old.key.hostname, &old);
    }

    fn put_policy(&mut self, policy: Arc<Policy>) {
        self.remove_policy(&policy.key);
        let by_key = |p: &Policy| p.key.clone();
        match policy.scope {
            PolicyScope::Global => self.global_policies.insert(&(), &policy, by_key),
            PolicyScope::Namespace => {
                self.namespace_policies
                    .insert(&policy.key.namespace, &policy, by_key);
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.policies.insert(policy.key.clone(), policy);
    }

    fn remove_policy(&mut self, name: &PolicyName) {
        let Some(old) = self.policies.remove(name) else {
            return;
        };
        match old.scope {
            PolicyScope::Global => self.global_policies.remove(&(), &old),
            PolicyScope::Namespace => self.namespace_policies.remove(&old.key.namespace, &old),
            PolicyScope::WorkloadSelector => {}
        }
    }

    // A uid may look like the key of a service, and the wire has one name for both: whatever has it is gone. A name
    // that is neither was a workload we never had.
    fn remove_address(&mut self, name: &str, changes: &mut EndpointChanges) {
        self.remove_workload(name, changes);
        if let Some(service) = ServiceName::parse(name) {
            self.remove_service(&service);
        }
    }

    fn change_endpoints(
        &mut self,
        service: ServiceName,
        changes: BTreeMap<Arc<str>, Option<Endpoint>>,
    ) {
        let old = self.endpoints(&service);
        let mut list = Vec::with_capacity(old.len() + changes.len());
        let mut changes = changes.into_iter().peekable();
        for endpoint in old {
            let uid = &endpoint.workload.uid;
            while let Some((_, new)) = changes.next_if(|(changed, _)| changed < uid) {
                list.extend(new);
            }
            match changes.next_if(|(changed, _)| changed == uid) {
                Some((_, replacement)) => list.extend(replacement),
                None => list.push(endpoint.clone()),
            }
        }
        list.extend(changes.filter_map(|(_, new)| new));
        if list.is_empty() {
            self.endpoints.remove(&service);
        } else {
            self.endpoints.insert(service, list.into());
        }
    }
}

/// By service and uid: the endpoint from now on, if there is one.
type EndpointChanges = HashMap<ServiceName, BTreeMap<Arc<str>, Option<Endpoint>>>;

fn ip_keys(workload: &Workload) -> impl Iterator<Item = NetIp> + use<'_> {
    let standard = workload.network_mode == NetworkMode::Standard;
    let addresses = workload.addresses.iter().filter(move |_| standard);
    addresses.map(|&ip| NetIp {
        network: Arc::clone(&workload.network),
        ip,
    })
}

fn pod_key(workload: &Workload) -> PodKey {
    PodKey {
        namespace: Arc::clone(&workload.namespace),
        name: Arc::clone(&workload.name),
    }
}

fn vip_key(vip: &Vip) -> Option<NetIp> {
    Some(NetIp {
        network: Arc::clone(&vip.network),
        ip: vip.exact()?,
    })
}

// The candidates come sorted by key, so of equals the first key wins, whenever it arrived.
fn best<'a>(
    candidates: impl Iterator<Item = (&'a Arc<Service>, u8)>,
    namespace: &str,
) -> Option<&'a Arc<Service>> {
    candidates
        .filter(|(service, _)| service.visible_to(namespace))
        .min_by_key(|(service, prefix_len)| {
            let own = *service.key.namespace == *namespace;
            core::cmp::Reverse((own, *prefix_len, service.canonical))
        })
        .map(|(service, _)| service)
}

#[cfg(test)]
mod tests;
