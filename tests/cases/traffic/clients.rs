//! Whatever a client does to its socket, it is captured, and it works.

use std::net::SocketAddr;

use lab::Pod;
use lab::tester::{Check, Service};

use super::wire::assert_only_tunnels;
use super::{FAR_SERVICE, good, ip};
use crate::mesh::enrolled;

const MARKER: &str = "a word in confidence";

/// Does `check` across nodes by pod IP and by service, in each of `families`, and finds all of it in tunnels.
fn is_captured(families: &[usize], change: impl Fn(Check, &Pod, usize) -> Check) {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[MARKER]).unwrap();
    for &family in families {
        for to in [far.ips()[family], ip(FAR_SERVICE[family])] {
            let to = SocketAddr::new(to, Service::Echo.port());
            good(&client, to, &change(Check::echo(MARKER), &client, family));
        }
    }
    assert_only_tunnels(&link.stop().unwrap(), MARKER);
}

#[test]
fn an_ipv4_destination_of_an_ipv6_socket_is_captured() {
    is_captured(&[0], |check, _, _| check.v4_mapped());
}

#[test]
fn fast_open_is_captured() {
    is_captured(&[0, 1], |check, _, _| check.fast_open());
}

#[test]
fn a_socket_bound_to_an_interface_is_captured() {
    is_captured(&[0, 1], |check, _, _| check.on_device("eth0"));
}

#[test]
fn a_socket_bound_to_an_address_and_a_port_is_captured() {
    is_captured(&[0, 1], |check, client, family| {
        check.from_ip(client.ips()[family]).from_port(45_000)
    });
    is_captured(&[0, 1], |check, _, _| check.from_port(45_001));
}

#[test]
fn a_mark_is_no_way_around_capture() {
    /// Those of the daemon's own connections and of capture itself, Istio's, Cilium's, and any.
    const MARKS: [u32; 6] = [0x7a74_0002, 0x7a74_0001, 0x539, 0x0f00, 1, u32::MAX];
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[MARKER]).unwrap();
    let service = FAR_SERVICE.map(ip);
    for &to in far.ips().iter().chain(&service) {
        for mark in MARKS {
            let to = SocketAddr::new(to, Service::Echo.port());
            good(&client, to, &Check::echo(MARKER).marked(mark));
            good(
                &client,
                to,
                &Check::echo(MARKER).marked(mark).on_device("eth0"),
            );
        }
    }
    assert_only_tunnels(&link.stop().unwrap(), MARKER);
}
