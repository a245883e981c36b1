//! Proxies that ask for addresses when they are first used, and know no more of the mesh than that.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lab::tester::{Check, Outcome, Report, Service};
use lab::{DaemonOptions, Lab, OUTSIDE_HOST_V4, Validity, hbone};

use crate::access::{self, eventually};
use crate::mesh::MESH;

const MARKER: &str = "only-for-those-who-asked";
const FAR: &str = "10.244.2.10";
const FAR_VIP: &str = "10.96.0.10";

/// A lab of [`MESH`], or another mesh, with a daemon on each node that asks on demand, and every pod enrolled.
fn enrolled(mesh: &str) -> Lab {
    let lab = Lab::from_yaml(mesh).unwrap();
    start_daemons(&lab);
    lab.enroll_all().unwrap();
    lab
}

fn start_daemons(lab: &Lab) {
    for node in lab.nodes() {
        let options = DaemonOptions::default().env("XDS_ON_DEMAND", "true");
        node.start_daemon_with(&options).unwrap();
    }
}

fn check(lab: &Lab, to: &str) -> Report {
    let client = lab.pod("shop/client");
    client
        .check(to.parse().unwrap(), &Check::echo(MARKER))
        .unwrap()
}

fn good(lab: &Lab, to: &str) {
    let report = check(lab, to);
    assert_eq!(report.outcome, Outcome::Good, "{to}: {report:?}");
}

/// How often the client's proxy asked for an address.
fn asked(lab: &Lab, ip: &str) -> usize {
    lab.control_plane().lookups("node1", &format!("/{ip}"))
}

/// Connects to `ip`, which must be refused for want of an answer, without a packet to it.
fn assert_refused_in_time(lab: &Lab, ip: &str) {
    let client = lab.pod("shop/client");
    let link = client.tap(&[MARKER]).unwrap();
    let start = Instant::now();
    let check = Check::echo(MARKER).timeout(Duration::from_secs(15));
    let report = client.check(ip.parse().unwrap(), &check).unwrap();
    let took = start.elapsed();
    assert_eq!(report.outcome, Outcome::Reset, "{ip}: {report:?}");
    assert!(took < Duration::from_secs(10), "{ip}: {took:?}");
    let src = report.local.unwrap().to_string();
    let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
    assert_eq!(line.field("reason"), "LOOKUP_TIMEOUT", "{ip}: {line:?}");
    let seen = link.stop().unwrap();
    let to: IpAddr = ip.parse().unwrap();
    let opened: Vec<_> = seen.tcp_opened.keys().filter(|at| at.0 == to).collect();
    assert_eq!((opened, seen.marker(MARKER)), (vec![], 0), "{ip}: {seen:?}");
}

/// The proxy of the client has said farewell to the control plane that is away.
fn pause_control_plane(lab: &Lab) {
    let lost = |lab: &Lab| lab.node("node1").log().matches("stream lost").count();
    let before = lost(lab);
    lab.control_plane().pause();
    eventually("the daemon notices", || lost(lab) > before);
}

#[test]
fn services_and_pods_are_asked_for_once_and_reached_through_tunnels() {
    let lab = enrolled(MESH);
    let _server = lab.pod("shop/far").serve().unwrap();
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    for to in [FAR_VIP, FAR, "fd00:96::10", "fd00:2::10"] {
        good(&lab, to);
    }
    good(&lab, FAR_VIP);
    let seen = link.stop().unwrap();
    assert_eq!(seen.marker(MARKER), 0, "{seen:?}");
    assert!(seen.opened_to(15008) > 0, "{seen:?}");
    assert_eq!(asked(&lab, FAR_VIP), 1);
    // The service brought its workload, and the workload all its addresses.
    for known in [FAR, "fd00:96::10", "fd00:2::10"] {
        assert_eq!(asked(&lab, known), 0, "{known}");
    }
    // Nobody has told, or asked, about anything else.
    assert_eq!(asked(&lab, "10.244.2.11"), 0);
    // Pods of the client's own node are known unasked.
    let _near = lab.pod("shop/near").serve().unwrap();
    good(&lab, "10.244.1.11");
    assert_eq!(asked(&lab, "10.244.1.11"), 0);
}

