use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::*;
use crate::fixture::{Fixed, mesh, uid, upserts};
use crate::name::ServiceName;
use crate::snapshot::Delta;

mod networks;
mod waypoints;

/// `flow` is `<client pod> -> <ip:port>`, with ` on <network>` when the proxy's network is not the empty one.
/// A mesh that begins with `partial;` is one; what follows `absent`, each `<network>/<ip>` or
/// `<namespace>/<hostname>`, is known to be absent.
/// Expected: `lookup <key>`, `direct <addr>`, `hbone <peer> for <authority> as <identities> [of <service>]`, the same
/// with ` then <identities>` for a second tunnel in the first, `<hostname>[ v6] is 192.0.2.77: ` before one of them, or
/// the code of the reason. The identities lose their `spiffe://cluster.local` and the words in between.
fn check(mesh_text: &str, flow: &str, expected: &str) {
    assert_eq!(
        decided(mesh_text, flow, 0),
        expected,
        "{mesh_text} | {flow}"
    );
}

fn decided(mesh_text: &str, flow: &str, random: u32) -> String {
    let mesh = match mesh_text.strip_prefix("partial;") {
        None => mesh(mesh_text),
        Some(text) => partial(text),
    };
    decided_in(&mesh, flow, random)
}

fn decided_in(mesh: &Mesh, flow: &str, random: u32) -> String {
    let (flow, network) = flow.split_once(" on ").unwrap_or((flow, ""));
    let (client, to) = flow.split_once(" -> ").unwrap();
    let from = mesh.workload(&uid(client)).unwrap();
    let to = OrigDst(to.parse().unwrap());
    match decide(mesh, network, from, to, &mut Fixed(random)) {
        Decision::Go { route, .. } => printed(route),
        Decision::Lookup(key) => format!("lookup {key}"),
        Decision::Refuse(refusal) => {
            assert!(!refusal.detail.is_empty());
            refusal.reason.code().to_string()
        }
    }
}

fn printed(route: Route) -> String {
    let names = |identities: &[Identity]| {
        let short = |identity: &Identity| {
            let uri = identity.to_string().replace("spiffe://cluster.local", "");
            uri.replace("/ns/", "").replace("/sa/", "/")
        };
        let all: Vec<_> = identities.iter().map(short).collect();
        all.join("+")
    };
    match route {
        Route::Direct { to } => format!("direct {to}"),
        Route::Hbone(route) => {
            let of = route.service.map_or(String::new(), |s| format!(" of {s}"));
            let (peer, authority) = (route.peer, route.authority);
            format!(
                "hbone {peer} for {authority} as {}{of}",
                names(&route.expected)
            )
        }
        Route::DoubleHbone(DoubleHboneRoute { outer, inner }) => {
            let outer = printed(Route::Hbone(outer));
            format!("{outer} then {}", names(&inner))
        }
        Route::Named(route) => {
            let family = if route.prefer_v4 { "" } else { " v6" };
            let name = format!("{}{family} is 192.0.2.77: ", route.hostname);
            name + &printed(route.at("192.0.2.77".parse().unwrap()))
        }
    }
}

/// Refuses, and says `why` somewhere.
fn check_refused(mesh_text: &str, flow: &str, why: &str) {
    let mesh = mesh(mesh_text);
    let (client, to) = flow.split_once(" -> ").unwrap();
    let from = mesh.workload(&uid(client)).unwrap();
    let to = OrigDst(to.parse().unwrap());
    match decide(&mesh, "", from, to, &mut Fixed(0)) {
        Decision::Refuse(refusal) => {
            let named = [Reason::NoWaypoint, Reason::NoGateway].contains(&refusal.reason);
            assert!(named, "{mesh_text} | {refusal}");
            assert!(refusal.detail.contains(why), "{mesh_text} | {refusal}");
        }
        other => panic!("{mesh_text} | {flow}: {other:?}"),
    }
}

