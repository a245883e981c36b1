//! `ztunnel prove`: what it says was seen is what is so.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lab::hbone::Server;
use lab::tester::Check;
use lab::{Lab, Node, Validity};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::access;

/// Wider than this no line is.
const WIDTH: usize = 100;
const TEXT: &str = "a-line-that-nobody-may-read";

/// `plain` is no pod of the mesh. `guarded` denies the client. Nothing listens on port 9 of `far`.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: near, namespace: shop, node: node1, service_account: near, addresses: [10.244.1.11]}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10, 'fd00:2::10']}
  - {name: guarded, namespace: shop, node: node2, service_account: guarded, addresses: [10.244.2.11], authorization_policies: [shop/no-client]}
  - {name: plain, namespace: shop, node: node2, service_account: plain, addresses: [10.244.2.12]}
  - {name: one, namespace: infra, node: node2, service_account: waypoint, addresses: [10.244.2.20], protocol: HBONE}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10, 'fd00:96::10'], ports: {7001: 7001}, workloads: [far]}
  - {name: behind, namespace: shop, addresses: [10.96.0.13], ports: {7001: 7001}, workloads: [far], waypoint: {hostname: infra/one.infra.svc.cluster.local}}
  - {name: one, namespace: infra, addresses: [10.96.0.20], ports: {15008: 15008}, workloads: [one]}
policies:
  - {name: no-client, namespace: shop, scope: WORKLOAD_SELECTOR, action: DENY, rules: [[[{principals: [cluster.local/ns/shop/sa/client]}]]]}
";

fn enrolled() -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client", "shop/near", "shop/far", "shop/guarded"])
        .unwrap();
    lab
}

