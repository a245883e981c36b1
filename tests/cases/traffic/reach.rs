//! Enrolled pods among themselves: whom they reach, as whom they are seen, and what the wire shows of it.

use std::net::{IpAddr, SocketAddr};

use lab::tester::{Check, Service};
use lab::{Lab, Pod};

use super::wire::assert_only_tunnels;
use super::{CLIENT_SERVICE, FAR_SERVICE, NEAR_SERVICE, good, ip, own_address};
use crate::mesh::enrolled;

const MARKER: &str = "a word in confidence";

/// `client` reaches the tester at `to`: both sides see the addresses that they would see without a mesh.
fn talks(client: &Pod, to: IpAddr) {
    good(
        client,
        (to, Service::Echo.port()).into(),
        &Check::echo(MARKER),
    );
    let at = SocketAddr::new(to, Service::Peer.port());
    let report = good(client, at, &Check::of(Service::Peer));
    let own = own_address(client.ips(), to);
    assert_eq!(report.peer, Some(at), "whom the client sees");
    assert_eq!(report.local.map(|own| own.ip()), Some(own), "{to}");
    let seen_as = report.seen_as.unwrap();
    assert_eq!(seen_as.ip(), own, "whom the server sees, by {to}");
}

fn talks_by_every_address(lab: &Lab, to: &Pod, service: [&str; 2]) {
    let client = lab.pod("shop/client");
    let _server = to.serve().unwrap();
    for &to in to.ips().iter().chain(&service.map(ip)) {
        talks(&client, to);
    }
}

#[test]
fn between_nodes_pods_talk_through_tunnels_alone() {
    let lab = enrolled().unwrap();
    let link = lab.tap("node1", "node2", &[MARKER]).unwrap();
    talks_by_every_address(&lab, &lab.pod("shop/far"), FAR_SERVICE);
    assert_only_tunnels(&link.stop().unwrap(), MARKER);
}

#[test]
fn on_one_node_pods_talk_through_tunnels_alone() {
    let lab = enrolled().unwrap();
    let between = lab.tap("node1", "node2", &[MARKER]).unwrap();
    let near = lab.pod("shop/near");
    let link = near.tap(&[MARKER]).unwrap();
    talks_by_every_address(&lab, &near, NEAR_SERVICE);
    assert_only_tunnels(&link.stop().unwrap(), MARKER);
    let between = between.stop().unwrap();
    assert!(between.tcp_opened.is_empty(), "{between:?}");
}

#[test]
fn a_pod_talks_to_itself_and_nothing_leaves_it() {
    let lab = enrolled().unwrap();
    let client = lab.pod("shop/client");
    let _server = client.serve().unwrap();
    let link = client.tap(&[MARKER]).unwrap();
    for &to in client.ips().iter().chain(&CLIENT_SERVICE.map(ip)) {
        talks(&client, to);
    }
    for to in ["127.0.0.1", "::1"].map(ip) {
        good(
            &client,
            (to, Service::Echo.port()).into(),
            &Check::echo(MARKER),
        );
        let at = (to, Service::Peer.port()).into();
        let report = good(&client, at, &Check::of(Service::Peer));
        assert_eq!(report.seen_as, report.local, "nothing in between");
    }
    let seen = link.stop().unwrap();
    assert!(seen.tcp_opened.is_empty(), "{seen:?}");
    assert_eq!(seen.marker(MARKER), 0, "{seen:?}");
}

#[test]
fn udp_is_left_alone() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    for (from, to) in client.ips().iter().zip(far.ips()) {
        let bound = |pod: &Pod, at: IpAddr| {
            let bind = || std::net::UdpSocket::bind((at, 0));
            let socket = pod.namespace().enter(bind).unwrap().unwrap();
            let limit = std::time::Duration::from_secs(5);
            socket.set_read_timeout(Some(limit)).unwrap();
            socket
        };
        let (client, server) = (bound(&client, *from), bound(&far, *to));
        client.connect(server.local_addr().unwrap()).unwrap();
        client.send(b"ping").unwrap();
        let mut buffer = [0; 16];
        let (length, seen_as) = after_signals(|| server.recv_from(&mut buffer));
        assert_eq!(&buffer[..length], b"ping");
        assert_eq!(seen_as, client.local_addr().unwrap());
        server.send_to(b"pong", seen_as).unwrap();
        let length = after_signals(|| client.recv(&mut buffer));
        assert_eq!(&buffer[..length], b"pong");
    }
}

/// With a time limit the kernel ends a call for any signal, even one that nobody handles.
fn after_signals<T>(mut call: impl FnMut() -> std::io::Result<T>) -> T {
    loop {
        match call() {
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            outcome => return outcome.unwrap(),
        }
    }
}