fn partial(text: &str) -> Mesh {
    let (text, absences) = text.split_once("absent ").unwrap_or((text, ""));
    let absences: Vec<_> = absences
        .split_whitespace()
        .map(|name| {
            let (network, ip) = name.split_once('/').unwrap();
            match ip.parse() {
                Ok(ip) => Key::Address {
                    network: network.into(),
                    ip,
                },
                Err(_) => Key::Service(ServiceName::new(network, ip)),
            }
        })
        .collect();
    let delta = Delta {
        upserts: upserts(text),
        removals: Vec::new(),
    };
    Mesh::partial().apply(delta).with_absences(&absences, [])
}

const WEB: &str = "pod shop/web ip=10.1.0.1,fd00::1; ";

fn with_web(text: &str) -> String {
    format!("{WEB}{text}")
}

#[test]
fn unknown_addresses_pass_through() {
    check(WEB, "shop/web -> 192.0.2.1:443", "direct 192.0.2.1:443");
    check(
        WEB,
        "shop/web -> [2001:db8::1]:443",
        "direct [2001:db8::1]:443",
    );
    check(WEB, "shop/web -> 127.0.0.1:80", "direct 127.0.0.1:80");
}

#[test]
fn ports_of_the_proxy_on_loopback_are_a_loop() {
    for to in ["127.0.0.1:15001", "127.9.9.9:15006", "[::1]:15008"] {
        check(WEB, &format!("shop/web -> {to}"), "LOOP");
    }
    check(WEB, "shop/web -> 192.0.2.1:15008", "direct 192.0.2.1:15008");
}

#[test]
fn workloads_are_reached_by_their_own_protocol() {
    let db = with_web("pod shop/db ip=10.1.0.2,fd00::2; we ext/vm ip=10.2.0.1");
    check(
        &db,
        "shop/web -> 10.1.0.2:5432",
        "hbone 10.1.0.2:15008 for 10.1.0.2:5432 as shop/db",
    );
    check(
        &db,
        "shop/web -> [fd00::2]:5432",
        "hbone [fd00::2]:15008 for [fd00::2]:5432 as shop/db",
    );
    check(
        &db,
        "shop/web -> [::ffff:10.1.0.2]:5432",
        "hbone 10.1.0.2:15008 for 10.1.0.2:5432 as shop/db",
    );
    check(&db, "shop/web -> 10.2.0.1:22", "direct 10.2.0.1:22");
}

#[test]
fn the_pod_itself_is_a_peer_like_any_other() {
    check(
        WEB,
        "shop/web -> 10.1.0.1:80",
        "hbone 10.1.0.1:15008 for 10.1.0.1:80 as shop/web",
    );
    check(
        "pod shop/web ip=10.1.0.1 of=shop/web; svc shop/web vip=10.0.0.1 ports=80:8080",
        "shop/web -> 10.0.0.1:80",
        "hbone 10.1.0.1:15008 for 10.1.0.1:8080 as shop/web of web",
    );
}

#[test]
fn unhealthy_workloads_are_still_reached_by_address() {
    check(
        &with_web("pod shop/db ip=10.1.0.2 unhealthy"),
        "shop/web -> 10.1.0.2:5432",
        "hbone 10.1.0.2:15008 for 10.1.0.2:5432 as shop/db",
    );
}

#[test]
fn identities_get_their_defaults_and_the_names_of_the_service() {
    check(
        &with_web("pod shop/db ip=10.1.0.2 sa= td="),
        "shop/web -> 10.1.0.2:1",
        "hbone 10.1.0.2:15008 for 10.1.0.2:1 as shop/default",
    );
    check(
        &with_web(
            "pod shop/db ip=10.1.0.2 td=other of=shop/db; \
             svc shop/db vip=10.0.0.2 ports=1 san=spiffe://cluster.local/ns/a/sa/b",
        ),
        "shop/web -> 10.0.0.2:1",
        "hbone 10.1.0.2:15008 for 10.1.0.2:1 as a/b+spiffe://othershop/db of db",
    );
}

