//! What is told of the steps of a connection, when somebody wants to know.

use lab::tester::{Check, Outcome};
use lab::{DaemonOptions, Lab, Node};
use serde_json::Value;

use crate::access::{self, eventually};
use crate::admin;
use crate::mesh::MESH;

const LAST: &str = "relay ended";

fn logging(node: &Node, query: &str) {
    let answer = admin::ask(node, &format!("POST /logging?{query}"));
    assert_eq!(answer.status, 200, "{query}");
}

/// Makes a connection; gives where it came from and its trace.
fn connected(lab: &Lab) -> (String, String) {
    let far = lab.pod("shop/far").v4().unwrap();
    let report = lab
        .pod("shop/client")
        .check(far, &Check::echo("x"))
        .unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let src = report.local.unwrap().to_string();
    let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
    (src, line.field("trace").to_owned())
}

/// Lines in plain text that are about this span: what each says.
fn plain(node: &Node, span: &str) -> Vec<String> {
    let log = node.log();
    let lines = log.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let about =
        lines.filter(|parts| parts.len() > 3 && parts[1] == "debug" && parts[2].contains(span));
    about.map(|parts| parts[3].to_owned()).collect()
}

/// Lines in JSON that have this span: what each says, and the span.
fn json(node: &Node, span: &str) -> Vec<(String, Value)> {
    let log = node.log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let about = lines.filter(|line| line["level"] == "debug" && !line[span].is_null());
    about
        .map(|line| {
            (
                line["message"].as_str().unwrap().to_owned(),
                line[span].clone(),
            )
        })
        .collect()
}

#[test]
fn steps_of_a_connection_are_told_under_its_span_while_somebody_wants_to_know() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let (one, two) = (lab.node("node1"), lab.node("node2"));
    one.start_daemon().unwrap();
    let options = DaemonOptions::default().env("LOG_FORMAT", "json");
    two.start_daemon_with(&options).unwrap();
    lab.enroll_all().unwrap();
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();

    connected(&lab);
    assert!(!one.log().contains("\tdebug\t"), "nobody has asked yet");

    logging(one, "level=ztunnel_node::outbound=debug");
    logging(two, "level=ztunnel_node::inbound=debug");
    // Each worker has tunnels of its own, so some of these find one and some make one.
    let told: Vec<_> = (0..8).map(|_| connected(&lab)).collect();
    let dst = format!("{}:7001", far.v4().unwrap());
    for (src, trace) in &told {
        // The trace is known once a stream is asked for.
        let decided = format!(":outbound{{src={src} dst={dst} pod=shop/client}}");
        assert_eq!(plain(one, &decided), ["decided"]);
        let span = format!(":outbound{{src={src} dst={dst} pod=shop/client trace={trace}}}");
        eventually("the end is told", || {
            plain(one, &span).iter().any(|said| said == LAST)
        });
        let mut steps = plain(one, &span);
        steps.retain(|step| step != "no tunnel has room, dialing");
        assert_eq!(steps, ["stream asked for", "stream accepted", LAST]);
        // The same trace on the other side.
        let there =
            |(said, span): (String, Value)| (span["trace"] == **trace).then_some((said, span));
        let there = || {
            json(two, "inbound")
                .into_iter()
                .filter_map(there)
                .collect::<Vec<_>>()
        };
        eventually("the end is told there", || {
            there().iter().any(|(said, _)| said == LAST)
        });
        for ((said, span), expected) in there().into_iter().zip(["permitted", "app accepted", LAST])
        {
            assert_eq!(
                (said.as_str(), &span["pod"]),
                (expected, &"shop/far".into())
            );
            assert_eq!(span["dst"], dst.as_str(), "{span}");
        }
    }
    let tunnels = json(two, "tunnel");
    for (said, span) in &tunnels {
        assert_eq!(
            span["dst"],
            format!("{}:15008", far.v4().unwrap()),
            "{said}"
        );
    }

    // And back: what comes after is told no more than what came before.
    logging(one, "reset");
    logging(two, "reset");
    let lines = || {
        (
            one.log().matches("\tdebug\t").count(),
            two.log().matches("\"debug\"").count(),
        )
    };
    let before = lines();
    assert!(
        before.0 >= 4 * told.len() && before.1 >= 3 * told.len(),
        "{before:?}"
    );
    connected(&lab);
    assert_eq!(lines(), before);
}