/// What is proven of a connection of the client: as JSON, and as text.
fn prove(node: &Node, more: &[&str]) -> (Value, String) {
    let ask = |more: &[&str]| node.daemon(|daemon| daemon.ask(&[&["prove"], more].concat()));
    let table = ask(more).unwrap();
    for line in table.stdout.lines() {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
    let output = ask(&[more, &["--output", "json"]].concat()).unwrap();
    let json: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let proven = json["proven"] == true;
    for code in [table.status.code(), output.status.code()] {
        assert_eq!(code, Some(i32::from(!proven)), "{}\n{json:#}", table.stdout);
    }
    let judged = match proven {
        true => "VERDICT   PROVEN\n".to_owned(),
        false => format!("VERDICT   NOT PROVEN, {}\n", json["code"].as_str().unwrap()),
    };
    assert!(
        table.stdout.starts_with(&judged),
        "{}\n{json:#}",
        table.stdout
    );
    (json, table.stdout)
}

/// The processes that the daemon has started and not waited for.
fn children(node: &Node) -> String {
    let threads = format!("/proc/{}/task", node.daemon_pid().unwrap());
    let threads = std::fs::read_dir(threads).unwrap().flatten();
    // A thread may have ended meanwhile.
    let of =
        |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).ok();
    threads.filter_map(of).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

#[test]
fn a_connection_through_the_mesh_is_proven_by_what_was_on_the_wire() {
    let lab = enrolled();
    let _servers = ["far", "near"].map(|name| lab.pod(&format!("shop/{name}")).serve().unwrap());
    let node = lab.node("node1");
    for (to, via, peer) in [
        ("10.244.2.10:7001", "10.244.2.10:15008", "far"),
        ("10.96.0.10:7001", "10.244.2.10:15008", "far"),
        ("[fd00:96::10]:7001", "[fd00:2::10]:15008", "far"),
        ("10.244.1.11:7001", "10.244.1.11:15008", "near"),
    ] {
        let tap = lab.pod("shop/client").tap(&[TEXT]).unwrap();
        let (json, text) = prove(node, &["shop/client", to, "--send", TEXT]);
        let seen = tap.stop().unwrap();
        assert_eq!(
            (&json["code"], &json["next_step"]),
            (&"PROVEN".into(), &Value::Null)
        );
        let evidence = &json["evidence"];
        assert_eq!(
            (&evidence["captured"], &evidence["to"]),
            (&true.into(), &to.into())
        );
        let proxy = &evidence["proxy"];
        assert_eq!(
            (&proxy["protocol"], &proxy["via"]),
            (&"HBONE".into(), &via.into())
        );
        assert_eq!(proxy["peer"], format!("shop/{peer}"));
        assert_eq!(
            proxy["peer_node"],
            ["node2", "node1"][usize::from(peer == "near")]
        );
        let spiffe = |account| format!("spiffe://cluster.local/ns/shop/sa/{account}");
        assert_eq!(proxy["identity"], spiffe("client"));
        assert_eq!(proxy["peer_identity"], spiffe(peer));
        assert_eq!(proxy["tls_version"], "1.3");
        for said in [
            proxy["tls_cipher"].as_str().unwrap(),
            proxy["tls_key_exchange"].as_str().unwrap(),
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        // The line and its newline went through the tunnel, came back, and were nowhere else.
        let sent = TEXT.len() as u64 + 1;
        assert_eq!(
            evidence["text"],
            serde_json::json!({"bytes": sent, "sent": true})
        );
        assert_eq!(number(&proxy["bytes_sent"]), sent);
        assert_eq!(number(&evidence["app"]["received_bytes"]), sent, "{json:#}");
        let wire = &evidence["wire"];
        for nothing in ["missed", "in_the_clear", "text_seen", "not_followed"] {
            assert_eq!(wire[nothing], 0, "{nothing}: {json:#}");
        }
        let tunnels = wire["tunnels"].as_array().unwrap();
        let tunnel = tunnels.iter().find(|tunnel| tunnel["peer"] == via).unwrap();
        for way in ["out", "in"] {
            assert!(number(&tunnel[way]["application_data"]) >= 2, "{json:#}");
            assert_eq!(tunnel[way]["not_tls_bytes"], 0);
        }
        // Somebody else, who watched the same wire, has seen the same.
        assert_eq!((seen.marker(TEXT), seen.on_port(7001)), (0, 0));
        assert!(seen.on_port(15008) >= number(&tunnel["out"]["bytes"]));
    }
    // Only the first connection to each peer opened a tunnel.
    let (json, text) = prove(node, &["client", "10.244.2.10:7001"]);
    assert_eq!(json["evidence"]["wire"]["tunnels"][0]["opened"], false);
    assert!(text.contains("there before"), "{text}");
    assert_eq!(json["evidence"]["text"], Value::Null);
    assert_eq!(
        json["evidence"]["proxy"]["bytes_sent"], 0,
        "nothing is sent that was not asked for"
    );
    // The app has seen the pod's address.
    let client = lab.pod("shop/client").v4().unwrap();
    assert!(
        json["evidence"]["app"]["from"]
            .as_str()
            .unwrap()
            .starts_with(&client.to_string())
    );
    assert_eq!(children(node), "", "no process is left");
}

#[test]
fn what_is_refused_or_leaves_in_plaintext_is_not_proven() {
    let lab = enrolled();
    let _servers =
        ["far", "guarded", "plain"].map(|name| lab.pod(&format!("shop/{name}")).serve().unwrap());
    let node = lab.node("node1");
    for (to, code, said) in [
        (
            "10.244.2.11:7001",
            "PEER_DENIED",
            "POLICY_DENIED: policy shop/no-client denies it",
        ),
        ("10.96.0.10:9", "NO_SUCH_PORT", "10.96.0.10"),
        ("10.244.2.10:9", "PEER_REFUSED", "10.244.2.10"),
        (
            "10.244.2.12:7001",
            "PLAINTEXT",
            "plain TCP to 10.244.2.12:7001",
        ),
    ] {
        let (json, text) = prove(node, &["shop/client", to, "--send", TEXT]);
        assert_eq!(json["code"], code, "{text}");
        let unbroken = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(unbroken.contains(said), "{said}: {text}");
        assert!(text.contains("\nNEXT      "), "{text}");
        let evidence = &json["evidence"];
        assert_eq!(evidence["captured"], true, "{text}");
        assert_eq!(evidence["wire"]["in_the_clear"], 0, "{text}");
        // Not a byte of it where there is no tunnel.
        assert_ne!(evidence["text"]["sent"], true, "{text}");
        assert_eq!(evidence["wire"]["text_seen"], 0);
        let others = number(&evidence["wire"]["others_to_destination"]);
        assert_eq!(others > 0, code == "PLAINTEXT", "{text}");
        if code != "PLAINTEXT" {
            assert_eq!(evidence["failed"]["reason"], code);
            let fields = [("direction", "outbound"), ("reason", code)];
            access::line(node, &fields);
        }
    }
}

#[test]
fn damaged_capture_is_not_proven() {
    let lab = enrolled();
    let (client, node) = (lab.pod("shop/client"), lab.node("node1"));
    let _server = lab.pod("shop/far").serve().unwrap();
    let to = [
        "shop/client",
        "10.244.2.10:7001",
        "--send",
        TEXT,
        "--within",
        "2",
    ];
    assert_eq!(prove(node, &to).0["code"], "PROVEN");
    let run = |argv: &str| client.run(argv.split(' ')).unwrap().success().unwrap();
    // Somebody routes before capture does.
    run("ip -4 rule add pref 7 lookup main");
    let (json, text) = prove(node, &to);
    assert_eq!(json["code"], "LEFT_IN_THE_CLEAR", "{text}");
    assert!(text.contains("LEFT THE POD IN THE CLEAR"), "{text}");
    assert!(text.contains("policy routing is incomplete"), "{text}");
    let evidence = &json["evidence"];
    assert_eq!(evidence["captured"], false);
    assert!(number(&evidence["wire"]["in_the_clear"]) >= 2, "{text}");
    assert_eq!(
        evidence["wire"]["text_seen"], 0,
        "what was to be sent was not"
    );
    run("ip -4 rule del pref 7");
    assert_eq!(prove(node, &to).0["code"], "PROVEN");
    // What capture has marked is no longer turned round, and does not leave.
    run("ip -4 rule del pref 100");
    let (json, text) = prove(node, &to);
    assert_eq!(json["code"], "CONNECT_FAILED", "{text}");
    assert_eq!(json["evidence"]["wire"]["in_the_clear"], 0, "{text}");
    assert!(text.contains("policy routing is incomplete"), "{text}");
    // Enrolled again it is whole again.
    node.daemon(|daemon| daemon.enroll(&client)).unwrap();
    assert_eq!(prove(node, &to).0["code"], "PROVEN");
    // Marked, turned round, and nobody takes it: nothing leaves.
    let slot = node.namespace().enter(|| {
        let pins = std::fs::read_dir("/sys/fs/bpf/ztunnel").unwrap();
        let version = pins.flatten().next().unwrap().path();
        std::fs::read_dir(version)
            .unwrap()
            .flatten()
            .map(|pin| pin.path())
            .filter(|pin| pin.is_dir())
            .collect::<Vec<_>>()
    });
    for pod in slot.unwrap() {
        node.namespace()
            .enter(|| std::fs::remove_file(pod.join("link")))
            .unwrap()
            .unwrap();
    }
    let (json, text) = prove(node, &to);
    assert_eq!(json["proven"], false, "{text}");
    assert!(
        text.contains("no socket lookup program is attached"),
        "{text}"
    );
    assert_eq!(json["evidence"]["captured"], false, "{text}");
    assert_eq!(json["evidence"]["wire"]["text_seen"], 0);
}

#[test]
fn a_question_that_cannot_be_tried_says_why_and_what_to_do() {
    let lab = enrolled();
    let node = lab.node("node1");
    let to = "10.244.2.10:7001";
    for (args, code, said) in [
        (&["shop/nobody", to][..], "NOT_ENROLLED", "ztunnel pods"),
        (&["nobody", to], "NOT_ENROLLED", "ztunnel pods"),
        (
            &["shop/far", to],
            "OTHER_NODE",
            "on node node2: ask the ztunnel there",
        ),
        (
            &["shop/client", "far:7001"],
            "INVALID_ADDRESS",
            "getent hosts",
        ),
        (&["shop/client", "127.0.0.1:80"], "NOT_CAPTURED", "loopback"),
        (
            &["shop/client", to, "--send", "short"],
            "INVALID_TEXT",
            "give 8 to 1024",
        ),
        (
            &["shop/client", to, "--within", "0"],
            "INVALID_TIME",
            "between 1 and 60",
        ),
    ] {
        let output = node
            .daemon(|daemon| daemon.ask(&[&["prove"], args].concat()))
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(
            output.stderr.contains(&format!("ztunnel: {code}: ")),
            "{output:?}"
        );
        assert!(output.stderr.contains(said), "{said}: {output:?}");
        assert_eq!(output.stdout, "");
    }
    // Nobody was connected to.
    assert_eq!(access::lines(node, &[]).len(), 0);
    let report = lab
        .pod("shop/client")
        .check_at(to.parse().unwrap(), &Check::echo("x"))
        .unwrap();
    assert!(report.local.is_some());
}

#[test]
fn a_peer_that_does_not_answer_takes_no_longer_than_it_may() {
    let lab = enrolled();
    let (node, there) = (lab.node("node1"), lab.node("node2"));
    there
        .daemon(|daemon| daemon.signal(Signal::SIGSTOP))
        .unwrap();
    let began = Instant::now();
    let (json, text) = prove(node, &["shop/client", "10.244.2.10:7001", "--within", "1"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{text}");
    assert_eq!(json["code"], "TIMEOUT", "{text}");
    let evidence = &json["evidence"];
    assert_eq!(
        (&evidence["captured"], &evidence["proxy"]),
        (&true.into(), &Value::Null)
    );
    assert_eq!(evidence["wire"]["in_the_clear"], 0, "{text}");
    assert_eq!(children(node), "", "no process is left");
    there
        .daemon(|daemon| daemon.signal(Signal::SIGCONT))
        .unwrap();
}

#[test]
fn behind_a_waypoint_nothing_is_proven_and_that_is_said() {
    const WAYPOINT: &str = "spiffe://cluster.local/ns/infra/sa/waypoint";
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(60));
    let credential = authority.issue(WAYPOINT, validity).unwrap();
    let far = "10.244.2.10:7001".parse().unwrap();
    let routes = BTreeMap::from([("10.96.0.13:7001".to_owned(), far)]);
    let at = "10.244.2.20:15008".parse().unwrap();
    let _waypoint = Server::start_waypoint(&lab.pod("infra/one"), at, &credential, routes).unwrap();
    let ask = ["shop/client", "10.96.0.13:7001", "--send", TEXT];
    let (json, text) = prove(lab.node("node1"), &ask);
    assert_eq!(json["code"], "PROVEN", "{text}");
    let proxy = &json["evidence"]["proxy"];
    assert_eq!(proxy["peer_identity"], WAYPOINT);
    assert_eq!(proxy["via"], "10.244.2.20:15008");
    assert!(text.contains("a waypoint or a"), "{text}");
}
