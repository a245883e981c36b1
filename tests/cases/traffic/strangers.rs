//! Enrolled pods and those who are not: hosts outside, pods that stay out of the mesh.

use std::net::{IpAddr, SocketAddr};

use lab::tester::{Check, Report, Service};
use lab::{Lab, Place};

use super::wire::assert_plaintext;
use super::{FAR_SERVICE, OUTSIDE_HOST, good, ip, own_address};
use crate::mesh::{MESH, enrolled};

const MARKER: &str = "a word in public";

/// `from` reaches the tester at `to`, which sees it as `seen_as`.
fn talks(from: &Place, to: IpAddr, seen_as: IpAddr) -> Report {
    good(
        from,
        (to, Service::Echo.port()).into(),
        &Check::echo(MARKER),
    );
    let at = SocketAddr::new(to, Service::Peer.port());
    let check = Check::of(Service::Peer).from_ip(seen_as);
    let report = good(from, at, &check);
    assert_eq!(report.peer, Some(at), "whom {} sees", from.name());
    let server_saw = report.seen_as.unwrap().ip();
    assert_eq!(server_saw, seen_as, "{} by {to}", from.name());
    report
}

/// The proxy stood in between: it has another port than the client.
fn assert_captured(report: &Report) {
    let port = |address: Option<SocketAddr>| address.map(|address| address.port());
    assert_ne!(port(report.seen_as), port(report.local), "{report:?}");
}

/// A lab of [`MESH`] with a daemon on each node, where only `pods` are enrolled.
fn enrolled_only(pods: &[&str]) -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(pods).unwrap();
    lab
}

#[test]
fn a_host_outside_reaches_an_enrolled_pod_and_is_seen_as_itself() {
    let lab = enrolled().unwrap();
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();
    for (&to, from) in far.ips().iter().zip(OUTSIDE_HOST.map(ip)) {
        assert_captured(&talks(lab.outside(), to, from));
    }
}

#[test]
fn an_enrolled_pod_reaches_a_host_outside_and_is_seen_as_itself() {
    let lab = enrolled().unwrap();
    let client = lab.pod("shop/client");
    let _server = lab.outside().serve().unwrap();
    let link = client.tap(&[MARKER]).unwrap();
    for (&from, to) in client.ips().iter().zip(OUTSIDE_HOST.map(ip)) {
        assert_captured(&talks(&client, to, from));
    }
    assert_plaintext(&link.stop().unwrap(), MARKER);
}

#[test]
fn an_enrolled_pod_reaches_pods_that_are_not() {
    let lab = enrolled_only(&["shop/client"]);
    let client = lab.pod("shop/client");
    for key in ["shop/near", "shop/far"] {
        let server = lab.pod(key);
        let _server = server.serve().unwrap();
        let link = server.tap(&[MARKER]).unwrap();
        let service = FAR_SERVICE.map(ip);
        let services = service.iter().filter(|_| key == "shop/far");
        for &to in server.ips().iter().chain(services) {
            let own = own_address(client.ips(), to);
            assert_captured(&talks(&client, to, own));
        }
        assert_plaintext(&link.stop().unwrap(), MARKER);
    }
}

#[test]
fn a_pod_that_is_not_enrolled_reaches_pods_that_are() {
    let lab = enrolled_only(&["shop/near", "shop/far"]);
    let client = lab.pod("shop/client");
    let link = client.tap(&[MARKER]).unwrap();
    for key in ["shop/near", "shop/far"] {
        let server = lab.pod(key);
        let _server = server.serve().unwrap();
        for (&from, &to) in client.ips().iter().zip(server.ips()) {
            assert_captured(&talks(&client, to, from));
        }
    }
    assert_plaintext(&link.stop().unwrap(), MARKER);
}

#[test]
fn an_app_that_listens_on_loopback_alone_stays_out_of_reach() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let port = 7999;
    let listener = far.listen(([127, 0, 0, 1], port).into()).unwrap();
    listener.set_nonblocking(true).unwrap();
    for from in [&client as &Place, lab.outside()] {
        let to = SocketAddr::new(far.v4().unwrap(), port);
        super::endings::assert_turned_away(from, to, &Check::echo("hello"));
    }
    let accepted = listener.accept().map_err(|err| err.kind());
    assert_eq!(accepted.unwrap_err(), std::io::ErrorKind::WouldBlock);
}
