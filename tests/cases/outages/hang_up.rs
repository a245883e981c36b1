//! The control plane hangs up, again and again, or does not want us.

use std::fs;
use std::time::Duration;

use lab::{DiscoveryFault, MeshFile};

use super::{MESH, Steady, assert_good, assert_no_more_lines_than, lab, pods, times};
use crate::access::eventually;
use crate::readiness::pending;

const MORE: &str = "
  - {name: more, namespace: shop, addresses: [10.96.0.77], ports: {7001: 7001}, workloads: [far]}
";

#[test]
fn a_stream_that_ends_every_second_is_followed_all_the_same() {
    let lab = lab();
    let plane = lab.control_plane();
    let [client, far] = pods(&lab);
    let _server = far.serve().unwrap();
    let steady = Steady::start(&client, &far);
    let node = lab.node("node1");
    plane.set_discovery_fault(DiscoveryFault::EndAfter(Duration::from_secs(1)));
    plane.pause();
    plane.resume().unwrap();
    eventually("the streams have ended twice", || {
        times(node, "the control plane ended the discovery stream") >= 2
    });
    let more = MeshFile::parse("more", &format!("{}{MORE}", MESH.trim_end())).unwrap();
    plane
        .update(|mesh| mesh.services.clone_from(&more.services))
        .unwrap();
    lab.settle().unwrap();
    assert_good(&client, "10.96.0.77".parse().unwrap());
    eventually("they end and begin as before", || {
        times(node, "the control plane ended the discovery stream") >= 3
    });
    assert_eq!(pending(node), "");
    assert_no_more_lines_than(node, 40);
    plane.set_discovery_fault(DiscoveryFault::None);
    steady.stop();
}

#[test]
fn streams_that_end_at_once_are_asked_for_less_and_less() {
    let lab = lab();
    let plane = lab.control_plane();
    let [client, far] = pods(&lab);
    let _server = far.serve().unwrap();
    let steady = Steady::start(&client, &far);
    let node = lab.node("node1");
    plane.set_discovery_fault(DiscoveryFault::EndAfter(Duration::ZERO));
    plane.pause();
    plane.resume().unwrap();
    eventually("several attempts were in vain", || {
        times(node, "discovery stream lost") >= 7
    });
    assert_good(&client, "10.96.0.10".parse().unwrap());
    // 10 ms, 20 ms, 40 ms and so on lie between them, and each has one line.
    assert_no_more_lines_than(node, 30);
    plane.set_discovery_fault(DiscoveryFault::None);
    lab.settle().unwrap();
    steady.stop();
}

#[test]
fn a_token_that_is_refused_is_named_once_per_attempt_and_read_anew_for_each() {
    let lab = lab();
    let plane = lab.control_plane();
    let [client, far] = pods(&lab);
    let _server = far.serve().unwrap();
    let steady = Steady::start(&client, &far);
    let node = lab.node("node1");
    let file = plane.token_file("node1");
    let old = fs::read_to_string(&file).unwrap();
    plane.rotate_token("node1").unwrap();
    let new = fs::read_to_string(&file).unwrap();
    // The node has not got the new one yet.
    fs::write(&file, &old).unwrap();
    plane.pause();
    plane.resume().unwrap();

    let refusals = || times(node, "Unauthenticated: request authenticate failure");
    eventually("several attempts were refused", || refusals() >= 6);
    let hint = format!(
        "check=\"the token in {}, cluster id \\\"Kubernetes\\\"\"",
        file.display()
    );
    assert_eq!(times(node, &hint), refusals(), "{}", node.log_tail(20));
    assert_good(&client, "10.96.0.10".parse().unwrap());
    assert_eq!(pending(node), "");
    assert_no_more_lines_than(node, 30);
    let log = node.log();
    assert!(
        !log.contains(&old) && !log.contains(&new),
        "a token is in the log"
    );

    fs::write(&file, &new).unwrap();
    lab.settle().unwrap();
    steady.stop();
}
