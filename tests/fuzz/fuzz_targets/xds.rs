//! A whole conversation with a control plane: responses of any bytes, reconnects, questions, time.
//!
//! What must hold: nothing panics, in the conversation or in decisions on the mesh that comes of it; each response is
//! answered once, with its own nonce, and as a rejection exactly when something was rejected; a version is held only
//! of what was taken; what is held is in the mesh; who asked for something that was answered is not sent to ask
//! again; a name is not subscribed to and unsubscribed from in one breath; and when all that is held is removed, the
//! mesh is empty.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use tokio::time::Instant;
use ztunnel_mesh::addr::{AppAddr, ClientAddr, OrigDst};
use ztunnel_mesh::authorize::{Peer, PodPolicies};
use ztunnel_mesh::decide::decide;
use ztunnel_mesh::name::{PolicyName, Principal, ServiceName};
use ztunnel_mesh::partial::Key;
use ztunnel_mesh::{Mesh, Rng};
use ztunnel_node::discovery::session::{AdsSession, Resume};
use ztunnel_node::discovery::{NodeDescription, Subscription};
use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use ztunnel_proto::istio::{security, workload};
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

fuzz_target!(|input: &[u8]| {
    let Some((mode, mut input)) = input.split_first() else {
        return;
    };
    let mut conversation = Conversation::new(mode & 1 == 1);
    while let Some((step, rest)) = input.split_first() {
        input = conversation.step(*step, rest);
    }
    conversation.end();
});

struct Conversation {
    session: AdsSession,
    mesh: Mesh,
    now: Instant,
    /// By type: names and versions of what was taken.
    held: BTreeMap<&'static str, BTreeMap<String, String>>,
}

impl Conversation {
    fn new(on_demand: bool) -> Self {
        let (subscription, mesh) = match on_demand {
            false => (Subscription::Everything, Mesh::default()),
            true => (Subscription::OnDemand, Mesh::partial()),
        };
        let node = NodeDescription::default().to_proto();
        let mut session = AdsSession::new(node, subscription);
        session.open(Resume::Tell);
        Self {
            session,
            mesh,
            now: Instant::now(),
            held: BTreeMap::new(),
        }
    }