#[test]
fn many_at_once_ask_once() {
    let lab = enrolled(MESH);
    let _server = lab.pod("shop/far").serve().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| good(&lab, FAR));
        }
    });
    assert_eq!(asked(&lab, FAR), 1);
}

#[test]
fn an_address_outside_is_reached_in_the_clear_once_the_control_plane_does_not_know_it() {
    let lab = enrolled(MESH);
    let _server = lab.outside().serve().unwrap();
    let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
    good(&lab, OUTSIDE_HOST_V4);
    good(&lab, OUTSIDE_HOST_V4);
    let seen = link.stop().unwrap();
    assert!(seen.marker(MARKER) > 0, "{seen:?}");
    assert_eq!(asked(&lab, OUTSIDE_HOST_V4), 1);
    // A pod that is not enrolled is known, and reached in the clear as well.
    lab.unenroll(&["shop/far"]).unwrap();
    let _far = lab.pod("shop/far").serve().unwrap();
    good(&lab, FAR);
    assert_eq!(asked(&lab, FAR), 1);
}

#[test]
fn without_a_control_plane_what_is_known_works_and_the_rest_is_refused() {
    let lab = enrolled(MESH);
    let _servers = ["shop/far", "bank/other"].map(|pod| lab.pod(pod).serve().unwrap());
    let _outside = lab.outside().serve().unwrap();
    for known in [FAR_VIP, OUTSIDE_HOST_V4] {
        good(&lab, known);
    }
    pause_control_plane(&lab);
    std::thread::scope(|scope| {
        for unknown in ["10.244.2.11", "10.96.0.11"] {
            let lab = &lab;
            scope.spawn(move || assert_refused_in_time(lab, unknown));
        }
    });
    for known in [FAR_VIP, FAR, OUTSIDE_HOST_V4] {
        good(&lab, known);
    }

    // It comes back, is told what nobody has answered yet, and answers.
    lab.control_plane().resume().unwrap();
    eventually("the proxy has the answer", || {
        check(&lab, "10.244.2.11").outcome == Outcome::Good
    });
    assert_eq!(
        asked(&lab, "10.244.2.11"),
        0,
        "it was told as the stream began"
    );
    let answers = lab.control_plane().answers();
    let rejected: Vec<_> = answers.iter().filter(|a| a.rejected.is_some()).collect();
    assert!(rejected.is_empty(), "{rejected:?}");
}

#[test]
fn after_a_reconnect_all_that_was_asked_for_is_followed() {
    let lab = enrolled(MESH);
    let _servers = ["shop/far", "bank/other"].map(|pod| lab.pod(pod).serve().unwrap());
    good(&lab, FAR_VIP);
    let plane = lab.control_plane();
    pause_control_plane(&lab);
    // Meanwhile the service gets another endpoint instead.
    let change = |mesh: &mut lab::MeshFile| {
        let service = mesh.service_mut("shop/far").unwrap();
        service.workloads = vec!["bank/other".to_owned()];
    };
    plane.update(change).unwrap();
    plane.resume().unwrap();
    lab.settle().unwrap();
    let report = check(&lab, FAR_VIP);
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let src = report.local.unwrap().to_string();
    let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
    assert!(line.contains("/sa/other"), "{line:?}");
    assert_eq!(asked(&lab, FAR_VIP), 1);

    // What goes while they talk goes.
    plane
        .update(|mesh| mesh.services.retain(|service| service.name != "far"))
        .unwrap();
    lab.settle().unwrap();
    let _ = check(&lab, FAR_VIP);
    assert_eq!(
        asked(&lab, FAR_VIP),
        2,
        "nobody has it any more, so it is asked for again"
    );
}

