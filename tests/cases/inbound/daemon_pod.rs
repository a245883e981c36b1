//! The daemon's own tunnel port: clients in the mesh read its metrics through it, and reach nothing else.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use lab::hbone::{self, Client, Stage};
use lab::{DaemonOptions, Lab};

use super::{CLIENT, client, refused};
use crate::access;
use crate::mesh::MESH;

/// The address of node2, and its daemon's pod as the control plane announces it.
const NODE: &str = "172.18.0.2";
const PROXY: &str = "
  - {name: ztunnel-node2, namespace: istio-system, node: node2, service_account: ztunnel, addresses: [172.18.0.2], protocol: HBONE, pod: false}
services:
  - {name: proxies, namespace: istio-system, addresses: [10.96.0.90], ports: {80: 15020, 81: 15021}, workloads: [ztunnel-node2]}";
const IDENTITY: &str = "spiffe://cluster.local/ns/istio-system/sa/ztunnel";
const STATS: u16 = 15020;
const METRICS: &str = "\nistio_build{component=\"ztunnel\",";
const PATIENCE: Duration = Duration::from_secs(10);

fn lab(policies: &str) -> Lab {
    let mesh = MESH.replacen("\nservices:", PROXY, 1);
    let lab = Lab::from_yaml(&format!("{mesh}{policies}")).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client"]).unwrap();
    lab
}

#[test]
fn metrics_are_read_through_a_tunnel_and_nothing_else_is() {
    let lab = lab("");
    // A scraper in the mesh, which knows of no tunnel: by address, and by a service.
    let pod = lab.pod("shop/client");
    for to in [
        SocketAddr::from(([172, 18, 0, 2], STATS)),
        ([10, 96, 0, 90], 80).into(),
    ] {
        let mut connection = pod.connect(to, PATIENCE).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{to}: {answer}");
        assert!(answer.contains(METRICS), "{to}: {answer}");
        let src = connection.local_addr().unwrap().to_string();
        drop(connection);
        let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
        assert_eq!(
            line.field("dst.addr"),
            format!("{NODE}:{}", hbone::PORT),
            "{line:?}"
        );
        assert_eq!(line.field("dst.identity"), IDENTITY, "{line:?}");
    }
    let node = lab.node("node2");
    let at = format!("{NODE}:{STATS}");
    let served = [
        ("dst.orig_addr", &*at),
        ("src.identity", CLIENT),
        ("pod", "istio-system/ztunnel-node2"),
    ];
    access::eventually("both are told", || access::lines(node, &served).len() == 2);

    let good = client(&lab, CLIENT);
    for (authority, status, reason) in [
        ("172.18.0.2:15021", 400, "BAD_REQUEST"),
        ("172.18.0.2:15000", 400, "BAD_REQUEST"),
        ("172.18.0.2:22", 400, "BAD_REQUEST"),
        ("127.0.0.1:15020", 400, "BAD_REQUEST"),
        ("10.96.0.90:15020", 400, "BAD_REQUEST"),
        ("10.244.2.10:7001", 400, "BAD_REQUEST"),
        (
            "proxies.istio-system.svc.cluster.local:81",
            400,
            "BAD_REQUEST",
        ),
        ("proxies.istio-system.svc.cluster.local:82", 503, "NO_ROUTE"),
        ("172.18.0.2:15008", 503, "LOOP"),
        ("172.18.0.2:15001", 503, "LOOP"),
    ] {
        refused(node, &good, NODE, authority, status, reason);
    }
    let stranger = Client::from(lab.outside());
    let to = SocketAddr::from(([172, 18, 0, 2], hbone::PORT));
    let refusal = stranger.connect(to, &at).unwrap().unwrap_err();
    assert_eq!(refusal.stage, Stage::Tls, "{refusal:?}");
}

#[test]
fn policy_says_who_reads_metrics() {
    let lab = lab(
        "policies:\n  - {name: scrapers, namespace: istio-system, rules: [[[{principals: [cluster.local/ns/shop/sa/client], destination_ports: [15020]}]]]}\n",
    );
    let at = format!("{NODE}:{STATS}");
    let scraper = client(&lab, CLIENT).payload("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    let to = SocketAddr::from(([172, 18, 0, 2], hbone::PORT));
    let answer = scraper.connect(to, &at).unwrap().unwrap();
    assert!(super::text(&answer).contains(METRICS), "{answer:?}");
    let other = client(&lab, "spiffe://cluster.local/ns/shop/sa/near");
    refused(lab.node("node2"), &other, NODE, &at, 401, "POLICY_DENIED");
}

#[test]
fn a_daemon_that_does_not_know_its_own_name_has_no_tunnel_port() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let options = DaemonOptions::default().env("SERVICE_ACCOUNT", "");
    lab.node("node2").start_daemon_with(&options).unwrap();
    let to = SocketAddr::from(([172, 18, 0, 2], hbone::PORT));
    let refusal = client(&lab, CLIENT).connect(to, "172.18.0.2:15020");
    let refusal = refusal.unwrap().unwrap_err();
    assert_eq!(refusal.stage, Stage::Tcp, "{refusal:?}");
}