    /// Does what `step` says with the beginning of `input`. Returns the rest of it.
    fn step<'a>(&mut self, step: u8, input: &'a [u8]) -> &'a [u8] {
        match step % 8 {
            0..=3 => {
                let (length, input) = take(input, 2);
                let length = length
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                let (bytes, input) = take(input, length);
                if let Ok(mut response) = DeltaDiscoveryResponse::decode(bytes) {
                    match step % 8 {
                        0 => {}
                        1 => response.type_url = ADDRESS_TYPE.into(),
                        2 => response.type_url = AUTHORIZATION_TYPE.into(),
                        _ => {
                            response.type_url = ADDRESS_TYPE.into();
                            response.resources.iter_mut().for_each(give_own_name);
                        }
                    }
                    self.receive(response);
                }
                input
            }
            4 => {
                self.reopen(Resume::Tell);
                input
            }
            5 => {
                self.reopen(Resume::StartOver);
                input
            }
            6 => {
                let (ip, input) = take(input, 4);
                if let Ok(ip) = <[u8; 4]>::try_from(ip) {
                    let (network, ip) = ("".into(), ip.into());
                    self.session.ask(Key::Address { network, ip }, self.now);
                }
                for question in self.session.questions() {
                    let names = question
                        .resource_names_subscribe
                        .iter()
                        .collect::<BTreeSet<_>>();
                    let gone = question.resource_names_unsubscribe.iter().collect();
                    assert!(names.is_disjoint(&gone), "{question:?}");
                    assert!(question.response_nonce.is_empty());
                }
                input
            }
            _ => {
                self.now += Duration::from_secs(20);
                if let Some(mesh) = self.session.forget(&self.mesh, self.now) {
                    self.mesh = mesh;
                }
                input
            }
        }
    }

    fn receive(&mut self, response: DeltaDiscoveryResponse) {
        let known = [ADDRESS_TYPE, AUTHORIZATION_TYPE];
        let kind = known.into_iter().find(|kind| **kind == response.type_url);
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        let versions: Vec<(String, String)> = response
            .resources
            .iter()
            .map(|r| (r.name.clone(), r.version.clone()))
            .collect();
        let removed = response.removed_resources.clone();

        let received = self.session.receive(response);
        let answer = &received.answer;
        assert_eq!(
            (&answer.type_url, &answer.response_nonce),
            (&type_url, &nonce)
        );
        assert_eq!(answer.error_detail.is_some(), !received.rejected.is_empty());
        assert!(answer.node.is_none() && answer.resource_names_subscribe.is_empty());

        let mesh = self.mesh.apply(received.delta);
        self.mesh = self.session.record(mesh, &received.answers, self.now);
        self.session.tidy();
        for key in &received.answers.known {
            assert!(!self.mesh.lacks(key), "{key} was answered");
        }
        for key in &received.answers.doubted {
            let known = self.mesh.with_absences([], [key]);
            assert_eq!(self.mesh.lacks(key), known.lacks(key), "{key} is in doubt");
        }
        self.use_mesh();

        let Some(kind) = kind else {
            return assert!(received.rejected.is_empty());
        };
        // Rejections are in the order of the resources.
        let mut rejected = received.rejected.iter().map(|(name, _)| name).peekable();
        let names: BTreeSet<_> = versions.iter().map(|(name, _)| name).collect();
        let unique = names.len() == versions.len();
        let held = self.held.entry(kind).or_default();
        for (name, version) in &versions {
            if rejected.next_if(|rejected| *rejected == name).is_none() {
                held.insert(name.clone(), version.clone());
            }
        }
        for name in &removed {
            held.remove(name);
        }
        let model = held.clone();
        let told = self.reopened(Resume::Tell).remove(kind).unwrap_or_default();
        for (name, version) in &told {
            // Of a name that came twice, once rejected, the order above may be another.
            let right = model.get(name) == Some(version) || !unique;
            // What was asked for and has no answer has no version.
            let asked = version.is_empty() && !model.contains_key(name);
            assert!(right || asked, "{name} is held as {version:?}: {model:?}");
        }
        self.held.insert(kind, told);
        self.assert_held();
    }

    fn reopen(&mut self, resume: Resume) {
        self.reopened(resume);
    }

    fn reopened(&mut self, resume: Resume) -> BTreeMap<&'static str, BTreeMap<String, String>> {
        let requests = self.session.open(resume);
        let told = requests.map(|request| {
            assert!(request.node.is_some() && request.response_nonce.is_empty());
            let kind = match &*request.type_url {
                ADDRESS_TYPE => ADDRESS_TYPE,
                _ => AUTHORIZATION_TYPE,
            };
            (
                kind,
                request.initial_resource_versions.into_iter().collect(),
            )
        });
        told.into()
    }

    fn assert_held(&self) {
        for (kind, held) in &self.held {
            for (name, version) in held {
                let there = match *kind {
                    ADDRESS_TYPE => {
                        let service = ServiceName::parse(name);
                        self.mesh.workload(name).is_some()
                            || service.is_some_and(|name| self.mesh.service(&name).is_some())
                    }
                    _ => PolicyName::parse(name).is_some_and(|p| self.mesh.policy(&p).is_some()),
                };
                // What was asked for and has no answer has no version. Policies never have one.
                let asked = *kind == ADDRESS_TYPE && version.is_empty();
                assert!(there || asked, "{name} is held and not in the mesh");
            }
        }
    }

    /// Connections of the first few workloads to whatever has an address.
    fn use_mesh(&self) {
        let workloads = || self.mesh.workloads().take(4);
        let addresses = workloads().flat_map(|w| w.addresses.iter().copied());
        let vips = self.mesh.services().take(4).flat_map(|s| &s.vips);
        let some: Vec<IpAddr> = addresses
            .chain(vips.map(|vip| vip.net().addr()))
            .take(16)
            .collect();
        for from in workloads() {
            for ip in &some {
                let to = SocketAddr::new(*ip, 80);
                decide(&self.mesh, "", from, OrigDst(to), &mut Dice(1));
                let principal = Principal::from(from.identity());
                let peer = Peer {
                    principal: Some(&principal),
                    addr: ClientAddr(to),
                };
                drop(PodPolicies::new(&self.mesh, from).authorize(peer, AppAddr(to)));
            }
        }
    }

    fn end(mut self) {
        for kind in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
            let told = self.reopened(Resume::Tell).remove(kind).unwrap_or_default();
            let received = self.session.receive(DeltaDiscoveryResponse {
                type_url: kind.into(),
                removed_resources: told.into_keys().collect(),
                ..DeltaDiscoveryResponse::default()
            });
            assert!(received.rejected.is_empty());
            self.mesh = self.mesh.apply(received.delta);
        }
        let left = self.reopened(Resume::Tell);
        assert!(left.values().all(BTreeMap::is_empty), "{left:?}");
        assert_eq!(self.mesh.counts(), (0, 0, 0));
    }
}

struct Dice(u32);

impl Rng for Dice {
    fn next_u32(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0
    }
}

/// So that a mutation of the content does not always end as one of the name.
fn give_own_name(resource: &mut Resource) {
    use workload::address::Type;
    let Some(content) = &resource.resource else {
        return;
    };
    if let Ok(address) = workload::Address::decode(&*content.value) {
        match address.r#type {
            Some(Type::Workload(w)) => resource.name = w.uid,
            Some(Type::Service(s)) => resource.name = format!("{}/{}", s.namespace, s.hostname),
            None => {}
        }
    } else if let Ok(policy) = security::Authorization::decode(&*content.value) {
        resource.name = format!("{}/{}", policy.namespace, policy.name);
    }
}

fn take(input: &[u8], length: usize) -> (&[u8], &[u8]) {
    input.split_at(length.min(input.len()))
}
