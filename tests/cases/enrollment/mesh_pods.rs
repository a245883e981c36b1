//! What enrolling does, seen from the pods.

use lab::Lab;
use lab::tester::{Check, Outcome};

use crate::mesh::{MESH, enrolled};

#[test]
fn enrolling_again_succeeds_and_says_that_nothing_changed() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let to = (far.v4().unwrap(), 7001).into();
    let mut held = client.hold(to).unwrap();
    assert_eq!(held.exchange("open").unwrap().outcome, Outcome::Good);

    let args = |pod: &lab::Pod| {
        let workload = pod.workload();
        let mut args = vec!["enroll".to_owned()];
        for (option, value) in [
            ("uid", pod.uid().to_owned()),
            ("netns", pod.namespace().path().display().to_string()),
            ("namespace", workload.namespace.clone()),
            ("name", workload.name.clone()),
            ("service-account", workload.service_account.clone()),
        ] {
            args.extend([format!("--{option}"), value]);
        }
        args
    };
    let again = args(&client);
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    let said = lab
        .node("node1")
        .daemon(|daemon| daemon.ask(&again))
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(said.stdout, "nothing to do: it is so already\n");
    // And it did nothing: the connection through the pod's listeners goes on.
    assert_eq!(held.exchange("still").unwrap().outcome, Outcome::Good);
    let report = client.check(far.v4().unwrap(), &Check::echo("new"));
    assert_eq!(report.unwrap().outcome, Outcome::Good);
}

#[test]
fn unenrolling_a_pod_that_nobody_knows_is_fine() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    node.start_daemon().unwrap();
    for uid in ["8a1b1c1d-0000-4000-8000-000000000000", "", "../x"] {
        let said = node.daemon(|daemon| daemon.ask(&["unenroll", "--uid", uid]));
        let said = said.unwrap();
        assert!(said.status.success(), "{said:?}");
        assert_eq!(said.stdout, "nothing to do: it is so already\n");
    }
}

#[test]
fn two_pods_with_one_service_account_share_an_identity_and_nothing_else() {
    let lab = Lab::from_yaml(&format!("{}\n{MESH}", "# Two replicas of one deployment.")).unwrap();
    lab.start_daemons().unwrap();
    let twin = lab::Workload {
        name: "twin".to_owned(),
        addresses: vec![
            "10.244.1.20".parse().unwrap(),
            "fd00:1::20".parse().unwrap(),
        ],
        ..lab.pod("shop/client").workload().clone()
    };
    lab.add_pod(twin).unwrap();
    lab.enroll_all().unwrap();
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();
    for key in ["shop/client", "shop/twin"] {
        let pod = lab.pod(key);
        let seen = pod.check(far.v4().unwrap(), &Check::of(lab::tester::Service::Peer));
        let seen = seen.unwrap();
        assert_eq!(seen.seen_as.unwrap().ip(), pod.v4().unwrap(), "{seen:?}");
    }
    assert_eq!(
        lab.pod("shop/twin").identity(),
        lab.pod("shop/client").identity()
    );
    let issued = lab
        .control_plane()
        .issued_for(lab.pod("shop/twin").identity());
    assert_eq!(issued, 1, "one certificate serves both");

    // One leaves; the other keeps its certificate and its capture.
    lab.unenroll(&["shop/client"]).unwrap();
    assert_eq!(
        lab.pod_leftovers("shop/client").unwrap(),
        Vec::<String>::new()
    );
    let tap = lab.tap("node1", "node2", &["twin speaking"]).unwrap();
    let report = lab
        .pod("shop/twin")
        .check(far.v4().unwrap(), &Check::echo("twin speaking"))
        .unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let seen = tap.stop().unwrap();
    assert_eq!(seen.marker("twin speaking"), 0);
    assert!(seen.on_port(15008) > 0);
}
