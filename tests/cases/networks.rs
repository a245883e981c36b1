//! Destinations on another network: reached through its gateway by a tunnel inside of a tunnel, or not at all.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::hbone::{self, Server};
use lab::tester::{Check, Outcome, Report, Service};
use lab::{DaemonOptions, Gateway, Lab, MeshFile, Validity};

use crate::access::{self, Access, eventually};
use crate::admin;

const MARKER: &str = "for-nobody-on-the-way";

/// Two networks, one node each. The endpoint would also answer without its proxy, and the lab's links lead there.
const MESH: &str = "
network: west
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: far, namespace: shop, node: node2, network: east, service_account: far, addresses: [10.244.2.10, 'fd00:2::10'], network_gateway: {address: 10.244.2.20, port: 15010}}
  - {name: east, namespace: infra, node: node2, service_account: gateway, addresses: [10.244.2.20, 'fd00:2::20'], protocol: HBONE}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10, 'fd00:96::10'], ports: {7001: 7001, 7002: 7002, 7003: 7003, 7004: 7004, 7005: 7005, 7006: 7006, 7007: 7007, 7008: 7008, 7009: 7009}, workloads: [far], subject_alt_names: ['spiffe://cluster.local/ns/shop/sa/far']}
  - {name: east, namespace: infra, addresses: [10.96.0.20], ports: {15010: 15010}, workloads: [east]}
";
const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FAR: &str = "10.244.2.10";
const FAR_SERVICE: &str = "far.shop.svc.cluster.local";
const FAR_IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/far";
const GATEWAY: [&str; 2] = ["10.244.2.20", "fd00:2::20"];
const GATEWAY_PORT: u16 = 15010;
const GATEWAY_IDENTITY: &str = "spiffe://cluster.local/ns/infra/sa/gateway";
const GATEWAY_SERVICE: &str = "infra/east.infra.svc.cluster.local";

/// The lab, with a daemon on each network. The client is enrolled.
fn lab() -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    for (node, network) in [("node1", "west"), ("node2", "east")] {
        let options = DaemonOptions::default().env("NETWORK", network);
        lab.node(node).start_daemon_with(&options).unwrap();
    }
    lab.enroll(&["shop/client"]).unwrap();
    lab
}

/// The same with an endpoint that has its proxy.
fn enrolled() -> Lab {
    let lab = lab();
    lab.enroll(&["shop/far"]).unwrap();
    lab
}

fn credential(lab: &Lab, identity: &str) -> lab::Credential {
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(60));
    authority.issue(identity, validity).unwrap()
}

/// Starts the gateway on each of its addresses, as `identity`. It passes all ports of the service on to the tunnel port of
/// the endpoint.
fn gateway(lab: &Lab, identity: &str) -> Vec<Server> {
    gateway_to(lab, identity, &format!("{FAR}:{}", hbone::PORT))
}

fn gateway_to(lab: &Lab, identity: &str, to: &str) -> Vec<Server> {
    let pod = lab.pod("infra/east");
    let credential = credential(lab, identity);
    let routes: BTreeMap<_, _> = Service::ALL
        .into_iter()
        .map(|service| {
            (
                format!("{FAR_SERVICE}:{}", service.port()),
                to.parse().unwrap(),
            )
        })
        .collect();
    pod.ports(GATEWAY_PORT)
        .map(|on| Server::start_gateway(&pod, on, &credential, routes.clone()).unwrap())
        .collect()
}

fn update(lab: &Lab, change: impl FnOnce(&mut MeshFile)) {
    lab.control_plane().update(change).unwrap();
    lab.settle().unwrap();
}

/// Announces where the gateway is.
fn announce(lab: &Lab, reference: Gateway) {
    update(lab, |mesh| {
        mesh.workload_mut("shop/far").unwrap().network_gateway = Some(reference);
    });
}

fn by_hostname(name: &str) -> Gateway {
    Gateway {
        address: None,
        hostname: Some(name.to_owned()),
        port: GATEWAY_PORT,
    }
}

