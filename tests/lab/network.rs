//! The network: who reaches whom, and what a capture sees of it.

use lab::tester::{Check, Outcome, Service};
use lab::{Lab, OUTSIDE_HOST_V4, OUTSIDE_HOST_V6, Place};

use crate::SHOP;

/// One exchange from `from` to a tester at `to`, and the address it was seen as.
fn reaches(from: &Place, to: std::net::IpAddr) -> std::net::IpAddr {
    let report = from.check(to, &Check::of(Service::Peer)).unwrap();
    assert_eq!(
        report.outcome,
        Outcome::Good,
        "{} to {to}: {report:?}",
        from.name()
    );
    report.seen_as.unwrap().ip()
}

#[test]
fn pods_nodes_and_the_outside_reach_each_other_and_see_real_addresses() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let (client, web, near) = (
        lab.pod("shop/client"),
        lab.pod("shop/web"),
        lab.pod("shop/near"),
    );
    let _servers = [&web, &near].map(|pod| pod.serve().unwrap());
    let _outside = lab.outside().serve().unwrap();
    for to in [&web, &near] {
        assert_eq!(reaches(&client, to.v4().unwrap()), client.v4().unwrap());
        assert_eq!(reaches(&client, to.v6().unwrap()), client.v6().unwrap());
    }
    assert_eq!(
        reaches(&client, OUTSIDE_HOST_V4.parse().unwrap()),
        client.v4().unwrap()
    );
    assert_eq!(
        reaches(&client, OUTSIDE_HOST_V6.parse().unwrap()),
        client.v6().unwrap()
    );
    for (ip, own) in web.ips().iter().zip([OUTSIDE_HOST_V4, OUTSIDE_HOST_V6]) {
        assert_eq!(reaches(lab.outside(), *ip).to_string(), own);
    }
    reaches(lab.node("node1"), web.v4().unwrap());
    reaches(lab.node("node2"), web.v6().unwrap());
}

#[test]
fn nobody_answers_for_a_service_unless_the_nodes_do() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let client = lab.pod("shop/client");
    let _nginx = lab.pod("shop/web").nginx(8080).unwrap();
    let alone = client
        .run(["curl", "-sS", "-m", "5", "http://web.shop/"])
        .unwrap();
    assert!(!alone.status.success(), "{alone:?}");
    lab.start_service_proxies().unwrap();
    for family in ["-4", "-6"] {
        let served = client
            .run(["curl", family, "-sS", "-m", "5", "http://web.shop/"])
            .unwrap();
        assert!(served.stdout.starts_with("shop/web saw "), "{served:?}");
    }
}

#[test]
fn a_capture_sees_markers_ports_and_connections_of_its_link_only() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let (client, web, near) = (
        lab.pod("shop/client"),
        lab.pod("shop/web"),
        lab.pod("shop/near"),
    );
    let _servers = [&web, &near].map(|pod| pod.serve().unwrap());
    let between = lab
        .tap("node1", "node2", &["far-marker", "near-marker"])
        .unwrap();
    let at_pod = client.tap(&["far-marker", "near-marker"]).unwrap();
    let port = Service::Echo.port();
    client
        .check(web.v4().unwrap(), &Check::echo("the far-marker"))
        .unwrap();
    client
        .check(web.v6().unwrap(), &Check::echo("the far-marker"))
        .unwrap();
    client
        .check(near.v4().unwrap(), &Check::echo("the near-marker"))
        .unwrap();
    let (between, at_pod) = (between.stop().unwrap(), at_pod.stop().unwrap());
    assert_eq!(
        (between.marker("far-marker"), between.marker("near-marker")),
        (4, 0)
    );
    assert_eq!(
        (at_pod.marker("far-marker"), at_pod.marker("near-marker")),
        (4, 2)
    );
    assert_eq!(between.on_port(port), 4 * "the far-marker".len() as u64);
    assert_eq!((between.opened_to(port), at_pod.opened_to(port)), (2, 3));
}

#[test]
fn two_labs_with_the_same_addresses_do_not_meet() {
    let (one, two) = (Lab::from_yaml(SHOP).unwrap(), Lab::from_yaml(SHOP).unwrap());
    let address = one.pod("shop/web").v4().unwrap();
    let _server = one.pod("shop/web").serve().unwrap();
    let echo = Check::echo("hello");
    let there = one.pod("shop/client").check(address, &echo).unwrap();
    let not_there = two.pod("shop/client").check(address, &echo).unwrap();
    assert_eq!(
        (there.outcome, not_there.outcome),
        (Outcome::Good, Outcome::Refused)
    );
}

#[test]
fn a_pod_may_have_one_family_only() {
    let lab = Lab::from_yaml(
        "
workloads:
  - {name: both, namespace: n, node: node1, addresses: [10.244.1.1, 'fd00:244:1::1']}
  - {name: four, namespace: n, node: node2, addresses: [10.244.2.1]}
  - {name: no-six, namespace: n, node: node2, addresses: [10.244.2.2], disable_ipv6: true}
  - {name: six, namespace: n, node: node2, addresses: ['fd00:244:2::3']}
",
    )
    .unwrap();
    let both = lab.pod("n/both");
    for name in ["n/four", "n/no-six", "n/six"] {
        let pod = lab.pod(name);
        let _server = pod.serve().unwrap();
        let _nginx = pod.nginx(8080).unwrap();
        assert!(both.ips().contains(&reaches(&both, pod.ips()[0])));
    }
    let off = lab.pod("n/no-six").run(["ip", "-6", "addr"]).unwrap();
    assert_eq!(off.stdout, "");
}

#[test]
fn a_pod_can_come_go_and_leave_its_address_to_the_next() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let client = lab.pod("shop/client");
    let mut next = lab.pod("shop/web").workload().clone();
    let first_uid = lab.pod("shop/web").uid().to_owned();
    lab.remove_pod("shop/web").unwrap();
    assert!(
        lab.control_plane()
            .mesh()
            .service("shop/web")
            .unwrap()
            .workloads
            .is_empty()
    );
    next.name = "web-2".to_owned();
    let pod = lab.add_pod(next).unwrap();
    assert_ne!(pod.uid(), first_uid);
    let _server = pod.serve().unwrap();
    assert_eq!(reaches(&client, pod.v4().unwrap()), client.v4().unwrap());
    assert_eq!(reaches(&client, pod.v6().unwrap()), client.v6().unwrap());
}
