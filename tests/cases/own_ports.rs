//! The proxy's own ports: whoever connects to them, by whatever way, is refused; no connection goes round in circles,
//! and nobody gets to where the proxy is administered.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lab::tester::{Check, Outcome};
use lab::{Lab, Node, Place, Pod};

use crate::access::{self, eventually};
use crate::mesh::MESH;

/// Of the proxy as Istio knows it: outbound, inbound, HBONE, DNS or SOCKS, administration, metrics, readiness.
const PORTS: [u16; 7] = [15001, 15006, 15008, 15080, 15000, 15020, 15021];
/// What one call may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Lines in the access logs that one call may lead to: that of the client's node, of the server's, and of a second
/// endpoint address.
const LINES_PER_CALL: usize = 3;

/// A service whose ports lead into the proxy of its endpoint.
const TRAP: &str = "
  - {name: trap, namespace: shop, addresses: [10.96.0.66], ports: {1: 15001, 6: 15006, 8: 15008}, workloads: [far, client]}
";

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

fn logged(lab: &Lab) -> usize {
    let of = |node: &Node| access::lines(node, &[]).len();
    lab.nodes().iter().map(of).sum()
}

struct Calls {
    lab: Lab,
    sockets: usize,
    made: usize,
}

impl Calls {
    fn new() -> Self {
        let lab = Lab::from_yaml(&format!("{}{}", MESH.trim_end(), TRAP)).unwrap();
        lab.start_daemons().unwrap();
        lab.enroll(&["shop/client", "shop/far"]).unwrap();
        // The tunnels that calls may leave in a pool are there already.
        let calls = Self {
            lab,
            sockets: 0,
            made: 0,
        };
        calls.good();
        let sockets = open_sockets(&calls.lab);
        Self { sockets, ..calls }
    }

    /// Nothing has an effect on a pod that calls another.
    fn good(&self) {
        let (client, far) = (self.lab.pod("shop/client"), self.lab.pod("shop/far"));
        let _servers = [&client, &far].map(|pod| pod.serve().unwrap());
        for ip in ["10.244.2.10", "fd00:2::10", "10.96.0.10", "10.96.0.12"] {
            let report = client
                .check(ip.parse().unwrap(), &Check::echo("hello"))
                .unwrap();
            assert_eq!(report.outcome, Outcome::Good, "{ip}: {report:?}");
        }
    }

    fn refused(&mut self, from: &Place, to: SocketAddr) {
        self.made += 1;
        if let Some(answer) = call(from, to) {
            // An alert says that TLS was expected, and nothing else.
            let alert = answer.starts_with(&[0x15, 3]) && answer.len() < 16;
            assert!(
                alert,
                "{} got an answer from {to}: {}",
                from.name(),
                String::from_utf8_lossy(&answer)
            );
        }
    }

    /// Nothing goes on any more, and not more has happened than was asked for.
    fn quiet(self) {
        let began = Instant::now();
        eventually("the sockets are closed", || {
            open_sockets(&self.lab) <= self.sockets + 8
        });
        let lines = logged(&self.lab);
        assert!(
            lines <= (self.made + 4) * LINES_PER_CALL,
            "{lines} lines for {} calls",
            self.made
        );
        self.good();
        eprintln!(
            "quiet after {:?}; {lines} lines for {} calls",
            began.elapsed(),
            self.made
        );
    }
}

#[test]
fn the_proxy_ports_are_refused_whoever_calls_them_by_whatever_way() {
    let mut calls = Calls::new();
    let pods = ["shop/client", "shop/far", "shop/near"].map(|key| calls.lab.pod(key));
    let [client, far, near] = &pods;
    let outside = calls.lab.outside().clone();
    let node = address_of(calls.lab.node("node1"));
    // Captured, not captured, not even in the cluster.
    for from in [&**client, &**near, &outside] {
        let mut ips: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap(), node];
        ips.extend(client.ips().iter().chain(far.ips()).chain(near.ips()));
        for ip in ips {
            for port in PORTS {
                calls.refused(from, (ip, port).into());
            }
        }
    }
    for vip in ["10.96.0.66", "10.96.0.10", "10.96.0.12"] {
        for port in PORTS.into_iter().chain([1, 6, 8]) {
            calls.refused(client, (vip.parse::<IpAddr>().unwrap(), port).into());
        }
    }
    calls.quiet();
}

#[test]
fn the_ports_that_listeners_happen_to_have_lead_nowhere() {
    let mut calls = Calls::new();
    let pods = ["shop/client", "shop/far"].map(|key| calls.lab.pod(key));
    let [client, far] = &pods;
    let outside = calls.lab.outside().clone();
    for pod in [client, far] {
        let ports = listening(pod);
        assert!(
            !ports.is_empty(),
            "the proxy of {} listens nowhere",
            pod.key()
        );
        let mut ips: Vec<IpAddr> = pod.ips().to_vec();
        ips.extend([
            "127.0.0.1".parse::<IpAddr>().unwrap(),
            "::1".parse().unwrap(),
        ]);
        for port in ports {
            for &ip in &ips {
                for from in [&**client, &**far, &outside] {
                    calls.refused(from, (ip, port).into());
                }
            }
        }
    }
    calls.quiet();
}
