//! The endpoints of one service, arranged so that picking one looks at few of them.
//!
//! Endpoints that a pick cannot tell apart are together. First by kind: health, ports, and from where they can be
//! reached at all; a service has a handful of kinds. Within a kind by what the service prefers, in the order in
//! which it prefers it: all of a region, in there all of a zone. The endpoints that share the most with a client
//! are then a few steps down one branch, and the weight of each branch is known.
//!
//! Invariants: an endpoint is in exactly the place that its workload's record says; nothing is left out (what is
//! not healthy today must be found when the service's health policy changes). A change copies one path.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::BuildHasher;
use core::ops::ControlFlow;

use crate::name::ServiceName;
use crate::service::{LoadBalancingMode, Scope, Service};
use crate::trie::{Trie, Weigh};
use crate::workload::{ApplicationTunnel, Health, Membership, Workload};

/// A workload as one of the endpoints of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    /// Which of the workload's memberships made it one.
    membership: u32,
    /// The workload's capacity, here so that a draw does not have to fetch the workloads it passes.
    weight: u32,
}

impl Endpoint {
    /// Its place among the `workload`'s memberships must exist.
    pub(crate) fn new(workload: &Arc<Workload>, membership: usize) -> Self {
        Self {
            workload: Arc::clone(workload),
            membership: u32::try_from(membership).unwrap_or(u32::MAX),
            weight: workload.capacity,
        }
    }

    /// How likely it is drawn, compared with others.
    pub(crate) fn capacity(&self) -> u64 {
        self.weight.into()
    }

    /// What the workload says about itself as this endpoint.
    #[must_use]
    pub fn membership(&self) -> &Arc<Membership> {
        &self.workload.memberships[self.membership as usize]
    }
}

impl Weigh for Endpoint {
    fn weight(&self) -> u64 {
        self.weight.into()
    }
}

/// All endpoints of a service.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    pub(crate) service: ServiceName,
    /// What they are grouped by within a kind.
    scopes: Arc<[Scope]>,
    /// Sorted by kind.
    groups: Vec<(Kind, Group)>,
}

/// What decides whether an endpoint can take a connection, apart from who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) health: Health,
    pub(crate) reach: Reach,
    pub(crate) app_tunnel: AppTunnel,
    ports: Ports,
}

/// What an endpoint's application tunnel says about ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AppTunnel {
    None,
    AnyPort,
    /// All connections end at one port.
    ToPort,
}

/// From where an endpoint can be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// It has an address or a name.
    Anywhere,
    /// It has neither, but a gateway stands in for it to those on other networks than this.
    OtherNetworks(Arc<str>),
    Nowhere,
}

/// Memberships with the same ports are the same here.
#[derive(Clone, Debug)]
struct Ports(Arc<Membership>);

/// Endpoints of one kind, or the part of them that has the first few scopes in common.
#[derive(Clone, Debug)]
pub(crate) enum Group {
    Endpoints(Trie<Endpoint>),
    /// Apart by the next scope.
    Parts(Trie<Part>),
}

#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// What its endpoints have in common.
    pub(crate) value: Arc<str>,
    pub(crate) group: Group,
}

impl Weigh for Part {
    fn weight(&self) -> u64 {
        self.group.weight()
    }
}

