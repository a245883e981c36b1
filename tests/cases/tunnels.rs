//! Connections do not suffer from each other in their tunnels, nor from peers that are gone.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Check, Outcome, Report, Service};
use lab::{DaemonOptions, Lab, Place};
use nix::sys::signal::Signal;

use crate::mesh::MESH;

const HBONE_PORT: u16 = 15008;
const SOON: Duration = Duration::from_secs(20);

/// One worker on each node: one tunnel for everybody.
fn one_worker(options: &DaemonOptions) -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    let options = options.clone().env("ZTUNNEL_WORKER_THREADS", "1");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll_all().unwrap();
    lab
}

fn connect(from: &Place, to: &Place, service: Service) -> TcpStream {
    let stream = from.connect(address(to, service), SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

fn address(of: &Place, service: Service) -> SocketAddr {
    let ip = if of.name() == "shop/near" {
        "10.244.1.11"
    } else {
        "10.244.2.10"
    };
    SocketAddr::new(ip.parse().unwrap(), service.port())
}

#[test]
fn eight_readers_that_stall_among_a_hundred_connections_hold_up_nobody() {
    let lab = one_worker(&DaemonOptions::default());
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[]).unwrap();
    let mut moving: Vec<_> = (0..92)
        .map(|_| connect(&client, &far, Service::Echo))
        .collect();
    echo_all(&mut moving, 1);

    let stalled: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = connect(&client, &far, Service::Duplex);
            let lengths = [0_u64.to_be_bytes(), (64_u64 << 20).to_be_bytes()].concat();
            stream.write_all(&lengths).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    echo_all(&mut moving, 16);

    // They were not cut to make room: what they asked for is still to come.
    for mut stream in stalled {
        let mut some = vec![0; 1 << 20];
        stream.read_exact(&mut some).unwrap();
    }
    let seen = link.stop().unwrap();
    assert_eq!(seen.opened_to(HBONE_PORT), 1, "{seen:?}");
}

/// Sends 64 KiB on each at the same time and waits for it to come back, so often.
fn echo_all(streams: &mut [TcpStream], rounds: usize) {
    thread::scope(|scope| {
        for stream in streams {
            scope.spawn(move || {
                let (sent, mut received) = (vec![7; 64 << 10], vec![0; 64 << 10]);
                for round in 0..rounds {
                    stream.write_all(&sent).unwrap();
                    let read = stream.read_exact(&mut received);
                    read.unwrap_or_else(|err| panic!("round {round}: {err}"));
                    assert_eq!(sent, received);
                }
            });
        }
    });
}

/// So many checks at once.
fn checks(from: &Place, to: &Place, count: usize) -> Vec<Report> {
    let to = address(to, Service::Echo);
    let check = Check::echo("hello").timeout(SOON);
    thread::scope(|scope| {
        let running: Vec<_> = (0..count)
            .map(|_| scope.spawn(|| from.check_at(to, &check).unwrap()))
            .collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn all(reports: &[Report], outcome: Outcome, within: Duration) {
    for report in reports {
        assert_eq!(report.outcome, outcome, "{report:?}");
        let elapsed = Duration::from_millis(report.elapsed_ms);
        assert!(elapsed <= within, "{report:?}");
    }
}

/// Until a connection succeeds; the ones before must fail soon.
fn recovers(from: &Place, to: &Place, within: Duration) {
    let deadline = Instant::now() + within;
    while checks(from, to, 1)[0].outcome != Outcome::Good {
        assert!(
            Instant::now() < deadline,
            "not reached again within {within:?}"
        );
    }
}

#[test]
fn a_dead_peer_costs_one_timeout_and_then_a_second_and_is_reached_when_it_is_back() {
    let lab = one_worker(&DaemonOptions::default());
    let (client, near, far) = (
        lab.pod("shop/client"),
        lab.pod("shop/near"),
        lab.pod("shop/far"),
    );
    let _servers = [near.serve().unwrap(), far.serve().unwrap()];
    // Nothing comes back, not even an error.
    let node = lab.node("node2");
    let rule = |verb| {
        let ip = [
            "ip",
            "rule",
            verb,
            "to",
            "10.244.2.10",
            "pref",
            "50",
            "blackhole",
        ];
        node.run(ip).unwrap().success().unwrap();
    };
    rule("add");
    thread::scope(|scope| {
        let dead = scope.spawn(|| checks(&client, &far, 30));
        // Meanwhile there is no queue for others.
        while !dead.is_finished() {
            all(
                &checks(&client, &near, 1),
                Outcome::Good,
                Duration::from_secs(2),
            );
        }
        // All at the same time, not one after the other: a connect may take ten seconds.
        all(
            &dead.join().unwrap(),
            Outcome::Reset,
            Duration::from_secs(13),
        );
    });
    for _ in 0..3 {
        let reports = checks(&client, &far, 10);
        all(&reports, Outcome::Reset, Duration::from_secs(3));
    }
    rule("del");
    recovers(&client, &far, Duration::from_secs(10));
    all(
        &checks(&client, &far, 10),
        Outcome::Good,
        Duration::from_secs(3),
    );
}

#[test]
fn a_peer_that_freezes_below_its_tunnel_is_noticed_by_the_next_connection() {
    let lab = one_worker(&DaemonOptions::default());
    let (client, near, far) = (
        lab.pod("shop/client"),
        lab.pod("shop/near"),
        lab.pod("shop/far"),
    );
    let _servers = [near.serve().unwrap(), far.serve().unwrap()];
    all(
        &checks(&client, &far, 5),
        Outcome::Good,
        Duration::from_secs(3),
    );
    let signal = |signal| {
        let node = lab.node("node2");
        node.daemon(|daemon| daemon.signal(signal)).unwrap();
    };
    signal(Signal::SIGSTOP);
    // Three seconds until the tunnel is given up, and one for the attempt to make another.
    let reports = checks(&client, &far, 20);
    all(&reports, Outcome::Reset, Duration::from_secs(6));
    let reports = checks(&client, &far, 20);
    all(&reports, Outcome::Reset, Duration::from_secs(3));
    all(
        &checks(&client, &near, 5),
        Outcome::Good,
        Duration::from_secs(2),
    );
    signal(Signal::SIGCONT);
    recovers(&client, &far, Duration::from_secs(10));
    all(
        &checks(&client, &far, 10),
        Outcome::Good,
        Duration::from_secs(3),
    );
}

#[test]
fn a_tunnel_that_reached_its_stream_limit_goes_with_its_last_stream() {
    let options = DaemonOptions::default().env("POOL_MAX_STREAMS_PER_CONNECTION", "4");
    let lab = one_worker(&options);
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[]).unwrap();
    for _ in 0..100 {
        all(
            &checks(&client, &far, 1),
            Outcome::Good,
            Duration::from_secs(3),
        );
    }
    let seen = link.stop().unwrap();
    assert_eq!(seen.opened_to(HBONE_PORT), 1, "{seen:?}");

    let mut streams: Vec<_> = (0..30)
        .map(|_| connect(&client, &far, Service::Echo))
        .collect();
    echo_all(&mut streams, 1);
    let many = tunnels(&client);
    assert!((8..=9).contains(&many), "{many}");
    drop(streams);
    let deadline = Instant::now() + SOON;
    while tunnels(&client) > 1 {
        assert!(Instant::now() < deadline, "{} are left", tunnels(&client));
    }
}

/// How many there are from a pod.
fn tunnels(from: &Place) -> usize {
    let output = from
        .run(["ss", "-Htn", "state", "established", "dport", "=", ":15008"])
        .unwrap()
        .success()
        .unwrap();
    output.stdout.lines().count()
}
