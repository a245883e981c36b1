//! Peers that are not what they should be: strangers who call 15008, impostors who answer there, clients of the mesh
//! who ask for what is not theirs, and crowds that never say a word.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use http::Method;
use lab::hbone::{self, Client, Server, Stage};
use lab::tester::{Check, Outcome, Service};
use lab::{Authority, Credential, Lab, Pod, Validity};

use crate::access;
use crate::mesh::enrolled;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// For a minute from now.
fn minute() -> Validity {
    Validity::of(Duration::from_secs(60))
}

/// What the mesh's own authority would give somebody of this name.
fn genuine(lab: &Lab, identity: &str) -> Credential {
    let authority = lab.control_plane().authority();
    authority.issue(identity, minute()).unwrap()
}

fn hbone_port(pod: &Pod) -> SocketAddr {
    (pod.v4().unwrap(), hbone::PORT).into()
}

#[test]
fn strangers_get_no_answer_on_15008() {
    let lab = enrolled().unwrap();
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();
    let stranger = Authority::new("stranger").unwrap();
    let unknown_ca = stranger.issue(CLIENT, minute()).unwrap();
    let long_ago = Validity {
        back_dated: Duration::from_secs(3600),
        lifetime: Duration::ZERO,
    };
    let authority = lab.control_plane().authority();
    let expired = authority.issue(CLIENT, long_ago).unwrap();
    // Certificates know seconds, and the last one still counts.
    let surely_expired = Instant::now() + Duration::from_millis(1100);
    let good = genuine(&lab, CLIENT);
    let from = || Client::from(lab.outside());
    let tls = "PEER_TLS_FAILED";
    let identity = "PEER_IDENTITY_MISMATCH";
    let strangers = [
        ("no certificate", from(), tls),
        ("unknown CA", from().with(&unknown_ca), tls),
        ("TLS 1.2", from().with(&good).tls12(), tls),
        ("no HTTP/2", from().with(&good).alpn(&["http/1.1"]), tls),
        (
            "another trust domain",
            from().with(&genuine(&lab, "spiffe://cluster.remote/ns/shop/sa/client")),
            identity,
        ),
        (
            "our trust domain as a part of another",
            from().with(&genuine(
                &lab,
                "spiffe://cluster.local.evil/ns/shop/sa/client",
            )),
            identity,
        ),
        (
            "no SPIFFE id",
            from().with(&genuine(&lab, "https://cluster.local/ns/shop/sa/client")),
            identity,
        ),
        ("expired", from().with(&expired), tls),
    ];
    let told = |reason| access::lines(lab.node("node2"), &[("reason", reason)]).len();
    for (who, client, reason) in strangers {
        if who == "expired" {
            thread::sleep(surely_expired.saturating_duration_since(Instant::now()));
        }
        for app in far.ports(Service::Echo.port()) {
            let to = SocketAddr::new(app.ip(), hbone::PORT);
            let client = client.clone().payload("let me in");
            let before = told(reason);
            let refused = client.connect(to, &app.to_string()).unwrap();
            let refusal = refused.expect_err(who);
            assert_eq!(refusal.stage, Stage::Tls, "{who}: {refusal:?}");
            access::eventually(who, || told(reason) == before + 1);
        }
    }
    // It is the certificate that was missing, nothing else.
    for app in far.ports(Service::Echo.port()) {
        let to = SocketAddr::new(app.ip(), hbone::PORT);
        let client = from().with(&good).payload("let me in");
        let answer = client.connect(to, &app.to_string()).unwrap().unwrap();
        assert_eq!((answer.status, &*answer.body), (200, &b"let me in"[..]));
        assert_eq!(answer.server.as_deref(), Some(far.identity()));
    }
    access::eventually("those two are told", || {
        access::lines(lab.node("node2"), &[("dst.identity", far.identity())]).len() == 2
    });
}

#[test]
fn an_impostor_on_15008_hears_nothing() {
    const MARKER: &str = "for-the-real-one-only";
    // Announced as reachable by HBONE, without a node proxy in front.
    let fakes = ["real", "other-name", "other-domain", "other-ca"];
    let mut mesh =
        "workloads:\n  - {name: client, namespace: shop, node: node1, service_account: client, \
                    addresses: [10.244.1.10]}\n"
            .to_owned();
    let mut services = "services:\n".to_owned();
    for (name, number) in fakes.iter().zip(10..) {
        mesh += &format!(
            "  - {{name: {name}, namespace: shop, node: node2, service_account: fake, addresses: [10.244.2.{number}], \
             protocol: HBONE}}\n"
        );
        services += &format!(
            "  - {{name: {name}, namespace: shop, addresses: [10.96.0.{number}], ports: {{7001: 7001}}, workloads: [{name}]}}\n"
        );
    }
    let lab = Lab::from_yaml(&(mesh + &services)).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client"]).unwrap();
    let client = lab.pod("shop/client");
    let fake = "spiffe://cluster.local/ns/shop/sa/fake";
    let stranger = Authority::new("stranger").unwrap();
    let link = lab.tap("node1", "node2", &[MARKER]).unwrap();
    for (name, credential, reason) in [
        ("real", genuine(&lab, fake), "COMPLETE"),
        (
            "other-name",
            genuine(&lab, "spiffe://cluster.local/ns/shop/sa/faker"),
            "PEER_IDENTITY_MISMATCH",
        ),
        (
            "other-domain",
            genuine(&lab, "spiffe://cluster.remote/ns/shop/sa/fake"),
            "PEER_IDENTITY_MISMATCH",
        ),
        (
            "other-ca",
            stranger.issue(fake, minute()).unwrap(),
            "PEER_TLS_FAILED",
        ),
    ] {
        let pod = lab.pod(&format!("shop/{name}"));
        let vip = lab.control_plane().mesh().services[..]
            .iter()
            .find(|service| service.name == name)
            .unwrap()
            .addresses[0];
        let _app = pod.serve().unwrap();
        let server = Server::start(&pod, hbone_port(&pod), &credential, 200).unwrap();
        for ip in [pod.v4().unwrap(), vip] {
            let report = client.check(ip, &Check::echo(MARKER)).unwrap();
            let src = report.local.unwrap().to_string();
            let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
            assert_eq!(line.field("reason"), reason, "{name}: {line:?}");
            let expected = match name {
                "real" => Outcome::Good,
                _ => Outcome::Reset,
            };
            assert_eq!(report.outcome, expected, "{name}: {report:?}");
        }
        let connects = server.connects();
        if name == "real" {
            assert_eq!(connects[0].authority, "10.244.2.10:7001");
            assert_eq!(connects[0].client.as_deref(), Some(client.identity()));
        } else {
            assert_eq!((server.connections(), connects.len()), (2, 0), "{name}");
        }
    }
    let seen = link.stop().unwrap();
    assert_eq!((seen.marker(MARKER), seen.opened_to(7001)), (0, 0));
}

