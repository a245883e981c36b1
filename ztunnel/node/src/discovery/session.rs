//! The protocol of one control-plane conversation, without the I/O: what to send first, what a response changes and
//! how to answer it, what to say after a reconnect.
//!
//! Invariants: each response gets one answer. A resource that was rejected is never reported as held in that
//! version. Every name that is held is reported at the start of a stream, since the control plane finds out from
//! that what to take back. Which streams exist and when is the task's business.

mod held;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ztunnel_mesh::name::PolicyName;
use ztunnel_mesh::{Delta, Removal, Upsert};
use ztunnel_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status,
};
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use super::convert::{ConvertError, Converted, Converter};
use held::Held;

/// How many rejections a NACK spells out.
const NACK_DETAILS: usize = 100;

/// What stays of a conversation from stream to stream.
#[derive(Debug)]
pub struct AdsSession {
    node: Node,
    types: [TypeState; 2],
    converter: Converter,
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
    pub delta: Delta,
    pub answer: DeltaDiscoveryRequest,
    /// Name and reason of each resource that was not taken.
    pub rejected: Vec<(String, ConvertError)>,
    /// What was left out of resources that were taken, and oddities of the response itself.
    pub warnings: Vec<String>,
}

impl AdsSession {
    pub fn new(node: Node) -> Self {
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
            converter: Converter::default(),
        }
    }

    /// The first requests of a new stream, in order: wildcard subscriptions.
    pub fn open(&mut self, resume: Resume) -> [DeltaDiscoveryRequest; 2] {
        let node = &self.node;
        self.types.each_mut().map(|state| {
            state.expects_everything = resume == Resume::StartOver;
            DeltaDiscoveryRequest {
                node: Some(node.clone()),
                type_url: state.kind.type_url().into(),
                initial_resource_versions: match resume {
                    Resume::Tell => state.held.versions(),
                    Resume::StartOver => HashMap::new(),
                },
                ..DeltaDiscoveryRequest::default()
            }
        })
    }

    /// Takes a response apart.
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
        };
        let of_this_type = |state: &&mut TypeState| state.kind.type_url() == response.type_url;
        let Some(state) = self.types.iter_mut().find(of_this_type) else {
            let warning = format!("response of type {:?}, not asked for", response.type_url);
            received.warnings.push(warning);
            return received;
        };
        let mut unseen: HashSet<Arc<str>> = match std::mem::take(&mut state.expects_everything) {
            true => state.held.names().cloned().collect(),
            false => HashSet::new(),
        };
        for resource in response.resources {
            unseen.remove(&*resource.name);
            match state.kind.convert(&mut self.converter, &resource) {
                Ok(Converted { upsert, warnings }) => {
                    let named = warnings.iter().map(|w| format!("{}: {w}", resource.name));
                    received.warnings.extend(named);
                    let name = match &upsert {
                        Upsert::Workload(w) if *w.uid == *resource.name => Arc::clone(&w.uid),
                        _ => resource.name.into(),
                    };
                    state.held.insert(name, &resource.version);
                    received.delta.upserts.push(upsert);
                }
                Err(error) => received.rejected.push((resource.name, error)),
            }
        }
        let removed = response.removed_resources.into_iter().map(Arc::from);
        for name in removed.chain(unseen) {
            state.held.remove(&name);
            received.delta.removals.extend(state.kind.removal(&name));
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

    /// Whether a response of each type has come: before that the mesh is a part of the truth that must not be
    /// acted on, workloads without the policies that protect them.
    pub fn is_complete(&self) -> bool {
        self.types.iter().all(|state| state.responded)
    }

    /// Whether a response of each type was accepted whole.
    pub fn is_synced(&self) -> bool {
        self.types.iter().all(|state| state.acked)
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
        let content = &content.ok_or(ConvertError::NoContent)?.value;
        match self {
            Self::Address => converter.address(content),
            Self::Authorization => converter.authorization(content),
        }
    }

    fn removal(self, name: &str) -> Option<Removal> {
        match self {
            Self::Address => Some(Removal::Address(name.into())),
            Self::Authorization => PolicyName::parse(name).map(Removal::Policy),
        }
    }
}

fn nack(rejected: &[(String, ConvertError)]) -> String {
    let mut reasons: Vec<String> = rejected
        .iter()
        .take(NACK_DETAILS)
        .map(|(name, error)| format!("{name}: {error}"))
        .collect();
    if let Some(more) = rejected.len().checked_sub(NACK_DETAILS).filter(|n| *n > 0) {
        reasons.push(format!("and {more} more"));
    }
    reasons.join("; ")
}

#[cfg(test)]
mod tests;
