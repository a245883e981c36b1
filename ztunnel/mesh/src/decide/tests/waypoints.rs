//! Rows 2 and 7 of the decision table, and what references to waypoints lead to.

use super::*;

/// A client, a service with one endpoint, and a waypoint: a pod and a service in front of it.
const SHOP: &str = "pod shop/web ip=10.1.0.1,fd00::1; pod shop/db ip=10.1.0.2,fd00::2 of=shop/db; \
                    pod infra/wp ip=10.1.0.9,fd00::9 of=infra/wp; \
                    svc infra/wp vip=10.0.0.9,fd10::9 ports=15008; ";
const TO_SERVICE: &str = "shop/web -> 10.0.0.2:80";
const TO_POD: &str = "shop/web -> 10.1.0.2:5432";
const BY_SERVICE: &str = "hbone 10.1.0.9:15008 for 10.0.0.2:80 as infra/wp of db";
const BY_POD: &str = "hbone 10.1.0.9:15008 for 10.1.0.2:5432 as infra/wp";

fn shop(text: &str) -> String {
    format!("{SHOP}{text}")
}

/// A mesh whose service `shop/db` has this waypoint.
fn service(fields: &str) -> String {
    shop(&format!(
        "svc shop/db vip=10.0.0.2,fd10::2 ports=80:8080 {fields}; "
    ))
}

/// A mesh whose pod `shop/db` has this waypoint.
fn workload(waypoint: &str) -> String {
    service("") + &format!("pod shop/db ip=10.1.0.2,fd00::2 of=shop/db waypoint={waypoint}; ")
}

#[test]
fn service_with_waypoint_goes_to_the_waypoint() {
    for reference in ["10.0.0.9", "10.1.0.9", "infra/wp"] {
        let text = service(&format!("waypoint={reference}"));
        check(&text, TO_SERVICE, BY_SERVICE);
    }
    // Whatever else the service is, has or has not.
    for fields in ["passthrough", "strict=region", "private"] {
        check(
            &service(&format!("waypoint=infra/wp {fields}")),
            TO_SERVICE,
            BY_SERVICE,
        );
    }
    check(
        &service("waypoint=infra/wp"),
        "shop/web -> 10.0.0.2:81",
        "hbone 10.1.0.9:15008 for 10.0.0.2:81 as infra/wp of db",
    );
    let range = shop("svc shop/db vip=10.7.0.0/16 ports=80 waypoint=infra/wp");
    check(
        &range,
        "shop/web -> 10.7.0.2:80",
        "hbone 10.1.0.9:15008 for 10.7.0.2:80 as infra/wp of db",
    );
}

#[test]
fn the_waypoint_of_a_service_is_not_for_its_pods_nor_the_other_way_round() {
    check(
        &service("waypoint=infra/wp"),
        TO_POD,
        "hbone 10.1.0.2:15008 for 10.1.0.2:5432 as shop/db",
    );
    check(
        &workload("infra/wp"),
        TO_SERVICE,
        "hbone 10.1.0.2:15008 for 10.1.0.2:8080 as shop/db of db",
    );
}

#[test]
fn workload_with_waypoint_goes_to_the_waypoint() {
    for reference in ["10.0.0.9", "10.1.0.9", "infra/wp"] {
        check(&workload(reference), TO_POD, BY_POD);
    }
    // Without a tunnel of its own, or healthy or not.
    for fields in ["plain", "unhealthy"] {
        let db = format!("pod shop/db ip=10.1.0.2 waypoint=infra/wp {fields}");
        check(&shop(&db), TO_POD, BY_POD);
    }
}

