//! What it costs to judge 50,000 connections of a pod and worker again, and to end some.
//!
//! Question: how long until all are judged, and for how long is the thread held up at most meanwhile? Run it alone:
//! `cargo test --release -p ztunnel-node --lib live::tests::measure -- --ignored --nocapture --test-threads 1`.

use std::time::Instant;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::*;
use crate::relay::{ResetOnDrop, join_tcp};
use crate::telemetry::Traffic;

const CONNECTIONS: usize = 50_000;
/// Each takes four descriptors.
const RELAYED: usize = 1_000;
const POLICIES: usize = 100;
const ROUNDS: usize = 5;

/// From the change to the last cut, and the longest that another task waited for its turn.
type Round = (Duration, Duration);

fn plane() -> Plane {
    let mut plane = Plane::new();
    for number in 0..POLICIES {
        plane.put(deny(&format!("no-{number}"), &[&format!("x-{number}")]));
    }
    plane
}

fn report(name: &str, mut rounds: Vec<Round>) {
    rounds.sort();
    let [best, median, worst] = [0, ROUNDS / 2, ROUNDS - 1].map(|at| rounds[at]);
    println!("{name}: time in total, longest hold-up");
    println!("  median {median:?}, best {best:?}, worst {worst:?}");
}

async fn until(done: impl Fn() -> bool) -> Round {
    let began = Instant::now();
    let (mut last, mut longest) = (began, Duration::ZERO);
    while !done() {
        yield_now().await;
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    (began.elapsed(), longest)
}

#[tokio::test]
#[ignore = "a measurement, for release builds"]
async fn fifty_thousand_are_judged() {
    for (name, who) in [("one is cut", "last"), ("all are cut", "a")] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let (mut plane, live) = (plane(), Live::default());
            let policies = plane.policies();
            let places: Vec<_> = (0..=CONNECTIONS)
                .map(|number| {
                    let who = if number < CONNECTIONS { "a" } else { "last" };
                    admit_by(&live, &policies, who).unwrap()
                })
                .collect();
            let round = Plane::beside(plane.1.clone(), &live, async {
                sleep(LOOKED).await;
                plane.put(deny("now", &[who, "last"]));
                until(|| places[CONNECTIONS].connection.is_cut()).await
            });
            rounds.push(round.await);
        }
        report(
            &format!("{CONNECTIONS} connections, {POLICIES} other policies, {name}"),
            rounds,
        );
    }
}

#[tokio::test]
#[ignore = "a measurement, for release builds"]
async fn a_thousand_are_ended() {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (mut plane, live) = (plane(), Rc::new(Live::default()));
        let local = LocalSet::new();
        let round = local.run_until(async {
            let mut ends: Vec<JoinHandle<()>> = Vec::new();
            let mut peers = Vec::new();
            for _ in 0..RELAYED {
                let ((app, ours), (client, accepted)) = (pair().await, pair().await);
                let (live, policies) = (Rc::clone(&live), plane.policies());
                peers.extend([app, client]);
                ends.push(spawn_local(async move {
                    let place = admit_by(&live, &policies, "a").unwrap();
                    let traffic = Traffic::default();
                    let [app, far] = [ours, accepted].map(ResetOnDrop::new);
                    let ended = place.unless_cut(join_tcp(app, far, &traffic)).await;
                    assert!(ended.is_err());
                }));
            }
            Plane::beside(plane.1.clone(), &live, async {
                sleep(LOOKED).await;
                plane.put(deny("now", &["a"]));
                until(|| ends.iter().all(JoinHandle::is_finished)).await
            })
            .await
        });
        rounds.push(round.await);
    }
    report(
        &format!("{RELAYED} relayed connections over TCP, all are cut"),
        rounds,
    );
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}