fn by_address(ip: &str) -> Gateway {
    Gateway {
        address: Some(ip.parse().unwrap()),
        hostname: None,
        port: GATEWAY_PORT,
    }
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

/// Nothing was in the clear, and no connection went anywhere else than to the gateway.
fn assert_only_to(seen: &lab::Seen, gateway: &str) {
    let gateway: IpAddr = gateway.parse().unwrap();
    let elsewhere = seen.tcp_opened.keys().find(|(ip, _)| *ip != gateway);
    assert_eq!((elsewhere, seen.marker(MARKER)), (None, 0), "{seen:?}");
}

/// Connects in vain: the client's proxy says why, and nothing of it arrives anywhere.
fn assert_refused(lab: &Lab, reason: &str, said: &[&str]) {
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    let report = check(lab, VIP[0]);
    assert_eq!(report.outcome, Outcome::Reset, "{said:?}: {report:?}");
    let line = line(lab, &report);
    assert_eq!(line.field("reason"), reason, "{said:?}: {line:?}");
    for said in said {
        assert!(line.contains(said), "{said:?} in {line:?}");
    }
    assert_only_to(&link.stop().unwrap(), GATEWAY[0]);
    // The gateway may pass on what it likes: as a tunnel nothing arrives.
    let through = [
        ("direction", "inbound"),
        ("protocol", "HBONE"),
        ("reason", "COMPLETE"),
    ];
    let arrived = access::lines(lab.node("node2"), &through);
    assert_eq!(arrived.len(), 0, "{said:?}: {arrived:?}");
}

#[test]
fn a_service_on_another_network_is_reached_through_its_gateway() {
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    let gateways = gateway(&lab, GATEWAY_IDENTITY);
    let client = lab.pod("shop/client");
    for (reference, via) in [
        // A name has the family that the client asked for, an address is what it is.
        (by_address("10.244.2.20"), [GATEWAY[0], GATEWAY[0]]),
        (by_address("10.96.0.20"), [GATEWAY[0], GATEWAY[0]]),
        (by_hostname(GATEWAY_SERVICE), GATEWAY),
    ] {
        announce(&lab, reference);
        for (to, via) in VIP.into_iter().zip(via) {
            let link = client.tap(&[MARKER]).unwrap();
            let report = check(&lab, to);
            assert_eq!(report.outcome, Outcome::Good, "{to}: {report:?}");
            // What is told of the destination is what the far end proved, not the gateway.
            let line = line(&lab, &report);
            let gateway = SocketAddr::new(via.parse().unwrap(), GATEWAY_PORT);
            for (field, expected) in [
                ("dst.addr", gateway.to_string().as_str()),
                ("dst.identity", FAR_IDENTITY),
                ("dst.service", FAR_SERVICE),
                ("reason", "COMPLETE"),
            ] {
                assert_eq!(line.field(field), expected, "{to}: {line:?}");
            }
            assert_only_to(&link.stop().unwrap(), via);
        }
    }
    // The endpoint's proxy sees the client itself, coming from the gateway.
    let fields = [
        ("direction", "inbound"),
        ("src.identity", client.identity()),
    ];
    let node2 = lab.node("node2");
    eventually("all have been told", || {
        access::lines(node2, &fields).len() == 6
    });
    for arrived in access::lines(node2, &fields) {
        let from: SocketAddr = arrived.field("src.addr").parse().unwrap();
        assert_eq!(
            from.ip(),
            lab.pod("infra/east").v4().unwrap(),
            "{arrived:?}"
        );
        assert_eq!(
            arrived.field("dst.orig_addr"),
            format!("{FAR}:7001"),
            "{arrived:?}"
        );
    }
    // The gateway was told whom to connect it with, by the client, and not what for.
    for gateway in &gateways {
        let asked = gateway.connects();
        assert!(!asked.is_empty());
        for connect in asked {
            assert_eq!(connect.authority, format!("{FAR_SERVICE}:7001"));
            assert_eq!(connect.client.as_deref(), Some(client.identity()));
            assert!(connect.headers.contains_key("baggage"));
            assert!(!connect.headers.contains_key("x-forwarded-network"));
        }
        let passed = gateway.passed();
        assert!(!passed.bytes.is_empty());
        for secret in [MARKER, FAR_SERVICE, "west", "k8s.namespace.name"] {
            let has = |bytes: &[u8]| bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!has(&passed.bytes), "the gateway reads {secret:?}");
        }
    }
    // Operators are told of both tunnels.
    let app = SocketAddr::new(VIP[0].parse().unwrap(), 7001);
    let mut held = client.hold(app).unwrap();
    assert_eq!(held.exchange("ready").unwrap().outcome, Outcome::Good);
    let shown = admin::dump(lab.node("node1"));
    let shown = &shown["workloadState"][client.uid()]["connections"]["outbound"][0];
    assert_eq!(shown["protocol"], "DOUBLEHBONE", "{shown}");
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);
}

