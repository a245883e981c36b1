//! Where a stream goes in an ordinary pod, and what app and client learn of each other.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use lab::tester::{Check, Service};
use lab::{DaemonOptions, Lab};

use super::{CLIENT, ask, client, refused, text};
use crate::access;
use crate::mesh::{MESH, enrolled};

const FAR: &str = "10.244.2.10";

#[test]
fn a_name_leads_to_the_target_port_of_its_service() {
    let services =
        "  - {name: many, namespace: shop, ports: {80: 7002, 81: 7001, 82: 0}, workloads: [far]}\n";
    let lab = Lab::from_yaml(&format!("{MESH}{services}")).unwrap();
    lab.node("node2").start_daemon().unwrap();
    lab.enroll(&["shop/far"]).unwrap();
    let _server = lab.pod("shop/far").serve().unwrap();
    let (client, node) = (client(&lab, CLIENT), lab.node("node2"));
    // It is headless: without a tunnel to an app nobody needs an address.
    let many = |port: u16| format!("many.shop.svc.cluster.local:{port}");
    for ip in [FAR, "fd00:2::10"] {
        let answer = text(&ask(&client, ip, &many(80)));
        assert_eq!(answer, "220 at your service\nhello");
        assert_eq!(text(&ask(&client, ip, &many(81))), "hello");
    }
    let at = format!("{FAR}:7002");
    access::line(node, &[("dst.orig_addr", &*at), ("reason", "COMPLETE")]);
    for port in [82, 83, 7001] {
        refused(node, &client, FAR, &many(port), 503, "NO_ROUTE");
    }
}

#[test]
fn apps_and_clients_learn_of_each_other_what_the_operator_wants() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let quiet = DaemonOptions::default()
        .env("ENABLE_ORIG_SRC", "false")
        .env("ENABLE_RESPONSE_BAGGAGE", "false");
    lab.node("node1").start_daemon().unwrap();
    lab.node("node2").start_daemon_with(&quiet).unwrap();
    lab.enroll_all().unwrap();
    let [pod, near, far] = ["shop/client", "shop/near", "shop/far"].map(|key| lab.pod(key));
    let _servers = [near.serve().unwrap(), far.serve().unwrap()];
    let seen = |from: &lab::Place, to| {
        let report = from.check(to, &Check::of(Service::Peer)).unwrap();
        report.seen_as.map(|seen| seen.ip())
    };
    for family in 0..2 {
        assert_eq!(seen(&pod, near.ips()[family]), Some(pod.ips()[family]));
        // By tunnel and in the clear, it is the pod's own address.
        assert_eq!(seen(&pod, far.ips()[family]), Some(far.ips()[family]));
        assert_eq!(
            seen(lab.outside(), far.ips()[family]),
            Some(far.ips()[family])
        );
    }
    let client = client(&lab, CLIENT);
    let told = ask(&client, FAR, "10.244.2.10:7001");
    assert_eq!((told.status, told.headers.get("baggage")), (200, None));
    let told = ask(&client, "10.244.1.11", "10.244.1.11:7001");
    let baggage = told.headers["baggage"].to_str().unwrap();
    assert!(baggage.contains("k8s.pod.name=near"), "{baggage}");
}

#[test]
fn an_app_that_does_not_accept_is_given_ten_seconds() {
    const PORT: u16 = 7999;
    let lab = enrolled().unwrap();
    let far = lab.pod("shop/far");
    let to = SocketAddr::from(([10, 244, 2, 10], PORT));
    // The queue of an app that takes nobody from it, full.
    let full = far.namespace().enter(|| {
        use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage};
        use std::os::fd::AsRawFd as _;
        let (family, flags) = (AddressFamily::Inet, SockFlag::empty());
        let app = socket::socket(family, SockType::Stream, flags, None)?;
        socket::bind(app.as_raw_fd(), &SockaddrStorage::from(to))?;
        socket::listen(&app, Backlog::new(0)?)?;
        Ok::<_, nix::Error>(TcpListener::from(app))
    });
    let _app = full.unwrap().unwrap();
    let queued = far.namespace().connect(to, Duration::from_secs(1));
    let _queued = queued.unwrap();
    let client = client(&lab, CLIENT).timeout(Duration::from_secs(20));
    let node = lab.node("node2");
    refused(node, &client, FAR, &to.to_string(), 503, "APP_UNREACHABLE");
    let line = access::line(node, &[("reason", "APP_UNREACHABLE")]);
    assert!(line.contains("timed out after 10s"), "{line:?}");
}