#[test]
fn ports_come_from_the_endpoint_then_from_the_service() {
    let text = with_web(
        "pod shop/db ip=10.1.0.2 of=shop/db+80:8081+82:8082+83:0; \
         svc shop/db vip=10.0.0.2 ports=80:8080,81:8181,82:0,83:0",
    );
    for (port, target) in [(80, 8081), (81, 8181), (82, 8082)] {
        check(
            &text,
            &format!("shop/web -> 10.0.0.2:{port}"),
            &format!("hbone 10.1.0.2:15008 for 10.1.0.2:{target} as shop/db of db"),
        );
    }
    // A named port that this endpoint does not have, and a port the service does not have.
    check(&text, "shop/web -> 10.0.0.2:83", "NO_HEALTHY_ENDPOINT");
    check(&text, "shop/web -> 10.0.0.2:84", "NO_SUCH_PORT");
}

#[test]
fn service_without_usable_endpoint_is_refused() {
    let svc = "svc shop/db vip=10.0.0.2 ports=80; ";
    for endpoints in [
        "",
        "pod shop/db ip=10.1.0.2",
        "pod shop/db ip=10.1.0.2 of=shop/db unhealthy",
        "pod shop/db ip=10.1.0.2 of=shop/db capacity=0",
        "pod shop/db of=shop/db",
    ] {
        let text = with_web(svc) + endpoints;
        check(&text, "shop/web -> 10.0.0.2:80", "NO_HEALTHY_ENDPOINT");
    }
    check(
        &with_web(
            "svc shop/db vip=10.0.0.2 ports=80 any-health; pod shop/db ip=10.1.0.2 of=shop/db unhealthy",
        ),
        "shop/web -> 10.0.0.2:80",
        "hbone 10.1.0.2:15008 for 10.1.0.2:80 as shop/db of db",
    );
}

#[test]
fn passthrough_service_goes_where_it_was_going() {
    check(
        &with_web(
            "svc shop/db vip=10.0.0.0/24 ports=80 passthrough; pod shop/db ip=10.1.0.2 of=shop/db",
        ),
        "shop/web -> 10.0.0.2:80",
        "direct 10.0.0.2:80",
    );
}

#[test]
fn ranges_come_after_exact_addresses_and_the_narrowest_wins() {
    let text = with_web(
        "pod a/wide ip=10.1.0.2 of=a/wide; svc a/wide vip=10.0.0.0/16 ports=80 canonical; \
         pod a/narrow ip=10.1.0.3 of=a/narrow; svc a/narrow vip=10.0.0.0/24,10.0.0.0/25 ports=80; \
         pod a/exact ip=10.1.0.4 of=a/exact; svc a/exact vip=10.0.0.4/32 ports=80",
    );
    for (to, peer) in [
        ("10.0.9.9", "10.1.0.2 wide"),
        ("10.0.0.9", "10.1.0.3 narrow"),
        ("10.0.0.4", "10.1.0.4 exact"),
    ] {
        let (ip, name) = peer.split_once(' ').unwrap();
        check(
            &text,
            &format!("shop/web -> {to}:80"),
            &format!("hbone {ip}:15008 for {ip}:80 as a/{name} of {name}"),
        );
    }
    check(&text, "shop/web -> 10.9.0.1:80", "direct 10.9.0.1:80");
}