#[test]
fn waypoints_prove_their_own_identity_or_one_of_their_service() {
    let san = "svc infra/wp vip=10.0.0.9 ports=15008 san=spiffe://cluster.local/ns/a/sa/b; ";
    for reference in ["10.0.0.9", "infra/wp"] {
        check(
            &(service(&format!(
                "waypoint={reference} san=spiffe://cluster.local/ns/not/sa/this"
            )) + san),
            TO_SERVICE,
            "hbone 10.1.0.9:15008 for 10.0.0.2:80 as a/b+infra/wp of db",
        );
    }
    check(
        &(service("waypoint=10.1.0.9") + san),
        TO_SERVICE,
        BY_SERVICE,
    );
    check(
        &(workload("infra/wp") + san),
        TO_POD,
        "hbone 10.1.0.9:15008 for 10.1.0.2:5432 as a/b+infra/wp",
    );
}

#[test]
fn the_protocol_of_a_waypoint_is_hbone_whatever_it_says() {
    check(
        &(service("waypoint=infra/wp") + "pod infra/wp ip=10.1.0.9 plain of=infra/wp"),
        TO_SERVICE,
        BY_SERVICE,
    );
}

#[test]
fn hostnames_follow_the_family_of_the_destination_and_addresses_their_own() {
    for (reference, v4, v6) in [
        ("infra/wp", "10.1.0.9", "[fd00::9]"),
        ("10.0.0.9", "10.1.0.9", "10.1.0.9"),
        ("10.1.0.9", "10.1.0.9", "10.1.0.9"),
        ("fd10::9", "[fd00::9]", "[fd00::9]"),
        ("fd00::9", "[fd00::9]", "[fd00::9]"),
    ] {
        let text = service(&format!("waypoint={reference}"));
        for (to, peer) in [("10.0.0.2:80", v4), ("[fd10::2]:80", v6)] {
            check(
                &text,
                &format!("shop/web -> {to}"),
                &format!("hbone {peer}:15008 for {to} as infra/wp of db"),
            );
        }
    }
    // As far as the waypoint's service allows.
    check(
        &(service("waypoint=infra/wp") + "svc infra/wp vip=10.0.0.9 ports=15008 v4"),
        "shop/web -> [fd10::2]:80",
        "hbone 10.1.0.9:15008 for [fd10::2]:80 as infra/wp of db",
    );
}

#[test]
fn ports_of_waypoints() {
    let at = |port: u16| format!("hbone 10.1.0.9:{port} for 10.0.0.2:80 as infra/wp of db");
    let missing = "NO_WAYPOINT".to_string();
    for (reference, pod, ports, expected) in [
        ("infra/wp", "", "15008:16008", at(16008)),
        ("infra/wp#444", "", "444:445", at(445)),
        ("infra/wp", "+15008:17008", "15008:0", at(17008)),
        ("infra/wp", "", "15008:0", missing.clone()),
        ("infra/wp", " app-tunnel=none:15088", "15008:0", at(15008)),
        ("infra/wp", "", "80", missing.clone()),
        // A waypoint behind its node's proxy.
        ("infra/wp", " app-tunnel=none:15088", "80", at(15008)),
        ("10.0.0.9", " app-tunnel=none:15088", "80", at(15008)),
        ("infra/wp", " app-tunnel=none", "80", missing.clone()),
        ("infra/wp", "+15008:17008 app-tunnel=none", "80", at(17008)),
        ("infra/wp", "+15008:17008", "80", missing),
        ("10.1.0.9#444", "", "80", at(444)),
    ] {
        let text = format!(
            "{}svc infra/wp vip=10.0.0.9 ports={ports}; pod infra/wp ip=10.1.0.9 of=infra/wp{pod}",
            service(&format!("waypoint={reference}"))
        );
        check(&text, TO_SERVICE, &expected);
    }
}

