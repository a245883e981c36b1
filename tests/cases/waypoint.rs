//! Destinations behind a waypoint: reached through it, or not at all.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::hbone::{self, Server};
use lab::tester::{Check, Outcome, Report, Service};
use lab::{DaemonOptions, Gateway, Lab, Validity, WeightedGateway};

use crate::access::{self, Access};

const MARKER: &str = "past-the-waypoint";

/// A client, an endpoint on the other node that would also answer without its proxy, and two waypoints that are no
/// enrolled pods: they speak HBONE themselves.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10, 'fd00:2::10']}
  - {name: one, namespace: infra, node: node2, service_account: waypoint, addresses: [10.244.2.20, 'fd00:2::20'], protocol: HBONE}
  - {name: two, namespace: infra, node: node1, service_account: waypoint, addresses: [10.244.1.21, 'fd00:1::21'], protocol: HBONE}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10, 'fd00:96::10'], ports: {7001: 7001}, workloads: [far]}
  - {name: one, namespace: infra, addresses: [10.96.0.20, 'fd00:96::20'], ports: {15008: 15008}, workloads: [one]}
  - {name: two, namespace: infra, addresses: [10.96.0.21], ports: {15008: 15008}, workloads: [two]}
";
const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FAR: [&str; 2] = ["10.244.2.10", "fd00:2::10"];
const ONE: [&str; 2] = ["10.244.2.20", "fd00:2::20"];
const ONE_SERVICE: &str = "infra/one.infra.svc.cluster.local";
const WAYPOINT: &str = "spiffe://cluster.local/ns/infra/sa/waypoint";

/// The lab, with the client and the endpoint enrolled.
fn enrolled(options: &DaemonOptions) -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    for node in lab.nodes() {
        node.start_daemon_with(options).unwrap();
    }
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    lab
}

/// Starts the waypoint in a pod, on its addresses, one server for each. It knows both names of the endpoint.
fn waypoint(lab: &Lab, pod: &str, identity: &str) -> Vec<Server> {
    let pod = lab.pod(pod);
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(60));
    let credential = authority.issue(identity, validity).unwrap();
    let route = |asked: &str, to: &str| (at(asked).to_string(), at(to));
    let routes: BTreeMap<_, _> = VIP
        .into_iter()
        .chain(FAR)
        .zip(FAR.into_iter().cycle())
        .map(|(asked, to)| route(asked, to))
        .collect();
    let on = |&ip| (ip, hbone::PORT).into();
    pod.ips()
        .iter()
        .map(|ip| Server::start_waypoint(&pod, on(ip), &credential, routes.clone()).unwrap())
        .collect()
}

/// The echo service at an address.
fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), Service::Echo.port())
}

fn by_address(ip: &str) -> Gateway {
    Gateway {
        address: Some(ip.parse().unwrap()),
        hostname: None,
        port: hbone::PORT,
    }
}

fn by_hostname(name: &str) -> Gateway {
    Gateway {
        address: None,
        hostname: Some(name.to_owned()),
        port: hbone::PORT,
    }
}

/// Announces the waypoint of the service.
fn announce(lab: &Lab, waypoint: Gateway) {
    let change = |mesh: &mut lab::MeshFile| {
        mesh.service_mut("shop/far").unwrap().waypoint = Some(waypoint);
    };
    lab.control_plane().update(change).unwrap();
    lab.settle().unwrap();
}

/// Announces the waypoint of the endpoint itself.
fn announce_for_pod(lab: &Lab, waypoint: Gateway) {
    let change = |mesh: &mut lab::MeshFile| {
        mesh.workload_mut("shop/far").unwrap().waypoint = Some(waypoint);
    };
    lab.control_plane().update(change).unwrap();
    lab.settle().unwrap();
}

fn check(lab: &Lab, to: &str) -> Report {
    let client = lab.pod("shop/client");
    client
        .check(to.parse().unwrap(), &Check::echo(MARKER))
        .unwrap()
}

/// The line of the client's proxy about a connection.
fn line(lab: &Lab, report: &Report) -> Access {
    let src = report.local.unwrap().to_string();
    access::line(lab.node("node1"), &[("src.addr", &src)])
}

/// Connects to `to`, and the client talks to the waypoint at `via` and nobody else on the way.
fn assert_through(lab: &Lab, to: &str, via: &str) {
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    let report = check(lab, to);
    assert_eq!(report.outcome, Outcome::Good, "{to} via {via}: {report:?}");
    let line = line(lab, &report);
    assert_eq!(line.field("dst.addr"), hbone_at(via), "{to}: {line:?}");
    assert_eq!(line.field("dst.identity"), WAYPOINT, "{to}: {line:?}");
    let seen = link.stop().unwrap();
    assert_only_to(&seen, via);
    // What the endpoint's proxy makes of it: the waypoint's connection, as itself.
    let from = lab.node("node2");
    let fields = [("direction", "inbound"), ("src.identity", WAYPOINT)];
    access::line(from, &fields);
    assert_eq!(
        access::lines(from, &[("direction", "inbound")]).len(),
        access::lines(from, &fields).len(),
        "somebody came past the waypoint"
    );
}

