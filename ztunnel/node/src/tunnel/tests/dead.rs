//! Peers that are gone without a word: nobody waits for them longer than necessary.

use std::future::pending;

use tokio::io::copy_bidirectional;
use tokio::time::Instant;
use ztunnel_mesh::reason::Reason;

use super::pool::{echo, say};
use super::*;
use crate::relay::Far as _;

/// Runs a test in which there is no real traffic: time passes when nobody can do anything.
fn run_paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn nobody() -> Client {
    let peer = SocketAddr::from(([10, 0, 0, 2], 15008));
    Client::new(&TestCa::new("one"), peer, DB, TunnelSettings::default())
}

/// Opens so many streams at once to somebody who never answers a SYN, and says how long each took to fail.
async fn fail_all(client: &Client, count: usize) -> Vec<Duration> {
    let opening: Vec<_> = (0..count)
        .map(|_| {
            let client = client.clone();
            spawn_local(async move {
                let started = Instant::now();
                let opened = client.open_over(pending).await;
                assert_eq!(opened.map(drop).unwrap_err().reason(), Reason::PeerTimeout);
                started.elapsed()
            })
        })
        .collect();
    let mut times = Vec::new();
    for one in opening {
        times.push(one.await.unwrap());
    }
    times
}

fn within(times: &[Duration], from: u64, to: u64) {
    let range = Duration::from_millis(from)..=Duration::from_millis(to);
    assert!(times.iter().all(|time| range.contains(time)), "{times:?}");
}

#[test]
fn all_who_wait_for_a_dead_peer_share_one_timeout() {
    run_paused(async {
        let client = nobody();
        within(&fail_all(&client, 100).await, 10_000, 10_010);
        assert_eq!(client.connects.get(), 1);
    });
}

#[test]
fn a_peer_known_to_be_dead_costs_a_second() {
    run_paused(async {
        let client = nobody();
        fail_all(&client, 1).await;
        // One after the other, through several attempts to reach it.
        for _ in 0..20 {
            within(&fail_all(&client, 1).await, 0, 1_010);
        }
        within(&fail_all(&client, 100).await, 0, 1_010);
        // An attempt gets three seconds, and there is never more than one.
        assert!((5..=9).contains(&client.connects.get()));
        assert_eq!(client.pool.len(), 1);
    });
}

#[test]
fn a_dead_peer_is_forgotten() {
    run_paused(async {
        let client = nobody();
        fail_all(&client, 1).await;
        assert_eq!(client.pool.len(), 1);
        sleep(Duration::from_secs(31)).await;
        assert!(client.pool.is_empty());
        assert!(client.tasks.is_empty());
        // Asked again, it gets all the time there is.
        within(&fail_all(&client, 1).await, 10_000, 10_010);
    });
}

#[test]
fn a_drain_does_not_wait_for_a_dead_peer() {
    run_paused(async {
        let client = nobody();
        fail_all(&client, 1).await;
        client.shutdown.start();
        assert_eq!(client.tasks.drain(Duration::from_secs(1)).await, 0);
    });
}

#[test]
fn dead_peers_do_not_fill_the_pool() {
    run_paused(async {
        let mut client = nobody();
        let settings = TunnelSettings {
            max_tunnels: 3,
            ..TunnelSettings::default()
        };
        client.pool = Pool::new(
            Arc::new(settings),
            client.tasks.clone(),
            client.shutdown.clone(),
            Arc::clone(&client.metrics),
        );
        for last in 2..12 {
            client.to.peer = HboneAddr(SocketAddr::from(([10, 0, 0, last], 15008)));
            within(&fail_all(&client, 1).await, 10_000, 10_010);
            assert!(client.pool.len() <= 3);
        }
    });
}

#[test]
fn a_dead_peer_is_reached_as_soon_as_it_is_back() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let settings = TunnelSettings {
            connect_timeout: Duration::from_millis(200),
            retry_timeout: Duration::from_millis(100),
            patience: Duration::from_millis(50),
            ..TunnelSettings::default()
        };
        let client = Client::new(&ca, server.addr, DB, settings);
        assert!(client.open_over(pending).await.is_err());
        assert!(client.open_over(pending).await.is_err());
        // The attempt of then still runs; those that come later see the end of it.
        while client.open().await.is_err() {}
        assert_eq!(server.accepted.get(), 1);
        // Nothing is left of it.
        drop(client.open().await.unwrap());
        assert_eq!((server.accepted.get(), client.pool.len()), (1, 1));
    });
}

/// Carries tunnels on to `to`; the first one until it is told to go silent.
async fn forwarder(to: SocketAddr) -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (silence, silenced) = tokio::sync::oneshot::channel::<()>();
    spawn_local(async move {
        let mut silenced = Some(silenced);
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            let silenced = silenced.take();
            spawn_local(async move {
                let carried = copy_bidirectional(&mut near, &mut far);
                match silenced {
                    Some(silenced) => tokio::select! {
                        _ = carried => {}
                        _ = silenced => {}
                    },
                    None => drop(carried.await),
                }
                pending::<()>().await;
            });
        }
    });
    (addr, silence)
}

#[test]
fn a_connect_does_not_wait_for_a_tunnel_that_fell_silent() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let (addr, silence) = forwarder(server.addr).await;
        let settings = TunnelSettings {
            ask_after: Duration::from_millis(20),
            doubt_after: Duration::from_millis(100),
            ..TunnelSettings::default()
        };
        let client = Client::new(&ca, addr, DB, settings);
        let mut old = client.open().await.unwrap().stream;
        assert_eq!(say(&mut old, "hello").await, "hello");
        silence.send(()).unwrap();
        let started = Instant::now();
        for opened in client.open_all(10).await {
            let mut stream = opened.unwrap().stream;
            assert_eq!(say(&mut stream, "hello").await, "hello");
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
        assert_eq!((client.connects.get(), server.accepted.get()), (2, 2));
        // Only what is new goes elsewhere; the old stream waits for the PONG until its own end.
        let end = timeout(Duration::ZERO, std::future::poll_fn(|cx| old.poll_data(cx)));
        assert!(end.await.is_err());
    });
}

#[test]
fn a_slow_app_is_not_taken_for_a_dead_peer() {
    run(async {
        let ca = TestCa::new("one");
        let slow = async |request: Box<Request>| {
            sleep(Duration::from_millis(500)).await;
            echo(request).await;
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), slow).await;
        let settings = TunnelSettings {
            ask_after: Duration::from_millis(20),
            doubt_after: Duration::from_millis(200),
            ..TunnelSettings::default()
        };
        let client = Client::new(&ca, server.addr, DB, settings);
        for _ in 0..2 {
            assert!(client.open().await.is_ok());
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn streams_of_two_source_addresses_do_not_share_a_tunnel() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let mut client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let first = client.open().await.unwrap();
        client.from.set_port(4001);
        let second = client.open().await.unwrap();
        assert_eq!(server.accepted.get(), 1);
        client.from = SocketAddr::from(([10, 0, 0, 7], 4000));
        let third = client.open().await.unwrap();
        assert_eq!((server.accepted.get(), client.pool.len()), (2, 2));
        drop((first, second, third));
    });
}
