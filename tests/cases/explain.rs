//! `ztunnel explain`: what it says would happen is what happens.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::hbone::{self, Client, Server};
use lab::tester::{Check, Outcome, Service};
use lab::{DaemonOptions, Lab, Node, Validity};
use serde_json::Value;

use crate::access;

const MARKER: &str = "as-was-said-before";
/// Wider than this no line is.
const WIDTH: usize = 100;
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const WAYPOINT: &str = "spiffe://cluster.local/ns/infra/sa/waypoint";

/// `plain` is no pod of the mesh. `guarded` has a policy against the client and takes no plaintext.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10, 'fd00:2::10']}
  - {name: guarded, namespace: shop, node: node2, service_account: guarded, addresses: [10.244.2.11, 'fd00:2::11'],
     authorization_policies: [shop/no-client, istio-system/istio_converted_static_strict]}
  - {name: plain, namespace: shop, node: node2, service_account: plain, addresses: [10.244.2.12]}
  - {name: one, namespace: infra, node: node2, service_account: waypoint, addresses: [10.244.2.20], protocol: HBONE}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10, 'fd00:96::10'], ports: {7001: 7001}, workloads: [far]}
  - {name: guarded, namespace: shop, addresses: [10.96.0.11], ports: {7001: 7001}, workloads: [guarded]}
  - {name: plain, namespace: shop, addresses: [10.96.0.12], ports: {80: 7001}, workloads: [plain]}
  - {name: behind, namespace: shop, addresses: [10.96.0.13], ports: {7001: 7001}, workloads: [far], waypoint: {hostname: infra/one.infra.svc.cluster.local}}
  - {name: missed, namespace: shop, addresses: [10.96.0.14], ports: {7001: 7001}, workloads: [far], waypoint: {address: 10.96.0.99}}
  - {name: empty, namespace: shop, addresses: [10.96.0.15], ports: {7001: 7001}}
  - {name: one, namespace: infra, addresses: [10.96.0.20], ports: {15008: 15008}, workloads: [one]}
policies:
  - {name: no-client, namespace: shop, scope: WORKLOAD_SELECTOR, action: DENY, rules: [[[{principals: [cluster.local/ns/shop/sa/client]}]]]}
  - {name: istio_converted_static_strict, namespace: istio-system, scope: WORKLOAD_SELECTOR, action: DENY, rules: [[[{not_principals: ['*']}]]]}
";

fn enrolled(options: &DaemonOptions) -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    for node in lab.nodes() {
        node.start_daemon_with(options).unwrap();
    }
    lab.enroll(&["shop/client", "shop/far", "shop/guarded"])
        .unwrap();
    lab
}