#[test]
fn own_namespace_wins_then_canonical_then_the_first_name() {
    let endpoints = with_web(
        "pod a/a ip=10.1.0.2 of=a/s; pod b/b ip=10.1.0.3 of=b/s; pod shop/c ip=10.1.0.4 of=shop/s; ",
    );
    let a = "svc a/s vip=10.0.0.2 ports=80; ";
    let b = "svc b/s vip=10.0.0.2 ports=80 canonical; ";
    let own = "svc shop/s vip=10.0.0.2 ports=80; ";
    for (services, chosen) in [
        ([a, b, own].concat(), "10.1.0.4"),
        ([b, a].concat(), "10.1.0.3"),
        ([a, "svc b/s vip=10.0.0.2 ports=80"].concat(), "10.1.0.2"),
        (["svc b/s vip=10.0.0.2 ports=80;", a].concat(), "10.1.0.2"),
        (
            [a, b].concat() + "svc shop/s vip=10.9.0.2 ports=80",
            "10.1.0.3",
        ),
    ] {
        let route = decided(
            &(endpoints.clone() + &services),
            "shop/web -> 10.0.0.2:80",
            0,
        );
        assert!(route.starts_with(&format!("hbone {chosen}:")), "{route}");
    }
}

#[test]
fn private_service_of_another_namespace_is_unknown() {
    check(
        &with_web("svc a/s vip=10.0.0.2 ports=80 private canonical; pod a/a ip=10.1.0.2 of=a/s"),
        "shop/web -> 10.0.0.2:80",
        "direct 10.0.0.2:80",
    );
}

#[test]
fn host_network_workloads_are_reached_through_services_only() {
    let text = with_web(
        "pod kube/agent ip=172.18.0.2 host-network plain of=kube/agent; \
         svc kube/agent vip=10.0.0.2 ports=80:10250",
    );
    check(&text, "shop/web -> 172.18.0.2:22", "direct 172.18.0.2:22");
    check(&text, "shop/web -> 10.0.0.2:80", "direct 172.18.0.2:10250");
}

#[test]
fn the_address_family_follows_the_client_as_far_as_the_service_allows() {
    let pod = with_web("pod shop/db ip=10.1.0.2,fd00::2 plain of=shop/db; ");
    for (families, to, expected) in [
        ("", "10.0.0.2:80", "direct 10.1.0.2:80"),
        ("", "[fd10::2]:80", "direct [fd00::2]:80"),
        ("v4", "[fd10::2]:80", "direct 10.1.0.2:80"),
        ("v6", "10.0.0.2:80", "direct [fd00::2]:80"),
    ] {
        let text = format!("{pod}svc shop/db vip=10.0.0.2,fd10::2 ports=80 {families}");
        check(&text, &format!("shop/web -> {to}"), expected);
    }
    check(
        &with_web("pod shop/db ip=10.1.0.2 of=shop/db; svc shop/db vip=fd10::2 ports=80 v6"),
        "shop/web -> [fd10::2]:80",
        "NO_ROUTE",
    );
}

#[test]
fn address_that_is_both_goes_to_the_service() {
    let both = "svc shop/db vip=10.1.0.2 ports=80; pod shop/b ip=10.1.0.3 of=shop/db; ";
    check(
        &with_web(&[both, "pod shop/a ip=10.1.0.2"].concat()),
        "shop/web -> 10.1.0.2:80",
        "hbone 10.1.0.3:15008 for 10.1.0.3:80 as shop/b of db",
    );
    // But a waypoint of the service does not count, and that of the chosen workload does.
    check(
        &with_web(
            "svc shop/db vip=10.1.0.2 ports=80 waypoint=10.9.9.9; pod shop/b ip=10.1.0.3 of=shop/db; \
             pod shop/a ip=10.1.0.2",
        ),
        "shop/web -> 10.1.0.2:80",
        "hbone 10.1.0.3:15008 for 10.1.0.3:80 as shop/b of db",
    );
    check(
        &with_web(
            "svc shop/db vip=10.1.0.2 ports=80; pod shop/b ip=10.1.0.3 of=shop/db waypoint=10.1.0.9; \
             pod shop/a ip=10.1.0.2; pod infra/wp ip=10.1.0.9",
        ),
        "shop/web -> 10.1.0.2:80",
        "hbone 10.1.0.9:15008 for 10.1.0.2:80 as infra/wp of db",
    );
    // Known to the mesh, so never in the clear.
    check(
        &with_web("svc shop/db vip=10.1.0.2 ports=80; pod shop/a ip=10.1.0.2"),
        "shop/web -> 10.1.0.2:80",
        "NO_HEALTHY_ENDPOINT",
    );
}

