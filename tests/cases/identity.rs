//! Identities: each connection is made and taken as the pod's own, with certificates that come from the CA in time
//! or not at all.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lab::tester::{Check, Outcome, Service};
use lab::{CaMode, Lab, Pod, Validity};

use crate::access::{self, eventually};
use crate::mesh::{MESH, enrolled};

/// How long a connection may wait for what it needs before it is refused, with something for a busy machine.
pub(crate) const BOUND: Duration = Duration::from_millis(5000 + 1500);

/// Pods of two nodes that share a service account.
const SHARED: &str = "
workloads:
  - {name: one, namespace: shop, node: node1, service_account: shared, addresses: [10.244.1.10]}
  - {name: two, namespace: shop, node: node1, service_account: shared, addresses: [10.244.1.11]}
  - {name: three, namespace: shop, node: node2, service_account: shared, addresses: [10.244.2.10]}
  - {name: server, namespace: shop, node: node2, service_account: server, addresses: [10.244.2.11]}
";

/// A connection that the pod's own proxy has taken; whatever it does next, it does so soon.
pub(crate) fn open(from: &Pod, to: SocketAddr) -> TcpStream {
    from.connect(to, Duration::from_secs(2)).unwrap()
}

/// Nothing has come of the connection yet, good or bad.
pub(crate) fn still_waits(connection: &mut TcpStream) -> bool {
    connection
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    // Unlike a plain read, this goes on after a signal.
    let read = connection.read_exact(&mut [0]);
    read.is_err_and(|err| matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

pub(crate) fn echo(connection: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    connection
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    connection.write_all(text)?;
    let mut answer = vec![0; text.len()];
    connection.read_exact(&mut answer)?;
    assert_eq!(answer, text);
    Ok(())
}

#[test]
fn both_nodes_log_who_called_whom() {
    let lab = enrolled().unwrap();
    let pods = ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let [client, near, far] = &pods;
    let other = lab.pod("bank/other");
    let _servers = [far.serve().unwrap(), other.serve().unwrap()];
    for (from, to) in [(client, far), (near, &other), (near, far)] {
        let report = from
            .check(to.v4().unwrap(), &Check::of(Service::Peer))
            .unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        let seen_as = report.local.unwrap().to_string();
        let out = access::line(
            lab.node("node1"),
            &[("direction", "outbound"), ("src.addr", &seen_as)],
        );
        // The port that the client used is its own node's business: the stream is told apart by its trace.
        let trace = out.field("trace").to_owned();
        let inbound = access::line(
            lab.node("node2"),
            &[("direction", "inbound"), ("trace", &trace)],
        );
        for line in [&out, &inbound] {
            assert_eq!(line.field("src.identity"), from.identity(), "{line:?}");
            assert_eq!(line.field("dst.identity"), to.identity(), "{line:?}");
            assert_eq!(line.field("reason"), "COMPLETE", "{line:?}");
            assert!(line.field("tls.cipher").starts_with("TLS_AES_"), "{line:?}");
        }
        assert_eq!(out.field("pod"), from.key());
        assert_eq!(inbound.field("pod"), to.key());
    }
}

#[test]
fn an_identity_gets_one_certificate_per_node_whoever_needs_it() {
    let lab = Lab::from_yaml(SHARED).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    let server = lab.pod("shop/server");
    let _server = server.serve().unwrap();
    let to = server.v4().unwrap();
    // At once, so that all of them find no certificate yet; both workers of a node have their share.
    thread::scope(|scope| {
        let asking: Vec<_> = ["one", "two", "three"]
            .iter()
            .map(|name| lab.pod(&format!("shop/{name}")))
            .map(|pod| scope.spawn(move || pod.check(to, &Check::parallel(20))))
            .collect();
        for asked in asking {
            let report = asked.join().unwrap().unwrap();
            assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        }
    });
    let mut issued: Vec<_> = lab
        .control_plane()
        .issued()
        .into_iter()
        .map(|issued| (issued.node, issued.identity))
        .collect();
    issued.sort();
    let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let expected = [
        ("node1", "shared"),
        ("node2", "server"),
        ("node2", "shared"),
    ];
    assert_eq!(
        issued,
        expected.map(|(node, account)| (node.to_owned(), id(account)))
    );
    assert_eq!(lab.control_plane().refused(), []);
}

#[test]
fn certificates_are_there_before_the_first_connection() {
    let mesh = MESH.replace(
        "service_account: near,",
        "service_account: near, announce: false,",
    );
    let lab = Lab::from_yaml(&mesh).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    let plane = lab.control_plane();
    let issued = |key: &str| plane.issued_for(lab.pod(key).identity());
    for key in ["shop/client", "shop/far", "bank/other"] {
        eventually("a certificate without any traffic", || issued(key) == 1);
    }
    // Its trust domain is not known yet, and so not its identity.
    assert_eq!(issued("shop/near"), 0);
    plane
        .update(|mesh| mesh.workload_mut("shop/near").unwrap().announce = true)
        .unwrap();
    eventually("the certificate of a pod that is known now", || {
        issued("shop/near") == 1
    });
    assert_eq!(plane.refused(), []);
}

#[test]
fn certificates_are_renewed_and_nobody_notices() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.control_plane().limit_certificates(Validity {
        back_dated: Duration::ZERO,
        lifetime: Duration::from_secs(4),
    });
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    let [client, far] = ["client", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let _server = far.serve().unwrap();
    let ports: Vec<_> = far.ports(Service::Echo.port()).collect();
    let mut held = client.hold(ports[0]).unwrap();
    let plane = lab.control_plane();
    let ends = |pod: &Pod| {
        let issued = plane.issued().into_iter();
        let first = issued
            .clone()
            .find(|issued| issued.identity == pod.identity());
        first.unwrap().not_after
    };
    let first_end = ends(&client).max(ends(&far));
    while SystemTime::now() <= first_end + Duration::from_secs(1) {
        let report = held.exchange("still there").unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        let report = client
            .check_at(ports[0], &Check::echo("in the tunnel"))
            .unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        thread::sleep(Duration::from_millis(50));
    }
    // The other address is another tunnel: its handshake needs certificates that are good now.
    let report = client.check_at(ports[1], &Check::echo("anew")).unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    for pod in [&client, &far] {
        let times = plane.issued_for(pod.identity());
        assert!((2..=5).contains(&times), "{} got {times}", pod.key());
    }
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);
}

#[test]
fn the_first_connection_waits_for_a_good_certificate() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    plane.set_ca_mode(CaMode::Unavailable);
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let mut connection = open(&client, (far.v4().unwrap(), Service::Echo.port()).into());
    assert!(still_waits(&mut connection));
    // What is for somebody else is as good as nothing.
    plane.set_ca_mode(CaMode::WrongIdentity);
    eventually("a certificate for somebody else", || {
        plane.issued_for(client.identity()) > 0
    });
    assert!(still_waits(&mut connection));
    plane.set_ca_mode(CaMode::Sign);
    echo(&mut connection, b"at last").unwrap();
    let log = lab.node("node1").log();
    assert!(log.contains("certificate request failed"), "{log}");
}