impl Endpoints {
    pub(crate) fn new(service: ServiceName) -> Self {
        Self {
            service,
            scopes: Arc::default(),
            groups: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(crate) fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = (&Kind, &Group)> {
        self.groups.iter().map(|(kind, group)| (kind, group))
    }

    /// All of them, in no order.
    pub(crate) fn all(&self) -> Vec<&Endpoint> {
        let mut all = Vec::new();
        for (_, group) in &self.groups {
            group.collect(&mut all);
        }
        all
    }

    /// Puts an endpoint in its place. The caller has removed the one of the workload's earlier record.
    pub(crate) fn put(&mut self, hasher: &impl BuildHasher, endpoint: Endpoint) {
        let kind = Kind::of(&endpoint);
        let place = match self.groups.binary_search_by(|(other, _)| other.cmp(&kind)) {
            Ok(place) => place,
            Err(place) => {
                self.groups.insert(place, (kind, Group::new(&self.scopes)));
                place
            }
        };
        self.groups[place].1.put(hasher, &self.scopes, endpoint);
    }

    pub(crate) fn remove(&mut self, hasher: &impl BuildHasher, endpoint: &Endpoint) {
        let kind = Kind::of(endpoint);
        let Ok(place) = self.groups.binary_search_by(|(other, _)| other.cmp(&kind)) else {
            return;
        };
        let group = &mut self.groups[place].1;
        group.remove(hasher, &self.scopes, &endpoint.workload);
        if group.is_empty() {
            self.groups.remove(place);
        }
    }

    /// Arranges them for what `service` prefers. Costs nothing when that has not changed; calls `step` for each else.
    pub(crate) fn arrange_for(
        &mut self,
        hasher: &impl BuildHasher,
        service: &Service,
        step: &mut impl FnMut(),
    ) {
        let scopes: &[Scope] = match service.load_balancing.mode {
            LoadBalancingMode::Unspecified => &[],
            LoadBalancingMode::Strict
            | LoadBalancingMode::Failover
            | LoadBalancingMode::Passthrough => &service.load_balancing.preferences,
        };
        if *self.scopes == *scopes {
            return;
        }
        let before = core::mem::take(&mut self.groups);
        self.scopes = scopes.into();
        for (_, group) in before {
            let _all = group.visit(&mut |endpoint| {
                self.put(hasher, endpoint.clone());
                step();
                ControlFlow::Continue(())
            });
            group.free_in_steps(step);
        }
    }

    /// Frees its parts, and calls `step` in between.
    pub(crate) fn free_in_steps(&mut self, step: &mut impl FnMut()) {
        for (_, group) in self.groups.drain(..) {
            group.free_in_steps(step);
        }
    }
}

impl Kind {
    fn of(endpoint: &Endpoint) -> Self {
        let workload = &endpoint.workload;
        let nameless = workload.addresses.is_empty() && workload.hostname.is_empty();
        Self {
            health: workload.health,
            reach: match (nameless, &workload.network_gateway) {
                (false, _) => Reach::Anywhere,
                (true, Some(_)) => Reach::OtherNetworks(Arc::clone(&workload.network)),
                (true, None) => Reach::Nowhere,
            },
            app_tunnel: match workload.application_tunnel {
                None => AppTunnel::None,
                Some(ApplicationTunnel { port: None, .. }) => AppTunnel::AnyPort,
                Some(ApplicationTunnel { port: Some(_), .. }) => AppTunnel::ToPort,
            },
            ports: Ports(Arc::clone(endpoint.membership())),
        }
    }

    /// The endpoints' own port for a port of the service, when they say one.
    pub(crate) fn target_port(&self, service_port: u16) -> Option<u16> {
        self.ports.0.target_port(service_port)
    }
}

impl PartialEq for Ports {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ports {}

impl PartialOrd for Ports {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ports {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return core::cmp::Ordering::Equal;
        }
        self.0.ports.cmp(&other.0.ports)
    }
}

impl Group {
    fn new(scopes: &[Scope]) -> Self {
        match scopes {
            [] => Self::Endpoints(Trie::default()),
            _ => Self::Parts(Trie::default()),
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        match self {
            Self::Endpoints(endpoints) => endpoints.weight(),
            Self::Parts(parts) => parts.weight(),
        }
    }

    /// The part with this in common.
    pub(crate) fn part(&self, hasher: &impl BuildHasher, value: &str) -> Option<&Self> {
        match self {
            Self::Endpoints(_) => None,
            Self::Parts(parts) => {
                let part = parts.get(hasher.hash_one(value), |part| *part.value == *value);
                part.map(|part| &part.group)
            }
        }
    }

    /// Draws an endpoint by weight.
    pub(crate) fn pick(&self, mut at: u64) -> Option<&Endpoint> {
        let mut group = self;
        loop {
            match group {
                Self::Endpoints(endpoints) => return endpoints.pick(&mut at),
                Self::Parts(parts) => group = &parts.pick(&mut at)?.group,
            }
        }
    }

    /// Shows its endpoints to `look` until that breaks, in no order.
    pub(crate) fn visit<'a>(
        &'a self,
        look: &mut impl FnMut(&'a Endpoint) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self {
            Self::Endpoints(endpoints) => endpoints.iter().try_for_each(look),
            Self::Parts(parts) => parts.iter().try_for_each(|part| part.group.visit(look)),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Endpoints(endpoints) => endpoints.is_empty(),
            Self::Parts(parts) => parts.is_empty(),
        }
    }

    fn collect<'a>(&'a self, into: &mut Vec<&'a Endpoint>) {
        match self {
            Self::Endpoints(endpoints) => into.extend(endpoints.iter()),
            Self::Parts(parts) => parts.iter().for_each(|part| part.group.collect(into)),
        }
    }

    fn free_in_steps(self, step: &mut impl FnMut()) {
        match self {
            Self::Endpoints(endpoints) => endpoints.free_in_steps(step, &|_, _| ()),
            Self::Parts(parts) => parts.free_in_steps(step, &|part, step| {
                core::mem::replace(&mut part.group, Self::new(&[])).free_in_steps(step);
            }),
        }
    }

    fn put(&mut self, hasher: &impl BuildHasher, scopes: &[Scope], endpoint: Endpoint) {
        match self {
            Self::Endpoints(endpoints) => {
                let uid = Arc::clone(&endpoint.workload.uid);
                let same = |other: &Endpoint| other.workload.uid == uid;
                endpoints.put(hasher.hash_one(&*uid), endpoint, same);
            }
            Self::Parts(parts) => {
                let Some((scope, scopes)) = scopes.split_first() else {
                    return;
                };
                let value = Arc::clone(scope.of(&endpoint.workload));
                let hash = hasher.hash_one(&*value);
                let is_it = |part: &Part| part.value == value;
                let put = |part: &mut Part| part.group.put(hasher, scopes, endpoint.clone());
                if parts.change(hash, is_it, put).is_none() {
                    let mut part = Part {
                        value: Arc::clone(&value),
                        group: Self::new(scopes),
                    };
                    part.group.put(hasher, scopes, endpoint);
                    parts.put(hash, part, is_it);
                }
            }
        }
    }

    fn remove(&mut self, hasher: &impl BuildHasher, scopes: &[Scope], workload: &Workload) {
        match self {
            Self::Endpoints(endpoints) => {
                let same = |other: &Endpoint| other.workload.uid == workload.uid;
                endpoints.remove(hasher.hash_one(&*workload.uid), same);
            }
            Self::Parts(parts) => {
                let Some((scope, scopes)) = scopes.split_first() else {
                    return;
                };
                let value = scope.of(workload);
                let hash = hasher.hash_one(&**value);
                let is_it = |part: &Part| part.value == *value;
                let emptied = parts.change(hash, is_it, |part| {
                    part.group.remove(hasher, scopes, workload);
                    part.group.is_empty()
                });
                if emptied == Some(true) {
                    parts.remove(hash, is_it);
                }
            }
        }
    }
}

impl Scope {
    /// What two workloads must have in common to be in the same of these.
    pub(crate) fn of(self, workload: &Workload) -> &Arc<str> {
        match self {
            Self::Region => &workload.place.locality.region,
            Self::Zone => &workload.place.locality.zone,
            Self::Subzone => &workload.place.locality.subzone,
            Self::Node => &workload.place.node,
            Self::Cluster => &workload.place.cluster_id,
            Self::Network => &workload.network,
        }
    }
}