/// Connections at the same time.
const COUNT: usize = 6;

/// As someone who ends the inner tunnels by itself, and tells what came through them.
#[test]
fn each_connection_has_an_inner_tunnel_of_its_own_and_it_ends_with_it() {
    let lab = lab();
    let far = lab.pod("shop/far");
    let on = SocketAddr::new(far.v4().unwrap(), hbone::PORT);
    let end = Server::start(&far, on, &credential(&lab, FAR_IDENTITY), 200).unwrap();
    let gateways = gateway(&lab, GATEWAY_IDENTITY);
    let client = lab.pod("shop/client");
    let to = SocketAddr::new(VIP[0].parse().unwrap(), Service::Echo.port());
    let mut held: Vec<_> = (0..COUNT).map(|_| client.hold(to).unwrap()).collect();
    for connection in &mut held {
        assert_eq!(connection.exchange(MARKER).unwrap().outcome, Outcome::Good);
    }
    let asked = end.connects();
    assert_eq!(
        (asked.len(), end.handshakes(), end.connections()),
        (COUNT, COUNT, COUNT)
    );
    for (number, connect) in asked.iter().enumerate() {
        assert_eq!(connect.authority, format!("{FAR_SERVICE}:7001"));
        assert_eq!(connect.headers["x-forwarded-network"], "west");
        assert_eq!(connect.client.as_deref(), Some(client.identity()));
        assert_eq!(connect.from.ip(), lab.pod("infra/east").v4().unwrap());
        // One trace for all that is the same connection.
        let outer = &gateways[0].connects()[number];
        assert!(
            asked
                .iter()
                .any(|one| one.headers["traceparent"] == outer.headers["traceparent"])
        );
    }
    // One outer tunnel for each worker thread at most.
    assert!(
        gateways[0].connections() <= 2,
        "{}",
        gateways[0].connections()
    );
    assert_eq!(gateways[0].passed().open, COUNT);

    let ended = |count: usize| {
        eventually("the streams through the gateway end", || {
            let passed = gateways[0].passed();
            assert_eq!(passed.broken, 0);
            (passed.open, passed.ended) == (COUNT - count, count)
        });
    };
    let last = held.pop().unwrap();
    assert_eq!(last.close().unwrap().outcome, Outcome::Good);
    ended(1);
    for connection in &mut held {
        assert_eq!(connection.exchange(MARKER).unwrap().outcome, Outcome::Good);
    }
    // A client that goes away in the middle takes its inner tunnel along, and nobody else's.
    drop(held);
    ended(COUNT);
}

#[test]
fn every_kind_of_conversation_goes_through_two_tunnels() {
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    let gateways = gateway(&lab, GATEWAY_IDENTITY);
    let client = lab.pod("shop/client");
    let vip = VIP[0].parse().unwrap();
    // One of them is for those who say first who they are.
    let services = Service::ALL
        .into_iter()
        .filter(|service| *service != Service::Proxied);
    for service in services {
        let report = client.check(vip, &Check::of(service)).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{service:?}: {report:?}");
    }
    for check in [Check::duplex(24 << 20, 24 << 20), Check::parallel(50)] {
        let report = client.check(vip, &check).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{check:?}: {report:?}");
    }
    eventually("all streams through the gateway end", || {
        gateways[0].passed().open == 0
    });
}

