use prost::Message as _;
use prost_types::Any;
use ztunnel_mesh::{Mesh, Upsert};
use ztunnel_proto::istio::security::Authorization;
use ztunnel_proto::istio::workload as wire;

use super::*;

mod large;
mod on_demand;

fn resource(name: &str, version: &str, content: Option<Vec<u8>>) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: content.map(|value| Any {
            type_url: "any".into(),
            value,
        }),
        ..Resource::default()
    }
}

fn workload(uid: &str, version: &str) -> Resource {
    let address = wire::Address {
        r#type: Some(wire::address::Type::Workload(wire::Workload {
            uid: uid.into(),
            ..Default::default()
        })),
    };
    resource(uid, version, Some(address.encode_to_vec()))
}

fn broken(name: &str, version: &str) -> Resource {
    resource(name, version, Some(vec![]))
}

fn policy(key: &str) -> Resource {
    let (namespace, name) = key.split_once('/').unwrap();
    let policy = Authorization {
        namespace: namespace.into(),
        name: name.into(),
        ..Default::default()
    };
    resource(key, "", Some(policy.encode_to_vec()))
}

fn addresses(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        nonce: "n1".into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn policies(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: AUTHORIZATION_TYPE.into(),
        ..addresses(resources, removed)
    }
}

fn session() -> AdsSession {
    let node = Node {
        id: "ztunnel~1.1.1.1~a.b~b.svc.cluster.local".into(),
        ..Default::default()
    };
    AdsSession::new(node, Subscription::Everything)
}

/// What the next stream would report, sorted, as `name=version`.
fn held(session: &mut AdsSession) -> [Vec<String>; 2] {
    session.open(Resume::Tell).map(|request| {
        let versions = request.initial_resource_versions.into_iter();
        let mut held: Vec<_> = versions.map(|(n, v)| format!("{n}={v}")).collect();
        held.sort();
        held
    })
}

#[test]
fn a_stream_starts_with_wildcards_for_addresses_then_policies() {
    let [first, second] = session().open(Resume::Tell);
    assert_eq!(first.type_url, ADDRESS_TYPE);
    assert_eq!(second.type_url, AUTHORIZATION_TYPE);
    for request in [first, second] {
        assert!(request.node.unwrap().id.starts_with("ztunnel~"));
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.resource_names_unsubscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty());
        assert!(request.response_nonce.is_empty());
        assert!(request.error_detail.is_none());
    }
}

#[test]
fn a_good_response_is_acked_with_its_nonce_and_nothing_else() {
    let mut session = session();
    let received = session.receive(addresses(vec![workload("a", "v1")], &[]));
    let ack = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.into(),
        response_nonce: "n1".into(),
        ..Default::default()
    };
    assert_eq!(received.answer, ack);
    assert_eq!(received.delta.upserts.len(), 1);
    assert_eq!(held(&mut session), [vec!["a=v1".to_owned()], vec![]]);
}

#[test]
fn good_resources_are_taken_and_bad_ones_named_in_the_nack() {
    let mut session = session();
    let resources = vec![
        broken("bad", "v1"),
        workload("good", "v1"),
        resource("none", "v1", None),
    ];
    let received = session.receive(addresses(resources, &[]));
    assert_eq!(received.delta.upserts.len(), 1);
    assert_eq!(received.rejected.len(), 2);
    let status = received.answer.error_detail.unwrap();
    assert_eq!(status.code, 0);
    assert_eq!(
        status.message,
        "bad: type is present, but empty; none: the resource has no content"
    );
    assert_eq!(held(&mut session)[0], ["good=v1"]);
}

#[test]
fn a_rejected_update_leaves_the_accepted_version_on_record() {
    let mut session = session();
    session.receive(addresses(vec![workload("a", "v1")], &[]));
    let received = session.receive(addresses(vec![broken("a", "v2")], &[]));
    assert!(received.delta.upserts.is_empty() && received.delta.removals.is_empty());
    assert_eq!(held(&mut session)[0], ["a=v1"]);
}

#[test]
fn a_nack_has_a_bounded_length() {
    let long = "ü".repeat(50_000);
    let resources = (0..1000).map(|i| broken(&format!("{i}{long}"), ""));
    let received = session().receive(addresses(resources.collect(), &[]));
    let message = received.answer.error_detail.unwrap().message;
    assert!(message.ends_with("; and 900 more"), "{message}");
    assert!(message.len() < 200_000, "{}", message.len());
}

#[test]
fn removed_names_are_forgotten() {
    let mut session = session();
    session.receive(addresses(
        vec![workload("a", "v1"), workload("b", "v1")],
        &[],
    ));
    session.receive(policies(vec![policy("ns/p"), policy("ns/q")], &[]));
    let received = session.receive(addresses(vec![], &["a", "never-there"]));
    assert_eq!(
        received.delta.removals,
        ["a", "never-there"].map(|name| Removal::Address(name.into()))
    );
    let received = session.receive(policies(vec![], &["ns/q", "odd"]));
    assert_eq!(
        received.delta.removals,
        [Removal::Policy(PolicyName::new("ns", "q"))]
    );
    // Policies have no versions, but their names must be reported all the same.
    assert_eq!(held(&mut session), [["b=v1"], ["ns/p="]]);
}

