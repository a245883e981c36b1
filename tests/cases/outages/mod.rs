//! The control plane is away, slow, wrong or odd: what is known goes on being used, what is not known is refused
//! with a reason, nothing leaves in plaintext, and all of it heals without anybody touching the daemon.

mod answers;
mod hang_up;
mod long;
mod start;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lab::tester::{Check, Outcome, Report, Server, Service};
use lab::{ControlPlane, Lab, Node, Pod};

/// A client on one node and a server on another. Reached by HBONE whether they are enrolled or not, since somebody
/// who has just come back would have to be told.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, protocol: HBONE, addresses: [10.244.1.10, 'fd00:1::10']}
  - {name: far, namespace: shop, node: node2, service_account: far, protocol: HBONE, addresses: [10.244.2.10, 'fd00:2::10']}
services:
  - {name: far, namespace: shop, addresses: [10.96.0.10], ports: {7001: 7001}, workloads: [far]}
";

/// A daemon on each node and both pods enrolled.
fn lab() -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    lab
}

fn pods(lab: &Lab) -> [Pod; 2] {
    ["shop/client", "shop/far"].map(|key| lab.pod(key))
}

fn echo(from: &Pod, to: IpAddr) -> Report {
    from.check(to, &Check::echo("hello")).unwrap()
}

fn assert_good(from: &Pod, to: IpAddr) {
    let report = echo(from, to);
    assert_eq!(report.outcome, Outcome::Good, "{to}: {report:?}");
}

/// What the daemon has to say besides its access log.
fn said(node: &Node) -> Vec<String> {
    let log = node.log();
    let lines = log.lines().filter(|line| !line.contains(" access: "));
    lines.map(str::to_owned).collect()
}

/// How often it said it.
fn times(node: &Node, what: &str) -> usize {
    said(node).iter().filter(|line| line.contains(what)).count()
}

fn assert_no_more_lines_than(node: &Node, most: usize) {
    let lines = said(node);
    assert!(lines.len() <= most, "{} lines: {lines:#?}", lines.len());
}

/// Daemons and pods as above, and a connection between the pods that is in use all the time.
struct Scene {
    lab: Lab,
    client: Pod,
    far: Pod,
    steady: Steady,
    _server: Server,
}

impl Scene {
    fn start() -> Self {
        let lab = lab();
        let [client, far] = pods(&lab);
        let server = far.serve().unwrap();
        Self {
            steady: Steady::start(&client, &far),
            _server: server,
            lab,
            client,
            far,
        }
    }

    fn plane(&self) -> &ControlPlane {
        self.lab.control_plane()
    }

    /// The client's.
    fn node(&self) -> &Node {
        self.lab.node("node1")
    }

    /// Has the daemons begin new streams.
    fn reconnect(&self) {
        self.plane().pause();
        self.plane().resume().unwrap();
    }
}

/// A connection that is in use all the time.
struct Steady {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Report>>,
}

impl Steady {
    fn start(from: &Pod, to: &Pod) -> Self {
        let mut held = from
            .hold((to.v4().unwrap(), Service::Echo.port()).into())
            .unwrap();
        assert_eq!(held.exchange("ready").unwrap().outcome, Outcome::Good);
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = thread::spawn(move || {
            let mut reports = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                reports.push(held.exchange("anybody there?").unwrap());
                // One in ten milliseconds is steady enough, and leaves the machine to others.
                thread::sleep(Duration::from_millis(10));
            }
            reports.push(held.close().unwrap());
            reports
        });
        Self { end, thread }
    }

    /// Ends it, and expects that everything went well all the time.
    fn stop(self) {
        self.end.store(true, Ordering::Relaxed);
        let reports = self.thread.join().unwrap();
        assert!(reports.len() > 2, "it was not in use");
        let failed = reports
            .iter()
            .find(|report| report.outcome != Outcome::Good);
        assert_eq!(failed, None);
    }
}