fn hbone_at(ip: &str) -> String {
    SocketAddr::new(ip.parse().unwrap(), hbone::PORT).to_string()
}

/// Nothing was in the clear, and no connection went anywhere else than to the waypoint at `via`.
fn assert_only_to(seen: &lab::Seen, via: &str) {
    let via: IpAddr = via.parse().unwrap();
    let elsewhere = seen.tcp_opened.keys().find(|(ip, _)| *ip != via);
    assert_eq!((elsewhere, seen.marker(MARKER)), (None, 0), "{seen:?}");
}

/// Connects to `to` in vain: the client's proxy says why, and nothing at all goes to the endpoint.
fn assert_refused(lab: &Lab, to: &str, reason: &str, said: &str) {
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    let report = check(lab, to);
    assert_eq!(report.outcome, Outcome::Reset, "{to}: {report:?}");
    let line = line(lab, &report);
    assert_eq!(line.field("reason"), reason, "{to}: {line:?}");
    assert!(line.contains(said), "{to}: {said:?} in {line:?}");
    assert_only_to(&link.stop().unwrap(), ONE[0]);
    let arrived = access::lines(lab.node("node2"), &[("direction", "inbound")]);
    assert_eq!(arrived.len(), 0, "{to}: {arrived:?}");
}

#[test]
fn a_service_is_reached_through_its_waypoint_by_hostname_and_by_address() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("shop/far").serve().unwrap();
    let waypoints = waypoint(&lab, "infra/one", WAYPOINT);
    for (reference, via) in [
        // A name has the family that the client asked for, an address is what it is.
        (by_hostname(ONE_SERVICE), ONE),
        (by_address("10.96.0.20"), [ONE[0], ONE[0]]),
        (by_address("fd00:2::20"), [ONE[1], ONE[1]]),
    ] {
        announce(&lab, reference);
        for (to, via) in VIP.into_iter().zip(via) {
            assert_through(&lab, to, via);
        }
    }
    // The waypoint was asked for what the app asked for, by the client itself and from its address.
    let client = lab.pod("shop/client");
    let asked = waypoints[0].connects();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(asked[0].authority, at(VIP[0]).to_string());
    for connect in asked {
        assert_eq!(connect.client.as_deref(), Some(client.identity()));
        assert_eq!(connect.from.ip(), client.v4().unwrap());
        let forwarded = connect.headers["forwarded"].to_str().unwrap();
        let host = ";host=far.shop.svc.cluster.local";
        assert!(forwarded.ends_with(host), "{forwarded}");
    }
    // A waypoint of the service is none of its pods.
    let report = check(&lab, FAR[0]);
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let line = line(&lab, &report);
    assert_eq!(line.field("dst.addr"), hbone_at(FAR[0]), "{line:?}");
}

#[test]
fn a_pod_is_reached_through_its_waypoint_by_hostname_and_by_address() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("shop/far").serve().unwrap();
    let waypoints = waypoint(&lab, "infra/one", WAYPOINT);
    for (reference, via) in [
        (by_hostname(ONE_SERVICE), ONE),
        (by_address("10.244.2.20"), [ONE[0], ONE[0]]),
    ] {
        announce_for_pod(&lab, reference);
        for (to, via) in FAR.into_iter().zip(via) {
            assert_through(&lab, to, via);
        }
    }
    let asked = waypoints[0].connects();
    assert_eq!(asked[0].authority, at(FAR[0]).to_string());
    // A waypoint of a pod is none of its services.
    let report = check(&lab, VIP[0]);
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let line = line(&lab, &report);
    assert_eq!(line.field("dst.addr"), hbone_at(FAR[0]), "{line:?}");
}

#[test]
fn connections_are_spread_over_weighted_waypoints() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("shop/far").serve().unwrap();
    let one = waypoint(&lab, "infra/one", WAYPOINT);
    let two = waypoint(&lab, "infra/two", WAYPOINT);
    let weighted = |weights: [u32; 2]| {
        let to = [by_hostname(ONE_SERVICE), by_address("10.244.1.21")];
        let all = to.into_iter().zip(weights);
        let all = all.map(|(to, weight)| WeightedGateway { to, weight });
        let change = |mesh: &mut lab::MeshFile| {
            mesh.service_mut("shop/far").unwrap().weighted_waypoints = all.collect();
        };
        lab.control_plane().update(change).unwrap();
        lab.settle().unwrap();
    };
    let connect = || {
        let report = check(&lab, VIP[0]);
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        [one[0].connects().len(), two[0].connects().len()]
    };
    weighted([1, 1]);
    // So many that chance leaves out one of them once in 2^63 runs.
    let both = (0..64).any(|_| connect().into_iter().all(|count| count > 0));
    assert!(both);
    weighted([0, 3]);
    let [before, _] = connect();
    for _ in 0..8 {
        assert_eq!(connect()[0], before);
    }
}