#[test]
fn a_connect_for_anything_but_the_pod_is_refused() {
    let lab = enrolled().unwrap();
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();
    let good = genuine(&lab, CLIENT);
    let client = Client::from(lab.outside()).with(&good);
    let ask = |client: &Client, authority: &str| {
        let client = client.clone().payload("hello");
        client
            .connect(hbone_port(&far), authority)
            .unwrap()
            .unwrap()
    };
    for (authority, status, reason) in [
        // Addresses that are not the one this connection came to.
        ("10.244.2.11:7001", 400, "BAD_REQUEST"),
        ("[fd00:2::10]:7001", 400, "BAD_REQUEST"),
        ("10.96.0.10:7001", 400, "BAD_REQUEST"),
        ("127.0.0.1:7001", 400, "BAD_REQUEST"),
        ("0.0.0.0:7001", 400, "BAD_REQUEST"),
        // No address with a port, nor a name with one.
        ("10.244.2.10", 400, "BAD_REQUEST"),
        ("10.244.2.10:0", 400, "BAD_REQUEST"),
        ("10.244.2.10:65537", 400, "BAD_REQUEST"),
        ("10.244.2.10:7001x", 400, "BAD_REQUEST"),
        ("me@10.244.2.10:7001", 400, "BAD_REQUEST"),
        ("far.shop.svc.cluster.local", 400, "BAD_REQUEST"),
        ("[fd00:2::10]", 400, "BAD_REQUEST"),
        ("nonsense", 400, "BAD_REQUEST"),
        // The proxy's own ports.
        ("10.244.2.10:15001", 503, "LOOP"),
        ("10.244.2.10:15006", 503, "LOOP"),
        ("10.244.2.10:15008", 503, "LOOP"),
        // Nobody there.
        ("10.244.2.10:7999", 503, "APP_UNREACHABLE"),
        ("nowhere.shop.svc.cluster.local:7001", 503, "NO_ROUTE"),
        ("far.shop.svc.cluster.local:9999", 503, "NO_ROUTE"),
    ] {
        let before = access::lines(lab.node("node2"), &[("reason", reason)]).len();
        let answer = ask(&client, authority);
        assert_eq!(answer.status, status, "{authority}: {answer:?}");
        assert_eq!(answer.body, b"", "{authority}");
        access::eventually(authority, || {
            access::lines(lab.node("node2"), &[("reason", reason)]).len() == before + 1
        });
    }
    for method in [Method::GET, Method::POST, Method::OPTIONS] {
        let answer = ask(&client.clone().method(method), "10.244.2.10:7001");
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    for authority in [
        "10.244.2.10:7001",
        "far.shop.svc.cluster.local:7001",
        "[::ffff:10.244.2.10]:7001",
    ] {
        let answer = ask(&client, authority);
        assert_eq!(answer.status, 200, "{authority}: {answer:?}");
        assert_eq!(answer.body, b"hello", "{authority}");
    }
}

#[test]
fn a_crowd_that_says_nothing_keeps_nobody_waiting() {
    const CROWD: usize = 200;
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let to = hbone_port(&far);
    // Some say nothing at all, some begin and stop: the first bytes of a record with a ClientHello.
    let crowd = lab.outside().namespace().enter(|| {
        let connect = |number: usize| {
            let mut connection = TcpStream::connect(to)?;
            connection.write_all(&[0x16, 3, 1, 2, 0][..(number % 2) * 5])?;
            Ok(connection)
        };
        (0..CROWD).map(connect).collect::<std::io::Result<Vec<_>>>()
    });
    let crowd = crowd.unwrap().unwrap();
    // Both of the node's workers have their share of the crowd, and one of these.
    thread::scope(|scope| {
        let asking: Vec<_> = (0..6)
            .map(|_| {
                let client = Client::from(lab.outside()).with(&genuine(&lab, CLIENT));
                let client = client.timeout(Duration::from_secs(3));
                scope.spawn(move || client.connect(to, "10.244.2.10:7001"))
            })
            .collect();
        for asked in asking {
            assert_eq!(asked.join().unwrap().unwrap().unwrap().status, 200);
        }
    });
    let check = Check::echo("excuse me").timeout(Duration::from_secs(3));
    let report = client.check(far.v4().unwrap(), &check).unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    drop(crowd);
}
