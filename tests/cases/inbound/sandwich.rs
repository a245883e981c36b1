//! A waypoint in front of its own node proxy: a pod like any other, except that clients ask it for what is behind it.

use std::net::SocketAddr;

use lab::tester::{Check, Outcome, Service};
use lab::{DaemonOptions, Lab};

use super::{CLIENT, client, refused};
use crate::access;

const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: far, namespace: shop, node: node1, service_account: far, addresses: [10.244.1.11, 'fd00:1::11'], waypoint: {address: 10.244.2.20}}
  - {name: wp, namespace: infra, node: node2, service_account: waypoint, addresses: [10.244.2.20, 'fd00:2::20']}
  - {name: other, namespace: infra, node: node2, service_account: other, addresses: [10.244.2.21, 'fd00:2::21']}
services:
  - {name: by-name, namespace: shop, addresses: [10.96.0.10, 'fd00:96::10'], ports: {7001: 7001, 7008: 7008}, workloads: [far], waypoint: {hostname: infra/wp.infra.svc.cluster.local}}
  - {name: by-vip, namespace: shop, addresses: [10.96.0.11], ports: {7001: 7001}, workloads: [far], waypoint: {address: 10.96.0.20}}
  - {name: of-other, namespace: shop, addresses: [10.96.0.12], ports: {7001: 7001}, workloads: [far], waypoint: {hostname: infra/other.infra.svc.cluster.local}}
  - {name: free, namespace: shop, addresses: [10.96.0.13], ports: {7001: 7001}, workloads: [far]}
  - {name: wp, namespace: infra, addresses: [10.96.0.20], ports: {15008: 15008}, workloads: [wp]}
  - {name: other, namespace: infra, addresses: [10.96.0.21], ports: {15008: 15008}, workloads: [other]}
";
const WP: &str = "10.244.2.20";

#[test]
fn a_waypoint_behind_its_proxy_takes_what_is_its_own_and_nothing_else() {
    for on_demand in ["false", "true"] {
        let lab = Lab::from_yaml(MESH).unwrap();
        let options = DaemonOptions::default().env("XDS_ON_DEMAND", on_demand);
        for node in lab.nodes() {
            node.start_daemon_with(&options).unwrap();
        }
        lab.enroll_all().unwrap();
        let _server = lab.pod("infra/wp").serve().unwrap();
        let pod = lab.pod("shop/client");
        // The client's proxy does as always; what answers here is the app in the waypoint.
        for to in ["10.96.0.10", "fd00:96::10", "10.96.0.11", "10.244.1.11"] {
            let to = SocketAddr::new(to.parse().unwrap(), Service::Echo.port());
            let report = pod
                .check_at(to, &Check::echo("through the middle"))
                .unwrap();
            assert_eq!(report.outcome, Outcome::Good, "{to}: {report:?}");
        }
        let ip = "10.96.0.10".parse().unwrap();
        let seen = pod.check(ip, &Check::of(Service::Peer)).unwrap();
        assert_eq!(seen.seen_as.unwrap().ip(), pod.v4().unwrap(), "{seen:?}");
        let at = format!("{WP}:{}", Service::Echo.port());
        let reached = [
            ("direction", "inbound"),
            ("dst.orig_addr", &*at),
            ("reason", "COMPLETE"),
        ];
        let node = lab.node("node2");
        access::eventually("all that came by IPv4 is told", || {
            access::lines(node, &reached).len() == 3
        });
        // Its own addresses of the network, and those of what has another waypoint or none.
        let client = client(&lab, CLIENT);
        for stranger in [
            "10.96.0.12:7001",
            "10.96.0.13:7001",
            "10.96.0.20:7001",
            "10.244.2.21:7001",
            "10.244.1.10:7001",
            "192.0.2.20:7001",
        ] {
            refused(node, &client, WP, stranger, 400, "BAD_REQUEST");
        }
        refused(node, &client, WP, "10.96.0.10:15006", 503, "LOOP");
        refused(
            node,
            &client,
            "10.244.2.21",
            "10.96.0.10:7001",
            400,
            "BAD_REQUEST",
        );
    }
}
