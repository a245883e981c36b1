//! The mesh gets another CA while it works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab::hbone::{self, Client, Stage};
use lab::tester::{Check, Outcome, Report, Service};
use lab::{Authority, DaemonOptions, Lab, Pod, Validity};

use crate::access::eventually;
use crate::mesh::MESH;

/// Short enough to see every certificate renewed several times.
const LIFETIME: Duration = Duration::from_secs(8);

/// New connections, each through a handshake of its own, until `stop`. Gives the bad ones, and how many there were.
fn steady(from: &Pod, to: &Pod, stop: &AtomicBool) -> (Vec<Report>, usize) {
    let (mut bad, mut count) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let report = from
            .check(to.v4().unwrap(), &Check::echo("steady"))
            .unwrap();
        count += 1;
        if report.outcome != Outcome::Good {
            bad.push(report);
        }
    }
    (bad, count)
}

#[test]
fn the_ca_of_the_mesh_is_replaced_under_load_without_a_failed_connection() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    plane.limit_certificates(Validity {
        back_dated: Duration::ZERO,
        lifetime: LIFETIME,
    });
    // One stream in each tunnel: every connection is a handshake.
    let options = DaemonOptions::default().env("POOL_MAX_STREAMS_PER_CONNECTION", "1");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll_all().unwrap();
    let [client, near, far] =
        ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let _servers = [
        client.serve().unwrap(),
        near.serve().unwrap(),
        far.serve().unwrap(),
    ];
    let mut held = client
        .hold((far.v4().unwrap(), Service::Echo.port()).into())
        .unwrap();

    let all_renewed = || {
        let pods = [&client, &near, &far];
        let so_far = pods.map(|pod| plane.issued_for(pod.identity()));
        eventually("all certificates are renewed", || {
            let now = pods.map(|pod| plane.issued_for(pod.identity()));
            now.iter().zip(&so_far).all(|(now, before)| now > before)
        });
    };
    let stop = AtomicBool::new(false);
    let old = plane.authority();
    thread::scope(|scope| {
        let load = [(&client, &far), (&far, &client), (&near, &far)]
            .map(|(from, to)| scope.spawn(|| steady(from, to, &stop)));
        all_renewed();
        // First everybody learns of the new root, then it is used, then the old one goes.
        let new = Authority::new("lab, the next").unwrap();
        plane.trust_also(new.root_pem());
        all_renewed();
        plane.set_authority(new, true);
        all_renewed();
        plane.trust_nobody_else();
        all_renewed();
        all_renewed();
        stop.store(true, Ordering::Relaxed);
        for load in load {
            let (bad, count) = load.join().unwrap();
            assert!(bad.is_empty(), "{} of {count}: {:?}", bad.len(), bad[0]);
            assert!(count > 20, "{count}");
        }
    });
    let report = held.exchange("all the time").unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);

    // Nobody who comes with the old CA is let in any more.
    let to = (far.v4().unwrap(), hbone::PORT).into();
    let minute = Validity::of(Duration::from_secs(60));
    for (authority, welcome) in [(old, false), (plane.authority(), true)] {
        let credential = authority.issue(client.identity(), minute).unwrap();
        let answer = Client::from(lab.outside())
            .with(&credential)
            .payload("hello")
            .connect(
                to,
                &format!("{}:{}", far.v4().unwrap(), Service::Echo.port()),
            )
            .unwrap();
        match answer {
            Ok(answer) => assert!(welcome && answer.status == 200, "{answer:?}"),
            Err(refusal) => assert!(!welcome && refusal.stage == Stage::Tls, "{refusal:?}"),
        }
    }
}