#[test]
fn without_its_waypoint_a_destination_is_not_reached() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("shop/far").serve().unwrap();
    let reference = || by_hostname(ONE_SERVICE);
    announce(&lab, reference());
    announce_for_pod(&lab, reference());
    let [vip, far] = [VIP[0], FAR[0]];
    let down = hbone_at(ONE[0]);
    for to in [vip, far] {
        assert_refused(&lab, to, "PEER_UNREACHABLE", &down);
    }
    // Somebody else is there, or one that does not have it.
    let other = waypoint(
        &lab,
        "infra/one",
        "spiffe://cluster.local/ns/infra/sa/other",
    );
    for to in [vip, far] {
        assert_refused(&lab, to, "PEER_IDENTITY_MISMATCH", "sa/other");
    }
    drop(other);
    // Its own pod, its service, or its name is gone.
    let plane = lab.control_plane();
    let change = |mesh: &mut lab::MeshFile| {
        mesh.service_mut("infra/one").unwrap().workloads.clear();
    };
    plane.update(change).unwrap();
    lab.settle().unwrap();
    for to in [vip, far] {
        assert_refused(&lab, to, "NO_WAYPOINT", "no healthy endpoint");
    }
    plane
        .update(|mesh| mesh.services.retain(|service| service.name != "one"))
        .unwrap();
    lab.settle().unwrap();
    for to in [vip, far] {
        assert_refused(&lab, to, "NO_WAYPOINT", ONE_SERVICE);
    }
    for reference in ["10.96.0.20", "10.96.0.99"] {
        announce(&lab, by_address(reference));
        assert_refused(&lab, vip, "NO_WAYPOINT", reference);
    }
}

#[test]
fn a_waypoint_that_goes_away_is_missed_by_new_connections() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("shop/far").serve().unwrap();
    announce(&lab, by_hostname(ONE_SERVICE));
    let gone = waypoint(&lab, "infra/one", WAYPOINT);
    assert_through(&lab, VIP[0], ONE[0]);
    drop(gone);
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    for _ in 0..3 {
        let report = check(&lab, VIP[0]);
        assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    }
    assert_only_to(&link.stop().unwrap(), ONE[0]);
    // Another one takes its place.
    let _again = waypoint(&lab, "infra/one", WAYPOINT);
    assert_through(&lab, VIP[0], ONE[0]);
}

#[test]
fn what_the_waypoint_does_not_pass_on_is_a_reset() {
    let lab = enrolled(&DaemonOptions::default());
    announce(&lab, by_hostname(ONE_SERVICE));
    let waypoints = waypoint(&lab, "infra/one", WAYPOINT);
    // Nobody listens behind it, and it says so.
    assert_eq!(check(&lab, VIP[0]).outcome, Outcome::Reset);
    let refused = access::line(lab.node("node1"), &[("reason", "PEER_REFUSED")]);
    assert!(refused.contains("503"), "{refused:?}");
    // A port that it has no idea of.
    let client = lab.pod("shop/client");
    let to = SocketAddr::new(VIP[0].parse().unwrap(), 7999);
    let report = client.check_at(to, &Check::echo(MARKER)).unwrap();
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    assert!(line(&lab, &report).contains("404"));
    assert_eq!(waypoints[0].connects()[1].authority, to.to_string());
}

#[test]
fn a_waypoint_is_asked_for_when_it_is_needed() {
    let options = DaemonOptions::default().env("XDS_ON_DEMAND", "true");
    for (reference, key) in [
        (by_hostname(ONE_SERVICE), ONE_SERVICE),
        (by_address("10.96.0.20"), "/10.96.0.20"),
        (by_address("10.244.2.20"), "/10.244.2.20"),
    ] {
        let lab = enrolled(&options);
        announce(&lab, reference.clone());
        announce_for_pod(&lab, reference);
        let _server = lab.pod("shop/far").serve().unwrap();
        let _waypoint = waypoint(&lab, "infra/one", WAYPOINT);
        let asked = || lab.control_plane().lookups("node1", key);
        assert_eq!(asked(), 0, "{key}");
        for to in [VIP[0], FAR[0], VIP[0]] {
            assert_through(&lab, to, ONE[0]);
            assert_eq!(asked(), 1, "{key} after {to}");
        }
        // One that nobody has is asked for as well, and then it is missed.
        let nobody = "infra/nobody.infra.svc.cluster.local";
        announce(&lab, by_hostname(nobody));
        let report = check(&lab, VIP[0]);
        assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
        let refused = line(&lab, &report);
        assert_eq!(refused.field("reason"), "NO_WAYPOINT", "{refused:?}");
        assert!(refused.contains(nobody), "{refused:?}");
        assert_eq!(lab.control_plane().lookups("node1", nobody), 1);
    }
}
