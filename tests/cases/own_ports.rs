//! The proxy's own ports: whoever connects to them, by whatever way, is refused; no connection goes round in circles,
//! and nobody gets to where the proxy is administered.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lab::tester::{Check, Outcome};
use lab::{Lab, Node, Place, Pod};

use crate::access::{self, eventually};
use crate::mesh::MESH;

/// Of the proxy as Istio knows it: outbound, inbound, HBONE, DNS or SOCKS, administration, metrics, readiness.
const PORTS: [u16; 7] = [15001, 15006, 15008, 15080, 15000, METRICS, READINESS];
const METRICS: u16 = 15020;
const READINESS: u16 = 15021;
/// What one call may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Lines in the access logs that one call may lead to: that of the client's node, of the server's, and of a second
/// endpoint address.
const LINES_PER_CALL: usize = 3;

/// Services whose ports lead into the proxy of their endpoint.
const TRAPS: &str = "
  - {name: trap, namespace: shop, addresses: [10.96.0.66], ports: {1: 15001, 6: 15006, 8: 15008}, workloads: [far]}
  - {name: own-trap, namespace: shop, addresses: [10.96.0.67], ports: {1: 15001, 6: 15006, 8: 15008}, workloads: [client]}
";

/// The daemons themselves, so that they have an identity on their own tunnel ports.
const PROXIES: &str = "
  - {name: ztunnel-node1, namespace: istio-system, node: node1, service_account: ztunnel, addresses: [172.18.0.1], pod: false}
  - {name: ztunnel-node2, namespace: istio-system, node: node2, service_account: ztunnel, addresses: [172.18.0.2], pod: false}
services:";

/// Makes a call and says what came of it; nothing when it was refused in some way, the answer when there was one.
fn call(from: &Place, to: SocketAddr) -> Option<Vec<u8>> {
    let mut connection = from.connect(to, PATIENCE).ok()?;
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.set_write_timeout(Some(PATIENCE)).unwrap();
    drop(connection.write_all(b"GET /config_dump HTTP/1.1\r\nHost: proxy\r\n\r\n"));
    let mut answer = Vec::new();
    match connection.read_to_end(&mut answer) {
        Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!(
                "{} to {to}: neither answered nor refused in {PATIENCE:?}",
                from.name()
            )
        }
        // What came before a reset counts, too.
        _ => (!answer.is_empty()).then_some(answer),
    }
}

/// The address that a node goes by.
fn address_of(node: &Node) -> IpAddr {
    let shown = node
        .run(["ip", "-o", "-4", "addr", "show", "scope", "global"])
        .unwrap()
        .success()
        .unwrap();
    let address = shown.stdout.split_whitespace().nth(3).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

/// Everything that listens in a pod.
fn listening(pod: &Pod) -> BTreeSet<u16> {
    let tables = pod.run(["cat", "/proc/self/net/tcp", "/proc/self/net/tcp6"]);
    let tables = tables.unwrap().success().unwrap().stdout;
    let ports = tables.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        (*fields.get(3)? == "0A").then(|| u16::from_str_radix(port, 16).unwrap())
    });
    ports.collect()
}

/// Sockets that the daemons have open.
fn open_sockets(lab: &Lab) -> usize {
    let of = |node: &Node| {
        let dir = format!("/proc/{}/fd", node.daemon_pid().unwrap());
        let entries = fs::read_dir(dir).unwrap().flatten();
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    };
    lab.nodes().iter().map(of).sum()
}

fn loopback() -> [IpAddr; 2] {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

/// Client and server enrolled, near not.
fn lab() -> Lab {
    let mesh = MESH.replacen("\nservices:", PROXIES, 1);
    let lab = Lab::from_yaml(&format!("{}{TRAPS}", mesh.trim_end())).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client", "shop/far"]).unwrap();
    lab
}

fn refused(from: &Place, to: SocketAddr) {
    let Some(answer) = call(from, to) else { return };
    // An alert says that TLS was expected, and nothing else.
    let alert = answer.starts_with(&[0x15, 3]) && answer.len() < 16;
    let answer = String::from_utf8_lossy(&answer);
    assert!(alert, "{} got an answer from {to}: {answer}", from.name());
}

/// Makes all calls: each is refused, nothing goes on afterwards, and not more has happened than was asked for.
fn all_refused(lab: &Lab, calls: &[(&Place, SocketAddr)]) {
    let round = || calls.iter().for_each(|&(from, to)| refused(from, to));
    round();
    // Tunnels stay in their pools; a second round has no need for more of them.
    let sockets = open_sockets(lab);
    round();
    eventually("all sockets of the second round are closed", || {
        open_sockets(lab) <= sockets
    });
    let lines: usize = lab
        .nodes()
        .iter()
        .map(|node| access::lines(node, &[]).len())
        .sum();
    let most = 2 * calls.len() * LINES_PER_CALL;
    assert!(lines <= most, "{lines} lines for {} calls", 2 * calls.len());

    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [&client, &far].map(|pod| pod.serve().unwrap());
    for ip in ["10.244.2.10", "fd00:2::10", "10.96.0.10", "10.96.0.12"] {
        let check = Check::echo("hello");
        let report = client.check(ip.parse().unwrap(), &check).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{ip}: {report:?}");
    }
}

#[test]
fn the_proxy_ports_are_refused_whoever_calls_them_by_whatever_way() {
    let lab = lab();
    let pods = ["shop/client", "shop/far", "shop/near"].map(|key| lab.pod(key));
    let [client, _, near] = &pods;
    let node = address_of(lab.node("node1"));
    let mut ips = loopback().to_vec();
    ips.push(node);
    ips.extend(pods.iter().flat_map(|pod| pod.ips()));
    let mut calls = Vec::new();
    // Captured, not captured, not even in the cluster.
    for from in [&**client, &**near, lab.outside()] {
        for &ip in &ips {
            calls.extend(PORTS.map(|port| (from, (ip, port).into())));
        }
    }
    // The node answers probes of its readiness and scrapes, whoever asks, and says nothing else to anybody.
    let open = [METRICS, READINESS].map(|port| SocketAddr::from((node, port)));
    let (probed, mut calls): (Vec<_>, Vec<_>) =
        calls.into_iter().partition(|call| open.contains(&call.1));
    for (from, to) in probed {
        let answer = String::from_utf8(call(from, to).unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    for vip in ["10.96.0.66", "10.96.0.67", "10.96.0.10", "10.96.0.12"] {
        let vip: IpAddr = vip.parse().unwrap();
        let ports = PORTS.into_iter().chain([1, 6, 8]);
        calls.extend(ports.map(|port| (&**client, (vip, port).into())));
    }
    all_refused(&lab, &calls);
}

#[test]
fn the_ports_that_listeners_happen_to_have_lead_nowhere() {
    let lab = lab();
    let pods = ["shop/client", "shop/far"].map(|key| lab.pod(key));
    let [client, far] = &pods;
    let mut calls = Vec::new();
    for pod in &pods {
        let ports = listening(pod);
        assert!(!ports.is_empty(), "nobody listens in {}", pod.key());
        for port in ports {
            for from in [&**client, &**far, lab.outside()] {
                let ips = pod.ips().iter().copied().chain(loopback());
                calls.extend(ips.map(|ip| (from, (ip, port).into())));
            }
        }
    }
    all_refused(&lab, &calls);
}
