//! Tunnels with a real Envoy at the other end: what other implementations make of our HTTP/2, and ours of theirs.
//!
//! Envoy is no pod of ours: it has a certificate of the mesh and speaks HBONE itself, as waypoints and gateways do.

mod client;
mod far_end;
mod goes;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::tester::{Check, Held, Outcome, Report, Service};
use lab::{DaemonOptions, Envoy, EnvoyProgram, Lab, Place, Validity};

/// How Envoy calls a window of what HTTP/2 begins with, the least that it takes: many small steps for whoever fills it.
const SMALL_WINDOWS: &str =
    "initial_stream_window_size: 65535, initial_connection_window_size: 65535";
const SOON: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;

/// One worker on each node: one tunnel for everybody, as long as there is room in it.
fn one_worker(mesh: &str, enrolled: &str) -> Lab {
    let lab = Lab::from_yaml(mesh).unwrap();
    let options = DaemonOptions::default()
        .env("ZTUNNEL_WORKER_THREADS", "1")
        .env("CONNECTION_TERMINATION_DEADLINE", "30s");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll(&[enrolled]).unwrap();
    lab
}

/// Envoy with a certificate of the mesh for this pod.
fn program(lab: &Lab, pod: &str) -> EnvoyProgram {
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(600));
    let credential = authority.issue(lab.pod(pod).identity(), validity).unwrap();
    EnvoyProgram::find()
        .unwrap()
        .credential(&credential, authority.root_pem())
}

fn good(from: &Place, to: IpAddr, check: &Check) -> Report {
    let report = from.check(to, check).unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{check:?}: {report:?}");
    report
}

/// A connection that is open at both ends.
fn hold(from: &Place, to: IpAddr) -> Held {
    let mut held = from.hold((to, Service::Echo.port()).into()).unwrap();
    assert_eq!(exchanges(&mut held), Outcome::Good);
    held
}

fn exchanges(held: &mut Held) -> Outcome {
    held.exchange("still there").unwrap().outcome
}

/// Resets a connection that is open at both ends: it is dropped with bytes that nobody has read. Gives where it came from.
fn reset(from: &Place, to: IpAddr) -> SocketAddr {
    let to = (to, Service::Echo.port()).into();
    let mut stream = from.connect(to, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"nobody reads this").unwrap();
    stream.peek(&mut [0]).unwrap();
    stream.local_addr().unwrap()
}

/// Zero while Envoy does not know it.
fn stat(envoy: &Envoy, name: &str) -> u64 {
    envoy.stat(name).unwrap().unwrap_or_default()
}

/// What a connection does, in every detail, and many of them at once.
fn everything(from: &Place, to: IpAddr, at_once: u32) {
    for service in [
        Service::Echo,
        // The server speaks first.
        Service::Banner,
        Service::Sink,
        // It answers after the client has ended its half.
        Service::AfterFin,
    ] {
        good(from, to, &Check::of(service));
    }
    good(from, to, &Check::duplex(4 * MIB, 4 * MIB));
    std::thread::scope(|scope| {
        // Bulk in both directions beside each other, and beside the many.
        scope.spawn(|| good(from, to, &Check::duplex(2 * MIB, 0)));
        scope.spawn(|| good(from, to, &Check::duplex(0, 2 * MIB)));
        scope.spawn(|| {
            let report = good(from, to, &Check::parallel(at_once));
            assert_eq!(report.good, at_once, "{report:?}");
        });
    });
}
