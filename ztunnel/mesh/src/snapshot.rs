//! The mesh at one moment: everything the control plane said, indexed for the questions a connection asks.
//!
//! Invariants: a `Mesh` never changes; `apply` makes the next one and shares with it what did not change. The
//! result depends on what the control plane said, not on the order it said it in: endpoints may come before
//! their service, and ties are broken by name, never by arrival. Nothing is filtered here (unhealthy endpoints
//! are kept): a later change of the service must be able to bring them back.
//!
//! What a change costs: one path in each index it touches (see `trie`), and one in the endpoints of each service
//! the workload belongs to. A service whose load balancing prefers other things than before has its endpoints
//! arranged anew.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::{BuildHasher as _, Hash};
use core::net::IpAddr;

use hashbrown::DefaultHashBuilder;
use ipnet::IpNet;

use crate::endpoints::{Endpoint, Endpoints};
use crate::name::{PodName, PolicyName, ServiceName};
use crate::partial::Partial;
use crate::policies::Policies;
pub(crate) use crate::policies::PolicyVersion;
use crate::policy::Policy;
use crate::policy_set::PolicySet;
use crate::ranges::RangeLengths;
use crate::service::Service;
use crate::trie::{Trie, Weigh};
use crate::workload::{NetworkMode, Workload};

/// An immutable snapshot; a clone is a few reference counts.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// For all indexes.
    hasher: DefaultHashBuilder,
    workloads: Trie<Arc<Workload>>,
    workloads_by_ip: Trie<Owner>,
    workloads_by_pod: Trie<Arc<Workload>>,
    /// Those that have one: few.
    workloads_by_hostname: Trie<Arc<Workload>>,
    services: Trie<Arc<Service>>,
    services_by_vip: Trie<Arc<Service>>,
    services_by_hostname: Trie<Arc<Service>>,
    /// By each range among their addresses.
    services_by_range: Trie<Arc<Service>>,
    range_lengths: RangeLengths,
    /// Also of services that are not known yet.
    endpoints: Trie<Arc<Endpoints>>,
    policies: Policies,
    /// None when everything is known.
    pub(crate) partial: Option<Partial>,
}

/// That a workload has an address. With the address, so that a look-up, the first step of every connection, does not
/// have to fetch workloads to compare: with 100,000 of them each is a cache miss or two.
#[derive(Clone, Debug)]
struct Owner {
    network: Arc<str>,
    ip: IpAddr,
    workload: Arc<Workload>,
}

impl Weigh for Owner {
    fn weight(&self) -> u64 {
        0
    }
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

impl Mesh {
    /// The workload of a pod on `node`, as enrolment names the pod. A service account must match too: another
    /// one would be another identity.
    #[must_use]
    pub fn local_workload(&self, node: &str, pod: &PodName) -> Option<&Arc<Workload>> {
        let account = match &*pod.service_account {
            "" => crate::name::DEFAULT_SERVICE_ACCOUNT,
            account => account,
        };
        let named = self
            .workloads_by_pod
            .all(self.hash(&(&*pod.namespace, &*pod.name)))
            .filter(|w| w.name == pod.name && w.namespace == pod.namespace);
        named
            .filter(|w| *w.place.node == *node && *w.identity().service_account == *account)
            .min_by(|a, b| a.uid.cmp(&b.uid))
    }

    /// The workload with this uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(self.hash(uid), |w| *w.uid == *uid)
    }