#[test]
fn waypoints_are_drawn_by_weight() {
    let other = "pod infra/wp2 ip=10.1.0.10 of=infra/wp2; svc infra/wp2 ports=15008; ";
    let count = |fields: &str| {
        let mesh = mesh(&(service(fields) + other));
        let sweep = (0..64).map(|i| decided_in(&mesh, TO_SERVICE, i << 26));
        let picks: Vec<_> = sweep.collect();
        let count = |peer| picks.iter().filter(|pick| pick.contains(peer)).count();
        (
            count("hbone 10.1.0.9:15008"),
            count("hbone 10.1.0.10:15008"),
        )
    };
    assert_eq!(count("weighted=infra/wp*3,10.1.0.10*1"), (48, 16));
    assert_eq!(
        count("weighted=infra/wp*0,infra/wp2*1 waypoint=infra/wp"),
        (0, 64)
    );
    assert_eq!(
        count("weighted=infra/wp2*4294967295,infra/wp*4294967295"),
        (32, 32)
    );
    // Nothing to draw from.
    assert_eq!(count("weighted=infra/wp2*0 waypoint=infra/wp"), (64, 0));
    assert_eq!(count("weighted=infra/wp2*0"), (0, 0));
    // One that cannot be found is no reason to use the other.
    check_refused(
        &(service("weighted=nobody/here*1,infra/wp*0 waypoint=infra/wp") + other),
        TO_SERVICE,
        "nobody/here",
    );
}

#[test]
fn connections_of_the_waypoint_itself_go_on() {
    let own = "hbone 10.1.0.2:15008 for 10.1.0.2:5432 as shop/db";
    for reference in ["10.0.0.9", "10.1.0.9", "infra/wp", "10.8.0.9"] {
        let text = workload(reference) + "svc infra/wp vip=10.0.0.9,10.8.0.0/16 ports=15008";
        check(&text, "infra/wp -> 10.1.0.2:5432", own);
        // Neither somebody else, nor another with its identity.
        check(&text, TO_POD, BY_POD);
        let twin = text + "; pod infra/twin ip=10.1.0.11 sa=wp";
        check(&twin, "infra/twin -> 10.1.0.2:5432", BY_POD);
    }
    // All waypoints of the service are the waypoint.
    let two = workload("infra/wp") + "pod infra/wp2 ip=10.1.0.10 of=infra/wp";
    check(&two, "infra/wp2 -> 10.1.0.2:5432", own);
    // By name.
    let named = workload("infra/wp.x") + "pod infra/wp ip=10.1.0.9 hostname=wp.x";
    check(&named, "infra/wp -> 10.1.0.2:5432", own);
    // Another record of the same: its address and its identity.
    let two =
        workload("10.6.0.1") + "we infra/wp ip=10.6.0.1,10.1.0.9; we infra/x ip=10.6.0.2,10.1.0.9";
    check(&two, "infra/wp -> 10.1.0.2:5432", own);
    check(
        &two.replace("waypoint=10.6.0.1", "waypoint=10.6.0.2"),
        "infra/wp -> 10.1.0.2:5432",
        "hbone 10.6.0.2:15008 for 10.1.0.2:5432 as infra/x",
    );
    // Of a service, its waypoint is for everybody.
    check(
        &service("waypoint=infra/wp"),
        "infra/wp -> 10.0.0.2:80",
        BY_SERVICE,
    );
}

