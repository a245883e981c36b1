//! Destinations that the mesh knows by name only: the node asks its own name server.

use std::net::IpAddr;
use std::time::Duration;

use lab::hbone::{self, Server};
use lab::tester::{Check, Outcome, Report, Service};
use lab::{DaemonOptions, Dns, IpFamilies, Lab, OUTSIDE_HOST_V4, OUTSIDE_HOST_V6, Validity};

use crate::access::{self, Access};
use crate::metrics::{scrape, value};

const MARKER: &str = "known-by-name";

/// A service outside the mesh; a virtual machine of the mesh, played by a pod; one behind a gateway that has a name.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: far, namespace: shop, node: node2, service_account: far, addresses: [10.244.2.10, 'fd00:2::10']}
  - {name: lb, namespace: infra, node: node2, service_account: gateway, addresses: [10.244.2.20, 'fd00:2::20'], announce: false}
  - {name: ext, namespace: shop, node: '', pod: false, hostname: db.example.com}
  - {name: vm, namespace: shop, node: '', pod: false, hostname: vm.example.com, service_account: far, protocol: HBONE}
  - {name: gateway, namespace: infra, node: '', pod: false, hostname: lb.example.com, service_account: gateway, protocol: HBONE}
  - {name: remote, namespace: shop, node: '', pod: false, network: east, hostname: unused.example.com, protocol: HBONE, network_gateway: {hostname: infra/gateway.infra.svc.cluster.local}}
services:
  - {name: ext, namespace: shop, addresses: [10.96.0.30, 'fd00:96::30'], ports: {7001: 7001}, workloads: [ext]}
  - {name: vm, namespace: shop, addresses: [10.96.0.31, 'fd00:96::31'], ports: {80: 7001}, workloads: [vm]}
  - {name: gateway, namespace: infra, ports: {15008: 15008}, workloads: [gateway]}
  - {name: remote, namespace: shop, addresses: [10.96.0.32], ports: {7001: 7001}, workloads: [remote], subject_alt_names: ['spiffe://cluster.local/ns/shop/sa/far']}
";
const EXT: [&str; 2] = ["10.96.0.30", "fd00:96::30"];
const VM: [&str; 2] = ["10.96.0.31", "fd00:96::31"];
const OUTSIDE: [&str; 2] = [OUTSIDE_HOST_V4, OUTSIDE_HOST_V6];
const FAR: [&str; 2] = ["10.244.2.10", "fd00:2::10"];

fn enrolled_with(options: &DaemonOptions) -> (Lab, Dns) {
    let lab = Lab::from_yaml(MESH).unwrap();
    let dns = lab.name_server().unwrap();
    for node in lab.nodes() {
        node.start_daemon_with(options).unwrap();
    }
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    (lab, dns)
}

fn enrolled() -> (Lab, Dns) {
    enrolled_with(&DaemonOptions::default())
}

fn check_at(lab: &Lab, to: &str, port: u16) -> Report {
    let to = (to.parse::<IpAddr>().unwrap(), port).into();
    let client = lab.pod("shop/client");
    // Name servers that do not answer take longer than most apps would wait.
    let patient = Check::echo(MARKER).timeout(Duration::from_secs(20));
    client.check_at(to, &patient).unwrap()
}

fn check(lab: &Lab, to: &str) -> Report {
    check_at(lab, to, Service::Echo.port())
}

/// The line of the client's proxy about a connection.
fn line(lab: &Lab, report: &Report) -> Access {
    let src = report.local.unwrap().to_string();
    access::line(lab.node("node1"), &[("src.addr", &src)])
}

/// Connects to `to`; the client's packets go to `arrives` and nowhere else.
fn assert_arrives(lab: &Lab, to: &str, arrives: &str) {
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    let report = check(lab, to);
    assert_eq!(report.outcome, Outcome::Good, "{to}: {report:?}");
    let seen = link.stop().unwrap();
    let opened: Vec<_> = seen.tcp_opened.keys().map(|(ip, _)| *ip).collect();
    assert_eq!(opened, [arrives.parse::<IpAddr>().unwrap()], "{to}");
}

