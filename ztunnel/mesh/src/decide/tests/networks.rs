//! Row 6 of the decision table, network gateways, and workloads known by name.

use super::*;

const FLOW: &str = "shop/web -> 10.0.0.2:80";
/// The client and the gateway of the network `far`: a workload, and a service in front of another one.
const NEAR: &str = "pod shop/web ip=10.1.0.1; \
                    we gw/one network=far ip=172.16.0.1,fd16::1 hbone; \
                    we gw/two network=far ip=172.16.0.2 hbone of=gw/two; \
                    svc gw/two vip=far@172.16.9.2 ports=15008:15010; \
                    we gw/three ip=172.16.0.3 hostname=gw.three; ";
const SERVICE: &str =
    "svc shop/db vip=10.0.0.2,fd10::2 ports=80:8080 san=spiffe://cluster.local/ns/shop/sa/db; ";

fn far(gateway: &str) -> String {
    format!("{NEAR}{SERVICE}we shop/far network=far gateway={gateway} hbone of=shop/db; ")
}

#[test]
fn a_service_on_another_network_is_reached_through_its_gateway() {
    for (gateway, outer) in [
        ("far@172.16.0.1", "172.16.0.1:15008 for db:80 as gw/one"),
        ("far@fd16::1", "[fd16::1]:15008 for db:80 as gw/one"),
        (
            "far@172.16.0.1#15443",
            "172.16.0.1:15443 for db:80 as gw/one",
        ),
        ("far@172.16.9.2", "172.16.0.2:15010 for db:80 as gw/two"),
        ("gw/two", "172.16.0.2:15010 for db:80 as gw/two"),
        ("gw/gw.three", "172.16.0.3:15008 for db:80 as gw/three"),
    ] {
        check(
            &far(gateway),
            FLOW,
            &format!("hbone {outer} of db then shop/db"),
        );
    }
    // The port is the one that the app asked for, and the workload's own protocol, address and identity do not count.
    check(
        &(NEAR.to_string()
            + SERVICE
            + "pod shop/far network=far ip=10.1.0.9 plain gateway=gw/two of=shop/db"),
        FLOW,
        "hbone 172.16.0.2:15010 for db:80 as gw/two of db then shop/db",
    );
    // The identities of the gateway's service are the outer ones.
    check(
        &(far("gw/two") + "svc gw/two ports=15008:15010 san=spiffe://cluster.local/ns/a/sa/b"),
        FLOW,
        "hbone 172.16.0.2:15010 for db:80 as a/b+gw/two of db then shop/db",
    );
    // By name, the family is that of the destination.
    let dual = far("gw/two") + "we gw/two network=far ip=172.16.0.2,fd16::2 hbone of=gw/two";
    check(
        &dual,
        "shop/web -> [fd10::2]:80",
        "hbone [fd16::2]:15010 for db:80 as gw/two of db then shop/db",
    );
}

