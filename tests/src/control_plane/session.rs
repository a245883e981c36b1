//! One client's discovery stream as a machine without I/O: requests and snapshots in, responses out.
//!
//! Behaves as Istio's control plane does: the first response of a type always comes, later ones carry what changed or
//! went; what the client says it still has is not sent again; a request with an old nonce is ignored; a rejection is
//! noted and nothing is sent again because of it.
//!
//! Addresses may be asked for by name, when a client begins with a star both subscribed to and unsubscribed from. A
//! name is looked up as a workload, an address of workloads, a service, an address of a service; a service brings its
//! workloads. What was sent is kept up to date, and so is what belongs to a service that was sent or to the client's
//! own node. A name that is subscribed to already is not answered again; Istio complains of that in its log, here the
//! stream ends.
//!
//! Absent on purpose: names in a wildcard subscription. They are refused, not half served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost_types::value::Kind;
use tonic::Status;
use ztunnel_proto::ADDRESS_TYPE;
use ztunnel_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource,
};

use super::snapshot::{Entry, Snapshot, TYPES};

/// What a client is subscribed to and has received.
#[derive(Debug, Default)]
pub(crate) struct Session {
    watches: [Option<Watch>; 2],
    nonces: u64,
}

/// State of one type.
#[derive(Debug)]
struct Watch {
    /// None for a wildcard.
    named: Option<Named>,
    /// Name to content version, as the client has it once it took everything sent.
    sent: BTreeMap<String, String>,
    /// Nonce and generation of the last response, until it is answered.
    unanswered: Option<(String, u64)>,
    /// The client has everything up to this generation, or said why it does not want it.
    synced: u64,
}

/// A subscription by name.
#[derive(Debug)]
struct Named {
    node: String,
    /// What the client asked for, and what it was sent.
    names: BTreeSet<String>,
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
    /// What was asked for by name.
    pub(crate) lookups: Vec<String>,
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
        if let Some(watch) = &mut self.watches[kind] {
            if request.response_nonce.is_empty() {
                let lookups = watch.ask(&request)?;
                return Ok(Reaction {
                    response: Some(self.look_up(kind, &lookups, now)),
                    answer: None,
                    lookups,
                });
            }
            refuse_names(&request)?;
            let answer = watch.answer(request);
            return Ok(Reaction {
                answer: answer.map(|rejected| (kind, rejected)),
                ..Reaction::default()
            });
        }
        if self.watches.iter().all(Option::is_none) {
            check_node(request.node.as_ref())?;
        }
        let named = names(kind, &request)?;
        let lookups: Vec<String> = named.iter().flat_map(|n| &n.names).cloned().collect();
        let by_name = named.is_some();
        self.watches[kind] = Some(Watch {
            named,
            sent: request.initial_resource_versions.into_iter().collect(),
            unanswered: None,
            synced: 0,
        });
        let response = if by_name {
            Some(self.resume(kind, &lookups, now))
        } else {
            self.push(kind, now, true)
        };
        Ok(Reaction {
            response,
            ..Reaction::default()
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
        let current: BTreeMap<&String, &Arc<Entry>> = now
            .of_type(kind)
            .iter()
            .filter(|(name, entry)| watch.wants(name, entry))
            .collect();
        let resources: Vec<_> = current
            .iter()
            .filter(|(name, entry)| watch.sent.get(**name) != Some(&entry.version))
            .map(|(name, entry)| watch.resource(kind, name, entry))
            .collect();
        let removed: Vec<String> = watch
            .sent
            .keys()
            .filter(|name| !now.of_type(kind).contains_key(*name))
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
            .map(|(name, entry)| ((*name).clone(), entry.version.clone()))
            .collect();
        if let Some(named) = &mut watch.named {
            named.names.extend(current.into_keys().cloned());
        }
        Some(self.respond(kind, now, resources, removed))
    }

    /// The first response to a subscription by name: what the client lacks of what it named.
    fn resume(&mut self, kind: usize, names: &[String], now: &Snapshot) -> DeltaDiscoveryResponse {
        let before = self.watches[kind].as_ref().map(|watch| watch.sent.clone());
        let mut response = self.look_up(kind, names, now);
        let before = before.unwrap_or_default();
        let current = now.of_type(kind);
        response
            .resources
            .retain(|r| before.get(&r.name) != current.get(&r.name).map(|entry| &entry.version));
        response
    }

    /// Answers names, and tells about the client's own node in passing.
    fn look_up(&mut self, kind: usize, names: &[String], now: &Snapshot) -> DeltaDiscoveryResponse {
        let all = now.of_type(kind);
        let mut found = BTreeMap::new();
        let mut removed = Vec::new();
        for name in names {
            let hits = hits(all, name);
            if hits.is_empty() {
                removed.push(name.clone());
            }
            found.extend(hits);
        }
        let mut resources = Vec::new();
        if let Some(watch) = &mut self.watches[kind] {
            for (name, entry) in all {
                let of_the_node = matches!(&watch.named, Some(named) if entry.is_on(&named.node));
                if of_the_node {
                    found.insert(name, entry);
                }
            }
            for name in &removed {
                watch.sent.remove(name);
            }
            for (name, entry) in found {
                resources.push(watch.resource(kind, name, entry));
                watch.sent.insert(name.clone(), entry.version.clone());
                if let Some(named) = &mut watch.named {
                    named.names.insert(name.clone());
                }
            }
        }
        self.respond(kind, now, resources, removed)
    }

    fn respond(
        &mut self,
        kind: usize,
        now: &Snapshot,
        resources: Vec<Resource>,
        removed_resources: Vec<String>,
    ) -> DeltaDiscoveryResponse {
        self.nonces += 1;
        let nonce = format!("{}-{}", now.generation, self.nonces);
        if let Some(watch) = &mut self.watches[kind] {
            watch.unanswered = Some((nonce.clone(), now.generation));
        }
        DeltaDiscoveryResponse {
            system_version_info: now.generation.to_string(),
            resources,
            type_url: TYPES[kind].to_owned(),
            nonce,
            removed_resources,
        }
    }
}

type Entries = BTreeMap<String, Arc<Entry>>;

/// What a name stands for, in the order in which it is looked up.
fn hits<'a>(all: &'a Entries, name: &str) -> Vec<(&'a String, &'a Arc<Entry>)> {
    let named = || all.get_key_value(name);
    let with_address = |service: bool| {
        let has = move |entry: &Entry| entry.is_service() == service && entry.has_alias(name);
        all.iter().filter(move |(_, entry)| has(entry))
    };
    if let Some(workload) = named().filter(|(_, entry)| !entry.is_service()) {
        return vec![workload];
    }
    let workloads: Vec<_> = with_address(false).collect();
    if !workloads.is_empty() {
        return workloads;
    }
    let service = named().or_else(|| with_address(true).next());
    let Some((key, entry)) = service else {
        return Vec::new();
    };
    let members = all.iter().filter(|(_, member)| member.is_member_of(key));
    [(key, entry)].into_iter().chain(members).collect()
}

