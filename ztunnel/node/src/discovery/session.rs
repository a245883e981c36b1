//! The protocol of one control-plane conversation, without the I/O: what to send first, what a response changes and
//! how to answer it, what to say after a reconnect.
//!
//! Invariants: each response gets one answer. A resource that was rejected is never reported as held in that
//! version. Every name that is held is reported at the start of a stream, since the control plane finds out from
//! that what to take back. Which streams exist and when is the task's business.
//!
//! Policies are always subscribed to as a whole. Addresses are too, or are asked for one by one (`asked`), and the
//! mesh is a partial one. Then the control plane also tells, unasked, about the workloads of this node.

mod asked;
mod held;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;
use ztunnel_mesh::name::PolicyName;
use ztunnel_mesh::partial::Key;
use ztunnel_mesh::{Delta, Mesh, Removal, Upsert};
use ztunnel_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status,
};
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use super::convert::{ConvertError, Converted, Converter};
use crate::task::breath;
use asked::Asked;
use held::Held;

/// How many rejections a NACK spells out.
const NACK_DETAILS: usize = 100;
/// How much of one. The names are not ours, and a request has a limit at the control plane.
const NACK_DETAIL: usize = 1024;
/// To convert content of more bytes is worth a look at the clock by itself.
const LONG: usize = 4096;

/// What stays of a conversation from stream to stream.
#[derive(Debug)]
pub struct AdsSession {
    node: Node,
    types: [TypeState; 2],
    /// What addresses were asked for; none when we are subscribed to all.
    asked: Option<Asked>,
    converter: Converter,
}

/// How much of the mesh to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscription {
    Everything,
    OnDemand,
}

/// Both types, in the order they are asked for: workloads name their policies, not the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Address,
    Authorization,
}

#[derive(Debug)]
struct TypeState {
    kind: Kind,
    held: Held,
    /// The first response of this stream is everything there is, so what it does not name is gone.
    expects_everything: bool,
    responded: bool,
    acked: bool,
}

/// What to tell the control plane at the start of a stream about what we hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// All of it: it sends what differs.
    Tell,
    /// Nothing, because the list is too long for it: it sends everything.
    StartOver,
}

/// What follows from a response: first apply, then answer.
#[derive(Debug)]
pub struct Received {
    /// To be applied to the mesh, before anything is answered.
    pub delta: Delta,
    /// The ACK or NACK.
    pub answer: DeltaDiscoveryRequest,
    /// Name and reason of each resource that was not taken.
    pub rejected: Vec<(String, ConvertError)>,
    /// What was left out of resources that were taken, and oddities of the response itself.
    pub warnings: Vec<String>,
    /// What that means for what was asked for.
    pub answers: Answers,
}

/// What a response says about what had been asked for, or was on record as absent.
#[derive(Debug, Default)]
pub struct Answers {
    /// It is in the mesh now, or it is not, and then it is absent.
    pub known: Vec<Key>,
    /// Something is there, but could not be read. That must not pass for absent, whatever else came for it.
    pub doubted: Vec<Key>,
}

impl AdsSession {
    /// The beginning of all conversations of a daemon.
    #[must_use]
    pub fn new(node: Node, subscription: Subscription) -> Self {
        let state = |kind| TypeState {
            kind,
            held: Held::default(),
            expects_everything: false,
            responded: false,
            acked: false,
        };
        Self {
            node,
            types: [Kind::Address, Kind::Authorization].map(state),
            asked: match subscription {
                Subscription::Everything => None,
                Subscription::OnDemand => Some(Asked::default()),
            },
            converter: Converter::default(),
        }
    }

    /// The first requests of a new stream, in order.
    pub fn open(&mut self, resume: Resume) -> [DeltaDiscoveryRequest; 2] {
        let Self { node, asked, .. } = self;
        self.types.each_mut().map(|state| {
            state.expects_everything = resume == Resume::StartOver;
            let mut request = DeltaDiscoveryRequest {
                node: Some(node.clone()),
                type_url: state.kind.type_url().into(),
                initial_resource_versions: match resume {
                    Resume::Tell => state.held.versions(),
                    Resume::StartOver => HashMap::new(),
                },
                ..DeltaDiscoveryRequest::default()
            };
            if let (Kind::Address, Some(asked)) = (state.kind, asked.as_mut()) {
                // Together they mean "nothing". To name nothing means everything.
                let star = || vec!["*".to_owned()];
                request.resource_names_subscribe = star();
                request.resource_names_unsubscribe = star();
                let waiting = asked.open(resume == Resume::Tell);
                let versions = &mut request.initial_resource_versions;
                versions.extend(waiting.map(|name| (name.clone(), String::new())));
            }
            request
        })
    }

