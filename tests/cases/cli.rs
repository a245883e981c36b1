//! `ztunnel status` and the lists: what they say is what is so.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Held, Outcome};
use lab::{Lab, Node};
use serde_json::Value;

/// Wider than this no line is.
const WIDTH: usize = 100;
const PORT: u16 = 7001;
const LONG: &str = "a-name-as-long-as-kubernetes-lets-anybody-give-to-a-pod";

const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10]}
  - {name: near, namespace: shop, node: node1, service_account: near, addresses: [10.244.1.11]}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10]}
  - {name: a-name-as-long-as-kubernetes-lets-anybody-give-to-a-pod, namespace: other, node: node2, service_account: plain, addresses: [10.244.2.12]}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10], ports: {7001: 7001}, workloads: [far]}
  - {name: empty, namespace: other, addresses: [10.96.0.11], ports: {80: 7001}}
policies:
  - {name: nobody, namespace: other, scope: NAMESPACE, action: DENY, rules: [[[{principals: [cluster.local/ns/x/sa/y]}]]]}
";

fn enrolled() -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client", "shop/near", "shop/far"])
        .unwrap();
    lab
}

/// The exit code of a command on a node, what it prints as text, and as JSON.
fn shown(node: &Node, command: &[&str]) -> (i32, String, Value) {
    let ask = |more: &[&str]| {
        let args = [command, more].concat();
        let output = node.daemon(|daemon| daemon.ask(&args)).unwrap();
        (output.status.code().unwrap(), output.stdout)
    };
    // What the first one says is so is so for the second.
    let (code, json) = ask(&["--output", "json"]);
    let (_, text) = ask(&[]);
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
    (code, text, serde_json::from_str(&json).unwrap())
}

/// Asks until it is so.
fn eventually(
    node: &Node,
    command: &[&str],
    so: impl Fn(i32, &Value) -> bool,
) -> (i32, String, Value) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (code, text, json) = shown(node, command);
        if so(code, &json) {
            return (code, text, json);
        }
        assert!(Instant::now() < deadline, "not so after 10 s: {json:#}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn hold(lab: &Lab, from: &str, to: &str) -> Held {
    let to: SocketAddr = format!("{to}:{PORT}").parse().unwrap();
    let mut held = lab.pod(from).hold(to).unwrap();
    assert_eq!(held.exchange("ready").unwrap().outcome, Outcome::Good);
    held
}

fn texts<'a>(rows: &'a Value, field: &str) -> Vec<&'a str> {
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row[field].as_str().unwrap()).collect()
}

#[test]
fn status_of_a_node_is_good_until_something_needs_attention() {
    let lab = enrolled();
    let node = lab.node("node1");
    let two_valid = |code: i32, json: &Value| {
        code == 0 && json["certificates_valid"] == json["certificates"] && json["certificates"] != 0
    };
    let (code, text, json) = eventually(node, &["status"], two_valid);
    assert_eq!((code, &json["running"]), (0, &Value::Bool(true)));
    assert!(text.starts_with("STATUS    all is well\n"), "{text}");
    assert_eq!(json["node"], "node1");
    assert_eq!(json["pods"]["captured"], 2);
    assert!(
        text.contains("2 captured, 0 leaving, 0 defective"),
        "{text}"
    );
    assert!(json["first_ends_seconds"].as_i64().unwrap() > 0);
    assert!(json["control_plane"]["connected_seconds"].is_u64());
    assert_eq!(json["services"], 2);
    assert_eq!(json["failures"]["by_reason"], serde_json::json!([]));

    // A connection that is refused is counted, and is no reason to call anybody.
    let nowhere = "10.96.0.11:80".parse().unwrap();
    let check = lab::tester::Check::echo("anybody?");
    let report = lab.pod("shop/client").check_at(nowhere, &check).unwrap();
    assert_eq!(report.outcome, Outcome::Reset);
    let refused = |_, json: &Value| json["failures"]["by_reason"] != serde_json::json!([]);
    let (code, text, json) = eventually(node, &["status"], refused);
    let expected = serde_json::json!([["NO_HEALTHY_ENDPOINT", 1]]);
    assert_eq!((code, &json["failures"]["by_reason"]), (0, &expected));
    assert!(text.contains("1 NO_HEALTHY_ENDPOINT"), "{text}");

    // What the control plane says and nobody can read is told until it is taken back.
    lab.control_plane().announce_nonsense(&["odd/resource"]);
    let rejected = |_, json: &Value| json["control_plane"]["rejected"] == 1;
    let (code, text, json) = eventually(node, &["status"], rejected);
    assert_eq!(code, 1, "{text}");
    assert_eq!(json["attention"].as_array().unwrap().len(), 1);
    assert!(text.contains("odd/resource"), "{text}");
    lab.control_plane().announce_nonsense(&[]);
    eventually(node, &["status"], |code, _| code == 0);

    lab.control_plane().pause();
    let away = |_, json: &Value| json["control_plane"]["connected_seconds"].is_null();
    let (code, text, json) = eventually(node, &["status"], away);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("NOT CONNECTED"), "{text}");
    assert!(text.contains("\nNEXT      See that it runs"), "{text}");
    assert_eq!(json["pods"]["captured"], 2, "the rest is told all the same");
    lab.control_plane().resume().unwrap();
    eventually(node, &["status"], |code, _| code == 0);
}

