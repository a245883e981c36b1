//! The applications do what they say, so that a test which uses them proves something.

use std::time::Duration;

use lab::tester::{Check, Outcome, Service};
use lab::{Lab, Pod};

use crate::SHOP;

fn two_pods() -> (Lab, Pod, Pod) {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let (client, web) = (lab.pod("shop/client"), lab.pod("shop/web"));
    (lab, client, web)
}

#[test]
fn every_service_of_the_tester_passes_its_own_check() {
    let (_lab, client, web) = two_pods();
    let mut server = web.serve().unwrap();
    for ip in [web.v4().unwrap(), web.v6().unwrap()] {
        for service in Service::ALL {
            let report = client.check(ip, &Check::of(service)).unwrap();
            assert_eq!(
                report.outcome,
                Outcome::Good,
                "{service:?} at {ip}: {report:?}"
            );
            let event = server.event().unwrap();
            assert_eq!(
                (event.service, event.outcome),
                (service, Outcome::Good),
                "{event:?}"
            );
            if matches!(service, Service::Sink | Service::EarlyFin | Service::Duplex) {
                assert_eq!(event.received, 1 << 20, "{event:?}");
            }
        }
    }
}

#[test]
fn bulk_and_parallel_checks_run_without_a_mesh() {
    let (_lab, client, web) = two_pods();
    let _server = web.serve().unwrap();
    let bulk = client
        .check(web.v4().unwrap(), &Check::duplex(64 << 20, 64 << 20))
        .unwrap();
    assert_eq!(
        (bulk.outcome, bulk.sent, bulk.received),
        (Outcome::Good, 64 << 20, 64 << 20)
    );
    let many = client
        .check(web.v6().unwrap(), &Check::parallel(100))
        .unwrap();
    assert_eq!((many.outcome, many.good), (Outcome::Good, 100));
}

#[test]
fn a_check_tells_what_went_wrong() {
    let (_lab, client, web) = two_pods();
    let check = Check::echo("hello");
    let outcome = |to| client.check(to, &check).unwrap().outcome;
    assert_eq!(outcome(web.v4().unwrap()), Outcome::Refused);
    let prohibit = "ip route add unreachable 203.0.113.1";
    client.run(prohibit.split(' ')).unwrap().success().unwrap();
    assert_eq!(
        outcome("203.0.113.1".parse().unwrap()),
        Outcome::Unreachable
    );
    let _server = web.serve().unwrap();
    let wrong = client
        .check_at((web.v4().unwrap(), Service::Reset.port()).into(), &check)
        .unwrap();
    assert_eq!((wrong.outcome, wrong.connected), (Outcome::Reset, true));
    let hasty = Check::echo("hello").timeout(Duration::from_secs(1));
    let silent = client
        .check_at((web.v4().unwrap(), Service::Sink.port()).into(), &hasty)
        .unwrap();
    assert_eq!(silent.outcome, Outcome::TimedOut);
    assert_eq!((silent.connected, silent.sent), (true, 5), "{silent:?}");
}

#[test]
fn a_client_connects_in_every_way_it_is_told() {
    let (_lab, client, web) = two_pods();
    let mut server = web.serve().unwrap();
    let ways = [
        Check::echo("x").from_port(31_000),
        Check::echo("x")
            .from_ip(client.v4().unwrap())
            .from_port(31_001),
        Check::echo("x").marked(0x539),
        Check::echo("x").on_device("eth0"),
        Check::echo("x").v4_mapped(),
        Check::echo("x").fast_open(),
    ];
    let mut ports = Vec::new();
    for way in ways {
        let report = client.check(web.v4().unwrap(), &way).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{way:?}: {report:?}");
        let event = server.event().unwrap();
        assert_eq!(event.peer.ip(), client.v4().unwrap());
        ports.push(event.peer.port());
    }
    assert_eq!(ports[..2], [31_000, 31_001]);
}

#[test]
fn a_held_connection_exchanges_on_command_until_it_is_closed() {
    let (_lab, client, web) = two_pods();
    let mut server = web.serve().unwrap();
    let mut held = client
        .hold((web.v4().unwrap(), Service::Echo.port()).into())
        .unwrap();
    for line in ["one", "two"] {
        assert_eq!(held.exchange(line).unwrap().outcome, Outcome::Good);
    }
    let closed = held.close().unwrap();
    assert_eq!((closed.outcome, closed.received), (Outcome::Good, 6));
    assert_eq!(server.event().unwrap().received, 6);
}

#[test]
fn nginx_answers_curl_and_notes_who_called() {
    let (_lab, client, web) = two_pods();
    let nginx = web.nginx(8080).unwrap();
    for (number, ip) in client.ips().iter().enumerate() {
        let host = web.ips()[number];
        let url = format!("http://{}/", std::net::SocketAddr::new(host, 8080));
        let said = client
            .run(["curl", "-sS", &url])
            .unwrap()
            .success()
            .unwrap();
        assert_eq!(said.stdout, format!("shop/web saw {ip}\n"));
        assert_eq!(nginx.client(number).unwrap(), *ip);
    }
}
