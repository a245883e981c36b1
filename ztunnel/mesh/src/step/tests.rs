use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::*;
use crate::balance::Rng;
use crate::decide::{Decision, decide};
use crate::fixture::{mesh, uid};

/// Writes down the steps, and always throws the same.
struct Listener {
    random: u32,
    steps: Vec<String>,
}

impl Rng for Listener {
    fn next_u32(&mut self) -> u32 {
        self.random
    }

    fn step(&mut self, step: Step<'_>) {
        self.steps.push(format!("{}: {step}", step.about()));
    }
}

/// The steps of a connection `<client pod> -> <ip:port>`, from first to last.
fn check(mesh_text: &str, flow: &str, steps: &[&str]) {
    let mesh = mesh(mesh_text);
    let (client, to) = flow.split_once(" -> ").unwrap();
    let from = mesh.workload(&uid(client)).unwrap();
    let to = OrigDst(to.parse().unwrap());
    let mut listener = Listener {
        random: 0,
        steps: Vec::new(),
    };
    let explained = decide(&mesh, "", from, to, &mut listener);
    // Where in a mesh an endpoint lies, and so which of two alike a number means, is another thing every time.
    let told = listener.steps.iter().map(|s| s.replace("near-too", "near"));
    assert_eq!(told.collect::<Vec<_>>(), steps, "{mesh_text} | {flow}");
    // To listen changes nothing.
    let decided: Decision = decide(&mesh, "", from, to, &mut crate::fixture::Fixed(0));
    assert_eq!(explained, decided);
}

const WEB: &str = "pod shop/web ip=10.1.0.1 locality=eu/z1 node=n1; ";

#[test]
fn an_address_of_a_pod() {
    check(
        &[WEB, "pod shop/db ip=10.1.0.2; we ext/vm ip=10.2.0.1"].concat(),
        "shop/web -> 10.1.0.2:5432",
        &[
            "addressed: 10.1.0.2 is workload shop/db",
            "lookup: 10.1.0.2 is workload shop/db",
            "destination: shop/db takes tunnels: to its port 5432 by HBONE",
        ],
    );
}

#[test]
fn a_service_and_how_its_endpoints_fare() {
    let text = [
        WEB,
        "svc shop/db vip=10.0.0.2 ports=80:8080,81:0 failover=region,zone; \
         pod shop/near ip=10.1.0.2 locality=eu/z1 capacity=2 of=shop/db; \
         pod shop/near-too ip=10.1.0.3 locality=eu/z1 capacity=2 of=shop/db; \
         pod shop/far ip=10.1.0.4 locality=us/z9 of=shop/db+80:9090; \
         pod shop/sick ip=10.1.0.5 locality=eu/z1 unhealthy capacity=7 of=shop/db",
    ]
    .concat();
    check(
        &text,
        "shop/web -> 10.0.0.2:80",
        &[
            "addressed: 10.0.0.2 is service shop/db",
            "waypoint: service shop/db has none",
            "lookup: 10.0.0.2 is service shop/db",
            "endpoints: capacity 4 can take it, rank 2",
            "endpoints: capacity 1 can take it, rank 0: others are nearer",
            "endpoints: capacity 7 left out: not healthy",
            "endpoint: shop/near port 8080, drawn at random: capacity 2 of 4",
            "destination: shop/near takes tunnels: to its port 8080 by HBONE",
        ],
    );
    check(
        &text,
        "shop/web -> 10.0.0.2:81",
        &[
            "addressed: 10.0.0.2 is service shop/db",
            "waypoint: service shop/db has none",
            "lookup: 10.0.0.2 is service shop/db",
            "endpoints: capacity 4 left out: no port for port 81 of the service",
            "endpoints: capacity 1 left out: no port for port 81 of the service",
            "endpoints: capacity 7 left out: not healthy",
            "endpoints: service shop/db has none that can take it",
        ],
    );
    check(
        &text,
        "shop/web -> 10.0.0.2:82",
        &[
            "addressed: 10.0.0.2 is service shop/db",
            "waypoint: service shop/db has none",
            "lookup: 10.0.0.2 is service shop/db",
            "port: service shop/db has no port 82",
        ],
    );
}

#[test]
fn strict_load_balancing_leaves_out_who_is_far() {
    check(
        &[
            WEB,
            "svc shop/db vip=10.0.0.2 ports=80 strict=region,zone; \
             pod shop/far ip=10.1.0.4 locality=us/z9 of=shop/db",
        ]
        .concat(),
        "shop/web -> 10.0.0.2:80",
        &[
            "addressed: 10.0.0.2 is service shop/db",
            "waypoint: service shop/db has none",
            "lookup: 10.0.0.2 is service shop/db",
            "endpoints: capacity 1 left out: not in the client's region, zone",
            "endpoints: service shop/db has none that can take it",
        ],
    );
}