    /// Takes note that a connection needs to know about `key`.
    pub fn ask(&mut self, key: Key, now: Instant) {
        if let Some(asked) = &mut self.asked {
            asked.ask(key, now);
        }
    }

    /// The requests that follow from what was asked for and answered since the last time; mostly none.
    pub fn questions(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let questions = self.asked.iter_mut().flat_map(Asked::questions);
        let request = |question: asked::Question| DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.into(),
            resource_names_subscribe: question.subscribe,
            resource_names_unsubscribe: question.unsubscribe,
            ..DeltaDiscoveryRequest::default()
        };
        questions.map(request).collect()
    }

    /// Puts on record what is absent, now that the response has been applied to the mesh.
    #[must_use]
    pub fn record(&mut self, mesh: Mesh, answers: &Answers, now: Instant) -> Mesh {
        let Some(asked) = &mut self.asked else {
            return mesh;
        };
        asked.end_known(|key| !mesh.lacks(key));
        let Answers { known, doubted } = answers;
        if known.is_empty() && doubted.is_empty() {
            return mesh;
        }
        // What was on record about them is old.
        let mesh = mesh.with_absences([], known.iter().chain(doubted));
        let absent: Vec<Key> = known
            .iter()
            .filter(|key| mesh.lacks(key))
            .cloned()
            .collect();
        let forgotten = asked.absent(&absent, now);
        mesh.with_absences(&absent, &forgotten)
    }

    /// Takes off the record what has been there too long to be relied on. None when nothing changes.
    pub fn forget(&mut self, mesh: &Mesh, now: Instant) -> Option<Mesh> {
        let forgotten = self.asked.as_mut()?.forget(now);
        (!forgotten.is_empty()).then(|| mesh.with_absences([], &forgotten))
    }

    /// Takes a response apart, and takes breaths meanwhile.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Received {
        let mut received = Received {
            delta: Delta::default(),
            answer: DeltaDiscoveryRequest {
                type_url: response.type_url.clone(),
                response_nonce: response.nonce,
                ..DeltaDiscoveryRequest::default()
            },
            rejected: Vec::new(),
            warnings: Vec::new(),
            answers: Answers::default(),
        };
        let answers = &mut received.answers;
        let of_this_type = |state: &&mut TypeState| state.kind.type_url() == response.type_url;
        let Some(state) = self.types.iter_mut().find(of_this_type) else {
            let warning = format!("response of type {:?}, not asked for", response.type_url);
            received.warnings.push(warning);
            return received;
        };
        let mut unseen: HashSet<Arc<str>> = match std::mem::take(&mut state.expects_everything) {
            true => state.held.names(),
            false => HashSet::new(),
        };
        let mut asked = self.asked.as_mut().filter(|_| state.kind == Kind::Address);
        let mut unreadable = HashSet::new();
        received.delta.upserts.reserve(response.resources.len());
        for resource in response.resources {
            let content = resource.resource.as_ref();
            let is_long = content.is_some_and(|content| content.value.len() > LONG);
            unseen.remove(&*resource.name);
            match state.kind.convert(&mut self.converter, &resource) {
                Ok(Converted { upsert, warnings }) => {
                    let named = warnings.iter().map(|w| format!("{}: {w}", resource.name));
                    received.warnings.extend(named);
                    if let Some(asked) = &mut asked {
                        let known = asked.found(&resource.name, &resource.aliases);
                        answers.known.extend(known);
                    }
                    let name = match &upsert {
                        Upsert::Workload(w) if *w.uid == *resource.name => Arc::clone(&w.uid),
                        _ => resource.name.into(),
                    };
                    state.held.insert(name, &resource.version);
                    received.delta.upserts.push(upsert);
                }
                Err(error) => {
                    if let Some(asked) = &mut asked {
                        let doubted = asked.rejected(&resource.name, &resource.aliases);
                        answers.doubted.extend(doubted);
                        unreadable.extend(resource.aliases);
                    }
                    received.rejected.push((resource.name, error));
                }
            }
            if is_long {
                breath::long_step();
            } else {
                breath::step();
            }
        }
        for name in response.removed_resources {
            let was_held = state.held.remove(&name);
            if let Some(asked) = &mut asked {
                answers.known.extend(asked.removed(&name, was_held));
            }
            received.delta.removals.extend(state.kind.removal(&name));
            breath::step();
        }
        if !unreadable.is_empty() {
            let doubted = |key: &mut Key| unreadable.contains(&key.to_string());
            answers
                .doubted
                .extend(answers.known.extract_if(.., doubted));
        }
        // Of these the control plane knows nothing on this stream.
        for name in unseen {
            state.held.remove(&name);
            received.delta.removals.extend(state.kind.removal(&name));
            breath::step();
        }
        state.responded = true;
        if received.rejected.is_empty() {
            state.acked = true;
        } else {
            received.answer.error_detail = Some(Status {
                message: nack(&received.rejected),
                ..Status::default()
            });
        }
        received
    }

    /// Forgets what the snapshots no longer use; after the delta of a response has been applied.
    pub fn tidy(&mut self) {
        self.converter.tidy();
    }

    /// Whether a response of each type subscribed to as a whole has come: before that the mesh is a part of the truth
    /// that must not be acted on, workloads without the policies that protect them.
    pub fn is_complete(&self) -> bool {
        self.awaited().all(|state| state.responded)
    }

    /// Whether a response of each such type was accepted whole.
    pub fn is_synced(&self) -> bool {
        self.awaited().all(|state| state.acked)
    }

    fn awaited(&self) -> impl Iterator<Item = &TypeState> {
        let on_demand = |state: &TypeState| state.kind == Kind::Address && self.asked.is_some();
        self.types.iter().filter(move |state| !on_demand(state))
    }
}