fn assert_refused(lab: &Lab, to: &str, said: &str) {
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    let report = check(lab, to);
    assert_eq!(report.outcome, Outcome::Reset, "{to}: {report:?}");
    let line = line(lab, &report);
    assert_eq!(line.field("reason"), "NAME_UNRESOLVED", "{to}: {line:?}");
    assert!(line.contains(said), "{to}: {said:?} in {line:?}");
    let seen = link.stop().unwrap();
    assert_eq!(
        (seen.tcp_opened.len(), seen.marker(MARKER)),
        (0, 0),
        "{seen:?}"
    );
}

#[test]
fn a_service_with_a_name_is_reached_at_the_name_s_addresses() {
    let (lab, dns) = enrolled();
    let _server = lab.outside().serve().unwrap();
    dns.set("db.example.com", &OUTSIDE);
    for _ in 0..3 {
        for (to, arrives) in EXT.into_iter().zip(OUTSIDE) {
            assert_arrives(&lab, to, arrives);
        }
    }
    // Asked for once, for both kinds of address.
    assert_eq!(dns.asked("db.example.com"), 2);
    let (_, text) = scrape(lab.node("node1"), "/metrics");
    let identity = lab.pod("shop/client").identity().to_owned();
    let needed = [
        ("hostname", "db.example.com"),
        ("source_principal", &identity),
    ];
    let needed = value(&text, "istio_on_demand_dns_total", &needed);
    assert_eq!(needed, Some(6.0), "{text}");
    // A service of one family, whatever the client asks for.
    for (families, arrives) in [
        (IpFamilies::Ipv4Only, OUTSIDE[0]),
        (IpFamilies::Ipv6Only, OUTSIDE[1]),
    ] {
        let change = |mesh: &mut lab::MeshFile| {
            mesh.service_mut("shop/ext").unwrap().ip_families = Some(families);
        };
        lab.control_plane().update(change).unwrap();
        lab.settle().unwrap();
        for to in EXT {
            assert_arrives(&lab, to, arrives);
        }
    }
}

#[test]
fn a_name_of_the_other_family_serves_as_well() {
    let (lab, dns) = enrolled();
    let _server = lab.outside().serve().unwrap();
    dns.set("db.example.com", &[OUTSIDE_HOST_V4]);
    for to in EXT {
        assert_arrives(&lab, to, OUTSIDE_HOST_V4);
    }
}

#[test]
fn without_ipv6_names_have_only_ipv4_addresses() {
    let (lab, dns) = enrolled_with(&DaemonOptions::default().env("IPV6_ENABLED", "false"));
    let _server = lab.outside().serve().unwrap();
    dns.set("db.example.com", &OUTSIDE);
    for to in EXT {
        assert_arrives(&lab, to, OUTSIDE_HOST_V4);
    }
    assert_eq!(dns.asked("db.example.com"), 1);
}