#[test]
fn the_two_lookups_use_two_networks() {
    let text = "pod shop/web ip=10.1.0.1 network=near; pod shop/db ip=10.1.0.2 network=near; \
                pod far/db ip=10.1.0.3 network=far";
    check(
        text,
        "shop/web -> 10.1.0.2:80 on near",
        "hbone 10.1.0.2:15008 for 10.1.0.2:80 as shop/db",
    );
    check(
        text,
        "shop/web -> 10.1.0.3:80 on near",
        "direct 10.1.0.3:80",
    );
    check(text, "shop/web -> 10.1.0.3:80 on far", "NO_GATEWAY");
}

#[test]
fn of_several_workloads_on_an_address_the_pod_with_hbone_wins() {
    let peers = [
        "we a/1 ip=10.1.0.2",
        "we a/2 ip=10.1.0.2 hbone",
        "pod a/3 ip=10.1.0.2 plain",
    ];
    let pod = "pod a/4 ip=10.1.0.2";
    check(
        &with_web(&[peers[0], ";", pod, ";", peers[2], ";", peers[1]].concat()),
        "shop/web -> 10.1.0.2:80",
        "hbone 10.1.0.2:15008 for 10.1.0.2:80 as a/4",
    );
    check(
        &with_web(&[peers[2], ";", peers[1]].concat()),
        "shop/web -> 10.1.0.2:80",
        "direct 10.1.0.2:80",
    );
    check(
        &with_web(&[peers[0], ";", peers[1]].concat()),
        "shop/web -> 10.1.0.2:80",
        "hbone 10.1.0.2:15008 for 10.1.0.2:80 as a/2",
    );
}

#[test]
fn endpoints_are_picked_by_capacity() {
    let text = with_web(
        "svc a/s vip=10.0.0.2 ports=80; pod a/1 ip=10.1.0.2 plain capacity=3 of=a/s; \
         pod a/2 ip=10.1.0.3 plain of=a/s; pod a/3 ip=10.1.0.4 plain capacity=0 of=a/s",
    );
    let mesh = mesh(&text);
    let sweep = (0..64).map(|i| decided_in(&mesh, "shop/web -> 10.0.0.2:80", i << 26));
    let picks: Vec<_> = sweep.collect();
    let count = |to| picks.iter().filter(|pick| *pick == to).count();
    assert_eq!(count("direct 10.1.0.2:80"), 48);
    assert_eq!(count("direct 10.1.0.3:80"), 16);
}

#[test]
fn locality_orders_or_restricts() {
    let client = "pod shop/web ip=10.1.0.1 locality=eu/z1/r1 node=n1; ";
    let near = "pod a/near ip=10.1.0.2 plain locality=eu/z1/r2 node=n2 of=a/s; ";
    let mid = "pod a/mid ip=10.1.0.3 plain locality=eu/z2/r1 node=n1 of=a/s; ";
    let far = "pod a/far ip=10.1.0.4 plain locality=us/z1/r1 node=n1 of=a/s; ";
    let all = [near, mid, far].concat();
    for (lb, endpoints, expected) in [
        ("failover=region,zone", &*all, "direct 10.1.0.2:80"),
        ("failover=network,region,zone", &*all, "direct 10.1.0.2:80"),
        ("failover=region,node", &*all, "direct 10.1.0.3:80"),
        ("failover=region,zone", far, "direct 10.1.0.4:80"),
        ("strict=region,zone", &*all, "direct 10.1.0.2:80"),
        ("strict=region,zone", far, "NO_HEALTHY_ENDPOINT"),
        ("strict=region", mid, "direct 10.1.0.3:80"),
    ] {
        let text = format!("{client}svc a/s vip=10.0.0.2 ports=80 {lb}; {endpoints}");
        // Whatever the dice say.
        for random in [0, u32::MAX] {
            let route = decided(&text, "shop/web -> 10.0.0.2:80", random);
            assert_eq!(route, expected, "{lb} among {endpoints}");
        }
    }
}

