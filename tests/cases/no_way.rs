//! Destinations that need a path which is not there: refused, with a reason, and never reached in the clear.

use lab::Lab;
use lab::tester::{Check, Outcome, Service};

use crate::access;

const MARKER: &str = "rather-not-than-so";

/// Every pod of node2 would answer in the clear.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: plain, namespace: shop, node: node2, service_account: plain, addresses: [10.244.2.10]}
  - {name: behind, namespace: shop, node: node2, service_account: behind, addresses: [10.244.2.11, 'fd00:2::11'], waypoint: {address: 10.244.2.10}}
  - {name: elsewhere, namespace: shop, node: node2, service_account: elsewhere, addresses: [10.244.2.12], network: remote}
  - {name: dead, namespace: shop, node: node2, service_account: dead, addresses: [10.244.2.13, 'fd00:2::13'], protocol: HBONE}
  - {name: sick, namespace: shop, node: node2, service_account: sick, addresses: [10.244.2.14], status: UNHEALTHY}
services:
  - {name: plain, namespace: shop, addresses: [10.96.0.10], ports: {7001: 7001}, workloads: [plain]}
  - {name: behind, namespace: shop, addresses: [10.96.0.11], ports: {7001: 7001}, workloads: [plain], waypoint: {hostname: shop/waypoint.shop.svc.cluster.local}}
  - {name: elsewhere, namespace: shop, addresses: [10.96.0.12], ports: {7001: 7001}, workloads: [elsewhere]}
  - {name: dead, namespace: shop, addresses: [10.96.0.13], ports: {7001: 7001}, workloads: [dead]}
  - {name: sick, namespace: shop, addresses: [10.96.0.14], ports: {7001: 7001}, workloads: [sick]}
  - {name: empty, namespace: shop, addresses: [10.96.0.15], ports: {7001: 7001}}
  - {name: other-port, namespace: shop, addresses: [10.96.0.16], ports: {80: 7001}, workloads: [plain]}
";

#[test]
fn what_cannot_be_reached_as_it_should_be_is_not_reached() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client"]).unwrap();
    let client = lab.pod("shop/client");
    let servers = ["plain", "behind", "elsewhere", "dead", "sick"];
    let _servers = servers.map(|name| lab.pod(&format!("shop/{name}")).serve().unwrap());
    let link = client.tap(&[MARKER]).unwrap();
    for (ip, reason, said) in [
        ("10.244.2.11", "PEER_UNREACHABLE", "10.244.2.10:15008"),
        ("fd00:2::11", "PEER_UNREACHABLE", "10.244.2.10:15008"),
        (
            "10.96.0.11",
            "NO_WAYPOINT",
            "shop/waypoint.shop.svc.cluster.local",
        ),
        ("10.96.0.12", "NO_GATEWAY", "network"),
        ("10.244.2.13", "PEER_UNREACHABLE", "10.244.2.13:15008"),
        ("fd00:2::13", "PEER_UNREACHABLE", "[fd00:2::13]:15008"),
        ("10.96.0.13", "PEER_UNREACHABLE", "10.244.2.13:15008"),
        ("10.96.0.14", "NO_HEALTHY_ENDPOINT", "shop/sick"),
        ("10.96.0.15", "NO_HEALTHY_ENDPOINT", "shop/empty"),
        ("10.96.0.16", "NO_SUCH_PORT", "no port 7001"),
    ] {
        let report = client
            .check(ip.parse().unwrap(), &Check::echo(MARKER))
            .unwrap();
        assert_eq!(report.outcome, Outcome::Reset, "{ip}: {report:?}");
        let src = report.local.unwrap().to_string();
        let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
        assert_eq!(line.field("reason"), reason, "{ip}: {line:?}");
        assert!(line.contains(said), "{ip}: {line:?}");
    }
    let seen = link.stop().unwrap();
    assert_eq!(
        (seen.marker(MARKER), seen.opened_to(7001)),
        (0, 0),
        "{seen:?}"
    );

    // The same servers answer, when they may be reached in the clear: it was not the network.
    let link = client.tap(&[MARKER]).unwrap();
    let plain = "10.96.0.10".parse().unwrap();
    let report = client.check(plain, &Check::echo(MARKER)).unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    for name in servers {
        let ip = lab.pod(&format!("shop/{name}")).v4().unwrap();
        let report = lab.outside().check(ip, &Check::of(Service::Echo)).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{name}: {report:?}");
    }
    assert!(link.stop().unwrap().marker(MARKER) > 0);
}