#[test]
fn a_waypoint_that_cannot_be_had_is_refused_by_name() {
    for (reference, why) in [
        (
            "10.9.9.9",
            "the waypoint 10.9.9.9 port 15008: no service or workload has that address",
        ),
        (
            "far@10.1.0.9",
            "the waypoint far/10.1.0.9 port 15008: no service or workload",
        ),
        (
            "infra/no",
            "the waypoint infra/no port 15008: no service or workload has that name",
        ),
        (
            "shop/wp",
            "the waypoint shop/wp port 15008: no service or workload has that name",
        ),
        (
            "infra/wp#1",
            "the waypoint infra/wp port 1: service infra/wp has no such port",
        ),
        ("10.0.0.9#1", "service infra/wp has no such port"),
        ("infra/empty", "service infra/empty has no healthy endpoint"),
        ("infra/sick", "service infra/sick has no healthy endpoint"),
        ("10.0.0.8", "service infra/through has no healthy endpoint"),
    ] {
        let more = "svc infra/empty ports=15008; svc infra/sick ports=15008; \
                    pod infra/sick ip=10.1.0.20 unhealthy of=infra/sick; \
                    svc infra/through vip=10.0.0.8 ports=15008 passthrough; \
                    pod infra/through ip=10.1.0.21 of=infra/through; ";
        check_refused(
            &(service(&format!("waypoint={reference}")) + more),
            TO_SERVICE,
            why,
        );
        check_refused(&(workload(reference) + more), TO_POD, why);
    }
    check_refused(
        &service("waypoint=infra/no"),
        TO_SERVICE,
        "service shop/db for 10.0.0.2:80",
    );
    check_refused(
        &workload("infra/no"),
        TO_POD,
        "workload Kubernetes//Pod/shop/db for 10.1.0.2:5432",
    );
    // An endpoint with neither address nor name, and one without an address of a family that may be used.
    check_refused(
        &(service("waypoint=infra/wp")
            + "svc infra/wp ports=15008 v6; pod infra/wp ip=10.1.0.9 of=infra/wp"),
        TO_SERVICE,
        "no address that may be used",
    );
}

#[test]
fn a_passthrough_service_reached_by_name_has_waypoints() {
    check(
        &(service("waypoint=infra/wp") + "svc infra/wp vip=10.0.0.9 ports=15008 passthrough"),
        TO_SERVICE,
        BY_SERVICE,
    );
}

#[test]
fn waypoints_known_by_name_are_to_be_resolved() {
    let named = "we infra/wp hostname=wp.example hbone of=infra/wp; svc infra/wp ports=15008; ";
    let text =
        "pod shop/web ip=10.1.0.1; svc shop/db vip=10.0.0.2,fd10::2 ports=80 waypoint=infra/wp; ";
    let text = [text, named].concat();
    check(
        &text,
        TO_SERVICE,
        "wp.example is 192.0.2.77: hbone 192.0.2.77:15008 for 10.0.0.2:80 as infra/wp of db",
    );
    check(
        &text,
        "shop/web -> [fd10::2]:80",
        "wp.example v6 is 192.0.2.77: hbone 192.0.2.77:15008 for [fd10::2]:80 as infra/wp of db",
    );
    // By its own name, without a service.
    check(
        &text.replace("waypoint=infra/wp;", "waypoint=infra/wp.example#444;"),
        TO_SERVICE,
        "wp.example is 192.0.2.77: hbone 192.0.2.77:444 for 10.0.0.2:80 as infra/wp of db",
    );
}

#[test]
fn in_a_partial_mesh_a_waypoint_is_asked_for_when_it_is_needed() {
    let base = "partial; pod shop/web ip=10.1.0.1; pod shop/db ip=10.1.0.2 waypoint=WP of=shop/db; \
                svc shop/db vip=10.0.0.2 ports=80 waypoint=WP; \
                svc shop/plain vip=10.0.0.3 ports=80; ";
    let there = "pod infra/wp ip=10.1.0.9 of=infra/wp; svc infra/wp vip=10.0.0.9 ports=15008; ";
    for (reference, key) in [
        ("10.0.0.9", "/10.0.0.9"),
        ("10.1.0.9", "/10.1.0.9"),
        ("near@10.1.0.9", "near/10.1.0.9"),
        ("infra/wp", "infra/wp"),
    ] {
        let text = base.replace("WP", reference);
        let lookup = format!("lookup {key}");
        check(&text, TO_SERVICE, &lookup);
        check(&text, TO_POD, &lookup);
        check(&text, "shop/web -> 10.0.0.3:80", "NO_HEALTHY_ENDPOINT");
        let absent = format!("{text}absent {key}");
        check(&absent, TO_SERVICE, "NO_WAYPOINT");
        check(&absent, TO_POD, "NO_WAYPOINT");
        if !reference.contains('@') {
            check(&(text.clone() + there), TO_SERVICE, BY_SERVICE);
            check(&(text + there), TO_POD, BY_POD);
        }
    }
}

