//! Daemons start, stop, die and are replaced; pods and connections live on, or end as they should.

mod connections;
mod crash;
mod pods;
mod race;
mod start;
mod stop;

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Check, Held, Outcome, Report};
use lab::{DaemonOptions, Lab, Place, Pod};

use crate::mesh::MESH;

/// A lab of [`MESH`] whose daemons give connections that long to end, and with every pod enrolled.
fn enrolled_with_deadline(deadline: &str) -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    let options = DaemonOptions::default().env("CONNECTION_TERMINATION_DEADLINE", deadline);
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll_all().unwrap();
    lab
}

/// Opens a connection to the echo service, all the way: a proxy takes a connection before it has made its own.
fn hold(from: &Place, to: IpAddr) -> Held {
    let mut held = from.hold((to, 7001).into()).unwrap();
    let report = held.exchange("open").unwrap();
    assert_eq!(
        report.outcome,
        Outcome::Good,
        "{} -> {to}: {report:?}",
        from.name()
    );
    held
}

/// An exchange with the echo service at `ip`, in which `text` could be read by somebody on the way.
fn echo(from: &Place, ip: IpAddr, text: &str) -> Report {
    echo_within(from, ip, text, Duration::from_secs(5))
}

fn echo_within(from: &Place, ip: IpAddr, text: &str, timeout: Duration) -> Report {
    from.check(ip, &Check::echo(text).timeout(timeout)).unwrap()
}

/// Tries the same where it must not succeed. Connections that a pod opens while nobody serves it wait: they are
/// tried again by the kernel after one second, three, seven.
fn assert_cut_off(from: &Place, to: &Pod, text: &str) {
    thread::scope(|scope| {
        for &ip in to.ips() {
            scope.spawn(move || {
                let report = echo_within(from, ip, text, Duration::from_millis(300));
                let from = from.name();
                assert_ne!(report.outcome, Outcome::Good, "{from} -> {ip}: {report:?}");
            });
        }
    });
}

fn assert_good(from: &Place, to: &Pod) {
    for &ip in to.ips() {
        let report = echo(from, ip, "hello");
        let from = from.name();
        assert_eq!(report.outcome, Outcome::Good, "{from} -> {ip}: {report:?}");
    }
}

/// Waits until it is so.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "not so after 10 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