#[test]
fn a_pod_that_moves_to_another_address_is_followed() {
    const OLD: &str = "10.244.2.10";
    const NEW: &str = "10.244.2.20";
    let mesh = MESH.replace("[10.244.2.10, 'fd00:2::10']", "[10.244.2.10, 10.244.2.20]");
    let lab = Lab::from_yaml(&mesh).unwrap();
    let announce = |ip: &str| {
        let ip: IpAddr = ip.parse().unwrap();
        let change = |mesh: &mut lab::MeshFile| {
            mesh.workload_mut("shop/far").unwrap().addresses = vec![ip];
        };
        lab.control_plane().update(change).unwrap();
        lab.settle().unwrap();
    };
    announce(OLD);
    start_daemons(&lab);
    lab.enroll_all().unwrap();
    let _server = lab.pod("shop/far").serve().unwrap();
    let tunnels = |to: &str| {
        let link = lab.pod("shop/client").tap(&[MARKER]).unwrap();
        good(&lab, to);
        let seen = link.stop().unwrap();
        assert_eq!(seen.marker(MARKER), 0, "{to}: {seen:?}");
        let opened = seen
            .tcp_opened
            .into_keys()
            .map(|at| SocketAddr::from(at).to_string());
        opened.collect::<Vec<_>>()
    };
    assert_eq!(tunnels(FAR_VIP), [format!("{OLD}:15008")]);

    announce(NEW);
    assert_eq!(tunnels(FAR_VIP), [format!("{NEW}:15008")]);
    // Its address is known with it, and it is in the tunnel that there is.
    assert_eq!(tunnels(NEW), Vec::<String>::new());
    assert_eq!((asked(&lab, FAR_VIP), asked(&lab, NEW)), (1, 0));
    // The old one is nobody's now, which has to be asked first.
    let old = SocketAddr::new(OLD.parse().unwrap(), Service::Echo.port());
    let link = lab.pod("shop/client").tap(&[]).unwrap();
    let report = check(&lab, OLD);
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    assert!(
        link.stop()
            .unwrap()
            .tcp_opened
            .contains_key(&(old.ip(), old.port()))
    );
    assert_eq!(asked(&lab, OLD), 1);
}

#[test]
fn a_connect_by_hostname_has_the_service_of_the_pod_asked_for() {
    let lab = enrolled(MESH);
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();
    let identity = lab.pod("shop/client").identity().to_owned();
    let validity = Validity::of(Duration::from_secs(60));
    let authority = lab.control_plane().authority();
    let credential = authority.issue(&identity, validity).unwrap();
    let client = hbone::Client::from(lab.outside()).with(&credential);
    let client = client.payload("hello");
    let to = (far.v4().unwrap(), hbone::PORT).into();
    let asked = |service: &str| lab.control_plane().lookups("node2", service);
    for (host, status, questions) in [
        ("far.shop.svc.cluster.local", 200, 1),
        ("far.shop.svc.cluster.local", 200, 1),
        // Not one of the pod's: there is nothing to ask.
        ("near.shop.svc.cluster.local", 503, 0),
    ] {
        let answer = client.connect(to, &format!("{host}:7001")).unwrap();
        assert_eq!(answer.unwrap().status, status, "{host}");
        assert_eq!(asked(&format!("shop/{host}")), questions, "{host}");
    }
}

#[test]
fn policies_are_not_on_demand() {
    let mesh = MESH.to_owned()
        + "policies:\n  - {name: nobody, namespace: bank, action: DENY, rules: [[[{not_namespaces: [bank]}]]]}\n";
    let lab = enrolled(&mesh);
    let _server = lab.pod("bank/other").serve().unwrap();
    let report = check(&lab, "10.244.2.11");
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    let denied = access::line(lab.node("node2"), &[("reason", "POLICY_DENIED")]);
    assert!(denied.contains("bank/nobody"), "{denied:?}");
}
