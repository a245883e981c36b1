//! Envoy goes away, in order or not: what is open ends as it should, and what is new is told or finds another tunnel.

use lab::Lab;
use lab::hbone::PORT;
use lab::tester::{Check, Held, Outcome};
use nix::sys::signal::Signal;

use super::far_end::Behind;
use super::{SMALL_WINDOWS, SOON, client, exchanges, good, hold, one_worker, stat};
use crate::access::{self, eventually};

/// The line of a connection that was held.
fn reason(lab: &Lab, held: &Held) -> String {
    let src = held.opened().local.unwrap().to_string();
    let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
    line.field("reason").to_owned()
}

#[test]
fn an_envoy_waypoint_that_drains_takes_new_tunnels_and_keeps_what_is_open() {
    let behind = Behind::waypoint();
    let lab = &behind.lab;
    let envoy = behind.envoy("", "");
    let _server = lab.pod("shop/far").serve().unwrap();
    let client = lab.pod("shop/client");
    let mut open: Vec<_> = (0..3).map(|_| hold(&client, behind.far)).collect();
    assert_eq!(stat(&envoy, "http.hbone.downstream_cx_total"), 1);
    envoy.ask("/drain_listeners?graceful&skip_exit").unwrap();
    // With the answer to the first of these comes a GOAWAY, and with that to any in a new tunnel, too.
    for _ in 0..3 {
        good(&client, behind.far, &Check::echo("x"));
        // It is sent twice, the second time with the last stream that is taken.
        for held in &mut open {
            assert_eq!(exchanges(held), Outcome::Good);
        }
    }
    assert!(stat(&envoy, "http.hbone.downstream_cx_drain_close") > 0);
    assert!(stat(&envoy, "http.hbone.downstream_cx_total") > 1);
    for held in open {
        assert_eq!(held.close().unwrap().outcome, Outcome::Good);
    }
    eventually("tunnels that were drained are closed", || {
        stat(&envoy, "http.hbone.downstream_cx_active") <= 1
    });
}

#[test]
fn no_connection_is_lost_when_an_envoy_waypoint_limits_what_a_tunnel_carries() {
    let behind = Behind::waypoint();
    let lab = &behind.lab;
    let envoy = behind.envoy(SMALL_WINDOWS, "max_requests_per_connection: 5");
    let _server = lab.pod("shop/far").serve().unwrap();
    let client = lab.pod("shop/client");
    let link = client.tap(&[]).unwrap();
    let report = good(&client, behind.far, &Check::parallel(60));
    assert_eq!(report.good, 60, "{report:?}");
    for _ in 0..10 {
        good(&client, behind.far, &Check::echo("x"));
    }
    assert!(stat(&envoy, "http.hbone.downstream_cx_max_requests_reached") > 0);
    let seen = link.stop().unwrap();
    assert!(seen.opened_to(PORT) > 1, "{seen:?}");
}

#[test]
fn an_envoy_waypoint_that_ends_breaks_what_is_open_and_is_reached_when_it_is_back() {
    let behind = Behind::waypoint();
    let lab = &behind.lab;
    let mut envoy = behind.envoy("", "");
    let _server = lab.pod("shop/far").serve().unwrap();
    let client = lab.pod("shop/client");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut open: Vec<_> = (0..3).map(|_| hold(&client, behind.far)).collect();
        envoy.process().signal(signal).unwrap();
        for held in &mut open {
            assert_eq!(reason(lab, held), "PEER_LOST");
            assert_eq!(exchanges(held), Outcome::Reset);
        }
        envoy.process().wait(SOON).unwrap();
        let report = client.check(behind.far, &Check::echo("x")).unwrap();
        assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
        let src = report.local.unwrap().to_string();
        let line = access::line(lab.node("node1"), &[("src.addr", &src)]);
        assert_eq!(line.field("reason"), "PEER_UNREACHABLE", "{line:?}");
        envoy = behind.envoy("", "");
        eventually("it is reached again", || {
            let report = client.check(behind.far, &Check::echo("x")).unwrap();
            report.outcome == Outcome::Good
        });
    }
}

#[test]
fn an_envoy_gateway_that_ends_breaks_what_it_carried() {
    let lab = one_worker(client::MESH, "shop/far");
    let mut envoy = client::envoy(&lab, "");
    let _server = lab.pod("shop/far").serve().unwrap();
    let gate = lab.pod("infra/gate");
    let mut held = hold(&gate, client::INTO);
    assert_eq!(exchanges(&mut held), Outcome::Good);
    envoy.process().kill();
    let line = access::line(lab.node("node2"), &[("direction", "inbound")]);
    assert_eq!(line.field("reason"), "PEER_LOST", "{line:?}");
    let _again = client::envoy(&lab, "");
    good(&gate, client::INTO, &Check::echo("x"));
}

#[test]
fn an_envoy_gateway_leaves_a_daemon_that_stops_and_finds_the_next() {
    let lab = one_worker(client::MESH, "shop/far");
    let envoy = client::envoy(&lab, "");
    let _server = lab.pod("shop/far").serve().unwrap();
    let (node, gate) = (lab.node("node2"), lab.pod("infra/gate"));
    let mut held = hold(&gate, client::INTO);
    node.daemon(|daemon| daemon.signal(Signal::SIGTERM))
        .unwrap();
    eventually("Envoy is told that the daemon goes away", || {
        stat(&envoy, "cluster.pod.upstream_cx_close_notify") == 1
    });
    // It waits for what is open.
    assert_eq!(exchanges(&mut held), Outcome::Good);
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);
    node.daemon(|daemon| daemon.process().wait(SOON)).unwrap();
    node.kill().unwrap();
    node.start_daemon().unwrap();
    lab.enroll(&["shop/far"]).unwrap();
    good(&gate, client::INTO, &Check::echo("x"));
}
