//! Addresses one by one.

use super::*;

/// A conversation, and the mesh that came of it.
struct Client {
    session: AdsSession,
    mesh: Mesh,
    now: Instant,
}

impl Client {
    fn new() -> Self {
        let node = Node::default();
        let mut client = Self {
            session: AdsSession::new(node, Subscription::OnDemand),
            mesh: Mesh::partial(),
            now: Instant::now(),
        };
        client.session.open(Resume::Tell);
        client
    }

    fn receive(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let received = self.session.receive(response);
        let mesh = self.mesh.apply(received.delta);
        self.mesh = self.session.record(mesh, &received.answers, self.now);
        received.answer
    }

    /// Asks, and says what goes to the control plane: `+` what is subscribed to, `-` what is no longer.
    fn ask(&mut self, names: &[&str]) -> Vec<String> {
        for name in names {
            self.session.ask(key(name), self.now);
        }
        let requests = self.session.questions().into_iter().map(|request| {
            assert_eq!(request.type_url, ADDRESS_TYPE);
            assert!(request.node.is_none() && request.response_nonce.is_empty());
            let subscribe = request.resource_names_subscribe.iter();
            let unsubscribe = request.resource_names_unsubscribe.iter();
            let words: Vec<_> = subscribe
                .map(|name| format!("+{name}"))
                .chain(unsubscribe.map(|name| format!("-{name}")))
                .collect();
            words.join(" ")
        });
        requests.collect()
    }

    fn lacks(&self, name: &str) -> bool {
        self.mesh.lacks(&key(name))
    }
}

/// `<network>/<ip>`, or `<namespace>/<hostname>`.
fn key(name: &str) -> Key {
    let (network, ip) = name.split_once('/').unwrap();
    match ip.parse() {
        Ok(ip) => Key::Address {
            network: network.into(),
            ip,
        },
        Err(_) => Key::Service(ztunnel_mesh::name::ServiceName::new(network, ip)),
    }
}

fn at(uid: &str, ip: [u8; 4], aliases: &[&str]) -> Resource {
    let workload = wire::Workload {
        uid: uid.into(),
        addresses: vec![ip.to_vec()],
        ..Default::default()
    };
    aliased(uid, wire::address::Type::Workload(workload), aliases)
}

fn service(name: &str, vip: [u8; 4], aliases: &[&str]) -> Resource {
    let (namespace, hostname) = name.split_once('/').unwrap();
    let service = wire::Service {
        namespace: namespace.into(),
        hostname: hostname.into(),
        addresses: vec![wire::NetworkAddress {
            address: vip.to_vec(),
            ..Default::default()
        }],
        ..Default::default()
    };
    aliased(name, wire::address::Type::Service(service), aliases)
}

fn aliased(name: &str, content: wire::address::Type, aliases: &[&str]) -> Resource {
    let address = wire::Address {
        r#type: Some(content),
    };
    Resource {
        aliases: aliases.iter().map(ToString::to_string).collect(),
        ..resource(name, "v1", Some(address.encode_to_vec()))
    }
}

#[test]
fn a_stream_starts_with_a_star_in_both_lists_for_addresses_and_none_for_policies() {
    let mut session = AdsSession::new(Node::default(), Subscription::OnDemand);
    let [first, second] = session.open(Resume::Tell);
    assert_eq!(first.type_url, ADDRESS_TYPE);
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(first.resource_names_unsubscribe, ["*"]);
    assert_eq!(second.type_url, AUTHORIZATION_TYPE);
    assert!(second.resource_names_subscribe.is_empty());
    assert!(second.resource_names_unsubscribe.is_empty());
    for request in [first, second] {
        assert!(request.node.is_some() && request.initial_resource_versions.is_empty());
    }
}

#[test]
fn only_policies_are_waited_for() {
    let mut client = Client::new();
    client.receive(addresses(vec![], &[]));
    assert!(!client.session.is_complete() && !client.session.is_synced());
    client.receive(policies(vec![resource("ns/p", "", None)], &[]));
    assert!(client.session.is_complete() && !client.session.is_synced());
    client.receive(policies(vec![], &[]));
    assert!(client.session.is_synced());
    // Nor does a bad address make a difference.
    let mut client = Client::new();
    client.receive(addresses(vec![broken("a", "")], &[]));
    client.receive(policies(vec![], &[]));
    assert!(client.session.is_synced());
}

#[test]
fn an_answer_is_known_by_its_alias_by_its_name_or_by_what_is_in_it() {
    for (asked, answer) in [
        ("/10.0.0.1", at("a//Pod/b/c", [10, 0, 0, 1], &["/10.0.0.1"])),
        ("/10.0.0.1", at("a//Pod/b/c", [10, 0, 0, 1], &[])),
        ("/10.9.0.1", service("a/s", [10, 9, 0, 1], &["/10.9.0.1"])),
        ("a/s", service("a/s", [10, 9, 0, 1], &[])),
    ] {
        let mut client = Client::new();
        assert_eq!(client.ask(&[asked]), [format!("+{asked}")]);
        assert!(client.lacks(asked));
        let ack = client.receive(addresses(vec![answer], &[]));
        assert!(ack.error_detail.is_none() && ack.resource_names_subscribe.is_empty());
        assert!(!client.lacks(asked), "{asked}");
        // Nobody waits for it any more: the next stream asks for the resource, by its own name, only.
        let [again, _] = client.session.open(Resume::Tell);
        let versions = again.initial_resource_versions;
        assert!(
            versions.len() == 1 && versions.values().all(|v| v == "v1"),
            "{versions:?}"
        );
    }
}