#[test]
fn starting_over_takes_the_first_response_for_everything() {
    let mut session = session();
    let all = || {
        vec![
            workload("a", "v1"),
            workload("b", "v1"),
            workload("c", "v1"),
        ]
    };
    let mut mesh = Mesh::default().apply(session.receive(addresses(all(), &[])).delta);

    let [first, _] = session.open(Resume::StartOver);
    assert!(first.initial_resource_versions.is_empty());
    let received = session.receive(addresses(vec![workload("a", "v2"), broken("b", "v2")], &[]));
    mesh = mesh.apply(received.delta);
    let there = ["a", "b", "c"].map(|uid| mesh.workload(uid).is_some());
    assert_eq!(there, [true, true, false]);

    // Only the first.
    let received = session.receive(addresses(vec![workload("d", "v1")], &[]));
    assert!(received.delta.removals.is_empty());
    assert_eq!(held(&mut session)[0], ["a=v2", "b=v1", "d=v1"]);

    // And not on a stream that told.
    session.open(Resume::StartOver);
    session.open(Resume::Tell);
    let received = session.receive(addresses(vec![], &[]));
    assert!(received.delta.removals.is_empty());
}

#[test]
fn complete_after_a_response_of_each_type_and_synced_after_an_ack_of_each() {
    let mut session = session();
    session.receive(addresses(vec![], &[]));
    assert!(!session.is_complete());
    session.receive(policies(vec![resource("ns/p", "", None)], &[]));
    assert!(session.is_complete() && !session.is_synced());
    session.receive(policies(vec![policy("ns/p")], &[]));
    assert!(session.is_synced());
    // For good: a later rejection does not take it back.
    session.receive(addresses(vec![broken("a", "")], &[]));
    assert!(session.is_synced());
}

#[test]
fn a_response_of_another_type_is_acked_and_changes_nothing() {
    let mut session = session();
    let received = session.receive(DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/other".into(),
        ..addresses(vec![workload("a", "v1")], &["b"])
    });
    assert_eq!(received.answer.type_url, "type.googleapis.com/other");
    assert!(received.answer.error_detail.is_none());
    assert!(received.delta.upserts.is_empty() && received.delta.removals.is_empty());
    assert_eq!(received.warnings.len(), 1);
    assert_eq!(held(&mut session), [const { Vec::<String>::new() }; 2]);
}

#[test]
fn a_name_twice_in_a_response_means_the_last() {
    let mut session = session();
    let received = session.receive(addresses(
        vec![workload("a", "v1"), workload("a", "v2")],
        &[],
    ));
    assert!(matches!(
        &received.delta.upserts[..],
        [Upsert::Workload(_), Upsert::Workload(_)]
    ));
    assert_eq!(held(&mut session)[0], ["a=v2"]);
}

#[test]
fn a_resource_under_another_name_than_its_own_is_rejected() {
    let mut session = session();
    let mut odd = workload("a", "v1");
    odd.name = "b".into();
    let received = session.receive(addresses(vec![odd, workload("c", "v1")], &[]));
    let message = received.answer.error_detail.unwrap().message;
    assert_eq!(message, "b: the content is named \"a\"");
    let mut odd = policy("ns/p");
    odd.name = "ns/q".into();
    let received = session.receive(policies(vec![odd], &[]));
    assert!(received.answer.error_detail.is_some());
    // It could never be taken back.
    assert_eq!(held(&mut session), [vec!["c=v1".to_owned()], vec![]]);
}

#[test]
fn the_type_of_the_response_decides_and_not_that_of_its_content() {
    let mut session = session();
    let mut odd = workload("a", "v1");
    odd.resource.as_mut().unwrap().type_url = AUTHORIZATION_TYPE.into();
    let received = session.receive(addresses(vec![odd], &[]));
    assert!(received.answer.error_detail.is_none());
    assert_eq!(received.delta.upserts.len(), 1);
}

#[test]
fn what_a_response_brings_and_takes_is_gone() {
    let mut session = session();
    let received = session.receive(addresses(vec![workload("a", "v1")], &["a"]));
    let mesh = Mesh::default().apply(received.delta);
    assert!(mesh.workload("a").is_none());
    assert!(held(&mut session)[0].is_empty());
}

#[test]
fn a_name_of_the_empty_network_or_of_many_slashes_is_taken_as_it_is() {
    let mut session = session();
    for uid in [
        "/10.0.0.1",
        "Kubernetes//Pod/a/b",
        "net/SplitHorizonWorkload/a/b/c/d",
    ] {
        session.receive(addresses(vec![workload(uid, "v1")], &[]));
        assert_eq!(held(&mut session)[0], [format!("{uid}=v1")]);
        let received = session.receive(addresses(vec![], &[uid]));
        assert_eq!(received.delta.removals, [Removal::Address(uid.into())]);
        assert!(held(&mut session)[0].is_empty());
    }
}

#[test]
fn heartbeats_and_unknown_parts_of_a_resource_change_nothing() {
    let mut session = session();
    session.receive(addresses(vec![workload("a", "v1")], &[]));
    // A heartbeat has no content: an error for the peer too. What is held stays.
    let received = session.receive(addresses(vec![resource("a", "v2", None)], &[]));
    assert!(received.answer.error_detail.is_some() && received.delta.upserts.is_empty());
    assert_eq!(held(&mut session)[0], ["a=v1"]);
    // Aliases, a lifetime and caching hints are passed over.
    let mut odd = workload("a", "v3");
    odd.aliases = vec!["x".into()];
    odd.ttl = Some(prost_types::Duration::default());
    let received = session.receive(addresses(vec![odd], &["x"]));
    assert!(received.answer.error_detail.is_none());
    assert_eq!(held(&mut session)[0], ["a=v3"]);
}
