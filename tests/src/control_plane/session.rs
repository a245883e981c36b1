//! One client's discovery stream as a machine without I/O: requests and snapshots in, responses out.
//!
//! Behaves as Istio's control plane does for a wildcard subscription: the first response of a type always comes,
//! later ones carry what changed or went; what the client says it still has is not sent again; a request with an
//! old nonce is ignored; a rejection is noted and nothing is sent again because of it.
//!
//! Absent on purpose: subscriptions by name. They are refused, not half served.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use tonic::Status;
use ztunnel_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
};

use super::snapshot::{Snapshot, TYPES};

/// What a client is subscribed to and has received.
#[derive(Debug, Default)]
pub(crate) struct Session {
    watches: [Option<Watch>; 2],
    nonces: u64,
}

/// State of one type.
#[derive(Debug)]
struct Watch {
    /// Name to content version, as the client has it once it took everything sent.
    sent: BTreeMap<String, String>,
    /// Nonce and generation of the last response, until it is answered.
    unanswered: Option<(String, u64)>,
    /// The client has everything up to this generation, or said why it does not want it.
    synced: u64,
}

/// A client's answer to one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Node of the client.
    pub node: String,
    /// Type of the response.
    pub type_url: String,
    /// Why it was rejected; none means it was accepted.
    pub rejected: Option<String>,
}

/// What comes of a request.
#[derive(Debug, Default)]
pub(crate) struct Reaction {
    pub(crate) response: Option<DeltaDiscoveryResponse>,
    /// Type, and why rejected.
    pub(crate) answer: Option<(usize, Option<String>)>,
}

impl Session {
    /// Takes a request.
    pub(crate) fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        now: &Snapshot,
    ) -> Result<Reaction, Status> {
        let kind = TYPES
            .iter()
            .position(|&known| known == request.type_url)
            .ok_or_else(|| {
                Status::invalid_argument(format!("type `{}` is not served", request.type_url))
            })?;
        if !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty()
        {
            return Err(Status::unimplemented(
                "the lab's control plane serves wildcard subscriptions only",
            ));
        }
        if let Some(watch) = &mut self.watches[kind] {
            let answer = watch.answer(request);
            return Ok(Reaction {
                response: None,
                answer: answer.map(|rejected| (kind, rejected)),
            });
        }
        if self.watches.iter().all(Option::is_none) {
            check_node(request.node.as_ref())?;
        }
        self.watches[kind] = Some(Watch {
            sent: request.initial_resource_versions.into_iter().collect(),
            unanswered: None,
            synced: 0,
        });
        Ok(Reaction {
            response: self.push(kind, now, true),
            answer: None,
        })
    }

    /// Takes a new snapshot.
    pub(crate) fn snapshot(&mut self, now: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
        (0..TYPES.len())
            .filter_map(|kind| self.push(kind, now, false))
            .collect()
    }

    /// For each type, the generation the client has caught up with; none where it is not subscribed.
    pub(crate) fn synced(&self) -> [Option<u64>; 2] {
        [0, 1].map(|kind| self.watches[kind].as_ref().map(|watch| watch.synced))
    }

    fn push(
        &mut self,
        kind: usize,
        now: &Snapshot,
        even_if_empty: bool,
    ) -> Option<DeltaDiscoveryResponse> {
        let watch = self.watches[kind].as_mut()?;
        let current = now.of_type(kind);
        let resources: Vec<_> = current
            .iter()
            .filter(|(name, entry)| watch.sent.get(*name) != Some(&entry.version))
            .map(|(name, entry)| entry.resource(kind, name))
            .collect();
        let removed: Vec<String> = watch
            .sent
            .keys()
            .filter(|name| !current.contains_key(*name))
            .cloned()
            .collect();
        if resources.is_empty() && removed.is_empty() && !even_if_empty {
            match &mut watch.unanswered {
                // The answer to what is on its way covers this generation too.
                Some((_, generation)) => *generation = now.generation,
                None => watch.synced = now.generation,
            }
            return None;
        }
        watch.sent = current
            .iter()
            .map(|(name, entry)| (name.clone(), entry.version.clone()))
            .collect();
        self.nonces += 1;
        let nonce = format!("{}-{}", now.generation, self.nonces);
        watch.unanswered = Some((nonce.clone(), now.generation));
        Some(DeltaDiscoveryResponse {
            system_version_info: now.generation.to_string(),
            resources,
            type_url: TYPES[kind].to_owned(),
            nonce,
            removed_resources: removed,
        })
    }
}

impl Watch {
    /// The reason of rejection, in an answer to the last response; nothing for any other request.
    fn answer(&mut self, request: DeltaDiscoveryRequest) -> Option<Option<String>> {
        let (nonce, generation) = self.unanswered.as_ref()?;
        if request.response_nonce != *nonce {
            return None;
        }
        self.synced = *generation;
        self.unanswered = None;
        Some(request.error_detail.map(|detail| detail.message))
    }
}