/// Avoids these, always draws the same.
struct Wary(Vec<(&'static str, u16)>, crate::fixture::Lcg);

impl Rng for Wary {
    fn next_u32(&mut self) -> u32 {
        self.1.next_u32()
    }

    fn avoids(&self, uid: &str, port: u16) -> bool {
        let is_it = |(name, at): &(&str, u16)| *self::uid(name) == *uid && *at == port;
        self.0.iter().any(is_it)
    }
}

/// Where the connection goes, and what is said of who was drawn.
fn drawn(text: &str, flow: &str, avoided: &[(&'static str, u16)]) -> Option<(String, Drawn)> {
    let mesh = mesh(text);
    let (client, to) = flow.split_once(" -> ").unwrap();
    let from = mesh.workload(&uid(client)).unwrap();
    let rng = &mut Wary(avoided.to_vec(), crate::fixture::Lcg(1));
    let to = OrigDst(to.parse().unwrap());
    match decide(&mesh, "", from, to, rng) {
        Decision::Go { route, drawn } => drawn.map(|drawn| (printed(route), drawn)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_said_who_was_drawn_and_whether_it_takes_the_connection_itself() {
    let (_, endpoint) = drawn(&service(""), TO_SERVICE, &[]).unwrap();
    let (pod, port) = (uid("shop/db"), 8080);
    let expected = Drawn {
        uid: pod,
        port,
        passes_on: false,
    };
    assert_eq!(endpoint, expected);
    let waypoint = Drawn {
        uid: uid("infra/wp"),
        port: 15008,
        passes_on: true,
    };
    for (text, flow) in [
        (service("waypoint=infra/wp"), TO_SERVICE),
        (workload("infra/wp"), TO_POD),
    ] {
        assert_eq!(drawn(&text, flow, &[]).unwrap().1, waypoint);
    }
    // There are no others.
    for (text, flow) in [
        (service(""), TO_POD),
        (service("waypoint=10.1.0.9"), TO_SERVICE),
        (service("passthrough"), TO_SERVICE),
        (service(""), "shop/web -> 192.0.2.1:80"),
    ] {
        assert_eq!(drawn(&text, flow, &[]), None, "{text}");
    }
}

#[test]
fn an_endpoint_to_be_avoided_is_better_than_none() {
    let two = service("") + "pod shop/db2 ip=10.1.0.3 of=shop/db; ";
    for _ in 0..8 {
        let (route, _) = drawn(&two, TO_SERVICE, &[("shop/db", 8080)]).unwrap();
        assert!(route.starts_with("hbone 10.1.0.3:15008 for 10.1.0.3:8080"));
    }
    let (route, _) = drawn(&service(""), TO_SERVICE, &[("shop/db", 8080)]).unwrap();
    assert!(route.starts_with("hbone 10.1.0.2:15008 for 10.1.0.2:8080"));
}

#[test]
fn of_weighted_waypoints_one_that_is_not_avoided_is_drawn_if_it_may_be() {
    let text = |weights: &str| {
        shop(&format!(
            "pod infra/other ip=10.1.0.8; svc shop/db vip=10.0.0.2 ports=80:8080 {weights}; "
        ))
    };
    let avoided = [("infra/wp", 15008)];
    let (route, _) = drawn(
        &text("weighted=infra/wp*1,10.1.0.8*1"),
        TO_SERVICE,
        &avoided,
    )
    .unwrap();
    assert!(route.starts_with("hbone 10.1.0.8:15008"), "{route}");
    let only = text("weighted=infra/wp*1,10.1.0.8*0");
    let (route, _) = drawn(&only, TO_SERVICE, &avoided).unwrap();
    assert!(route.starts_with("hbone 10.1.0.9:15008"), "{route}");
}
