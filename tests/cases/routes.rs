//! The rest of the ways that a connection can take, by what the mesh says of its destination.

use std::net::{IpAddr, SocketAddr};

use lab::hbone;
use lab::tester::{Check, Outcome, Report, Service};
use lab::{Gateway, Lab, OUTSIDE_HOST_V4, OUTSIDE_HOST_V6, Seen};

use crate::access::{self, Access};

const MARKER: &str = "one-way-or-another";

/// `wp` is a pod like any other, and named as the waypoint of `far`. `agent` shares the addresses of its node.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: wp, namespace: shop, node: node1, service_account: waypoint, addresses: [10.244.1.20, 'fd00:1::20']}
  - {name: twin, namespace: shop, node: node1, service_account: waypoint, addresses: [10.244.1.21, 'fd00:1::21']}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10, 'fd00:2::10']}
  - {name: agent, namespace: shop, node: node2, pod: false, host_network: true, service_account: agent, addresses: [172.18.0.2, 'fd00:18::2']}
services:
  - {name: wp, namespace: shop, addresses: [10.96.0.20], ports: {15008: 15008}, workloads: [wp]}
  - {name: agent, namespace: shop, addresses: [10.96.0.30, 'fd00:96::30'], ports: {80: 7001}, workloads: [agent]}
  - {name: pass, namespace: shop, addresses: [192.0.2.20, '2001:db8::20'], ports: {80: 80}, workloads: [far], load_balancing: {mode: PASSTHROUGH}}
  - {name: block, namespace: shop, address_blocks: [10.97.0.0/16, 'fd00:97::/64'], ports: {7001: 7001}, workloads: [far]}
  - {name: hole, namespace: shop, address_blocks: [10.97.8.0/24], ports: {7001: 7001}}
  - {name: single, namespace: shop, addresses: [10.97.8.8], ports: {7001: 7001}, workloads: [far]}
";
const FAR: [&str; 2] = ["10.244.2.10", "fd00:2::10"];
const OUTSIDE: [&str; 2] = [OUTSIDE_HOST_V4, OUTSIDE_HOST_V6];

fn enrolled() -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    lab
}

/// Connects from `pod`, and says what its proxy told and what was on its link.
fn connect(lab: &Lab, pod: &str, to: &str, port: u16) -> (Report, Access, Seen) {
    let pod = lab.pod(pod);
    let link = pod.tap(&[MARKER]).unwrap();
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let report = pod.check_at(to, &Check::echo(MARKER)).unwrap();
    let src = report.local.unwrap().to_string();
    let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
    (report, line, link.stop().unwrap())
}

fn opened(seen: &Seen) -> Vec<(IpAddr, u16)> {
    seen.tcp_opened.keys().copied().collect()
}

fn at(ip: &str, port: u16) -> (IpAddr, u16) {
    (ip.parse().unwrap(), port)
}

fn assert_tunnelled(lab: &Lab, pod: &str, to: &str, peer: &str) {
    let (report, line, seen) = connect(lab, pod, to, Service::Echo.port());
    assert_eq!(report.outcome, Outcome::Good, "{pod} to {to}: {report:?}");
    let hbone = SocketAddr::new(peer.parse().unwrap(), hbone::PORT);
    assert_eq!(
        line.field("dst.addr"),
        hbone.to_string(),
        "{pod} to {to}: {line:?}"
    );
    assert_eq!(seen.marker(MARKER), 0, "{pod} to {to}: {seen:?}");
}

fn assert_plain(lab: &Lab, to: &str, port: u16, arrives: (IpAddr, u16)) {
    let (report, line, seen) = connect(lab, "shop/client", to, port);
    assert_eq!(report.outcome, Outcome::Good, "{to}: {report:?}");
    assert_eq!(line.field("protocol"), "TCP", "{to}: {line:?}");
    assert_eq!(opened(&seen), [arrives], "{to}");
    assert!(seen.marker(MARKER) > 0, "{to}: {seen:?}");
}

#[test]
fn a_waypoint_does_not_go_through_itself() {
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    let reference = |address: Option<&str>, hostname: Option<&str>| Gateway {
        address: address.map(|ip| ip.parse().unwrap()),
        hostname: hostname.map(str::to_owned),
        port: hbone::PORT,
    };
    for waypoint in [
        reference(Some("10.244.1.20"), None),
        reference(Some("10.96.0.20"), None),
        reference(None, Some("shop/wp.shop.svc.cluster.local")),
    ] {
        let change = |mesh: &mut lab::MeshFile| {
            mesh.workload_mut("shop/far").unwrap().waypoint = Some(waypoint.clone());
        };
        lab.control_plane().update(change).unwrap();
        lab.settle().unwrap();
        for to in FAR {
            assert_tunnelled(&lab, "shop/wp", to, to);
            // Everybody else does: also who has the same identity, and is not it. The pod's proxy refuses that, since
            // nothing there does the work of a waypoint.
            for pod in ["shop/client", "shop/twin"] {
                let (report, line, seen) = connect(&lab, pod, to, Service::Echo.port());
                assert_eq!(report.outcome, Outcome::Reset, "{pod}: {report:?}");
                assert!(
                    line.field("dst.addr").contains("::20]:15008")
                        || line.field("dst.addr") == "10.244.1.20:15008",
                    "{line:?}"
                );
                assert_eq!(seen.marker(MARKER), 0, "{pod}: {seen:?}");
            }
        }
    }
}

#[test]
fn a_host_network_endpoint_is_reached_in_plaintext_and_its_address_is_the_node_s() {
    let lab = enrolled();
    let _server = lab.node("node2").serve().unwrap();
    for (to, node) in [("10.96.0.30", "172.18.0.2"), ("fd00:96::30", "fd00:18::2")] {
        assert_plain(&lab, to, 80, at(node, 7001));
        // By the node's address it is nobody in particular.
        assert_plain(&lab, node, 7001, at(node, 7001));
        let line = access::lines(
            lab.node("node1"),
            &[(
                "dst.orig_addr",
                &SocketAddr::from(at(node, 7001)).to_string(),
            )],
        );
        assert_eq!(line[0].field("dst.service"), "", "{line:?}");
    }
}

#[test]
fn connections_to_a_passthrough_service_go_where_they_were_going() {
    let lab = enrolled();
    let _server = lab.outside().serve().unwrap();
    // Also on a port that the service does not have.
    for to in OUTSIDE {
        assert_plain(&lab, to, 7001, at(to, 7001));
    }
}

#[test]
fn all_addresses_of_a_block_are_the_service_s() {
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    for (to, peer) in [
        ("10.97.0.1", FAR[0]),
        ("10.97.255.254", FAR[0]),
        ("fd00:97::1", FAR[1]),
        ("fd00:97::ffff:ffff:ffff:ffff", FAR[1]),
        // An address of its own wins over every block.
        ("10.97.8.8", FAR[0]),
    ] {
        assert_tunnelled(&lab, "shop/client", to, peer);
    }
    // The longest block wins, also one that has no endpoint.
    let (report, line, seen) = connect(&lab, "shop/client", "10.97.8.9", 7001);
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    assert_eq!(line.field("reason"), "NO_HEALTHY_ENDPOINT", "{line:?}");
    assert!(line.contains("shop/hole"), "{line:?}");
    assert_eq!(opened(&seen), []);
}