/// One string of a node's metadata.
pub(crate) fn metadata<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Istio's demands on a node proxy's description of itself, and that it is the one whose token was shown.
fn check_node(node: Option<&Node>) -> Result<(), Status> {
    let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    let parts: Vec<&str> = node.id.split('~').collect();
    let &[kind, ip, name, domain] = parts.as_slice() else {
        return Err(Status::invalid_argument(format!(
            "node id `{}` has not four parts",
            node.id
        )));
    };
    if kind != "ztunnel" {
        return Err(Status::invalid_argument(format!(
            "node type `{kind}` is not `ztunnel`"
        )));
    }
    let listed = metadata(node, "INSTANCE_IPS").unwrap_or_default();
    let is_ip = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    if !is_ip(ip) && !listed.split(',').any(is_ip) {
        return Err(Status::invalid_argument("the node has no valid address"));
    }
    let namespace = metadata(node, "NAMESPACE").or_else(|| domain.split('.').next());
    if namespace != Some(super::PROXY_NAMESPACE) {
        return Err(Status::permission_denied(format!(
            "the token is of namespace {}, the node {name} says {namespace:?}",
            super::PROXY_NAMESPACE
        )));
    }
    if let Some(account) = metadata(node, "SERVICE_ACCOUNT")
        && account != super::PROXY_ACCOUNT
    {
        return Err(Status::permission_denied(format!(
            "the token is of service account {}, the node says {account}",
            super::PROXY_ACCOUNT
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::mesh_file::MeshFile;
    use ztunnel_proto::ADDRESS_TYPE;

    fn mesh(names: &[&str]) -> MeshFile {
        let pods: Vec<String> = (1..)
            .zip(names)
            .map(|(i, name)| {
                format!("{{name: {name}, namespace: n, node: node1, addresses: [10.0.0.{i}]}}")
            })
            .collect();
        MeshFile::parse("test", &format!("workloads: [{}]", pods.join(", "))).unwrap()
    }

    fn first(known: &[(&str, &str)]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.to_owned(),
            node: Some(Node {
                id: "ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local".to_owned(),
                ..Node::default()
            }),
            initial_resource_versions: known
                .iter()
                .map(|&(name, version)| (name.to_owned(), version.to_owned()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn names(response: &DeltaDiscoveryResponse) -> (Vec<&str>, Vec<&str>) {
        let sent = response.resources.iter().map(|r| r.name.as_str()).collect();
        let removed = response
            .removed_resources
            .iter()
            .map(String::as_str)
            .collect();
        (sent, removed)
    }

    #[test]
    fn only_changes_follow_the_first_response() {
        let none = BTreeSet::new();
        let one = Snapshot::default().next(&mesh(&["a", "b"]), &none);
        let mut session = Session::default();
        let sent = session.request(first(&[]), &one).unwrap().response.unwrap();
        assert_eq!(
            names(&sent).0,
            ["Kubernetes//Pod/n/a", "Kubernetes//Pod/n/b"]
        );
        assert_eq!(session.synced()[0], Some(0));

        let ack = DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.to_owned(),
            response_nonce: sent.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        let reaction = session.request(ack, &one).unwrap();
        assert_eq!(reaction.answer, Some((0, None)));
        assert_eq!(session.synced()[0], Some(1));

        let two = one.next(&mesh(&["a", "b"]), &none);
        assert!(session.snapshot(&two).is_empty());
        assert_eq!(session.synced()[0], Some(2));

        let three = two.next(&mesh(&["a"]), &["n/a".to_owned()].into());
        let sent = session.snapshot(&three);
        assert_eq!(
            names(&sent[0]),
            (vec!["Kubernetes//Pod/n/a"], vec!["Kubernetes//Pod/n/b"])
        );
    }

    #[test]
    fn a_client_that_comes_back_gets_what_it_lacks_and_what_went() {
        let one = Snapshot::default().next(&mesh(&["a", "b"]), &BTreeSet::new());
        let version = one.of_type(0)["Kubernetes//Pod/n/a"].version.clone();
        let known = [
            ("Kubernetes//Pod/n/a", version.as_str()),
            ("Kubernetes//Pod/n/gone", "1"),
        ];
        let sent = Session::default()
            .request(first(&known), &one)
            .unwrap()
            .response
            .unwrap();
        assert_eq!(
            names(&sent),
            (vec!["Kubernetes//Pod/n/b"], vec!["Kubernetes//Pod/n/gone"])
        );
    }

    #[test]
    fn a_stranger_is_refused() {
        let snapshot = Snapshot::default();
        let mut request = first(&[]);
        request.node = None;
        let refused = Session::default().request(request, &snapshot).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
