//! Daemons that are asked to end, and their successors.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::Outcome;
use lab::{Lab, Place};
use nix::sys::signal::Signal;

use super::{assert_cut_off, assert_good, echo_within, enrolled_with_deadline, eventually, hold};
use crate::mesh::{MESH, enrolled};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn after_sigterm_open_connections_go_on_new_ones_fail_and_the_next_daemon_takes_over() {
    let lab = enrolled_with_deadline("60s");
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    let node = lab.node("node1");
    let mut held = vec![
        hold(&client, far.v4().unwrap()),
        hold(&client, far.v6().unwrap()),
        hold(&far, client.v4().unwrap()),
    ];
    let taps = [
        client.tap(&["not in the clear"]).unwrap(),
        lab.tap("node1", "node2", &["not in the clear"]).unwrap(),
    ];
    node.daemon(|daemon| daemon.signal(Signal::SIGTERM))
        .unwrap();
    let socket = node.dir().join("api.sock");
    eventually("the local API is closed", || !socket.exists());
    eventually("new connections fail", || {
        let soon = Duration::from_millis(300);
        let report = echo_within(&client, far.v4().unwrap(), "not in the clear", soon);
        report.outcome != Outcome::Good
    });
    for _ in 0..3 {
        for one in &mut held {
            let report = one.exchange("not in the clear").unwrap();
            assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        }
        assert_cut_off(&client, &far, "not in the clear");
        assert_cut_off(lab.outside(), &client, "not in the clear");
    }
    let running = node.daemon(|daemon| Ok(daemon.process().is_running()));
    assert!(running.unwrap());
    for one in held {
        assert_eq!(one.close().unwrap().outcome, Outcome::Good);
    }
    // It does not wait for the deadline when there is nothing to wait for.
    let ended = node.daemon(|daemon| daemon.process().wait(PATIENCE));
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_cut_off(&client, &far, "not in the clear");
    assert_cut_off(lab.outside(), &client, "not in the clear");
    for tap in taps {
        assert_eq!(tap.stop().unwrap().marker("not in the clear"), 0);
    }

    node.kill().unwrap(); // only makes the lab forget the one that has ended
    node.start_daemon().unwrap();
    lab.settle().unwrap();
    assert_good(&client, &far);
    assert_good(&far, &client);
}

#[test]
fn a_daemon_ends_by_the_deadline_whatever_is_open() {
    let lab = enrolled_with_deadline("1s");
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let mut held = hold(&client, far.v4().unwrap());
    let tap = client.tap(&["too late"]).unwrap();
    let started = Instant::now();
    let ended = lab.node("node1").terminate(PATIENCE).unwrap();
    assert_eq!(ended.code(), Some(0));
    let took = started.elapsed();
    assert!((1..4).contains(&took.as_secs()), "{took:?}");
    assert_ne!(held.exchange("too late").unwrap().outcome, Outcome::Good);
    assert_eq!(tap.stop().unwrap().marker("too late"), 0);
}

/// One connection of many.
struct Attempt {
    from: Instant,
    to: Instant,
    outcome: Result<(), String>,
}

/// Connects, exchanges `text` and closes, over and over.
fn hammer(from: &Place, to: SocketAddr, text: &str, done: &AtomicBool) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let started = Instant::now();
        let exchange = || -> std::io::Result<()> {
            let mut stream = from.connect(to, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(text.as_bytes())?;
            let mut back = vec![0; text.len()];
            stream.read_exact(&mut back)
        };
        let outcome = exchange().map_err(|err| err.to_string());
        attempts.push(Attempt {
            from: started,
            to: Instant::now(),
            outcome,
        });
        thread::sleep(Duration::from_millis(1));
    }
    attempts
}

#[test]
fn under_load_one_daemon_follows_another_and_nothing_goes_out_in_the_clear() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    let node = lab.node("node1");
    let taps = [
        client.tap(&["hammered"]).unwrap(),
        lab.tap("node1", "node2", &["hammered"]).unwrap(),
    ];
    let done = AtomicBool::new(false);
    let (mut away, mut attempts) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        let hammers: Vec<_> = [
            (&client, far.v4().unwrap()),
            (&client, "10.96.0.10".parse().unwrap()),
            (&client, far.v6().unwrap()),
            (&far, client.v4().unwrap()),
        ]
        .into_iter()
        .map(|(from, ip)| {
            let done = &done;
            scope.spawn(move || hammer(from, (ip, 7001).into(), "hammered", done))
        })
        .collect();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(200));
            let stopped = Instant::now();
            node.terminate(PATIENCE).unwrap();
            node.start_daemon().unwrap();
            lab.settle().unwrap();
            away.push((stopped, Instant::now()));
        }
        thread::sleep(Duration::from_millis(200));
        done.store(true, Ordering::Relaxed);
        for hammer in hammers {
            attempts.extend(hammer.join().unwrap());
        }
    });
    for attempt in &attempts {
        let in_between = away
            .iter()
            .any(|(stopped, back)| attempt.from <= *back && attempt.to >= *stopped);
        if !in_between {
            assert_eq!(attempt.outcome, Ok(()));
        }
    }
    let good = attempts.iter().filter(|attempt| attempt.outcome.is_ok());
    assert!(good.count() > 100, "of {}", attempts.len());
    for tap in taps {
        let seen = tap.stop().unwrap();
        assert_eq!(seen.marker("hammered"), 0);
        assert!(seen.on_port(15008) > 0);
    }
}

#[test]
fn stopping_leaves_nothing_on_nodes_and_in_pods() {
    let lab = enrolled_with_deadline("1s");
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _servers = [client.serve().unwrap(), far.serve().unwrap()];
    assert_good(&client, &far);
    let _open = [
        hold(&client, far.v4().unwrap()),
        hold(&far, client.v6().unwrap()),
    ];
    // One that had a predecessor that died, and one that had not.
    lab.node("node1").kill().unwrap();
    lab.node("node1").start_daemon().unwrap();
    assert!(!lab.leftovers().unwrap().is_empty());
    for node in lab.nodes() {
        assert_eq!(node.stop().unwrap().code(), Some(0));
    }
    lab.expect_nothing_left().unwrap();
    assert_good(&client, &far);
}

#[test]
fn a_daemon_without_pods_leaves_nothing_on_sigterm() {
    let lab = Lab::from_yaml(MESH).unwrap();
    lab.start_daemons().unwrap();
    lab.enroll(&["shop/client"]).unwrap();
    lab.unenroll(&["shop/client"]).unwrap();
    for node in lab.nodes() {
        assert_eq!(node.terminate(PATIENCE).unwrap().code(), Some(0));
    }
    lab.expect_nothing_left().unwrap();
}
