//! Readiness on port 15021: what probes are told, and when.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use lab::tester::{Outcome, Service};
use lab::{DaemonOptions, Lab, Node};
use nix::sys::signal::Signal;

use crate::access::eventually;
use crate::local_api::{Api, changed};
use crate::mesh::{MESH, enrolled};
use crate::metrics::{scrape, value};

const PORT: u16 = 15021;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a probe of the node is answered: status and body; nothing when nobody listens, or no longer.
pub(crate) fn probe(node: &Node) -> Option<(u16, String)> {
    let answer = request(node, Ipv4Addr::LOCALHOST.into(), "GET", "/healthz/ready")?;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    Some((status, body.to_owned()))
}

/// What is pending, as a probe says it; empty when the daemon is ready.
pub(crate) fn pending(node: &Node) -> String {
    match probe(node).unwrap() {
        (200, body) if body == "ready\n" => String::new(),
        (500, body) => {
            let names = body.strip_prefix("not ready, pending: ");
            names
                .and_then(|names| names.strip_suffix('\n'))
                .unwrap()
                .to_owned()
        }
        other => panic!("{other:?}"),
    }
}

fn connect(node: &Node, ip: IpAddr) -> Option<TcpStream> {
    node.connect(SocketAddr::new(ip, PORT), PATIENCE).ok()
}

fn request(node: &Node, ip: IpAddr, method: &str, target: &str) -> Option<String> {
    let mut connection = connect(node, ip)?;
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: node\r\n\r\n");
    connection.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

#[test]
fn probes_of_either_family_are_answered_and_nothing_else() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    let node = lab.node("node1");
    eventually("the daemon is ready", || pending(node).is_empty());
    for ip in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        let answer = |method, target| request(node, ip, method, target).unwrap();
        let ready = answer("GET", "/healthz/ready");
        assert!(ready.starts_with("HTTP/1.1 200 OK\r\n"), "{ready}");
        assert!(ready.ends_with("\r\n\r\nready\n"), "{ready}");
        for (method, target, status) in [
            ("POST", "/healthz/ready", "405"),
            ("HEAD", "/healthz/ready", "405"),
            ("GET", "/", "404"),
            ("POST", "/quitquitquit", "404"),
        ] {
            let refused = answer(method, target);
            assert!(
                refused.starts_with(&format!("HTTP/1.1 {status} ")),
                "{refused}"
            );
            assert!(refused.ends_with("\r\n\r\n"), "{refused}");
        }
    }
    eventually("the log says so, once", || {
        let log = node.log();
        let told = log.lines().filter(|line| line.contains("daemon is ready"));
        told.count() == 1
    });
}

#[test]
fn nobody_keeps_a_probe_from_being_answered() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    let node = lab.node("node1");
    eventually("the daemon is ready", || pending(node).is_empty());
    let ip = Ipv4Addr::LOCALHOST.into();
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut connection = connect(node, ip).unwrap();
        if number % 2 == 0 {
            // One that is cut has made room for a later one.
            drop(connection.write_all(b"GET /healthz/ready HTTP/1.1\r\nA: "));
        }
        silent.push(connection);
    }
    assert_eq!(pending(node), "");
    let daemon = format!("/proc/{}/fd", node.daemon_pid().unwrap());
    let open = std::fs::read_dir(daemon).unwrap().count();
    assert!(
        open < 150,
        "{open} descriptors for {} connections",
        silent.len()
    );
    assert!(!node.log().contains("cannot accept"));
}

#[test]
fn a_daemon_that_drains_no_longer_listens_for_probes() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let options = DaemonOptions::default().env("CONNECTION_TERMINATION_DEADLINE", "20s");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll_all().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let mut held = client
        .hold((far.v4().unwrap(), Service::Echo.port()).into())
        .unwrap();
    let node = lab.node("node1");
    assert_eq!(pending(node), "");
    node.daemon(|daemon| daemon.signal(Signal::SIGTERM))
        .unwrap();
    eventually("nobody listens for probes", || probe(node).is_none());
    // The connection that the daemon waits for goes on.
    assert_eq!(held.exchange("still here").unwrap().outcome, Outcome::Good);
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);
}

#[test]
fn a_daemon_that_cannot_be_probed_does_not_start() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    let taken = node.listen((Ipv6Addr::UNSPECIFIED, PORT).into()).unwrap();
    let said = node.start_daemon().unwrap_err().to_string();
    assert!(
        said.contains("listen for readiness probes on port 15021: Address already in use"),
        "{said}"
    );
    assert_eq!(node.leftovers().unwrap(), Vec::<String>::new());
    drop(taken);
    node.start_daemon().unwrap();
}

#[test]
fn a_daemon_is_not_ready_while_it_does_not_serve_a_pod_that_it_should() {
    const PENDING: &str = "workload proxy manager";
    let lab = enrolled().unwrap();
    let (client, near) = (lab.pod("shop/client"), lab.pod("shop/near"));
    let node = lab.node("node1");
    assert_eq!(pending(node), "");
    let rule = |what: &str| {
        let rule = ["ip", "rule", what, "pref", "50", "lookup", "main"];
        client.run(rule).unwrap().success().unwrap();
    };
    // Ready or not, pods that are served, that should be, that came and that went.
    let counted = || {
        let (_, text) = scrape(node, "/metrics");
        let manager = "workload_manager_";
        [
            "ztunnel_ready".to_owned(),
            format!("{manager}active_proxy_count"),
            format!("{manager}pending_proxy_count"),
            format!("{manager}proxies_started_total"),
            format!("{manager}proxies_stopped_total"),
        ]
        .map(|family| value(&text, &family, &[]).unwrap() as u32)
    };
    assert_eq!(counted(), [1, 2, 0, 2, 0]);
    // When it takes over what an earlier one left: of one pod the way is not clear, of the other nothing is known.
    node.kill().unwrap();
    rule("add");
    let record = node.dir().join("pods").join(format!("{}.json", near.uid()));
    std::fs::write(&record, "{").unwrap();
    node.start_daemon().unwrap();
    eventually("only the pods are pending", || pending(node) == PENDING);
    assert_eq!(counted(), [0, 0, 2, 0, 0]);
    let mut api = Api::connect(node).unwrap();
    assert_eq!(api.enroll(&near).unwrap(), changed());
    assert_eq!(pending(node), PENDING);
    assert_eq!(counted(), [0, 1, 1, 1, 0]);
    rule("del");
    assert_eq!(api.enroll(&client).unwrap(), changed());
    assert_eq!(pending(node), "");
    assert_eq!(counted(), [1, 2, 0, 2, 0]);

    // And later, when the capture of a pod is damaged and cannot be repaired.
    rule("add");
    let refused = api.enroll(&client).unwrap();
    assert!(refused.to_string().contains("preference 50"), "{refused}");
    assert_eq!(pending(node), PENDING);
    rule("del");
    assert_eq!(api.enroll(&client).unwrap(), changed());
    assert_eq!(pending(node), "");

    // What is not to be served is not waited for.
    rule("add");
    node.kill().unwrap();
    node.start_daemon().unwrap();
    eventually("only the pod is pending", || pending(node) == PENDING);
    let mut api = Api::connect(node).unwrap();
    assert_eq!(counted(), [0, 1, 1, 1, 0]);
    assert_eq!(api.unenroll(client.uid()).unwrap(), changed());
    assert_eq!(pending(node), "");
    // It was never served by this daemon.
    assert_eq!(counted(), [1, 1, 0, 1, 0]);
}
