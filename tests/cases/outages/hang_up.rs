//! The control plane hangs up, again and again, or does not want us.

use std::fs;
use std::time::Duration;

use lab::{DiscoveryFault, MeshFile};

use super::{MESH, Scene, assert_good, assert_no_more_lines_than, times};
use crate::access::eventually;
use crate::readiness::pending;

const MORE: &str = "
  - {name: more, namespace: shop, addresses: [10.96.0.77], ports: {7001: 7001}, workloads: [far]}
";

#[test]
fn a_stream_that_ends_every_second_is_followed_all_the_same() {
    let scene = Scene::start();
    let plane = scene.plane();
    let node = scene.node();
    plane.set_discovery_fault(DiscoveryFault::EndAfter(Duration::from_secs(1)));
    scene.reconnect();
    eventually("the streams have ended twice", || {
        times(node, "the control plane ended the discovery stream") >= 2
    });
    let more = MeshFile::parse("more", &format!("{}{MORE}", MESH.trim_end())).unwrap();
    plane
        .update(|mesh| mesh.services.clone_from(&more.services))
        .unwrap();
    scene.lab.settle().unwrap();
    assert_good(&scene.client, "10.96.0.77".parse().unwrap());
    eventually("they end and begin as before", || {
        times(node, "the control plane ended the discovery stream") >= 3
    });
    assert_eq!(pending(node), "");
    assert_no_more_lines_than(node, 40);
    plane.set_discovery_fault(DiscoveryFault::None);
    scene.steady.stop();
}

#[test]
fn streams_that_end_at_once_are_asked_for_less_and_less() {
    let scene = Scene::start();
    let plane = scene.plane();
    let node = scene.node();
    plane.set_discovery_fault(DiscoveryFault::EndAfter(Duration::ZERO));
    scene.reconnect();
    eventually("several attempts were in vain", || {
        times(node, "discovery stream lost") >= 7
    });
    assert_good(&scene.client, "10.96.0.10".parse().unwrap());
    // 10 ms, 20 ms, 40 ms and so on lie between them, and each has one line.
    assert_no_more_lines_than(node, 30);
    plane.set_discovery_fault(DiscoveryFault::None);
    scene.lab.settle().unwrap();
    scene.steady.stop();
}

#[test]
fn a_token_that_is_refused_is_named_once_per_attempt_and_read_anew_for_each() {
    let scene = Scene::start();
    let plane = scene.plane();
    let node = scene.node();
    let file = plane.token_file("node1");
    let old = fs::read_to_string(&file).unwrap();
    plane.rotate_token("node1").unwrap();
    let new = fs::read_to_string(&file).unwrap();
    // The node has not got the new one yet.
    fs::write(&file, &old).unwrap();
    scene.reconnect();

    let refusals = || times(node, "Unauthenticated: request authenticate failure");
    eventually("several attempts were refused", || refusals() >= 6);
    let hint = format!(
        "check=\"the token in {}, cluster id \\\"Kubernetes\\\"\"",
        file.display()
    );
    assert_eq!(times(node, &hint), refusals(), "{}", node.log_tail(20));
    assert_good(&scene.client, "10.96.0.10".parse().unwrap());
    assert_eq!(pending(node), "");
    assert_no_more_lines_than(node, 30);
    let log = node.log();
    assert!(
        !log.contains(&old) && !log.contains(&new),
        "a token is in the log"
    );

    fs::write(&file, &new).unwrap();
    scene.lab.settle().unwrap();
    scene.steady.stop();
}