#[test]
fn removed_means_absent_until_that_is_old() {
    let mut client = Client::new();
    client.ask(&["/192.0.2.1", "net/192.0.2.1"]);
    client.receive(addresses(vec![], &["/192.0.2.1", "net/192.0.2.1"]));
    assert!(!client.lacks("/192.0.2.1") && !client.lacks("net/192.0.2.1"));
    assert!(client.lacks("/192.0.2.2"));

    let almost = client.now + asked::ABSENT_FOR - std::time::Duration::from_millis(1);
    assert!(client.session.forget(&client.mesh, almost).is_none());
    let later = client.now + asked::ABSENT_FOR;
    client.mesh = client.session.forget(&client.mesh, later).unwrap();
    assert!(client.lacks("/192.0.2.1"));
    // The control plane counts it as asked for still, and would not answer again.
    assert_eq!(
        client.ask(&["/192.0.2.1"]),
        ["-/192.0.2.1 -net/192.0.2.1", "+/192.0.2.1"]
    );
}

#[test]
fn what_comes_after_all_is_absent_no_more_even_when_it_goes() {
    let mut client = Client::new();
    client.ask(&["/10.0.0.1"]);
    client.receive(addresses(vec![], &["/10.0.0.1"]));
    client.receive(addresses(vec![at("a", [10, 0, 0, 1], &["/10.0.0.1"])], &[]));
    client.receive(addresses(vec![], &["a"]));
    assert!(client.lacks("/10.0.0.1"));
}

#[test]
fn an_address_that_only_its_alias_mentions_is_nobodys() {
    let mut client = Client::new();
    client.ask(&["/172.18.0.2"]);
    let agent = wire::Workload {
        uid: "a//Pod/kube/agent".into(),
        addresses: vec![vec![172, 18, 0, 2]],
        network_mode: 1,
        ..Default::default()
    };
    let agent = wire::address::Type::Workload(agent);
    let agent = aliased("a//Pod/kube/agent", agent, &["/172.18.0.2"]);
    client.receive(addresses(vec![agent], &[]));
    assert!(!client.lacks("/172.18.0.2"));
}

#[test]
fn an_answer_that_cannot_be_read_is_no_answer() {
    let unreadable = || Resource {
        aliases: vec!["/10.0.0.1".into()],
        ..broken("a", "v1")
    };
    let agent = wire::Workload {
        uid: "host".into(),
        network_mode: 1,
        ..Default::default()
    };
    let agent = || {
        let agent = wire::address::Type::Workload(agent.clone());
        aliased("host", agent, &["/10.0.0.1"])
    };
    // Whatever else says it has the address, in whatever order.
    for answer in [
        vec![unreadable()],
        vec![unreadable(), agent()],
        vec![agent(), unreadable()],
    ] {
        let mut client = Client::new();
        client.ask(&["/10.0.0.1"]);
        let nack = client.receive(addresses(answer.clone(), &[]));
        assert!(nack.error_detail.is_some());
        assert!(client.lacks("/10.0.0.1"));
        // It can be asked for again, and is then answered.
        assert_eq!(client.ask(&["/10.0.0.1"]), ["-/10.0.0.1", "+/10.0.0.1"]);
        let good = at("a", [10, 0, 0, 1], &["/10.0.0.1"]);
        client.receive(addresses(vec![good], &[]));
        assert!(!client.lacks("/10.0.0.1"));

        // Nor is what was absent until it came.
        let mut client = Client::new();
        client.ask(&["/10.0.0.1"]);
        client.receive(addresses(vec![], &["/10.0.0.1"]));
        assert!(!client.lacks("/10.0.0.1"));
        client.receive(addresses(answer, &[]));
        assert!(client.lacks("/10.0.0.1"));
    }
}

#[test]
fn the_next_stream_is_told_what_came_and_what_has_no_answer_yet() {
    let mut client = Client::new();
    client.ask(&["/10.0.0.1", "/10.0.0.2", "/192.0.2.1"]);
    let came = at("a", [10, 0, 0, 1], &["/10.0.0.1"]);
    client.receive(addresses(vec![came], &["/192.0.2.1"]));
    // Asked for while there is no stream.
    client.session.ask(key("/10.0.0.3"), client.now);

    let [first, _] = client.session.open(Resume::Tell);
    let mut told: Vec<_> = first.initial_resource_versions.into_iter().collect();
    told.sort();
    let expected = [("/10.0.0.2", ""), ("/10.0.0.3", ""), ("a", "v1")];
    assert_eq!(told, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    assert!(client.ask(&["/10.0.0.2"]).is_empty());
    assert!(!client.lacks("/192.0.2.1"));
}

#[test]
fn starting_over_forgets_what_came_and_asks_one_by_one_again() {
    let mut client = Client::new();
    client.ask(&["/10.0.0.1", "/10.0.0.2"]);
    client.receive(addresses(vec![at("a", [10, 0, 0, 1], &["/10.0.0.1"])], &[]));
    let [first, _] = client.session.open(Resume::StartOver);
    assert!(first.initial_resource_versions.is_empty());
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(client.ask(&[]), ["+/10.0.0.2"]);
    // What came before stays in use until the control plane has said what it says unasked.
    assert!(!client.lacks("/10.0.0.1"));
    client.receive(addresses(vec![], &[]));
    assert!(client.lacks("/10.0.0.1"));
    assert_eq!(client.ask(&["/10.0.0.1"]), ["+/10.0.0.1"]);
}

#[test]
fn nothing_is_asked_for_one_by_one_when_everything_is_subscribed_to() {
    let mut session = session();
    session.open(Resume::Tell);
    session.ask(key("/10.0.0.1"), Instant::now());
    assert!(session.questions().is_empty());
    let received = session.receive(addresses(vec![], &["/10.0.0.1"]));
    assert!(received.answers.known.is_empty());
}