#[test]
fn a_workload_of_the_mesh_with_a_name_is_reached_through_its_tunnel() {
    let (lab, dns) = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    dns.set("vm.example.com", &FAR);
    for (to, arrives) in VM.into_iter().zip(FAR) {
        let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
        let report = check_at(&lab, to, 80);
        assert_eq!(report.outcome, Outcome::Good, "{to}: {report:?}");
        let line = line(&lab, &report);
        let peer = std::net::SocketAddr::new(arrives.parse().unwrap(), hbone::PORT);
        assert_eq!(line.field("dst.addr"), peer.to_string(), "{line:?}");
        assert_eq!(line.field("dst.identity"), lab.pod("shop/far").identity());
        assert_eq!(link.stop().unwrap().marker(MARKER), 0);
    }
    // Whoever is there instead has to prove who it is: a name is no proof.
    dns.set("vm.example.com", &["10.244.2.20"]);
    let lb = lab.pod("infra/lb");
    let validity = Validity::of(Duration::from_secs(60));
    let authority = lab.control_plane().authority();
    let other = authority.issue("spiffe://cluster.local/ns/infra/sa/gateway", validity);
    let on = "10.244.2.20:15008".parse().unwrap();
    let _other = Server::start(&lb, on, &other.unwrap(), 200).unwrap();
    let change = |mesh: &mut lab::MeshFile| {
        mesh.workload_mut("shop/vm").unwrap().hostname = Some("moved.example.com".to_owned());
    };
    dns.set("moved.example.com", &["10.244.2.20"]);
    lab.control_plane().update(change).unwrap();
    lab.settle().unwrap();
    let report = check_at(&lab, VM[0], 80);
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    let refused = line(&lab, &report);
    assert_eq!(
        refused.field("reason"),
        "PEER_IDENTITY_MISMATCH",
        "{refused:?}"
    );
}

#[test]
fn a_network_gateway_may_have_a_name() {
    let (lab, dns) = enrolled();
    let _server = lab.pod("shop/far").serve().unwrap();
    dns.set("lb.example.com", &["10.244.2.20"]);
    let lb = lab.pod("infra/lb");
    let validity = Validity::of(Duration::from_secs(60));
    let authority = lab.control_plane().authority();
    let own = authority.issue("spiffe://cluster.local/ns/infra/sa/gateway", validity);
    let far = lab.pod("shop/far");
    let end = authority.issue(far.identity(), validity).unwrap();
    // The far network's own proxy stands where nothing of this network is.
    let inner = Server::start(&lb, "10.244.2.20:15009".parse().unwrap(), &end, 200).unwrap();
    let routes = [(
        "remote.shop.svc.cluster.local:7001".to_owned(),
        "10.244.2.20:15009".parse().unwrap(),
    )];
    let on = "10.244.2.20:15008".parse().unwrap();
    let _gateway = Server::start_gateway(&lb, on, &own.unwrap(), routes.into()).unwrap();
    let report = check(&lab, "10.96.0.32");
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let line = line(&lab, &report);
    assert_eq!(line.field("dst.addr"), "10.244.2.20:15008", "{line:?}");
    assert_eq!(line.field("dst.identity"), far.identity(), "{line:?}");
    assert_eq!(inner.connects().len(), 1);
    // The endpoint's own name is nobody's business here.
    assert_eq!(dns.asked("unused.example.com"), 0);
}

#[test]
fn a_name_without_a_good_address_is_refused() {
    let (lab, dns) = enrolled();
    // The client's own app would answer, past the proxy's own ports.
    let client = lab.pod("shop/client");
    let _own = client.serve().unwrap();
    assert_refused(&lab, EXT[0], "db.example.com cannot be resolved");
    // It exists from now on, and nobody has to wait until the answer of before is forgotten.
    for (number, bad) in [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "0.0.0.0",
        "169.254.1.1",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "10.244.1.10",
        "fd00:1::10",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("bad{number}.example.com");
        dns.set(&name, &[bad]);
        let change = |mesh: &mut lab::MeshFile| {
            mesh.workload_mut("shop/ext").unwrap().hostname = Some(name.clone());
        };
        lab.control_plane().update(change).unwrap();
        lab.settle().unwrap();
        for to in EXT {
            assert_refused(&lab, to, &name);
        }
    }
}

#[test]
fn without_a_name_server_only_names_are_missed() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    let _servers = [
        lab.outside().serve().unwrap(),
        lab.pod("shop/far").serve().unwrap(),
    ];
    assert_refused(&lab, EXT[0], "db.example.com");
    assert_eq!(check(&lab, FAR[0]).outcome, Outcome::Good);
    // It is there again, and was never needed for anything else.
    let dns = lab.name_server().unwrap();
    dns.set("db.example.com", &OUTSIDE);
    assert_arrives(&lab, EXT[0], OUTSIDE[0]);
}