/// What `ztunnel explain` prints on a node, as text and as JSON.
fn explain(node: &Node, question: &[&str]) -> (String, Value) {
    let ask = |more: &[&str]| {
        let args = [&["explain"], question, more].concat();
        let output = node.daemon(|daemon| daemon.ask(&args)?.success());
        output.unwrap().stdout
    };
    let text = ask(&[]);
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
    let json = ask(&["--output", "json"]);
    (text, serde_json::from_str(&json).unwrap())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Explains a connection of the client, makes it, and compares. Says how it went, in a word.
fn agreed(lab: &Lab, to: &str) -> String {
    let client = lab.pod("shop/client");
    let (said, explained) = explain(lab.node("node1"), &["--from", "shop/client", "--to", to]);
    assert_eq!(explained["identity"], CLIENT);
    let report = client
        .check_at(to.parse().unwrap(), &Check::echo(MARKER))
        .unwrap();
    let src = report.local.unwrap().to_string();
    let line = access::line(
        lab.node("node1"),
        &[("direction", "outbound"), ("src.addr", &src)],
    );
    let verdict = &explained["verdict"];
    if let Some(refused) = verdict.get("refused") {
        assert_eq!(report.outcome, Outcome::Reset, "{to}: {said}");
        assert_eq!(
            line.field("reason"),
            text(&refused["reason"]),
            "{to}: {said}"
        );
        assert!(
            line.contains(text(&refused["detail"])),
            "{to}: {said}\n{line:?}"
        );
        return line.field("reason").to_owned();
    }
    let plan = &verdict["go"];
    let tunnel = &plan["tunnel"];
    if tunnel.is_null() {
        assert_eq!(report.outcome, Outcome::Good, "{to}: {said}");
        assert_eq!(
            (line.field("protocol"), line.field("reason")),
            ("TCP", "COMPLETE")
        );
        return format!("direct {}", text(&plan["to"]));
    }
    assert_eq!(line.field("dst.addr"), text(&plan["to"]), "{to}: {said}");
    let there = &explained["destination"];
    if let Some(refused) = there["verdict"].get("refused") {
        assert_eq!(report.outcome, Outcome::Reset, "{to}: {said}");
        assert_eq!(line.field("reason"), "PEER_DENIED", "{to}: {said}");
        let reason = text(&refused["reason"]);
        let fields = [("src.identity", CLIENT), ("reason", reason)];
        let denied = access::line(lab.node(text(&there["node"])), &fields);
        assert!(
            denied.contains(text(&refused["detail"])),
            "{denied:?}: {said}"
        );
        return format!("there {reason}");
    }
    assert_eq!(report.outcome, Outcome::Good, "{to}: {said}");
    let expected: Vec<_> = tunnel["expected"].as_array().unwrap().iter().collect();
    assert!(
        expected
            .iter()
            .any(|id| text(id) == line.field("dst.identity"))
    );
    if there.is_null() {
        return format!("hbone {}", text(&plan["to"]));
    }
    let app = text(&there["verdict"]["permitted"]["app"]);
    let fields = [
        ("direction", "inbound"),
        ("dst.orig_addr", app),
        ("src.identity", CLIENT),
    ];
    access::line(lab.node(text(&there["node"])), &fields);
    format!("hbone {} to {app}", text(&plan["to"]))
}

#[test]
fn what_is_explained_is_what_happens_to_connections_of_a_pod() {
    let lab = enrolled(&DaemonOptions::default());
    let _servers = ["far", "guarded", "plain"].map(|name| {
        let pod = lab.pod(&format!("shop/{name}"));
        pod.serve().unwrap()
    });
    let far: SocketAddr = "10.244.2.10:7001".parse().unwrap();
    let authority = lab.control_plane().authority();
    let credential = authority
        .issue(WAYPOINT, Validity::of(Duration::from_secs(60)))
        .unwrap();
    let routes = BTreeMap::from([("10.96.0.13:7001".to_owned(), far)]);
    let at = "10.244.2.20:15008".parse().unwrap();
    let pod = lab.pod("infra/one");
    let _waypoint = Server::start_waypoint(&pod, at, &credential, routes).unwrap();
    for (to, expected) in [
        (
            "10.244.2.10:7001",
            "hbone 10.244.2.10:15008 to 10.244.2.10:7001",
        ),
        (
            "10.96.0.10:7001",
            "hbone 10.244.2.10:15008 to 10.244.2.10:7001",
        ),
        (
            "[fd00:96::10]:7001",
            "hbone [fd00:2::10]:15008 to [fd00:2::10]:7001",
        ),
        ("10.96.0.13:7001", "hbone 10.244.2.20:15008"),
        ("10.96.0.12:80", "direct 10.244.2.12:7001"),
        ("10.244.2.12:7001", "direct 10.244.2.12:7001"),
        ("10.244.2.11:7001", "there POLICY_DENIED"),
        ("10.96.0.11:7001", "there POLICY_DENIED"),
        ("10.96.0.14:7001", "NO_WAYPOINT"),
        ("10.96.0.15:7001", "NO_HEALTHY_ENDPOINT"),
        ("10.96.0.10:9999", "NO_SUCH_PORT"),
    ] {
        assert_eq!(agreed(&lab, to), expected, "{to}");
    }
}

/// Explains connections to the guarded pod as somebody, makes them, and compares.
fn agreed_inbound(lab: &Lab, to: &str, who: &str) -> String {
    let node = lab.node("node2");
    let from = lab::OUTSIDE_HOST_V4.to_string();
    let (said, explained) = explain(node, &["--to", to, "--as", who, "--from-ip", &from]);
    let addr: SocketAddr = to.parse().unwrap();
    let verdict = &explained["verdict"];
    let refused = verdict.get("refused");
    if who == "plaintext" {
        let report = lab.outside().check_at(addr, &Check::echo(MARKER)).unwrap();
        let happened = [Outcome::Good, Outcome::Reset][usize::from(refused.is_some())];
        assert_eq!(report.outcome, happened, "{said}");
    } else {
        let authority = lab.control_plane().authority();
        let validity = Validity::of(Duration::from_secs(60));
        let credential = authority.issue(who, validity).unwrap();
        let client = Client::from(lab.outside()).with(&credential);
        let answer = client.connect((addr.ip(), hbone::PORT).into(), to);
        let status = answer.unwrap().unwrap().status;
        let expected = match refused.map(|refused| text(&refused["reason"])) {
            None => 200,
            Some("POLICY_DENIED") => 401,
            Some(_) => 503,
        };
        assert_eq!(status, expected, "{said}");
    }
    let Some(refused) = refused else {
        return "permitted".to_owned();
    };
    let reason = text(&refused["reason"]);
    let detail = text(&refused["detail"]);
    access::eventually(&said, || {
        let lines = access::lines(node, &[("pod", "shop/guarded"), ("reason", reason)]);
        lines.iter().any(|line| line.contains(detail))
    });
    format!("{reason}: {detail}")
}

#[test]
fn what_is_explained_is_what_happens_to_connections_to_a_pod() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("shop/guarded").serve().unwrap();
    let to = "10.244.2.11:7001";
    let strict = "POLICY_DENIED: policy istio-system/istio_converted_static_strict denies it";
    for (to, who, expected) in [
        (to, CLIENT, "POLICY_DENIED: policy shop/no-client denies it"),
        (to, "spiffe://cluster.local/ns/shop/sa/far", "permitted"),
        (to, "plaintext", strict),
        ("[fd00:2::11]:7001", "plaintext", strict),
        (
            "10.244.2.11:15006",
            WAYPOINT,
            "LOOP: 10.244.2.11:15006 is a port of the proxy itself",
        ),
    ] {
        assert_eq!(agreed_inbound(&lab, to, who), expected, "{to} as {who}");
    }
    // The policy is gone, and so is what it did: the snapshot is the one of now.
    let change = |mesh: &mut lab::MeshFile| {
        let guarded = mesh.workload_mut("shop/guarded").unwrap();
        guarded.authorization_policies.clear();
    };
    lab.control_plane().update(change).unwrap();
    lab.settle().unwrap();
    for who in [CLIENT, "plaintext"] {
        assert_eq!(agreed_inbound(&lab, to, who), "permitted");
    }
}

