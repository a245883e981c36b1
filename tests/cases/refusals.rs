//! Endpoints that refuse: as long as there is one that does not, no app notices.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lab::hbone::{self, Server};
use lab::tester::{Check, Outcome, Report, Service};
use lab::{
    DaemonOptions, Gateway, Lab, Match, MeshFile, Policy, PolicyAction, PolicyScope, Validity,
};

use crate::access::{self, Access};

/// A client and pods for a service; nothing runs in them yet. `plain` has no proxy and says so.
const MESH: &str = "
workloads:
  - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10]}
  - {name: alive, namespace: shop, node: node2, service_account: db, addresses: [10.244.2.10], protocol: HBONE}
  - {name: idle, namespace: shop, node: node2, service_account: db, addresses: [10.244.2.11], protocol: HBONE}
  - {name: bare, namespace: shop, node: node2, service_account: db, addresses: [10.244.2.12], protocol: HBONE}
  - {name: plain, namespace: shop, node: node2, service_account: db, addresses: [10.244.2.13], protocol: NONE}
  - {name: gone, namespace: shop, node: node2, service_account: db, addresses: [10.244.2.14], protocol: HBONE, pod: false}
  - {name: one, namespace: infra, node: node2, service_account: waypoint, addresses: [10.244.2.20], protocol: HBONE}
  - {name: two, namespace: infra, node: node1, service_account: waypoint, addresses: [10.244.1.21], protocol: HBONE}
services:
  - {name: db, namespace: shop, addresses: [10.96.0.10], ports: {7001: 7001, 7008: 7008}, workloads: []}
  - {name: waypoint, namespace: infra, addresses: [10.96.0.20], ports: {15008: 15008}, workloads: [one, two]}
";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const WAYPOINT: &str = "spiffe://cluster.local/ns/infra/sa/waypoint";

/// One worker: what one connection finds out, the next one knows.
fn lab() -> Lab {
    let lab = Lab::from_yaml(MESH).unwrap();
    let options = DaemonOptions::default().env("ZTUNNEL_WORKER_THREADS", "1");
    for node in lab.nodes() {
        node.start_daemon_with(&options).unwrap();
    }
    lab.enroll(&["shop/client", "shop/alive", "shop/idle"])
        .unwrap();
    lab
}

fn update(lab: &Lab, change: impl FnOnce(&mut MeshFile)) {
    lab.control_plane().update(change).unwrap();
    lab.settle().unwrap();
}

/// Gives the service these endpoints.
fn endpoints(lab: &Lab, names: &[&str]) {
    update(lab, |mesh| {
        let names = names.iter().map(|&name| name.to_owned());
        mesh.service_mut("shop/db").unwrap().workloads = names.collect();
    });
}

fn vip(service: Service) -> SocketAddr {
    SocketAddr::new("10.96.0.10".parse().unwrap(), service.port())
}

fn check(lab: &Lab, check: &Check) -> Report {
    let client = lab.pod("shop/client");
    client.check_at(vip(Service::Echo), check).unwrap()
}

fn assert_all_good(lab: &Lab, count: u32, what: &str) {
    let report = check(lab, &Check::parallel(count));
    assert_eq!(report.outcome, Outcome::Good, "{what}: {report:?}");
    assert_eq!(report.good, count, "{what}: {report:?}");
}

/// What the client's proxy says of a connection.
fn line(lab: &Lab, report: &Report) -> Access {
    let src = report.local.unwrap().to_string();
    access::line(lab.node("node1"), &[("src.addr", &src)])
}

fn server(lab: &Lab, pod: &str, identity: &str, status: u16) -> Server {
    let pod = lab.pod(pod);
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(60));
    let credential = authority.issue(identity, validity).unwrap();
    let on = (pod.v4().unwrap(), hbone::PORT).into();
    Server::start(&pod, on, &credential, status).unwrap()
}

#[test]
fn of_a_hundred_connections_none_fails_for_one_dead_endpoint() {
    let lab = lab();
    let _server = lab.pod("shop/alive").serve().unwrap();
    // Its proxy answers 503, nobody listens on 15008, or there is no proxy to be expected and no app.
    for dead in ["idle", "bare", "plain"] {
        endpoints(&lab, &["alive", dead]);
        assert_all_good(&lab, 100, dead);
        for _ in 0..10 {
            assert_eq!(check(&lab, &Check::echo("hello")).outcome, Outcome::Good);
        }
    }
    // All three, and one more would be too many to try.
    endpoints(&lab, &["alive", "idle", "bare"]);
    assert_all_good(&lab, 100, "two of three");
}

#[test]
fn an_endpoint_that_is_not_itself_or_does_not_take_streams_is_passed_over() {
    let lab = lab();
    let _server = lab.pod("shop/alive").serve().unwrap();
    endpoints(&lab, &["alive", "bare"]);
    for (identity, status) in [(WAYPOINT, 200), (DB, 503)] {
        let server = server(&lab, "shop/bare", identity, status);
        // Whoever is avoided is tried again after a while, so this ends.
        access::eventually("somebody drew the server", || {
            assert_all_good(&lab, 20, identity);
            server.connections() > 0
        });
    }
}