#[test]
fn connections_are_listed_while_they_are_open() {
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    let node = lab.node("node1");
    let (_, text, json) = shown(node, &["connections"]);
    assert_eq!(
        (text.trim(), &json["total"]),
        ("0 connections are open", &0.into())
    );

    let quiet = hold(&lab, "shop/client", "10.244.2.10");
    let mut busy = hold(&lab, "shop/near", "10.96.0.10");
    assert_eq!(
        busy.exchange(&"b".repeat(5_000)).unwrap().outcome,
        Outcome::Good
    );
    let (_, text, json) = shown(node, &["connections", "--sort", "bytes"]);
    assert_eq!(json["total"], 2);
    let rows = &json["connections"];
    assert_eq!(texts(rows, "pod"), ["shop/near", "shop/client"], "{json:#}");
    let first = &rows[0];
    assert_eq!(first["direction"], "outbound");
    assert_eq!(first["protocol"], "HBONE");
    assert_eq!(first["service"], "far.shop.svc.cluster.local");
    assert_eq!(
        first["source"]["identity"],
        "spiffe://cluster.local/ns/shop/sa/near"
    );
    assert_eq!(
        first["destination"]["identity"],
        "spiffe://cluster.local/ns/shop/sa/far"
    );
    assert_eq!(first["destination"]["name"], "far");
    assert_eq!(first["destination"]["address"], "10.96.0.10:7001");
    assert_eq!(first["via"], "10.244.2.10:15008");
    assert!(
        first["tls_cipher"].as_str().unwrap().contains("AES"),
        "{first}"
    );
    assert!(first["bytes_sent"].as_u64().unwrap() > 5_000, "{first}");
    assert!(first["bytes_received"].as_u64().unwrap() > 5_000, "{first}");
    for said in [
        "shop/near",
        "shop/far 10.96.0.10:7001",
        "sa/near",
        "4.8 KiB",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // The other node sees the same two, from the other end.
    let (_, _, there) = shown(lab.node("node2"), &["connections", "--pod", "shop/far"]);
    let there = &there["connections"];
    assert_eq!(texts(there, "direction"), ["inbound", "inbound"]);
    let from = |row: usize| there[row]["source"]["identity"].as_str().unwrap();
    assert_eq!(
        from(0),
        "spiffe://cluster.local/ns/shop/sa/client",
        "the oldest first"
    );

    for (filter, expected) in [
        (&["--pod", "shop/client"][..], 1),
        (&["--pod", "shop/far"], 0),
        (&["--direction", "inbound"], 0),
        (&["--direction", "outbound"], 2),
        (&["--peer", "shop/far"], 2),
        (&["--peer", "10.96.0.10"], 1),
        (&["--peer", "far.shop.svc.cluster.local"], 1),
        (&["--peer", "spiffe://cluster.local/ns/shop/sa/far"], 2),
        (&["--peer", "spiffe://cluster.local/ns/shop/sa/near"], 0),
    ] {
        let (_, _, json) = shown(node, &[&["connections"], filter].concat());
        let rows = json["connections"].as_array().unwrap().len();
        assert_eq!((rows, &json["total"]), (expected, &2.into()), "{filter:?}");
    }
    let (_, text, json) = shown(node, &["connections", "--limit", "1"]);
    assert_eq!(
        (&json["matched"], &json["left_out"]),
        (&2.into(), &1.into())
    );
    assert_eq!(texts(&json["connections"], "pod"), ["shop/client"]);
    assert!(text.contains("1 more are not shown"), "{text}");

    assert_eq!(busy.close().unwrap().outcome, Outcome::Good);
    let (_, _, json) = eventually(node, &["connections"], |_, json| json["total"] == 1);
    assert_eq!(texts(&json["connections"], "pod"), ["shop/client"]);
    assert_eq!(quiet.close().unwrap().outcome, Outcome::Good);
    eventually(node, &["connections"], |_, json| json["total"] == 0);
}

#[test]
fn lists_say_what_the_control_plane_said() {
    let lab = enrolled();
    let node = lab.node("node1");
    let (_, text, json) = shown(node, &["workloads"]);
    let rows = &json["workloads"];
    assert_eq!(texts(rows, "name"), [LONG, "client", "far", "near"]);
    assert_eq!(texts(rows, "protocol"), ["TCP", "HBONE", "HBONE", "HBONE"]);
    assert_eq!(rows[2]["services"][0], "shop/far.shop.svc.cluster.local");
    assert!(text.contains('…') && !text.contains(LONG), "{text}");
    let (_, _, json) = shown(node, &["workloads", "--node", "node1", "--limit", "1"]);
    assert_eq!(texts(&json["workloads"], "name"), ["client"]);
    assert_eq!((&json["total"], &json["left_out"]), (&4.into(), &1.into()));

    let (_, text, json) = shown(node, &["services", "--namespace", "shop"]);
    let service = &json["services"][0];
    assert_eq!(service["hostname"], "far.shop.svc.cluster.local");
    assert_eq!(
        (&service["endpoints"], &json["matched"]),
        (&1.into(), &1.into())
    );
    assert!(
        text.contains("10.96.0.10") && text.contains("1 of 1"),
        "{text}"
    );

    let (_, text, json) = shown(node, &["policies"]);
    assert_eq!(texts(&json["policies"], "name"), ["nobody"]);
    assert!(
        text.contains("other/nobody") && text.contains("DENY"),
        "{text}"
    );

    let both = |_, json: &Value| {
        let rows = json["certificates"].as_array().unwrap();
        rows.iter().filter(|row| row["state"] == "valid").count() == rows.len() && rows.len() >= 2
    };
    let (_, text, json) = eventually(node, &["certificates"], both);
    let identities = texts(&json["certificates"], "identity");
    for account in ["client", "near"] {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        assert!(identities.contains(&&*identity), "{identities:?}");
        assert!(text.contains(&identity), "{text}");
    }
}

#[test]
fn without_a_daemon_it_is_said_and_what_to_do() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    let binary = lab::daemon_binary().unwrap();
    let binary = binary.to_str().unwrap();
    let socket = node.dir().join("api.sock");
    let ask = |args: &[&str]| {
        let socket = ["--socket", socket.to_str().unwrap()];
        node.run([&[binary], args, &socket].concat()).unwrap()
    };
    let said = ask(&["status"]);
    assert_eq!(said.status.code(), Some(1));
    assert!(said.stdout.starts_with("STATUS    no answer"), "{said:?}");
    assert!(
        said.stdout.contains("NEXT      The daemon is not running"),
        "{said:?}"
    );
    let said = ask(&["status", "--output", "json"]);
    let json: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(
        (said.status.code(), &json["running"]),
        (Some(1), &false.into())
    );
    for list in [
        "connections",
        "workloads",
        "services",
        "policies",
        "certificates",
        "pods",
    ] {
        let said = ask(&[list]);
        assert_eq!(said.status.code(), Some(1), "{list}");
        assert!(said.stderr.contains("is not running"), "{list}: {said:?}");
    }
    for wrong in [
        &["connections", "--peer", "far"][..],
        &["connections", "--pod", "client"],
        &["connections", "--sort", "name"],
        &["status", "--output", "yaml"],
    ] {
        let said = ask(wrong);
        assert_eq!(said.status.code(), Some(2), "{wrong:?}: {said:?}");
        assert!(said.stderr.contains(wrong[2]), "{wrong:?}: {said:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let said = node.run([binary, "completions", shell]).unwrap();
        let script = said.success().unwrap().stdout;
        assert!(script.contains("certificates"), "{shell}");
        assert!(!script.contains("prove-connect"), "{shell}");
    }
    let syntax = "ztunnel=$1; bash -n <($ztunnel completions bash)";
    let checked = node.run(["bash", "-c", syntax, "check", binary]).unwrap();
    checked.success().unwrap();
}