#[test]
fn near_endpoints_are_reached_directly_beside_far_ones() {
    let text = far("gw/two") + "pod shop/near ip=10.1.0.2 of=shop/db";
    let seen: alloc::collections::BTreeSet<_> =
        (0..4).map(|i| decided(&text, FLOW, i << 30)).collect();
    let expected = [
        "hbone 10.1.0.2:15008 for 10.1.0.2:8080 as shop/db+shop/near of db",
        "hbone 172.16.0.2:15010 for db:80 as gw/two of db then shop/db",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn networks_are_crossed_for_services_only() {
    let text = "pod shop/web ip=10.1.0.1 network=near; svc shop/db vip=near@10.1.0.3,far@10.0.0.2 ports=80; \
                pod far/db ip=10.1.0.3 network=far gateway=far@172.16.0.1 of=shop/db; \
                we gw/one network=far ip=172.16.0.1; ";
    // On the proxy's network that is a workload's address.
    check(text, "shop/web -> 10.1.0.3:80 on far", "NO_GATEWAY");
    let text = text.to_string()
        + "svc shop/db vip=near@10.1.0.3 ports=80 san=spiffe://cluster.local/ns/f/sa/g";
    check(
        &text,
        "shop/web -> 10.1.0.3:80 on near",
        "hbone 172.16.0.1:15008 for db:80 as gw/one of db then f/g",
    );
}

#[test]
fn what_cannot_cross_is_refused() {
    for (gateway, why) in [
        (
            "far@172.16.0.9",
            "the gateway far/172.16.0.9 port 15008: no service or workload has that address",
        ),
        (
            "172.16.0.1",
            "the gateway 172.16.0.1 port 15008: no service or workload has that address",
        ),
        (
            "gw/none",
            "the gateway gw/none port 15008: no service or workload has that name",
        ),
        ("gw/two#1", "service gw/two has no such port"),
        ("gw/tunnel", "service gw/tunnel has no such port"),
        ("gw/blind", "has no address that may be used"),
    ] {
        // An application tunnel makes nobody a gateway, and a gateway is not behind another one.
        let more = "we gw/tunnel ip=172.16.0.7 of=gw/tunnel app-tunnel=none:15008; svc gw/tunnel ports=80; \
                    we gw/blind network=farther gateway=gw/two of=gw/blind; svc gw/blind ports=15008; ";
        check_refused(&(far(gateway) + more), FLOW, why);
        check_refused(
            &(far(gateway) + more),
            FLOW,
            "workload Kubernetes/networking.istio.io/WorkloadEntry/shop/far",
        );
    }
    check_refused(
        &(NEAR.to_string() + SERVICE + "pod shop/far network=far ip=10.1.0.9 of=shop/db"),
        FLOW,
        "has no network gateway",
    );
    check_refused(
        &(far("gw/two") + "svc shop/db vip=10.0.0.2 ports=80"),
        FLOW,
        "subject_alt_names",
    );
}

#[test]
fn a_waypoint_on_another_network_is_reached_through_its_gateway() {
    let text = format!(
        "{NEAR}svc shop/db vip=10.0.0.2 ports=80 waypoint=infra/wp san=spiffe://cluster.local/ns/not/sa/this; \
         svc infra/wp vip=10.0.0.9 ports=15008 san=spiffe://cluster.local/ns/infra/sa/far; \
         we infra/wp network=far gateway=gw/two of=infra/wp; "
    );
    let expected = "hbone 172.16.0.2:15010 for db:80 as gw/two of db then infra/far";
    check(&text, FLOW, expected);
    let by_vip = text.replace("waypoint=infra/wp", "waypoint=10.0.0.9");
    check(&by_vip, FLOW, expected);
    check_refused(
        &text.replace(
            "ports=15008 san=spiffe://cluster.local/ns/infra/sa/far",
            "ports=15008",
        ),
        FLOW,
        "subject_alt_names",
    );
    // Of a workload: only connections to services cross.
    let text = text + "pod shop/db ip=10.1.0.2 waypoint=infra/wp";
    check_refused(&text, "shop/web -> 10.1.0.2:80", "network \"far\"");
}

#[test]
fn in_a_partial_mesh_a_gateway_is_asked_for_when_it_is_needed() {
    let text = format!(
        "partial; pod shop/web ip=10.1.0.1; {SERVICE}we shop/far network=far gateway=GW hbone of=shop/db; "
    );
    let gateways = "we gw/one network=far ip=172.16.0.1 of=gw/one; svc gw/one ports=15008; ";
    for (gateway, key) in [("far@172.16.0.1", "far/172.16.0.1"), ("gw/one", "gw/one")] {
        let text = text.replace("GW", gateway);
        check(&text, FLOW, &format!("lookup {key}"));
        check(&format!("{text}absent {key}"), FLOW, "NO_GATEWAY");
        check(
            &(text + gateways),
            FLOW,
            "hbone 172.16.0.1:15008 for db:80 as gw/one of db then shop/db",
        );
    }
}

#[test]
fn endpoints_known_by_name_are_to_be_resolved() {
    let svc = "svc shop/db vip=10.0.0.2,fd10::2 ports=80:8080; ";
    for (endpoint, to, expected) in [
        (
            "plain",
            "10.0.0.2:80",
            "db.example is 192.0.2.77: direct 192.0.2.77:8080",
        ),
        (
            "plain",
            "[fd10::2]:80",
            "db.example v6 is 192.0.2.77: direct 192.0.2.77:8080",
        ),
        (
            "hbone",
            "10.0.0.2:80",
            "db.example is 192.0.2.77: hbone 192.0.2.77:15008 for 192.0.2.77:8080 as shop/ext of db",
        ),
        ("ip=10.2.0.1", "10.0.0.2:80", "direct 10.2.0.1:8080"),
    ] {
        let text = format!("{svc}we shop/ext hostname=db.example {endpoint} of=shop/db");
        check(&with_web(&text), &format!("shop/web -> {to}"), expected);
    }
}

#[test]
fn a_gateway_known_by_name_is_to_be_resolved() {
    let text =
        far("gw/lb") + "we gw/lb network=far hostname=lb.example of=gw/lb; svc gw/lb ports=15008";
    check(
        &text,
        FLOW,
        "lb.example is 192.0.2.77: hbone 192.0.2.77:15008 for db:80 as gw/lb of db then shop/db",
    );
}
