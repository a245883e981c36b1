//! Enrolling is a transaction, and unenrolling undoes all of it.

use std::path::Path;

use lab::tester::{Check, Outcome};
use lab::{Lab, Node, Pod};

use crate::local_api::{Api, changed};

/// A pod of each kind, one on which IPv6 is switched off among them.
const FAMILIES: &str = "
workloads:
  - {name: four, namespace: shop, node: node1, addresses: [10.244.1.10]}
  - {name: six, namespace: shop, node: node1, addresses: ['fd00:1::11']}
  - {name: both, namespace: shop, node: node1, addresses: [10.244.1.12, 'fd00:1::12']}
  - {name: off, namespace: shop, node: node1, addresses: [10.244.1.13], disable_ipv6: true}
  - {name: server, namespace: shop, node: node2, addresses: [10.244.2.10, 'fd00:2::10']}
";

/// What the daemon of a node has pinned and noted for pods.
fn pins_and_notes(node: &Node) -> Vec<String> {
    let list = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let base = Path::new("/sys/fs/bpf/ztunnel");
    let versions = node.namespace().enter(|| {
        let versions = list(base).into_iter();
        versions
            .flat_map(|version| list(&base.join(version)))
            .collect::<Vec<_>>()
    });
    let mut found = versions.unwrap();
    // Those of the node itself.
    found.retain(|name| !["PODS", "DAEMON", "connect4", "connect6"].contains(&name.as_str()));
    found.extend(list(&node.dir().join("pods")));
    found
}

#[test]
fn nothing_is_left_of_an_unenrolled_pod_whatever_its_addresses() {
    let lab = Lab::from_yaml(FAMILIES).unwrap();
    lab.start_daemons().unwrap();
    let server = lab.pod("shop/server");
    let _serving = server.serve().unwrap();
    let node = lab.node("node1");
    let keys = ["shop/four", "shop/six", "shop/both", "shop/off"];
    assert_eq!(pins_and_notes(node), Vec::<String>::new());
    lab.enroll(&["shop/server"]).unwrap();

    lab.enroll(&keys).unwrap();
    for key in keys {
        let pod = lab.pod(key);
        assert_ne!(lab.pod_leftovers(key).unwrap(), Vec::<String>::new());
        for ip in pod.ips() {
            let to = if ip.is_ipv4() {
                server.v4()
            } else {
                server.v6()
            };
            let report = pod.check(to.unwrap(), &Check::echo("x")).unwrap();
            assert_eq!(report.outcome, Outcome::Good, "{key}: {report:?}");
        }
    }
    assert_eq!(pins_and_notes(node).len(), 2 * keys.len());

    lab.unenroll(&keys).unwrap();
    for key in keys {
        assert_eq!(lab.pod_leftovers(key).unwrap(), Vec::<String>::new());
    }
    assert_eq!(pins_and_notes(node), Vec::<String>::new());
}

/// Enrolls and expects it to fail in the middle, with nothing left of it.
fn fail(lab: &Lab, pod: &Pod, reason: &str) {
    let node = lab.node(pod.node());
    let answer = Api::connect(node).unwrap().enroll(pod).unwrap();
    assert_eq!(answer["refused"]["code"], "ROUTING_FAILED", "{answer}");
    let said = answer["refused"]["reason"].as_str().unwrap();
    assert!(said.contains(reason), "no {reason:?} in {said:?}");
    assert_eq!(
        lab.pod_leftovers(&pod.key()).unwrap(),
        Vec::<String>::new(),
        "{said}"
    );
    assert_eq!(pins_and_notes(node), Vec::<String>::new(), "{said}");
    assert_eq!(Api::connect(node).unwrap().states().unwrap(), [], "{said}");
}

#[test]
fn an_enrollment_that_fails_in_the_middle_leaves_no_trace() {
    for (obstacle, reason) in [
        // Nothing is routed yet, but sysctls are set, listeners open and maps filled.
        (
            "-4 route add local default dev lo table 31348 metric 1",
            "add a capture route for V4",
        ),
        // All of IPv4 is in place.
        (
            "-6 route add local default dev lo table 31348 metric 1",
            "add a capture route for V6",
        ),
        // Captured connections would take the way of this rule, in plaintext.
        ("-4 rule add pref 100 lookup main", "preference 100"),
        ("-6 rule add pref 50 lookup main", "preference 50"),
        ("-4 rule add pref 104 lookup main", "preference 104"),
    ] {
        let lab = Lab::from_yaml(FAMILIES).unwrap();
        lab.node("node1").start_daemon().unwrap();
        let (pod, server) = (lab.pod("shop/both"), lab.pod("shop/server"));
        let _serving = server.serve().unwrap();
        let ip = |arguments: &str| {
            let argv = ["ip"].into_iter().chain(arguments.split(' '));
            pod.run(argv).unwrap().success().unwrap();
        };
        ip(obstacle);
        lab.remember("shop/both").unwrap();
        fail(&lab, &pod, reason);
        fail(&lab, &pod, reason);
        // The pod goes on as before.
        let check = Check::echo("as before");
        let report = pod.check(server.v4().unwrap(), &check).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");

        ip(&obstacle.replace(" add ", " del "));
        let mut api = Api::connect(lab.node("node1")).unwrap();
        assert_eq!(api.enroll(&pod).unwrap(), changed());
        assert_eq!(api.unenroll(pod.uid()).unwrap(), changed());
    }
}