#[test]
fn network_as_first_preference_beats_all_others_and_a_mismatch_does_not_end_the_count() {
    let client = "pod shop/web ip=10.1.0.1 locality=eu/z1; ";
    let svc = "svc a/s vip=10.0.0.2 ports=80 failover=network,region,zone; ";
    let here = "pod a/here ip=10.1.0.2 plain locality=us/z9 of=a/s; ";
    let remote = "we a/remote network=far gateway=10.9.9.9 locality=eu/z1 of=a/s; ";
    for random in [0, u32::MAX] {
        let text = [client, svc, here, remote].concat();
        let route = decided(&text, "shop/web -> 10.0.0.2:80", random);
        assert_eq!(route, "direct 10.1.0.2:80");
    }
    check(
        &[client, svc, remote].concat(),
        "shop/web -> 10.0.0.2:80",
        "NO_GATEWAY",
    );
}

#[test]
fn in_a_partial_mesh_what_is_not_known_is_asked_for_first() {
    let text = "partial; pod shop/web ip=10.1.0.1; pod shop/db ip=10.1.0.2; \
                svc shop/db vip=10.0.0.2 ports=80; svc a/s vip=10.0.0.3 ports=80 private; \
                absent /192.0.2.1";
    for (to, expected) in [
        ("192.0.2.2:80", "lookup /192.0.2.2"),
        ("[2001:db8::1]:80", "lookup /2001:db8::1"),
        ("[::ffff:192.0.2.2]:80", "lookup /192.0.2.2"),
        ("192.0.2.1:443", "direct 192.0.2.1:443"),
        (
            "10.1.0.2:80",
            "hbone 10.1.0.2:15008 for 10.1.0.2:80 as shop/db",
        ),
        ("10.0.0.2:80", "NO_HEALTHY_ENDPOINT"),
        // Known, and not for this client.
        ("10.0.0.3:80", "direct 10.0.0.3:80"),
        ("127.0.0.1:15001", "LOOP"),
    ] {
        check(text, &format!("shop/web -> {to}"), expected);
    }
}

#[test]
fn in_a_partial_mesh_both_networks_are_asked_for() {
    let web = "partial; pod shop/web ip=10.1.0.1 network=near; ";
    let flow = "shop/web -> 10.1.0.3:80 on far";
    check(web, flow, "lookup far/10.1.0.3");
    let one = [web, "absent far/10.1.0.3"].concat();
    check(&one, flow, "lookup near/10.1.0.3");
    let both = [web, "absent far/10.1.0.3 near/10.1.0.3"].concat();
    check(&both, flow, "direct 10.1.0.3:80");
    // As in a mesh that is known whole.
    let there = [
        web,
        "pod far/db ip=10.1.0.3 network=far; absent near/10.1.0.3",
    ]
    .concat();
    check(&there, flow, "NO_GATEWAY");
}

#[test]
fn in_a_partial_mesh_a_range_is_used_once_nothing_else_has_the_address() {
    let text = "partial; pod shop/web ip=10.1.0.1; pod a/a ip=10.1.0.2 plain of=a/s; \
                svc a/s vip=10.9.0.0/16 ports=80; ";
    let flow = "shop/web -> 10.9.0.1:80";
    check(text, flow, "lookup /10.9.0.1");
    let asked = [text, "absent /10.9.0.1"].concat();
    check(&asked, flow, "direct 10.1.0.2:80");
}