#[test]
fn without_its_gateway_another_network_is_not_reached() {
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    assert_refused(&lab, "PEER_UNREACHABLE", &["10.244.2.20:15010"]);
    // Somebody else is there.
    let other = gateway(&lab, FAR_IDENTITY);
    assert_refused(&lab, "PEER_IDENTITY_MISMATCH", &[FAR_IDENTITY]);
    drop(other);
    // Nobody is behind it, and it says so.
    let blind = gateway_to(&lab, GATEWAY_IDENTITY, &format!("{}:7999", GATEWAY[0]));
    assert_refused(&lab, "PEER_REFUSED", &["503"]);
    drop(blind);
    // Somebody is behind it who hangs up after the first byte.
    let hangs_up = format!("{FAR}:{}", Service::Reset.port());
    let blind = gateway_to(&lab, GATEWAY_IDENTITY, &hangs_up);
    assert_refused(
        &lab,
        "PEER_UNREACHABLE",
        &["the gateway 10.244.2.20:15010 passes it on"],
    );
    drop(blind);
    // Somebody is behind it who does not speak TLS.
    let blind = gateway_to(&lab, GATEWAY_IDENTITY, &format!("{FAR}:7001"));
    assert_refused(
        &lab,
        "PEER_TLS_FAILED",
        &["the gateway 10.244.2.20:15010 passes it on"],
    );
    drop(blind);
    // Somebody else is behind it.
    let right = gateway(&lab, GATEWAY_IDENTITY);
    let names = |names: &[&str]| {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        update(&lab, |mesh| {
            mesh.service_mut("shop/far").unwrap().subject_alt_names = names;
        });
    };
    names(&["spiffe://cluster.local/ns/shop/sa/else"]);
    assert_refused(
        &lab,
        "PEER_IDENTITY_MISMATCH",
        &["the gateway 10.244.2.20:15010 passes it on", FAR_IDENTITY],
    );
    // Without names of the service, nobody may be: the workload stands for whatever the far network has.
    names(&[]);
    assert_refused(&lab, "NO_GATEWAY", &["subject_alt_names"]);
    names(&[FAR_IDENTITY]);
    // The gateway is none of the mesh any more, or never was.
    announce(&lab, by_hostname("infra/none.infra.svc.cluster.local"));
    assert_refused(&lab, "NO_GATEWAY", &["infra/none.infra.svc.cluster.local"]);
    update(&lab, |mesh| {
        mesh.workload_mut("shop/far").unwrap().network_gateway = None;
    });
    assert_refused(&lab, "NO_GATEWAY", &["has no network gateway", "east"]);
    // It was not the network.
    announce(&lab, by_address("10.244.2.20"));
    let report = check(&lab, VIP[0]);
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    drop(right);
}

#[test]
fn policy_of_the_endpoint_judges_the_client_behind_the_gateway() {
    let lab = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    let _gateways = gateway(&lab, GATEWAY_IDENTITY);
    let policy = |principal: &str| {
        let yaml = format!(
            "policies: [{{name: p, namespace: shop, action: DENY, rules: [[[{{principals: ['{principal}']}}]]]}}]"
        );
        let policies = MeshFile::parse("policy", &yaml).unwrap().policies;
        update(&lab, |mesh| mesh.policies = policies);
    };
    policy("cluster.local/ns/infra/sa/gateway");
    let report = check(&lab, VIP[0]);
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    policy("cluster.local/ns/shop/sa/client");
    let report = check(&lab, VIP[0]);
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    let refused = line(&lab, &report);
    assert_eq!(refused.field("reason"), "PEER_DENIED", "{refused:?}");
    assert!(refused.contains("401"), "{refused:?}");
    access::line(lab.node("node2"), &[("reason", "POLICY_DENIED")]);
}
