//! Policies: the server's side decides by the identity that the client proved, and says which policy it was.

use std::time::Duration;

use lab::hbone::{self, Client};
use lab::tester::{Check, Outcome, Service};
use lab::{Lab, MeshFile, Place, Pod, Validity};

use crate::access;
use crate::mesh::MESH;

/// What Istio sends for STRICT mutual TLS.
const STRICT: &str = "
  - name: istio_converted_static_strict
    namespace: istio-system
    scope: WORKLOAD_SELECTOR
    action: DENY
    rules: [[[{not_principals: ['*']}]]]
";

/// The usual mesh with policies, and with the names of those that select the pod `far`.
fn lab(policies: &str, of_far: &[&str]) -> Lab {
    let mut mesh = MeshFile::parse("policies", &format!("{MESH}policies:{policies}")).unwrap();
    let far = mesh.workload_mut("shop/far").unwrap();
    far.authorization_policies = of_far.iter().map(|&name| name.to_owned()).collect();
    let lab = Lab::build(mesh).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    lab
}

/// A short exchange from `from` with the pod.
fn outcome(from: &Place, to: &Pod) -> Outcome {
    let report = from.check(to.v4().unwrap(), &Check::echo("hello"));
    report.unwrap().outcome
}

/// What 15008 of the pod answers to somebody who is `identity`.
fn status(lab: &Lab, identity: &str, to: &Pod, port: u16) -> u16 {
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(60));
    let credential = authority.issue(identity, validity).unwrap();
    let client = Client::from(lab.outside()).with(&credential);
    let ip = to.v4().unwrap();
    let answer = client.connect((ip, hbone::PORT).into(), &format!("{ip}:{port}"));
    answer.unwrap().unwrap().status
}

/// What the daemon of node2 said last about a refusal to this client.
fn denial(lab: &Lab, src_identity: &str, reason: &str) -> String {
    let denied = [("src.identity", src_identity), ("reason", reason)];
    access::line(lab.node("node2"), &denied)
        .field("error")
        .to_owned()
}

#[test]
fn a_deny_policy_refuses_whom_it_names_and_is_named() {
    let lab = lab(
        "
  - {name: no-client, namespace: shop, action: DENY, rules: [[[{principals: [cluster.local/ns/shop/sa/client]}]]]}
",
        &[],
    );
    let [client, near, far] =
        ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let other = lab.pod("bank/other");
    let _servers = [far.serve().unwrap(), other.serve().unwrap()];
    assert_eq!(outcome(&client, &far), Outcome::Reset);
    let said = denial(&lab, client.identity(), "POLICY_DENIED");
    assert!(said.contains("shop/no-client"), "{said}");
    let refused = [("direction", "outbound"), ("reason", "PEER_DENIED")];
    assert!(access::line(lab.node("node1"), &refused).contains("401"));
    assert_eq!(status(&lab, client.identity(), &far, 7001), 401);
    // Neither somebody else, nor in another namespace, nor without a name: plaintext has no principal.
    assert_eq!(outcome(&near, &far), Outcome::Good);
    assert_eq!(outcome(&client, &other), Outcome::Good);
    assert_eq!(outcome(lab.outside(), &far), Outcome::Good);
    assert_eq!(
        status(
            &lab,
            "spiffe://cluster.local/ns/shop/sa/client2",
            &far,
            7001
        ),
        200
    );
}

#[test]
fn an_allow_policy_refuses_everybody_else() {
    let lab = lab(
        "
  - name: only-near
    namespace: shop
    scope: WORKLOAD_SELECTOR
    rules: [[[{principals: [cluster.local/ns/shop/sa/near]}], [{destination_ports: [7001]}]]]
",
        &["shop/only-near"],
    );
    let [client, near, far] =
        ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let mut server = far.serve().unwrap();
    let _client_serves = client.serve().unwrap();
    assert_eq!(outcome(&near, &far), Outcome::Good);
    for from in [&*client, lab.outside(), &*lab.pod("bank/other")] {
        assert_eq!(outcome(from, &far), Outcome::Reset, "{}", from.name());
    }
    let said = denial(&lab, client.identity(), "POLICY_DENIED");
    assert!(
        said.contains("no ALLOW policy") && said.contains("far"),
        "{said}"
    );
    assert_eq!(
        status(&lab, near.identity(), &far, Service::Sink.port()),
        401
    );
    assert_eq!(status(&lab, client.identity(), &far, 7001), 401);
    // It is about `far` alone.
    assert_eq!(outcome(&near, &client), Outcome::Good);

    // The app never noticed anybody else, not even a connection that came to nothing.
    lab.control_plane()
        .update(|mesh| mesh.policies.clear())
        .unwrap();
    lab.control_plane()
        .update(|mesh| {
            let far = mesh.workload_mut("shop/far").unwrap();
            far.authorization_policies.clear();
        })
        .unwrap();
    lab.settle().unwrap();
    let report = client.check(far.v4().unwrap(), &Check::of(Service::Sink));
    assert_eq!(report.unwrap().outcome, Outcome::Good);
    for noticed in [near, client] {
        assert_eq!(server.event().unwrap().peer.ip(), noticed.v4().unwrap());
    }
}

#[test]
fn strict_refuses_plaintext_and_nothing_else() {
    let lab = lab(STRICT, &["istio-system/istio_converted_static_strict"]);
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let other = lab.pod("bank/other");
    let _servers = [far.serve().unwrap(), other.serve().unwrap()];
    for ip in [far.v4().unwrap(), far.v6().unwrap()] {
        let hello = Check::echo("hello");
        assert_eq!(client.check(ip, &hello).unwrap().outcome, Outcome::Good);
        let report = lab.outside().check(ip, &hello).unwrap();
        assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    }
    let refused = [
        ("direction", "inbound"),
        ("protocol", "TCP"),
        ("reason", "POLICY_DENIED"),
    ];
    let line = access::line(lab.node("node2"), &refused);
    assert!(
        line.contains("istio-system/istio_converted_static_strict"),
        "{line:?}"
    );
    // A pod that leaves the mesh is a stranger, and one without the policy takes strangers.
    lab.unenroll(&["shop/client"]).unwrap();
    assert_eq!(outcome(&client, &far), Outcome::Reset);
    assert_eq!(outcome(&client, &other), Outcome::Good);
}

#[test]
fn a_policy_that_has_not_arrived_refuses_everybody_until_it_does() {
    let lab = lab(" []", &["istio-system/istio_converted_static_strict"]);
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    for from in [&*client, lab.outside()] {
        assert_eq!(outcome(from, &far), Outcome::Reset, "{}", from.name());
    }
    assert_eq!(status(&lab, client.identity(), &far, 7001), 401);
    let said = denial(&lab, client.identity(), "POLICY_MISSING");
    assert!(
        said.contains("istio-system/istio_converted_static_strict"),
        "{said}"
    );

    let arrived = MeshFile::parse("policies", &format!("policies:{STRICT}")).unwrap();
    lab.control_plane()
        .update(|mesh| mesh.policies = arrived.policies)
        .unwrap();
    lab.settle().unwrap();
    assert_eq!(outcome(&client, &far), Outcome::Good);
    assert_eq!(outcome(lab.outside(), &far), Outcome::Reset);
}
