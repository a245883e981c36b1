//! Pods that have only one family of addresses, or have IPv6 switched off.

use std::net::{IpAddr, SocketAddr};

use lab::Lab;
use lab::tester::{Check, Service};

use super::wire::assert_only_tunnels;
use super::{good, own_address};

const MARKER: &str = "a word in confidence";

const MESH: &str = "
workloads:
  - {name: both, namespace: shop, node: node1, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: v4, namespace: shop, node: node2, addresses: [10.244.2.10]}
  - {name: v6, namespace: shop, node: node2, addresses: ['fd00:2::11']}
  - {name: without-v6, namespace: shop, node: node2, addresses: [10.244.2.12], disable_ipv6: true}
services:
  - {name: v4, namespace: shop, addresses: [10.96.0.10], ports: {7001: 7001, 7008: 7008}, workloads: [v4]}
  - {name: v6, namespace: shop, addresses: ['fd00:96::11'], ports: {7001: 7001, 7008: 7008}, workloads: [v6]}
  - {name: without-v6, namespace: shop, addresses: [10.96.0.12], ports: {7001: 7001, 7008: 7008}, workloads: [without-v6]}
";

fn works(key: &str, service: &str) {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    let (both, one) = (lab.pod("shop/both"), lab.pod(key));
    lab.enroll(&["shop/both", key]).unwrap();
    let _servers = [both.serve().unwrap(), one.serve().unwrap()];
    let link = lab.tap("node1", "node2", &[MARKER]).unwrap();
    let own = one.ips()[0];
    let service: IpAddr = service.parse().unwrap();
    for (from, to) in [
        (&both, own),
        (&both, service),
        (&one, own_address(both.ips(), own)),
        (&one, own),
        (&one, service),
    ] {
        let at = |service: Service| SocketAddr::new(to, service.port());
        good(from, at(Service::Echo), &Check::echo(MARKER));
        let report = good(from, at(Service::Peer), &Check::of(Service::Peer));
        let seen_as = report.seen_as.unwrap().ip();
        assert_eq!(seen_as, own_address(from.ips(), to), "{to}");
    }
    assert_only_tunnels(&link.stop().unwrap(), MARKER);

    lab.unenroll(&["shop/both", key]).unwrap();
    lab.expect_nothing_left().unwrap();
}

#[test]
fn a_pod_with_ipv4_alone_works_and_leaves_nothing() {
    works("shop/v4", "10.96.0.10");
}

#[test]
fn a_pod_with_ipv6_alone_works_and_leaves_nothing() {
    works("shop/v6", "fd00:96::11");
}

#[test]
fn a_pod_with_ipv6_switched_off_works_and_leaves_nothing() {
    works("shop/without-v6", "10.96.0.12");
}