#[test]
fn without_a_certificate_nothing_leaves_and_nothing_enters() {
    const MARKER: &str = "never-in-the-clear";
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.control_plane().set_ca_mode(CaMode::Hang);
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[MARKER]).unwrap();
    let foreign = lab
        .control_plane()
        .authority()
        .issue(client.identity(), Validity::of(Duration::from_secs(60)))
        .unwrap();
    let from_outside = lab::hbone::Client::from(lab.outside()).with(&foreign);
    let [v4, _] = [far.v4().unwrap(), far.v6().unwrap()];
    thread::scope(|scope| {
        let report = scope.spawn(|| client.check(v4, &Check::echo(MARKER)));
        let answer = scope
            .spawn(|| from_outside.connect((v4, lab::hbone::PORT).into(), &format!("{v4}:7001")));
        let report = report.join().unwrap().unwrap();
        assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
        assert!(
            u128::from(report.elapsed_ms) < BOUND.as_millis(),
            "{report:?}"
        );
        answer.join().unwrap().unwrap().unwrap_err();
    });
    let refused = [("pod", "shop/client"), ("reason", "IDENTITY_UNAVAILABLE")];
    let line = access::line(lab.node("node1"), &refused);
    assert!(line.contains(client.identity()), "{line:?}");
    let refused = [("pod", "shop/far"), ("reason", "IDENTITY_UNAVAILABLE")];
    access::line(lab.node("node2"), &refused);
    let seen = link.stop().unwrap();
    assert_eq!(
        (
            seen.marker(MARKER),
            seen.opened_to(7001),
            seen.opened_to(15008)
        ),
        (0, 0, 0)
    );
}

#[test]
fn a_daemon_with_a_wrong_token_says_so_and_recovers() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    let file = plane.token_file("node1");
    let token = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "not the token").unwrap();
    lab.start_daemons().unwrap();
    let node = lab.node("node1");
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    node.daemon(|daemon| daemon.enroll(&client)).unwrap();
    let log = || node.log();
    eventually("an error that names the token", || {
        let log = log();
        let mut lost = log.lines().filter(|line| line.contains("stream lost"));
        lost.any(|line| line.contains("Unauthenticated") && line.contains(&*file.to_string_lossy()))
    });
    assert!(!log().contains("not the token"));
    assert!(!plane.connected().contains(&"node1".to_owned()));

    std::fs::write(&file, token).unwrap();
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    let _server = far.serve().unwrap();
    let report = client
        .check(far.v4().unwrap(), &Check::echo("hello"))
        .unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
}

#[test]
fn a_pod_nobody_announced_is_refused_until_it_is() {
    const MARKER: &str = "who-is-this";
    let mesh = MESH.replace(
        "service_account: client,",
        "service_account: client, announce: false,",
    );
    let lab = Lab::from_yaml(&mesh).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [far.serve().unwrap(), client.serve().unwrap()];
    let link = client.tap(&[MARKER]).unwrap();
    let (to, own) = (far.v4().unwrap(), client.v4().unwrap());
    let started = Instant::now();
    thread::scope(|scope| {
        let out = scope.spawn(|| client.check(to, &Check::echo(MARKER)));
        let outside = scope.spawn(|| lab.outside().check(own, &Check::echo("hello")));
        for report in [out, outside] {
            let report = report.join().unwrap().unwrap();
            assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
        }
    });
    assert!(started.elapsed() < BOUND, "{:?}", started.elapsed());
    let node = lab.node("node1");
    for direction in ["outbound", "inbound"] {
        let refused = [("direction", direction), ("reason", "WORKLOAD_UNKNOWN")];
        let line = access::line(node, &refused);
        assert!(line.contains("shop/client"), "{line:?}");
    }
    assert_eq!(link.stop().unwrap().marker(MARKER), 0);

    let mut connection = open(&client, (to, Service::Echo.port()).into());
    assert!(still_waits(&mut connection));
    lab.control_plane()
        .update(|mesh| mesh.workload_mut("shop/client").unwrap().announce = true)
        .unwrap();
    echo(&mut connection, b"there I am").unwrap();
}