#[test]
fn an_endpoint_that_says_nothing_costs_one_of_many_a_moment() {
    let lab = lab();
    let _server = lab.pod("shop/alive").serve().unwrap();
    let rule = ["ip", "rule", "add", "to", "10.244.2.14", "pref", "50"];
    let rule = rule.into_iter().chain(["blackhole"]);
    lab.node("node2").run(rule).unwrap().success().unwrap();
    endpoints(&lab, &["alive", "gone"]);
    assert_all_good(&lab, 30, "silent");
    // It is avoided now, but for one connection after longer and longer times.
    let started = Instant::now();
    for _ in 0..10 {
        assert_all_good(&lab, 1, "silent, and known");
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn when_all_refuse_each_of_them_is_named() {
    let lab = lab();
    endpoints(&lab, &["idle", "bare", "plain"]);
    let report = check(&lab, &Check::echo("hello"));
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    let refused = line(&lab, &report);
    assert!(refused.contains("no endpoint accepted"), "{refused:?}");
    for (name, why) in [
        ("idle", "refused the CONNECT with 503"),
        ("bare", "connect to 10.244.2.12:15008 failed"),
        ("plain", "connect to 10.244.2.13:7001 failed"),
    ] {
        let named = format!("Pod/shop/{name} port 7001: ");
        assert!(refused.contains(&named), "{name} in {refused:?}");
        assert!(refused.contains(why), "{why} in {refused:?}");
    }
    // They are avoided, but not forbidden: one that starts is found.
    let _server = lab.pod("shop/idle").serve().unwrap();
    assert_all_good(&lab, 20, "the first that is back");
    // An app that is not there on one port says nothing of the other port.
    endpoints(&lab, &["idle"]);
    let client = lab.pod("shop/client");
    let seen = client
        .check_at(vip(Service::Peer), &Check::of(Service::Peer))
        .unwrap();
    assert_eq!(seen.outcome, Outcome::Good, "{seen:?}");
}

#[test]
fn what_policy_denies_is_not_tried_elsewhere() {
    let lab = lab();
    let _servers = ["shop/alive", "shop/idle"].map(|pod| lab.pod(pod).serve().unwrap());
    update(&lab, |mesh| {
        mesh.policies.push(Policy {
            name: "nobody".to_owned(),
            namespace: "shop".to_owned(),
            scope: PolicyScope::WorkloadSelector,
            action: PolicyAction::Deny,
            rules: vec![vec![vec![Match {
                namespaces: vec!["shop".to_owned()],
                ..Match::default()
            }]]],
            dry_run: false,
        });
        let idle = mesh.workload_mut("shop/idle").unwrap();
        idle.authorization_policies = vec!["shop/nobody".to_owned()];
    });
    endpoints(&lab, &["alive", "idle"]);
    let mut denied = 0;
    // So many that chance leaves out one of them once in 2^39 runs.
    for _ in 0..40 {
        let report = check(&lab, &Check::echo("hello"));
        let line = line(&lab, &report);
        if report.outcome == Outcome::Good {
            assert_eq!(line.field("dst.addr"), "10.244.2.10:15008", "{line:?}");
            continue;
        }
        denied += 1;
        assert_eq!(line.field("dst.addr"), "10.244.2.11:15008", "{line:?}");
        assert!(line.contains("401"), "{line:?}");
        assert!(!line.contains("endpoint"), "{line:?}");
    }
    // Nor is it avoided: what is denied is not to look as if it worked now and then less.
    assert!((5..=35).contains(&denied), "{denied} of 40");
}

#[test]
fn of_two_waypoints_the_dead_one_is_passed_over() {
    let lab = lab();
    let _server = lab.pod("shop/alive").serve().unwrap();
    endpoints(&lab, &["alive"]);
    update(&lab, |mesh| {
        mesh.service_mut("shop/db").unwrap().waypoint = Some(Gateway {
            address: None,
            hostname: Some("infra/waypoint.infra.svc.cluster.local".to_owned()),
            port: hbone::PORT,
        });
    });
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(60));
    let credential = authority.issue(WAYPOINT, validity).unwrap();
    let one = lab.pod("infra/one");
    let on = |ip: IpAddr| (ip, hbone::PORT).into();
    let to = SocketAddr::new("10.244.2.10".parse().unwrap(), Service::Echo.port());
    let routes = [(vip(Service::Echo).to_string(), to)].into();
    let waypoint =
        Server::start_waypoint(&one, on(one.v4().unwrap()), &credential, routes).unwrap();
    assert_all_good(&lab, 50, "one waypoint of two");
    assert_eq!(waypoint.connects().len(), 50);
    // Without the other one it is not reached: there is no way around them.
    drop(waypoint);
    let report = check(&lab, &Check::echo("hello"));
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    let refused = line(&lab, &report);
    for name in ["one", "two"] {
        let named = format!("Pod/infra/{name} port 15008: ");
        assert!(refused.contains(&named), "{name} in {refused:?}");
    }
}
