//! The control plane answers, with what makes no sense or is too much.

use std::fs;

use bytes::Bytes;
use lab::{DiscoveryFault, Node};
use prost::Message as _;
use prost_types::Any;
use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use super::{Scene, assert_good, assert_no_more_lines_than, times};
use crate::access::eventually;
use crate::readiness::pending;

const MIB: usize = 1 << 20;

#[test]
fn garbage_is_named_and_hurts_nobody() {
    let scene = Scene::start();
    let plane = scene.plane();
    let node = scene.node();
    let page = b"<html><body>502 Bad Gateway</body></html>";
    let garbage = [
        (
            DiscoveryFault::Raw(Bytes::from_static(page)),
            "it begins with 0x3c",
        ),
        (
            DiscoveryFault::message(&[0xff; 64]),
            "the response cannot be decoded",
        ),
        (
            DiscoveryFault::Raw(Bytes::from_static(&[1, 0, 0, 0, 1, 0])),
            "it begins with 0x01",
        ),
    ];
    for (number, (fault, error)) in garbage.into_iter().enumerate() {
        plane.set_discovery_fault(fault);
        // Later ones are met by the attempts that follow.
        if number == 0 {
            scene.reconnect();
        }
        eventually(error, || times(node, error) >= 1);
        assert_good(&scene.client, scene.far.v4().unwrap());
        assert_good(&scene.client, "10.96.0.10".parse().unwrap());
        assert_eq!(pending(node), "");
    }
    // What makes sense, and was not asked for. Nothing is wrong with the stream.
    let strange = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        nonce: "1".to_owned(),
        resources: vec![Resource {
            name: "outbound|80||scene.far.shop.svc.cluster.local".to_owned(),
            resource: Some(Any::default()),
            ..Resource::default()
        }],
        ..DeltaDiscoveryResponse::default()
    };
    plane.set_discovery_fault(DiscoveryFault::message(&strange.encode_to_vec()));
    eventually("the type is named", || {
        times(node, "envoy.config.cluster.v3.Cluster") >= 1
    });
    assert_good(&scene.client, scene.far.v4().unwrap());
    assert_eq!(pending(node), "");

    plane.set_discovery_fault(DiscoveryFault::None);
    scene.reconnect();
    scene.lab.settle().unwrap();
    assert_good(&scene.client, "10.96.0.10".parse().unwrap());
    assert_no_more_lines_than(node, 40);
    scene.steady.stop();
}

/// Memory of a daemon that nobody else uses.
fn private_bytes(node: &Node) -> usize {
    let rollup = format!("/proc/{}/smaps_rollup", node.daemon_pid().unwrap());
    let rollup = fs::read_to_string(rollup).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.map(|line| {
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
    });
    kib.sum::<usize>() * 1024
}

#[test]
fn a_large_response_is_taken_and_its_memory_given_back() {
    let scene = Scene::start();
    let plane = scene.plane();
    let node = scene.node();
    let before = private_bytes(node);
    let answered = plane.answers().len();

    plane.announce_giants(200, MIB * 3 / 4);
    scene.lab.settle().unwrap();
    let answers = plane.answers().split_off(answered);
    assert_eq!(answers.len(), 2, "one of each node: {answers:?}");
    assert!(
        answers.iter().all(|answer| answer.rejected.is_none()),
        "{answers:?}"
    );
    eventually("the memory is given back", || {
        private_bytes(node) < before + 16 * MIB
    });
    plane.announce_giants(0, 0);
    scene.lab.settle().unwrap();
    assert_good(&scene.client, scene.far.v4().unwrap());
    scene.steady.stop();
}

#[test]
fn a_response_that_is_too_large_is_refused_before_it_is_read() {
    let scene = Scene::start();
    let plane = scene.plane();
    let node = scene.node();
    let before = private_bytes(node);
    let length = 201 * MIB;
    plane.set_discovery_fault(DiscoveryFault::beginning_of(u32::try_from(length).unwrap()));
    scene.reconnect();
    let refused = format!(
        "the response has {length} bytes, and at most {} are taken",
        200 * MIB
    );
    eventually("it was refused several times", || {
        times(node, &refused) >= 6
    });
    assert!(private_bytes(node) < before + 16 * MIB);
    assert_good(&scene.client, "10.96.0.10".parse().unwrap());
    assert_eq!(pending(node), "");
    // 10 ms between the first two, and twice as much each time: one line each.
    assert_no_more_lines_than(node, 30);

    plane.set_discovery_fault(DiscoveryFault::None);
    scene.lab.settle().unwrap();
    scene.steady.stop();
}
