//! Application tunnels: another port, or a PROXY header in front of the client's bytes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::tester::Service;
use lab::{DaemonOptions, Lab, Pod};

use super::{CLIENT, ask, client, client_in, refused, text};
use crate::access;

/// A service behind a waypoint whose app takes PROXY headers, on the port of the tester that reads them.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: far, namespace: shop, node: node1, service_account: far, addresses: [10.244.1.11, 'fd00:1::11']}
  - {name: wp, namespace: infra, node: node2, service_account: waypoint, addresses: [10.244.2.20, 'fd00:2::20'], application_tunnel: {protocol: PROXY, port: 7010}}
  - {name: plain, namespace: infra, node: node2, service_account: plain, addresses: [10.244.2.21, 'fd00:2::21'], application_tunnel: {protocol: NONE, port: 7002}}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10, 'fd00:96::10'], ports: {7001: 7001}, workloads: [far], waypoint: {hostname: infra/wp.infra.svc.cluster.local}}
  - {name: wp, namespace: infra, addresses: [10.96.0.20, 'fd00:96::20'], ports: {80: 8080, 15008: 15008}, workloads: [wp]}
  - {name: plain, namespace: infra, addresses: [10.96.0.21], ports: {80: 8080}, workloads: [plain]}
  - {name: bare, namespace: infra, ports: {80: 8080}, workloads: [wp, plain]}
";
const VIP: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const WP: [&str; 2] = ["10.244.2.20", "fd00:2::20"];
const PLAIN: &str = "10.244.2.21";

fn enrolled(options: &DaemonOptions) -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    for node in lab.nodes() {
        node.start_daemon_with(options).unwrap();
    }
    lab.enroll_all().unwrap();
    lab
}

/// What the app behind the waypoint said it was told about a connection of `client` to `to`, and then echoes.
fn told(client: &Pod, to: SocketAddr) -> String {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut connection = client.connect(to, PATIENCE).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(b"from the client").unwrap();
    connection.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "from the client", "after {line:?}");
    line
}

/// The parts of `<source> -> <destination> d0=<identity> at <peer>`.
fn parts(line: &str) -> (SocketAddr, &str, SocketAddr) {
    let (from, rest) = line.trim_end().split_once(" -> ").unwrap();
    let (said, peer) = rest.split_once(" at ").unwrap();
    (from.parse().unwrap(), said, peer.parse().unwrap())
}

#[test]
fn an_app_behind_a_proxy_header_is_told_who_asked_for_what() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("infra/wp").serve().unwrap();
    let client = lab.pod("shop/client");
    for (family, vip) in VIP.into_iter().enumerate() {
        let to = SocketAddr::new(vip.parse().unwrap(), Service::Echo.port());
        let line = told(&client, to);
        let (from, said, peer) = parts(&line);
        assert_eq!(from.ip(), client.ips()[family], "{line}");
        assert_eq!(said, format!("{to} d0={}", client.identity()), "{line}");
        assert!(peer.ip().is_loopback(), "{line}");
        assert_eq!(peer.is_ipv4(), to.is_ipv4(), "{line}");
        // Policy and log know the pod by its address.
        let at = SocketAddr::new(WP[family].parse().unwrap(), Service::Proxied.port());
        let fields = [
            ("direction", "inbound"),
            ("dst.orig_addr", &*at.to_string()),
            ("reason", "COMPLETE"),
        ];
        let line = access::line(lab.node("node2"), &fields);
        assert_eq!(line.field("src.identity"), client.identity(), "{line:?}");
    }
}

#[test]
fn without_loopback_the_app_sees_the_client_besides_the_header() {
    let lab = enrolled(&DaemonOptions::default().env("LOCALHOST_APP_TUNNEL", "false"));
    let _server = lab.pod("infra/wp").serve().unwrap();
    let client = lab.pod("shop/client");
    for (family, vip) in VIP.into_iter().enumerate() {
        let to = SocketAddr::new(vip.parse().unwrap(), Service::Echo.port());
        let line = told(&client, to);
        let (from, said, peer) = parts(&line);
        assert_eq!(said, format!("{to} d0={}", client.identity()), "{line}");
        assert_eq!([from.ip(), peer.ip()], [client.ips()[family]; 2], "{line}");
    }
}