/// The names that a client begins with; none for a wildcard.
fn names(kind: usize, request: &DeltaDiscoveryRequest) -> Result<Option<Named>, Status> {
    let star = ["*".to_owned()];
    let lists = [
        &request.resource_names_subscribe,
        &request.resource_names_unsubscribe,
    ];
    if lists.iter().all(|names| names.is_empty()) {
        return Ok(None);
    }
    if TYPES[kind] != ADDRESS_TYPE || lists.iter().any(|names| **names != star) {
        return Err(Status::unimplemented(
            "the lab's control plane knows wildcards, and `*` in both lists for addresses",
        ));
    }
    let node = request.node.as_ref();
    let node = node.and_then(|node| metadata(node, "NODE_NAME"));
    Ok(Some(Named {
        node: node.unwrap_or_default().to_owned(),
        names: request.initial_resource_versions.keys().cloned().collect(),
    }))
}

fn refuse_names(request: &DeltaDiscoveryRequest) -> Result<(), Status> {
    let lists = [
        &request.resource_names_subscribe,
        &request.resource_names_unsubscribe,
    ];
    if lists.iter().any(|names| !names.is_empty()) {
        return Err(Status::invalid_argument("an answer must not carry names"));
    }
    Ok(())
}

impl Watch {
    /// Takes a request that answers nothing. Returns the names to look up.
    fn ask(&mut self, request: &DeltaDiscoveryRequest) -> Result<Vec<String>, Status> {
        let Some(named) = &mut self.named else {
            return Err(Status::unimplemented("names in a wildcard subscription"));
        };
        let before = named.names.clone();
        let subscribe = request.resource_names_subscribe.iter().cloned();
        named.names.extend(subscribe);
        for name in &request.resource_names_unsubscribe {
            named.names.remove(name);
        }
        if named.names == before {
            return Err(Status::invalid_argument(format!(
                "asked for {:?}, which changes nothing",
                request.resource_names_subscribe
            )));
        }
        let asked = request.resource_names_subscribe.iter();
        let lookups = asked.filter(|name| named.names.contains(*name));
        Ok(lookups.cloned().collect())
    }