#[test]
fn an_explanation_asks_nobody_and_connects_nowhere() {
    let options = DaemonOptions::default().env("XDS_ON_DEMAND", "true");
    let lab = enrolled(&options);
    let _server = lab.pod("shop/far").serve().unwrap();
    let question = ["--from", "shop/client", "--to", "10.96.0.10:7001"];
    let link = lab.pod("shop/client").tap(&[]).unwrap();
    let asked = || lab.control_plane().lookups("node1", "/10.96.0.10");
    for _ in 0..2 {
        let (said, explained) = explain(lab.node("node1"), &question);
        assert_eq!(explained["verdict"]["look_up"]["key"], "/10.96.0.10");
        assert!(
            said.contains("ask the control plane for /10.96.0.10"),
            "{said}"
        );
    }
    assert_eq!(asked(), 0);
    assert_eq!(link.stop().unwrap().tcp_opened.len(), 0);
    // Once a connection has asked, everything is there to be told.
    let vip: IpAddr = "10.96.0.10".parse().unwrap();
    let report = lab.pod("shop/client").check(vip, &Check::of(Service::Echo));
    assert_eq!(report.unwrap().outcome, Outcome::Good);
    assert_eq!(asked(), 1);
    let (said, explained) = explain(lab.node("node1"), &question);
    assert_eq!(
        explained["verdict"]["go"]["to"], "10.244.2.10:15008",
        "{said}"
    );
}

#[test]
fn questions_that_make_no_sense_are_answered_with_how_to_ask() {
    let lab = enrolled(&DaemonOptions::default());
    for (question, said) in [
        (
            &["--from", "client", "--to", "10.96.0.10:80"][..],
            "namespace/name",
        ),
        (
            &["--from", "shop/far", "--to", "10.96.0.10:80"],
            "on node node2",
        ),
        (&["--from", "shop/plain", "--to", "10.96.0.10:80"], "node2"),
        (
            &["--from", "shop/client", "--to", "far:80"],
            "is no address with a port",
        ),
        (
            &["--from", "shop/client", "--to", "127.0.0.1:80"],
            "loopback",
        ),
        (&["--to", "10.244.2.10:80", "--as", CLIENT], "on node node2"),
        (
            &["--to", "10.96.0.10:80", "--as", CLIENT],
            "service shop/far",
        ),
        (&["--to", "10.244.1.10:80", "--as", "client"], "plaintext"),
        (&["--from", "shop/client"], "--to"),
        (&["--to", "10.96.0.10:80"], "--from"),
        (&["--reason", "OOPS"], "ztunnel reasons"),
    ] {
        let args = [&["explain"], question].concat();
        let output = lab.node("node1").daemon(|daemon| daemon.ask(&args));
        let output = output.unwrap();
        assert!(!output.status.success(), "{question:?}: {output:?}");
        assert!(output.stderr.contains(said), "{question:?}: {output:?}");
    }
    // The example in the guide is not made up.
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/README.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let question = ["--from", "shop/client", "--to", "10.96.0.11:7001"];
    let (said, _) = explain(lab.node("node1"), &question);
    let shown = format!("$ ztunnel explain {}\n{said}", question.join(" "));
    assert!(guide.contains(shown.trim_end()), "{shown}");
}
