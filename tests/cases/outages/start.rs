//! There is no control plane when the daemon starts, or one that does not answer.

use std::net::Ipv6Addr;
use std::thread;

use lab::tester::{Outcome, Service};
use lab::{DiscoveryFault, Lab};

use super::{MESH, assert_good, assert_no_more_lines_than, echo, lab, pods, times};
use crate::access::{self, eventually};
use crate::identity::{self, BOUND, open, still_waits};
use crate::local_api::Api;
use crate::readiness::pending;

#[test]
fn a_daemon_without_a_control_plane_says_what_it_waits_for_and_goes_on_when_there_is_one() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    plane.pause();
    lab.start_daemons().unwrap();
    let node = lab.node("node1");
    assert_eq!(pending(node), "state manager");
    assert!(times(node, "daemon is not ready") >= 1);
    let [client, far] = pods(&lab);
    let _server = far.serve().unwrap();
    // Pods come all the same, and their connections wait.
    for (name, pod) in [("node1", &client), ("node2", &far)] {
        lab.node(name).daemon(|daemon| daemon.enroll(pod)).unwrap();
    }
    let mut early = open(&client, (far.v4().unwrap(), Service::Echo.port()).into());
    eventually("some attempts have failed", || {
        times(node, "discovery stream lost") >= 6
    });
    assert!(times(node, "Connection refused") >= 6, "and each says why");
    assert!(still_waits(&mut early));
    assert_eq!(pending(node), "state manager");
    assert_eq!(times(node, "daemon is ready"), 0);
    // One for the start, one for each attempt, which come less and less often.
    assert_no_more_lines_than(node, 25);

    plane.resume().unwrap();
    identity::echo(&mut early, b"at last").unwrap();
    eventually("the daemon is ready", || pending(node).is_empty());
    eventually("it says so", || times(node, "daemon is ready") == 1);
    assert_good(&client, far.v4().unwrap());
}

#[test]
fn pods_of_a_daemon_that_restarts_without_a_control_plane_stay_captured_and_heal() {
    let lab = lab();
    let [client, far] = pods(&lab);
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    let node = lab.node("node1");
    node.kill().unwrap();
    lab.control_plane().pause();
    node.start_daemon().unwrap();
    assert_eq!(pending(node), "state manager");
    let states = Api::connect(node).unwrap().states().unwrap();
    assert!(
        matches!(&states[..], [(_, state, None)] if state == "captured"),
        "{states:?}"
    );
    let link = client.tap(&["hello"]).unwrap();
    // Out, and in from a node that knows everything still.
    thread::scope(|scope| {
        let ways = [(&client, far.v4().unwrap()), (&far, client.v4().unwrap())];
        let tries = ways.map(|(from, to)| scope.spawn(move || echo(from, to)));
        for tried in tries {
            let report = tried.join().unwrap();
            assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
            assert!(
                u128::from(report.elapsed_ms) < BOUND.as_millis(),
                "{report:?}"
            );
        }
    });
    let refused = [("direction", "outbound"), ("reason", "WORKLOAD_UNKNOWN")];
    let line = access::line(node, &refused);
    assert!(
        line.contains("the control plane does not know pod shop/client"),
        "{line:?}"
    );
    let seen = link.stop().unwrap();
    assert_eq!((seen.marker("hello"), seen.opened_to(7001)), (0, 0));
    assert_no_more_lines_than(node, 60);

    // By now up to six seconds lie between two attempts.
    lab.control_plane().resume().unwrap();
    eventually("the daemon is ready", || pending(node).is_empty());
    assert_good(&client, far.v4().unwrap());
    assert_good(&far, client.v4().unwrap());
}

#[test]
fn a_control_plane_that_takes_calls_and_never_answers_is_waited_for() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    plane.set_discovery_fault(DiscoveryFault::Silent);
    lab.start_daemons().unwrap();
    let node = lab.node("node1");
    let [client, far] = pods(&lab);
    let _server = far.serve().unwrap();
    for (name, pod) in [("node1", &client), ("node2", &far)] {
        lab.node(name).daemon(|daemon| daemon.enroll(pod)).unwrap();
    }
    let mut early = open(&client, (far.v4().unwrap(), Service::Echo.port()).into());
    assert!(still_waits(&mut early));
    assert_eq!(pending(node), "state manager");
    plane.set_discovery_fault(DiscoveryFault::None);
    identity::echo(&mut early, b"at last").unwrap();
    eventually("the daemon is ready", || pending(node).is_empty());
    // It was one attempt, which succeeded.
    assert_eq!(times(node, "discovery stream lost"), 0);

    // One that takes connections, and does not even begin with TLS.
    plane.pause();
    let deaf = lab
        .outside()
        .listen((Ipv6Addr::UNSPECIFIED, plane.address().port()).into());
    let deaf = deaf.unwrap();
    eventually("the daemon has lost its stream", || {
        times(node, "discovery stream lost") >= 1
    });
    assert_good(&client, far.v4().unwrap());
    assert_good(&client, "10.96.0.10".parse().unwrap());
    assert_eq!(pending(node), "", "what was known once is known");
    drop(deaf);
    plane.resume().unwrap();
    lab.settle().unwrap();
    assert_no_more_lines_than(node, 30);
}