    fn wants(&self, name: &str, entry: &Entry) -> bool {
        let Some(named) = &self.named else {
            return true;
        };
        named.names.contains(name)
            || entry.is_on(&named.node)
            || named.names.iter().any(|known| entry.is_member_of(known))
    }

    /// Aliases go with answers to names only.
    fn resource(&self, kind: usize, name: &str, entry: &Entry) -> Resource {
        let mut resource = entry.resource(kind, name);
        if self.named.is_some() {
            resource.aliases = entry.aliases();
        }
        resource
    }

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
    use super::*;
    use crate::mesh_file::MeshFile;

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

    const SHOP: &str = "
workloads:
  - {name: web, namespace: n, node: node1, addresses: [10.0.0.1]}
  - {name: db, namespace: n, node: node2, addresses: [10.0.0.2]}
  - {name: db2, namespace: n, node: node2, addresses: [10.0.0.3]}
services:
  - {name: db, namespace: n, addresses: [10.9.0.1], ports: {80: 80}, workloads: [db, db2]}
";

    fn on_demand(known: &[(&str, &str)]) -> DeltaDiscoveryRequest {
        let mut request = first(known);
        let node = prost_types::Struct {
            fields: [(
                "NODE_NAME".to_owned(),
                Kind::StringValue("node1".into()).into(),
            )]
            .into(),
        };
        request.node.as_mut().unwrap().metadata = Some(node);
        request.resource_names_subscribe = vec!["*".to_owned()];
        request.resource_names_unsubscribe = vec!["*".to_owned()];
        request
    }

    fn ask(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.to_owned(),
            resource_names_subscribe: names(subscribe),
            resource_names_unsubscribe: names(unsubscribe),
            ..DeltaDiscoveryRequest::default()
        }
    }

    const WEB: &str = "Kubernetes//Pod/n/web";
    const DB: [&str; 3] = [
        "Kubernetes//Pod/n/db",
        "Kubernetes//Pod/n/db2",
        "n/db.n.svc.cluster.local",
    ];

    #[test]
    fn names_are_looked_up_and_followed_from_then_on() {
        let shop = MeshFile::parse("test", SHOP).unwrap();
        let one = Snapshot::default().next(&shop, &BTreeSet::new());
        let mut session = Session::default();
        let mut ask_for = |request| session.request(request, &one).unwrap().response.unwrap();
        assert_eq!(names(&ask_for(on_demand(&[]))), (vec![WEB], vec![]));
        let vip = ask_for(ask(&["/10.9.0.1"], &[]));
        assert_eq!(names(&vip), ([&DB[..2], &[WEB], &DB[2..]].concat(), vec![]));
        let service = vip.resources.last().unwrap();
        assert_eq!(service.aliases, ["/10.9.0.1"]);
        let unknown = ask_for(ask(&["/10.0.0.2", "/10.0.0.9"], &["/10.9.0.1"]));
        assert_eq!(names(&unknown), (vec![DB[0], WEB], vec!["/10.0.0.9"]));

        // A name that is known is no question.
        let again = session.request(ask(&["/10.0.0.9"], &[]), &one);
        assert_eq!(again.unwrap_err().code(), tonic::Code::InvalidArgument);

        // One endpoint goes, another one comes, and so does something that nobody asked for.
        let later = SHOP
            .replace("name: db2,", "name: db3,")
            .replace("db2]", "db3]")
            + "policies: []\n";
        let mut later = MeshFile::parse("test", &later).unwrap();
        later.workloads.push(lonely());
        let two = one.next(&later, &BTreeSet::new());
        let pushed = session.snapshot(&two);
        assert_eq!(
            names(&pushed[0]),
            (vec!["Kubernetes//Pod/n/db3"], vec![DB[1]])
        );
    }

    fn lonely() -> crate::mesh_file::Workload {
        let text = "workloads: [{name: lonely, namespace: n, node: node2, addresses: [10.0.0.7]}]";
        MeshFile::parse("test", text).unwrap().workloads.remove(0)
    }

    #[test]
    fn a_client_by_name_that_comes_back_gets_what_it_named() {
        let shop = MeshFile::parse("test", SHOP).unwrap();
        let one = Snapshot::default().next(&shop, &BTreeSet::new());
        let version = one.of_type(0)[DB[0]].version.clone();
        let known = [(DB[0], &*version), ("/10.0.0.3", ""), ("/10.0.0.9", "")];
        let response = Session::default()
            .request(on_demand(&known), &one)
            .unwrap()
            .response
            .unwrap();
        assert_eq!(names(&response), (vec![DB[1], WEB], vec!["/10.0.0.9"]));
    }
}
