//! The switches for older and for stricter cryptography.

use std::net::SocketAddr;
use std::time::Duration;

use lab::hbone::{self, Client, Server, Stage};
use lab::tester::{Check, Outcome, Service};
use lab::{DaemonOptions, Lab, Validity};

use crate::access;
use crate::mesh::MESH;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
/// `other` is announced as reachable by HBONE, without a node proxy in front of it.
const OTHER: &str = "service_account: other, ";

fn lab(options: &DaemonOptions) -> Lab {
    let mesh = MESH.replace(OTHER, &format!("{OTHER} protocol: HBONE, "));
    let lab = Lab::from_yaml(&mesh).unwrap();
    for node in lab.nodes() {
        node.start_daemon_with(options).unwrap();
    }
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    lab
}

fn minute() -> Validity {
    Validity::of(Duration::from_secs(60))
}

#[test]
fn tls_1_2_is_spoken_both_ways_where_it_is_allowed() {
    let lab = lab(&DaemonOptions::default().env("TLS12_ENABLED", "true"));
    let (client, far, other) = (
        lab.pod("shop/client"),
        lab.pod("shop/far"),
        lab.pod("bank/other"),
    );
    let _server = far.serve().unwrap();
    let authority = lab.control_plane().authority();
    // In. The strangers of `hostile` show that without the switch it is refused.
    let app = format!("{}:{}", far.v4().unwrap(), Service::Echo.port());
    let answer = Client::from(lab.outside())
        .with(&authority.issue(CLIENT, minute()).unwrap())
        .tls12()
        .payload("hello")
        .connect((far.v4().unwrap(), hbone::PORT).into(), &app)
        .unwrap()
        .unwrap();
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (200, &b"hello"[..])
    );
    assert!(answer.tls.contains("TLSv1_2"), "{}", answer.tls);
    // Out.
    let credential = authority.issue(other.identity(), minute()).unwrap();
    let on: SocketAddr = (other.v4().unwrap(), hbone::PORT).into();
    let server = Server::start_tls12(&other, on, &credential, 200).unwrap();
    let report = client
        .check(other.v4().unwrap(), &Check::echo("hello"))
        .unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    assert_eq!(server.connects().len(), 1);
    let line = access::line(lab.node("node1"), &[("dst.identity", other.identity())]);
    assert!(
        line.field("tls.cipher")
            .starts_with("TLS_ECDHE_ECDSA_WITH_AES_"),
        "{line:?}"
    );
    // Between two who can do better, it is not.
    let report = client
        .check(far.v4().unwrap(), &Check::echo("hello"))
        .unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let line = access::line(lab.node("node1"), &[("dst.identity", far.identity())]);
    assert_eq!(line.field("tls.cipher"), "TLS_AES_128_GCM_SHA256");
}

#[test]
fn post_quantum_only_refuses_who_cannot() {
    let lab = lab(&DaemonOptions::default().env("COMPLIANCE_POLICY", "pqc"));
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let report = client
        .check(far.v4().unwrap(), &Check::echo("hello"))
        .unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    let line = access::line(lab.node("node1"), &[("dst.identity", far.identity())]);
    assert_eq!(line.field("tls.key_exchange"), "X25519MLKEM768");

    let credential = lab
        .control_plane()
        .authority()
        .issue(CLIENT, minute())
        .unwrap();
    let app = format!("{}:{}", far.v4().unwrap(), Service::Echo.port());
    let to = (far.v4().unwrap(), hbone::PORT).into();
    let from = Client::from(lab.outside())
        .with(&credential)
        .payload("hello");
    let refusal = from
        .clone()
        .classic()
        .connect(to, &app)
        .unwrap()
        .unwrap_err();
    assert_eq!(refusal.stage, Stage::Tls, "{refusal:?}");
    access::line(lab.node("node2"), &[("reason", "PEER_TLS_FAILED")]);
    assert_eq!(from.connect(to, &app).unwrap().unwrap().status, 200);
}