#[test]
fn services_that_share_an_address_and_why_one_of_them_wins() {
    let text = [
        WEB,
        "svc a/s vip=10.0.0.2 ports=80; svc b/s vip=10.0.0.2 ports=80 canonical; \
         svc c/s vip=10.0.0.2 ports=80 canonical private; svc d/s vip=10.0.0.0/24 ports=80; \
         svc e/s vip=10.0.0.2 ports=80 canonical; ",
    ]
    .concat();
    let canonical = "10.0.0.2 is service b/s; not a/s, which is not canonical; not c/s, which is private to its \
                     namespace; not d/s, which has a range around it; not e/s, which comes later by name";
    check(
        &text,
        "shop/web -> 10.0.0.2:80",
        &[
            &format!("addressed: {canonical}"),
            "waypoint: service b/s has none",
            &format!("lookup: {canonical}"),
            "endpoints: service b/s has none that can take it",
        ],
    );
    let own = mesh(&(text + "svc shop/s vip=10.0.0.2 ports=80; svc d/t vip=10.0.0.0/23 ports=80"));
    let told = |ip: &str, namespace| {
        let ip = ip.parse().unwrap();
        let service = own.service_by_vip("", ip, namespace).unwrap();
        let lookup = Lookup {
            mesh: &own,
            network: "",
            ip,
            namespace,
            is: Is::Service(service),
        };
        lookup.to_string()
    };
    let text = told("10.0.0.2", "shop");
    assert!(
        text.contains("is service shop/s; not a/s, of another namespace"),
        "{text}"
    );
    assert_eq!(
        told("10.0.0.9", "shop"),
        "10.0.0.9 is service d/s; not d/t, which has a wider range"
    );
}

#[test]
fn a_waypoint_of_a_service() {
    let text = [
        WEB,
        "svc shop/db vip=10.0.0.2 ports=80 weighted=infra/wp*9,10.9.9.9*1; \
         svc infra/wp vip=10.0.0.9 ports=15008; pod infra/wp ip=10.1.0.9 of=infra/wp",
    ]
    .concat();
    check(
        &text,
        "shop/web -> 10.0.0.2:80",
        &[
            "addressed: 10.0.0.2 is service shop/db",
            "waypoint: service shop/db has the waypoint infra/wp port 15008, drawn at random: weight 9 of 10",
            "lookup: infra/wp is service infra/wp",
            "endpoints: capacity 1 can take it",
            "endpoint: infra/wp port 15008, the only one",
            "waypoint: the waypoint is infra/wp",
        ],
    );
}

#[test]
fn a_waypoint_of_a_pod_is_for_connections_to_the_pod() {
    let text = [
        WEB,
        "svc shop/db vip=10.0.0.2 ports=80; pod shop/db ip=10.1.0.2 of=shop/db waypoint=10.1.0.9; \
         pod infra/wp ip=10.1.0.9",
    ]
    .concat();
    check(
        &text,
        "shop/web -> 10.1.0.2:80",
        &[
            "addressed: 10.1.0.2 is workload shop/db",
            "lookup: 10.1.0.2 is workload shop/db",
            "waypoint: shop/db is reached through the waypoint 10.1.0.9 port 15008",
            "lookup: 10.1.0.9 is workload infra/wp",
            "waypoint: the waypoint is infra/wp",
        ],
    );
    check(
        &text,
        "infra/wp -> 10.1.0.2:80",
        &[
            "addressed: 10.1.0.2 is workload shop/db",
            "lookup: 10.1.0.2 is workload shop/db",
            "waypoint: the client is the waypoint of shop/db",
            "destination: shop/db takes tunnels: to its port 80 by HBONE",
        ],
    );
    check(
        &text,
        "shop/web -> 10.0.0.2:80",
        &[
            "addressed: 10.0.0.2 is service shop/db",
            "waypoint: service shop/db has none",
            "lookup: 10.0.0.2 is service shop/db",
            "endpoints: capacity 1 can take it",
            "endpoint: shop/db port 80, the only one",
            "waypoint: shop/db has one, which is not for connections to services",
            "destination: shop/db takes tunnels: to its port 80 by HBONE",
        ],
    );
}

#[test]
fn a_gateway_to_another_network() {
    check(
        &[
            WEB,
            "svc shop/db vip=10.0.0.2 ports=80 san=spiffe://cluster.local/ns/shop/sa/db; \
             we shop/far network=far gateway=far@172.16.0.1 of=shop/db; we gw/one network=far ip=172.16.0.1",
        ]
        .concat(),
        "shop/web -> 10.0.0.2:80",
        &[
            "addressed: 10.0.0.2 is service shop/db",
            "waypoint: service shop/db has none",
            "lookup: 10.0.0.2 is service shop/db",
            "endpoints: capacity 1 can take it",
            "endpoint: shop/far port 80, the only one",
            "network: shop/far is on network \"far\", the client on \"\"",
            "gateway: shop/far is reached through the gateway far/172.16.0.1 port 15008",
            "lookup: 172.16.0.1 on network \"far\" is workload gw/one",
            "gateway: the gateway is gw/one",
        ],
    );
}

#[test]
fn what_is_not_of_the_mesh() {
    check(
        &[WEB, "svc a/s vip=192.0.2.7 ports=80 private"].concat(),
        "shop/web -> 192.0.2.7:80",
        &[
            "addressed: 192.0.2.7 is nobody's; not a/s, which is private to its namespace",
            "lookup: 192.0.2.7 is nobody's; not a/s, which is private to its namespace",
            "address: 192.0.2.7:80 is outside of the mesh: plain TCP, to where it was going",
        ],
    );
    check(
        &[WEB, "svc a/s vip=192.0.2.0/24 ports=80 passthrough"].concat(),
        "shop/web -> 192.0.2.7:80",
        &[
            "addressed: 192.0.2.7 is service a/s",
            "waypoint: service a/s has none",
            "lookup: 192.0.2.7 is service a/s",
            "service: service a/s passes through: connections go where they were going",
        ],
    );
    check(
        WEB,
        "shop/web -> 127.0.0.1:15008",
        &["port: 127.0.0.1:15008 is a port of the proxy itself"],
    );
}
