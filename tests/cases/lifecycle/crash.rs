//! A daemon that dies without a word.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab::tester::Outcome;
use lab::{Lab, Pod, Tap};

use super::{assert_cut_off, assert_good, echo, hold};
use crate::local_api::{Api, changed};
use crate::mesh::enrolled;

fn taps(lab: &Lab, pods: &[&Pod], marker: &str) -> Vec<Tap> {
    let links = pods.iter().map(|pod| pod.tap(&[marker]).unwrap());
    links
        .chain([lab.tap("node1", "node2", &[marker]).unwrap()])
        .collect()
}

#[test]
fn while_its_daemon_is_dead_a_pod_is_cut_off_and_after_the_restart_it_works_again() {
    let lab = enrolled().unwrap();
    let (client, near, far) = (
        lab.pod("shop/client"),
        lab.pod("shop/near"),
        lab.pod("shop/far"),
    );
    let _servers = [
        client.serve().unwrap(),
        near.serve().unwrap(),
        far.serve().unwrap(),
    ];
    let mut held = hold(&client, far.v4().unwrap());

    for round in ["the first time", "again"] {
        lab.node("node1").kill().unwrap();
        let all = taps(&lab, &[&client, &near, &far], "not in the clear");
        for (from, to) in [(&client, &far), (&client, &near), (&near, &client)] {
            assert_cut_off(from, to, "not in the clear");
        }
        for tap in &all {
            assert_eq!(tap.so_far().opened_to(7001), 0, "{round}");
        }
        // From a pod whose own daemon lives, and from outside the mesh.
        assert_cut_off(&far, &client, "not in the clear");
        assert_cut_off(lab.outside(), &client, "not in the clear");
        // The pod can still talk to itself.
        assert_good(&client, &client);
        drop(all);

        // A connection that was begun meanwhile is not lost, only late.
        let early = thread::scope(|scope| {
            let early = scope.spawn(|| echo(&client, far.v4().unwrap(), "hello"));
            lab.node("node1").start_daemon().unwrap();
            early.join().unwrap()
        });
        assert_eq!(early.outcome, Outcome::Good, "{early:?}");
        lab.settle().unwrap();
        let all = taps(&lab, &[&client, &far], "hello");
        for (from, to) in [
            (&client, &far),
            (&client, &near),
            (&near, &client),
            (&far, &client),
        ] {
            assert_good(from, to);
        }
        for tap in all {
            assert_eq!(tap.stop().unwrap().marker("hello"), 0, "{round}");
        }
        assert_good(lab.outside(), &client);
    }
    let report = held
        .exchange("lost with the daemon that carried it")
        .unwrap();
    assert_ne!(report.outcome, Outcome::Good);

    for node in lab.nodes() {
        node.stop().unwrap();
    }
    lab.expect_nothing_left().unwrap();
}

#[test]
fn a_pod_that_cannot_be_taken_over_is_refused_until_it_is_enrolled_again() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let node = lab.node("node1");
    let rule = |what: &str| {
        let rule = ["ip", "rule", what, "pref", "50", "lookup", "main"];
        client.run(rule).unwrap().success().unwrap();
    };
    node.kill().unwrap();
    rule("add");
    node.start_daemon().unwrap();
    lab.settle().unwrap();
    let mut api = Api::connect(node).unwrap();
    let states = api.states().unwrap();
    let [(_, state, Some(problem)), (_, other, None)] = states.as_slice() else {
        panic!("{states:?}");
    };
    assert_eq!((state.as_str(), other.as_str()), ("defective", "captured"));
    assert!(problem.contains("preference 50"), "{problem}");

    let tap = client.tap(&["hello"]).unwrap();
    for &ip in far.ips() {
        let report = echo(&client, ip, "hello");
        assert_eq!(report.outcome, Outcome::Forbidden, "{report:?}");
    }
    // The way is clear again. From refused to captured there is no moment in between.
    rule("del");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for &ip in far.ips() {
            let (client, done) = (&client, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    drop(client.connect((ip, 7001).into(), Duration::from_millis(100)));
                }
            });
        }
        assert_eq!(api.enroll(&client).unwrap(), changed());
        done.store(true, Ordering::Relaxed);
    });
    assert_good(&client, &far);
    let seen = tap.stop().unwrap();
    assert_eq!((seen.marker("hello"), seen.opened_to(7001)), (0, 0));
}

#[test]
fn a_pod_that_was_deleted_while_the_daemon_was_dead_hurts_nobody() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let node = lab.node("node1");
    let gone = lab.pod("shop/near").uid().to_owned();
    node.kill().unwrap();
    lab.remove_pod("shop/near").unwrap();
    node.start_daemon().unwrap();
    lab.settle().unwrap();

    assert_good(&client, &far);
    let mut api = Api::connect(node).unwrap();
    let states = api.states().unwrap();
    let [(_, captured, None), (near, defective, Some(problem))] = states.as_slice() else {
        panic!("{states:?}");
    };
    assert_eq!(
        (captured.as_str(), near.as_str(), defective.as_str()),
        ("captured", "shop/near", "defective")
    );
    assert!(problem.contains("network namespace /proc/"), "{problem}");
    assert!(
        node.log().contains("pod could not be taken over"),
        "and the log says so"
    );

    assert_eq!(api.unenroll(&gone).unwrap(), changed());
    assert_eq!(api.states().unwrap().len(), 1);
    assert_good(&client, &far);
    drop(api);
    for node in lab.nodes() {
        node.stop().unwrap();
    }
    // What went is the deleted pod's link; what came would be the daemon's.
    let mut left = lab.leftovers().unwrap();
    left.retain(|what| !what.contains(": - "));
    assert_eq!(left, Vec::<String>::new());
}