    /// The workload that owns an address; of several, a pod before anything else, then one that speaks HBONE.
    /// Never one that shares its node's addresses.
    #[must_use]
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let owners = self.workloads_by_ip.all(self.hash(&(network, ip)));
        owners
            .filter(|owner| owner.ip == ip && *owner.network == *network)
            .map(|owner| &owner.workload)
            .min_by(|a, b| (b.rank(), &a.uid).cmp(&(a.rank(), &b.uid)))
    }

    /// The workload of a namespace with this hostname.
    #[must_use]
    pub fn workload_by_hostname(&self, name: &ServiceName) -> Option<&Arc<Workload>> {
        let named = self.workloads_by_hostname.all(self.hash(name));
        named
            .filter(|w| w.namespace == name.namespace && w.hostname == name.hostname)
            .min_by(|a, b| a.uid.cmp(&b.uid))
    }

    /// Whether a workload or a service has exactly this address, whoever may use it.
    pub(crate) fn has_address(&self, network: &str, ip: IpAddr) -> bool {
        self.workload_by_ip(network, ip).is_some()
            || self.services_with(network, ip).next().is_some()
    }

    /// The service with this key.
    #[must_use]
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(self.hash(name), |s| s.key == *name)
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
        let exact = self.services_with(network, ip);
        best(exact.map(|service| (service, 0)), namespace)
            .or_else(|| best(self.services_around(network, ip), namespace))
    }

    /// All services with this address, or with a range around it of the length that is told, whoever may use them. In
    /// the order of their names.
    pub(crate) fn services_sharing(
        &self,
        network: &str,
        ip: IpAddr,
    ) -> Vec<(&Arc<Service>, Option<u8>)> {
        let exact = self
            .services_with(network, ip)
            .map(|service| (service, None));
        let around = self.services_around(network, ip);
        let around = around.map(|(service, length)| (service, Some(length)));
        let mut all: Vec<_> = exact.chain(around).collect();
        // Of one that has several ranges around it, the narrowest is what counts.
        all.sort_by_key(|(service, length)| (&service.key, length.map(core::cmp::Reverse)));
        all.dedup_by_key(|(service, _)| &service.key);
        all
    }

    /// The services with a range around this address, and the lengths of the ranges.
    fn services_around<'a, 'n>(
        &'a self,
        network: &'n str,
        ip: IpAddr,
    ) -> impl Iterator<Item = (&'a Arc<Service>, u8)> + use<'a, 'n> {
        let ranges = self.range_lengths.around(network, ip);
        ranges.flat_map(move |net| {
            let services = self.services_by_range.all(self.hash(&(network, net)));
            let services = services.filter(move |service| has_vip(service, network, net));
            services.map(move |service| (service, net.prefix_len()))
        })
    }

    /// All services that somebody may mean by an address: those with a range around it only where none has exactly
    /// this one.
    pub(crate) fn services_at(
        &self,
        network: &str,
        ip: IpAddr,
    ) -> impl Iterator<Item = &Arc<Service>> {
        let exact = self.services_with(network, ip).next().is_some();
        let ranges = (!exact).then(|| self.services_around(network, ip));
        self.services_with(network, ip)
            .chain(ranges.into_iter().flatten().map(|(service, _)| service))
    }

    /// The services with exactly this address.
    fn services_with(&self, network: &str, ip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let services = self.services_by_vip.all(self.hash(&(network, ip)));
        services.filter(move |service| has_vip(service, network, ip.into()))
    }

    /// The service a client in `namespace` means by a hostname: one in its own namespace, then a canonical one.
    #[must_use]
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let named = self.services_by_hostname.all(self.hash(hostname));
        let named = named.filter(|service| *service.key.hostname == *hostname);
        best(named.map(|service| (service, 0)), namespace)
    }

    /// All endpoints of a service, healthy or not, by uid.
    #[must_use]
    pub fn endpoints(&self, service: &ServiceName) -> Vec<&Endpoint> {
        let mut all = self
            .arranged_endpoints(service)
            .map_or_else(Vec::new, Endpoints::all);
        all.sort_unstable_by(|a, b| a.workload.uid.cmp(&b.workload.uid));
        all
    }

    pub(crate) fn arranged_endpoints(&self, service: &ServiceName) -> Option<&Endpoints> {
        let endpoints = self
            .endpoints
            .get(self.hash(service), |e| e.service == *service);
        endpoints.map(|endpoints| &**endpoints)
    }

    pub(crate) fn hasher(&self) -> &DefaultHashBuilder {
        &self.hasher
    }

    /// The policy with this key.
    #[must_use]
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.policies.get(name)
    }

    /// The policies that apply to every workload.
    pub(crate) fn global_policies(&self) -> Option<Arc<PolicySet>> {
        self.policies.global()
    }

    /// The policies that apply to every workload of a namespace.
    pub(crate) fn namespace_policies(&self, namespace: &str) -> Option<Arc<PolicySet>> {
        self.policies.of_namespace(namespace)
    }

    /// Another one whenever any policy has changed.
    pub(crate) fn policy_version(&self) -> PolicyVersion {
        self.policies.version()
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The services that have endpoints and are not known themselves, in no order.
    pub fn awaited_services(&self) -> impl Iterator<Item = &ServiceName> {
        let names = self.endpoints.iter().map(|endpoints| &endpoints.service);
        names.filter(|name| self.service(name).is_none())
    }

    /// All policies, by name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
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
        self.apply_in_steps(delta, &mut || ())
    }

    /// The same, for a thread that must not compute for long without a break: calls `step` after every few microseconds
    /// of work.
    #[must_use]
    pub fn apply_in_steps(&self, delta: Delta, step: &mut impl FnMut()) -> Self {
        let mut next = self.clone();
        for upsert in delta.upserts {
            match upsert {
                Upsert::Workload(workload) => next.put_workload(&workload, step),
                Upsert::Service(service) => next.put_service(&service, step),
                Upsert::Policy(policy) => next.policies.put(policy),
            }
            step();
        }
        for removal in delta.removals {
            match removal {
                Removal::Address(name) => next.remove_address(&name),
                Removal::Policy(name) => next.policies.remove(&name),
            }
            step();
        }
        next.policies.compile(step);
        next
    }

    /// Frees what no other snapshot shares. Dropping does as well, but of a large one that takes tens of milliseconds;
    /// this calls `step` after every few microseconds.
    pub fn free_in_steps(self, step: &mut impl FnMut()) {
        let Self {
            hasher: _,
            workloads,
            workloads_by_ip,
            workloads_by_pod,
            workloads_by_hostname,
            services,
            services_by_vip,
            services_by_hostname,
            services_by_range,
            range_lengths: _,
            endpoints,
            policies,
            // As many as are on record as absent: few.
            partial: _,
        } = self;
        for workloads in [workloads, workloads_by_pod, workloads_by_hostname] {
            workloads.free_in_steps(step, &|_, _| ());
        }
        workloads_by_ip.free_in_steps(step, &|_, _| ());
        for services in [
            services,
            services_by_vip,
            services_by_hostname,
            services_by_range,
        ] {
            services.free_in_steps(step, &|_, _| ());
        }
        endpoints.free_in_steps(step, &|endpoints, step| {
            if let Some(endpoints) = Arc::get_mut(endpoints) {
                endpoints.free_in_steps(step);
            }
        });
        policies.free_in_steps(step);
    }

    pub(crate) fn hash<K: Hash + ?Sized>(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    fn put_workload(&mut self, workload: &Arc<Workload>, step: &mut impl FnMut()) {
        self.remove_workload(&workload.uid);
        let put = |index: &mut Trie<_>, hash| index.put(hash, Arc::clone(workload), never);
        for owner in owners(workload) {
            let hash = self.hash(&(&*owner.network, owner.ip));
            self.workloads_by_ip.put(hash, owner, never);
        }
        let pod = self.hash(&(&*workload.namespace, &*workload.name));
        put(&mut self.workloads_by_pod, pod);
        if let Some(name) = hostname(workload) {
            let hash = self.hash(&name);
            put(&mut self.workloads_by_hostname, hash);
        }
        let uid = self.hash(&*workload.uid);
        put(&mut self.workloads, uid);
        for (membership, of) in workload.memberships.iter().enumerate() {
            let endpoint = Endpoint::new(workload, membership);
            let Self {
                hasher, endpoints, ..
            } = self;
            let hash = hasher.hash_one(&of.service);
            let is_it = |e: &Arc<Endpoints>| e.service == of.service;
            let put = |e: &mut Arc<Endpoints>| Arc::make_mut(e).put(hasher, endpoint.clone());
            if endpoints.change(hash, is_it, put).is_none() {
                let mut new = Endpoints::new(of.service.clone());
                if let Some(service) = self.services.get(hash, |s| s.key == of.service) {
                    new.arrange_for(hasher, service, step);
                }
                new.put(hasher, endpoint);
                endpoints.put(hash, Arc::new(new), never);
            }
        }
    }

    fn remove_workload(&mut self, uid: &str) {
        let hash = self.hash(uid);
        let Some(old) = self.workloads.remove(hash, |w| *w.uid == *uid) else {
            return;
        };
        let is_it = |w: &Arc<Workload>| Arc::ptr_eq(w, &old);
        for owner in owners(&old) {
            let hash = self.hash(&(&*owner.network, owner.ip));
            let is_it = |other: &Owner| other.ip == owner.ip && is_it(&other.workload);
            self.workloads_by_ip.remove(hash, is_it);
        }
        let pod = self.hash(&(&*old.namespace, &*old.name));
        self.workloads_by_pod.remove(pod, is_it);
        if let Some(name) = hostname(&old) {
            self.workloads_by_hostname.remove(self.hash(&name), is_it);
        }
        for (membership, of) in old.memberships.iter().enumerate() {
            let endpoint = Endpoint::new(&old, membership);
            let Self {
                hasher, endpoints, ..
            } = self;
            let hash = hasher.hash_one(&of.service);
            let is_it = |e: &Arc<Endpoints>| e.service == of.service;
            let emptied = endpoints.change(hash, is_it, |endpoints| {
                let endpoints = Arc::make_mut(endpoints);
                endpoints.remove(hasher, &endpoint);
                endpoints.is_empty()
            });
            if emptied == Some(true) {
                endpoints.remove(hash, is_it);
            }
        }
    }

    fn put_service(&mut self, service: &Arc<Service>, step: &mut impl FnMut()) {
        self.remove_service(&service.key);
        for vip in &service.vips {
            match vip.exact() {
                Some(ip) => {
                    let hash = self.hash(&(&*vip.network, ip));
                    self.services_by_vip.put(hash, Arc::clone(service), never);
                }
                None => {
                    let hash = self.hash(&(&*vip.network, vip.net()));
                    self.services_by_range.put(hash, Arc::clone(service), never);
                    self.range_lengths.add(vip);
                }
            }
        }
        let hostname = self.hash(&*service.key.hostname);
        self.services_by_hostname
            .put(hostname, Arc::clone(service), never);
        let Self {
            hasher,
            services,
            endpoints,
            ..
        } = self;
        let hash = hasher.hash_one(&service.key);
        services.put(hash, Arc::clone(service), never);
        let is_it = |e: &Arc<Endpoints>| e.service == service.key;
        endpoints.change(hash, is_it, |endpoints| {
            Arc::make_mut(endpoints).arrange_for(hasher, service, step);
        });
    }

    fn remove_service(&mut self, name: &ServiceName) {
        let hash = self.hash(name);
        let Some(old) = self.services.remove(hash, |s| s.key == *name) else {
            return;
        };
        let is_it = |s: &Arc<Service>| Arc::ptr_eq(s, &old);
        for vip in &old.vips {
            match vip.exact() {
                Some(ip) => {
                    let hash = self.hash(&(&*vip.network, ip));
                    self.services_by_vip.remove(hash, is_it);
                }
                None => {
                    let hash = self.hash(&(&*vip.network, vip.net()));
                    self.services_by_range.remove(hash, is_it);
                    self.range_lengths.remove(vip);
                }
            }
        }
        let hostname = self.hash(&*old.key.hostname);
        self.services_by_hostname.remove(hostname, is_it);
    }

    // A uid may look like the key of a service, and the wire has one name for both: whatever has it is gone. A name
    // that is neither was a workload we never had.
    fn remove_address(&mut self, name: &str) {
        self.remove_workload(name);
        if let Some(service) = ServiceName::parse(name) {
            self.remove_service(&service);
        }
    }
}