#[test]
fn a_proxy_header_says_what_odd_clients_ask_for() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("infra/wp").serve().unwrap();
    let good = client(&lab, CLIENT);
    let node = lab.node("node2");
    for (ip, authority, said) in [
        // A name stands for the service's address, of IPv4 rather than IPv6, and its own port.
        (
            WP[0],
            "wp.infra.svc.cluster.local:80",
            "-> 10.96.0.20:80 d0=",
        ),
        (WP[0], "10.244.2.20:1", "-> 10.244.2.20:1 d0="),
        (WP[0], "192.0.2.1:65535", "-> 192.0.2.1:65535 d0="),
        (WP[1], "[fd00:96::10]:7001", "-> [fd00:96::10]:7001 d0="),
        // No header can say where one family becomes the other.
        (WP[0], "[fd00:96::10]:7001", "unspecified d0="),
        (WP[1], "wp.infra.svc.cluster.local:80", "unspecified d0="),
    ] {
        let answer = text(&ask(&good, ip, authority));
        let said = format!("{said}{CLIENT} at ");
        assert!(
            answer.contains(&said),
            "{authority}: {said:?} in {answer:?}"
        );
        assert!(answer.ends_with("\nhello"), "{authority}: {answer:?}");
    }
    for (authority, reason) in [
        ("bare.infra.svc.cluster.local:80", "NO_ROUTE"),
        ("wp.infra.svc.cluster.local:9999", "NO_ROUTE"),
        ("nowhere.infra.svc.cluster.local:80", "NO_ROUTE"),
        ("10.96.0.10:15006", "LOOP"),
    ] {
        refused(node, &good, WP[0], authority, 503, reason);
    }
    refused(node, &good, WP[0], "10.96.0.10", 400, "BAD_REQUEST");
    // However long the name, the app is told all of it.
    let long = format!("spiffe://cluster.local/ns/shop/sa/{}", "x".repeat(30_000));
    let answer = text(&ask(&client(&lab, &long), WP[0], "10.96.0.10:7001"));
    assert!(answer.contains(&format!(" d0={long} at 127.0.0.1:")));
    assert!(answer.ends_with("\nhello"));
}

#[test]
fn a_client_cannot_say_it_is_somebody_else() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("infra/wp").serve().unwrap();
    // What it says of itself is one thing, and a header of its own comes after the true one.
    let far = lab.pod("shop/far");
    let liar = client_in(&lab, &far, far.identity())
        .header("forwarded", "for=\"10.244.1.10:1\"")
        .payload(&b"\r\n\r\n\0\r\nQUIT\n\x21\x00\x00\x00hello"[..]);
    let to = SocketAddr::new(WP[0].parse().unwrap(), lab::hbone::PORT);
    // Enrolled, it would be captured: as a program of the pod's own proxy would be in its place.
    lab.unenroll(&["shop/far"]).unwrap();
    let answer = liar.connect(to, "10.96.0.10:7001").unwrap().unwrap();
    let answer = text(&answer);
    let (line, rest) = answer.split_once('\n').unwrap();
    let (from, said, _) = parts(line);
    assert_eq!(from.ip(), far.v4().unwrap(), "{line}");
    assert_eq!(said, format!("10.96.0.10:7001 d0={}", far.identity()));
    assert_eq!(rest, "\r\n\r\n\0\r\nQUIT\n\x21\0\0\0hello");
}

#[test]
fn policy_sees_the_port_that_a_tunnel_leads_to() {
    let banner = Service::Banner.port();
    for (allowed, granted) in [(banner, true), (Service::Echo.port(), false)] {
        let policies = format!(
            "policies:\n  - {{name: p, namespace: infra, rules: [[[{{destination_ports: [{allowed}]}}]]]}}\n"
        );
        let lab = Lab::from_yaml(&format!("{MESH}{policies}")).unwrap();
        lab.node("node2").start_daemon().unwrap();
        lab.enroll(&["infra/plain"]).unwrap();
        let _server = lab.pod("infra/plain").serve().unwrap();
        let client = client(&lab, CLIENT);
        // Whatever is asked for, by address or by name, it leads to the one port.
        for authority in [
            "10.244.2.21:7001",
            "192.0.2.7:7001",
            "plain.infra.svc.cluster.local:80",
        ] {
            if granted {
                let answer = text(&ask(&client, PLAIN, authority));
                assert_eq!(answer, "220 at your service\nhello", "{authority}");
            } else {
                let node = lab.node("node2");
                refused(node, &client, PLAIN, authority, 401, "POLICY_DENIED");
            }
        }
    }
}

#[test]
fn a_name_without_an_address_is_nothing_to_a_tunnel() {
    let lab = enrolled(&DaemonOptions::default());
    let _server = lab.pod("infra/plain").serve().unwrap();
    let (client, node) = (client(&lab, CLIENT), lab.node("node2"));
    let bare = "bare.infra.svc.cluster.local:80";
    refused(node, &client, PLAIN, bare, 503, "NO_ROUTE");
    let ip: IpAddr = PLAIN.parse().unwrap();
    // The app's own port is not a way around: it is where everything leads.
    assert!(text(&ask(&client, PLAIN, &format!("{ip}:7999"))).starts_with("220"));
}