impl Kind {
    fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
        }
    }

    fn convert(
        self,
        converter: &mut Converter,
        resource: &Resource,
    ) -> Result<Converted, ConvertError> {
        let content = resource.resource.as_ref();
        // Its `type_url` may say anything: that of the response has decided.
        let content = &content.ok_or(ConvertError::NoContent)?.value;
        let converted = match self {
            Self::Address => converter.address(content)?,
            Self::Authorization => converter.authorization(content)?,
        };
        if !is_named(&converted.upsert, &resource.name) {
            return Err(ConvertError::Named(name_of(&converted.upsert)));
        }
        Ok(converted)
    }

    fn removal(self, name: &str) -> Option<Removal> {
        match self {
            Self::Address => Some(Removal::Address(name.into())),
            Self::Authorization => PolicyName::parse(name).map(Removal::Policy),
        }
    }
}

/// Whether `name` is the one that what came has in the mesh: it is taken back by that name.
fn is_named(upsert: &Upsert, name: &str) -> bool {
    let parts = name.split_once('/');
    match upsert {
        Upsert::Workload(workload) => *workload.uid == *name,
        Upsert::Service(service) => {
            parts == Some((&*service.key.namespace, &*service.key.hostname))
        }
        Upsert::Policy(policy) => parts == Some((&*policy.key.namespace, &*policy.key.name)),
    }
}

fn name_of(upsert: &Upsert) -> String {
    match upsert {
        Upsert::Workload(workload) => workload.uid.to_string(),
        Upsert::Service(service) => service.key.to_string(),
        Upsert::Policy(policy) => policy.key.to_string(),
    }
}

fn nack(rejected: &[(String, ConvertError)]) -> String {
    let mut reasons: Vec<String> = rejected
        .iter()
        .take(NACK_DETAILS)
        .map(|(name, error)| {
            let mut detail = format!("{name}: {error}");
            detail.truncate(detail.floor_char_boundary(NACK_DETAIL));
            detail
        })
        .collect();
    if let Some(more) = rejected.len().checked_sub(NACK_DETAILS).filter(|n| *n > 0) {
        reasons.push(format!("and {more} more"));
    }
    reasons.join("; ")
}

#[cfg(test)]
mod tests;