fn has_vip(service: &Service, network: &str, net: IpNet) -> bool {
    let mut vips = service.vips.iter();
    vips.any(|vip| vip.net() == net && *vip.network == *network)
}

/// For values that cannot be there yet.
fn never<V>(_: &V) -> bool {
    false
}

fn hostname(workload: &Workload) -> Option<ServiceName> {
    (!workload.hostname.is_empty()).then(|| ServiceName {
        namespace: Arc::clone(&workload.namespace),
        hostname: Arc::clone(&workload.hostname),
    })
}

fn owners(workload: &Arc<Workload>) -> impl Iterator<Item = Owner> {
    let standard = workload.network_mode == NetworkMode::Standard;
    let addresses = workload.addresses.iter().filter(move |_| standard);
    addresses.map(|&ip| Owner {
        network: Arc::clone(&workload.network),
        ip,
        workload: Arc::clone(workload),
    })
}

fn best<'a>(
    candidates: impl Iterator<Item = (&'a Arc<Service>, u8)>,
    namespace: &str,
) -> Option<&'a Arc<Service>> {
    candidates
        .filter(|(service, _)| service.visible_to(namespace))
        .min_by_key(|(service, prefix_len)| {
            let own = *service.key.namespace == *namespace;
            // Of equals the first key wins, whenever it arrived.
            let preferred = (own, *prefix_len, service.canonical);
            (core::cmp::Reverse(preferred), &service.key)
        })
        .map(|(service, _)| service)
}

#[cfg(test)]
mod tests;
