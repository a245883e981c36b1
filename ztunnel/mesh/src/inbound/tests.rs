use alloc::string::{String, ToString};

use super::*;
use crate::fixture::{mesh, workload};

const SERVICES: &str =
    "svc shop/web vip=10.0.0.1 ports=80:8080,81:8181,82:0; svc shop/bare ports=80";

/// An authority as a CONNECT spells it.
fn authority(asked: &str) -> Authority {
    match asked.parse() {
        Ok(addr) => Authority::Ip(addr),
        Err(_) => {
            let (host, port) = asked.rsplit_once(':').unwrap();
            Authority::Host {
                host: host.into(),
                port: port.parse().unwrap(),
            }
        }
    }
}

/// One CONNECT; without more words to 10.1.0.1 of the pod, on the empty network, where apps behind a PROXY header are
/// reached on loopback.
struct Case<'a> {
    mesh: &'a str,
    pod: &'a str,
    local: &'a str,
    network: &'a str,
    localhost: bool,
}

impl Case<'_> {
    fn of<'a>(mesh: &'a str, pod: &'a str) -> Case<'a> {
        Case {
            mesh,
            pod,
            local: "[::ffff:10.1.0.1]:15008",
            network: "",
            localhost: true,
        }
    }

    /// `expected` is `<app>[ via <loopback>][ to <destination in the header>]`, or the code of the refusal.
    fn check(&self, asked: &str, expected: &str) {
        let connect = Connect {
            own_network: self.network,
            pod: &workload(self.pod),
            authority: &authority(asked),
            local: self.local.parse().unwrap(),
            localhost_app_tunnel: self.localhost,
        };
        let mesh = mesh(&format!("{}; {}", self.mesh, self.pod));
        let target: String = match target(&mesh, &connect) {
            Ok(Target { app, hop, proxy_to }) => {
                let hop = match hop {
                    LastHop::AsClient => String::new(),
                    LastHop::Loopback(at) => format!(" via {at}"),
                };
                let to = proxy_to.map_or_else(String::new, |to| format!(" to {to}"));
                format!("{app}{hop}{to}")
            }
            Err(refusal) => refusal.reason.code().into(),
        };
        assert_eq!(target, expected, "{asked} at {}", self.pod);
    }
}

fn check(pod: &str, asked: &str, expected: &str) {
    Case::of(SERVICES, pod).check(asked, expected);
}

const WEB: &str = "pod shop/web ip=10.1.0.1 of=shop/web+80:9090+82:0";

#[test]
fn an_address_must_be_the_one_the_connection_came_to() {
    check(WEB, "10.1.0.1:80", "10.1.0.1:80");
    check(WEB, "[::ffff:10.1.0.1]:80", "10.1.0.1:80");
    check(WEB, "10.1.0.2:80", "BAD_REQUEST");
    check(WEB, "10.0.0.1:80", "BAD_REQUEST");
    check(WEB, "127.0.0.1:80", "BAD_REQUEST");
}

#[test]
fn a_hostname_means_a_service_and_its_port() {
    check(WEB, "web:80", "10.1.0.1:9090");
    check(WEB, "web:81", "10.1.0.1:8181");
    check(WEB, "web:82", "NO_ROUTE");
    check(WEB, "web:83", "NO_ROUTE");
    check(WEB, "unknown:80", "NO_ROUTE");
    check("pod shop/bare ip=10.1.0.1", "bare:80", "10.1.0.1:80");
    check(
        "pod shop/bare of=shop/bare+80:8080",
        "bare:80",
        "10.1.0.1:8080",
    );
}

#[test]
fn ports_of_the_proxy_are_a_loop() {
    for port in PROXY_PORTS {
        check(WEB, &format!("10.1.0.1:{port}"), "LOOP");
    }
    check("pod shop/web of=shop/web+80:15008", "web:80", "LOOP");
    assert!(plaintext_target("10.1.0.1:15006".parse().unwrap()).is_err());
    let app = plaintext_target("[::ffff:10.1.0.1]:80".parse().unwrap()).unwrap();
    assert_eq!(app.to_string(), "10.1.0.1:80");
}

#[test]
fn application_tunnels_replace_the_port_after_the_check() {
    let none = |port: &str| format!("pod shop/wp ip=10.1.0.1 app-tunnel=none{port}");
    for (pod, asked, expected) in [
        (none(""), "10.1.0.1:80", "10.1.0.1:80"),
        (none(""), "10.0.0.1:80", "10.1.0.1:80"),
        (none(""), "web:81", "10.1.0.1:8181"),
        (none(":99"), "10.0.0.1:80", "10.1.0.1:99"),
        (none(":99"), "192.0.2.1:80", "10.1.0.1:99"),
        (none(":99"), "web:81", "10.1.0.1:99"),
        // The override itself may be a port of the proxy: in a waypoint it is one of the app's.
        (none(":15006"), "10.0.0.1:80", "10.1.0.1:15006"),
        (none(":99"), "10.0.0.1:15008", "LOOP"),
        (none(":99"), "web:83", "NO_ROUTE"),
        // A name needs an address, also where nobody is told of it.
        (none(":99"), "bare:80", "NO_ROUTE"),
        (none(":99"), "unknown:80", "NO_ROUTE"),
    ] {
        check(&pod, asked, expected);
    }
}

#[test]
fn a_proxy_header_names_what_was_asked_for() {
    let proxy = |port: &str| format!("pod shop/wp ip=10.1.0.1 app-tunnel=proxy{port}");
    for (pod, asked, loopback, pod_ip) in [
        (
            proxy(""),
            "10.0.0.1:80",
            "10.1.0.1:80 via 127.0.0.1:80 to 10.0.0.1:80",
            "10.1.0.1:80 to 10.0.0.1:80",
        ),
        (
            proxy(":15088"),
            "10.1.0.1:80",
            "10.1.0.1:15088 via 127.0.0.1:15088 to 10.1.0.1:80",
            "10.1.0.1:15088 to 10.1.0.1:80",
        ),
        (
            proxy(":15088"),
            "[fd00::1]:80",
            "10.1.0.1:15088 via 127.0.0.1:15088 to [fd00::1]:80",
            "10.1.0.1:15088 to [fd00::1]:80",
        ),
        // A name becomes the address and the port of the service, not of the pod.
        (
            proxy(""),
            "web:81",
            "10.1.0.1:8181 via 127.0.0.1:8181 to 10.0.0.1:81",
            "10.1.0.1:8181 to 10.0.0.1:81",
        ),
        (
            proxy(":15088"),
            "web:81",
            "10.1.0.1:15088 via 127.0.0.1:15088 to 10.0.0.1:81",
            "10.1.0.1:15088 to 10.0.0.1:81",
        ),
        (proxy(":15088"), "web:83", "NO_ROUTE", "NO_ROUTE"),
        (proxy(":15088"), "bare:80", "NO_ROUTE", "NO_ROUTE"),
        (proxy(":15088"), "10.0.0.1:15006", "LOOP", "LOOP"),
    ] {
        check(&pod, asked, loopback);
        let case = Case {
            localhost: false,
            ..Case::of(SERVICES, &pod)
        };
        case.check(asked, pod_ip);
    }
}

#[test]
fn loopback_has_the_family_of_the_pod() {
    let case = Case {
        local: "[fd00::1]:15008",
        ..Case::of(
            SERVICES,
            "pod shop/wp ip=10.1.0.1,fd00::1 app-tunnel=proxy:15088",
        )
    };
    case.check(
        "10.0.0.1:80",
        "[fd00::1]:15088 via [::1]:15088 to 10.0.0.1:80",
    );
    case.check("web:81", "[fd00::1]:15088 via [::1]:15088 to 10.0.0.1:81");
    let plain = Case {
        pod: "pod shop/web ip=10.1.0.1,fd00::1",
        ..case
    };
    plain.check("[fd00::1]:80", "[fd00::1]:80");
    plain.check("10.1.0.1:80", "BAD_REQUEST");
}

#[test]
fn a_service_is_named_by_its_address_here_rather_than_elsewhere() {
    const WAYPOINT: &str = "pod shop/wp ip=10.1.0.1 network=n1 app-tunnel=proxy:15088";
    for (vips, expected) in [
        ("n2@10.0.0.1,n1@fd00::9,n1@10.0.0.2", "10.0.0.2:80"),
        ("n2@10.0.0.1,n1@fd00::9", "[fd00::9]:80"),
        ("n2@fd00::8,n2@10.0.0.1", "10.0.0.1:80"),
        ("n1@10.9.0.0/16,n2@10.0.0.1", "10.0.0.1:80"),
    ] {
        let services = format!("svc shop/web vip={vips} ports=80:8080");
        let case = Case {
            network: "n1",
            ..Case::of(&services, WAYPOINT)
        };
        let expected = format!("10.1.0.1:15088 via 127.0.0.1:15088 to {expected}");
        case.check("web:80", &expected);
    }
    let range = "svc shop/web vip=n1@10.9.0.0/16 ports=80:8080";
    Case {
        network: "n1",
        ..Case::of(range, WAYPOINT)
    }
    .check("web:80", "NO_ROUTE");
}

/// What has which waypoint, and the waypoint in front of its own node proxy.
const SANDWICH: &str = "
    svc infra/wp vip=10.0.0.9,10.9.0.0/16 ports=15008:15008;
    svc infra/other vip=10.0.0.8 ports=15008:15008;
    pod infra/else ip=10.1.0.7 of=infra/other;
    svc shop/by-name vip=10.0.0.1 waypoint=infra/wp;
    svc shop/by-vip vip=10.0.0.2 waypoint=10.0.0.9;
    svc shop/by-range vip=10.0.0.20 waypoint=10.9.1.1;
    svc shop/by-pod vip=10.0.0.3,10.8.0.0/16 waypoint=10.1.0.1;
    svc shop/strange vip=10.0.0.4 waypoint=infra/other;
    svc shop/nowhere vip=10.0.0.5 waypoint=infra/nobody;
    svc shop/none vip=10.0.0.6,10.8.7.7;
    svc shop/weighted vip=10.0.0.7 weighted=infra/wp*1;
    svc shop/both vip=10.0.0.10; svc bank/both vip=10.0.0.10 waypoint=infra/wp;
    pod shop/a ip=10.1.1.1 waypoint=infra/wp;
    pod shop/b ip=10.1.1.2 waypoint=10.1.0.1;
    pod shop/c ip=10.1.1.3 waypoint=10.1.0.7;
    pod shop/d ip=10.1.1.4 waypoint=infra/wp.host;
    pod shop/e ip=10.1.1.5; svc shop/e vip=10.1.1.5 waypoint=infra/wp;
    pod shop/f ip=10.1.1.6 network=far waypoint=infra/wp";

#[test]
fn a_waypoint_takes_what_it_is_the_waypoint_of() {
    const WAYPOINT: &str =
        "pod infra/wp ip=10.1.0.1,fd00::1 hostname=wp.host of=infra/wp+15008:15008";
    let case = Case::of(SANDWICH, WAYPOINT);
    for ours in [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.20",
        "10.0.0.3",
        "10.8.1.1",
        "10.0.0.10",
        "10.1.1.1",
        "10.1.1.2",
        "10.1.1.4",
    ] {
        // Its address is nothing but a permission: bytes go to the pod.
        case.check(&format!("{ours}:8080"), "10.1.0.1:8080");
        case.check(&format!("[::ffff:{ours}]:8080"), "10.1.0.1:8080");
        case.check(&format!("{ours}:15008"), "LOOP");
    }
    for not_ours in [
        "10.0.0.4",
        "10.0.0.5",
        "10.0.0.6",
        // Its own address counts, not the range that it lies in.
        "10.8.7.7",
        "10.0.0.7",
        "10.0.0.8",
        "10.0.0.9",
        "10.1.1.3",
        // The workload's, before that of a service on the same address.
        "10.1.1.5",
        "10.1.1.6",
        "10.1.0.7",
        "192.0.2.1",
    ] {
        case.check(&format!("{not_ours}:8080"), "BAD_REQUEST");
    }
    let v6 = Case {
        local: "[fd00::1]:15008",
        ..case
    };
    v6.check("10.0.0.1:8080", "[fd00::1]:8080");
    // A reference to the pod's other address is one to the pod.
    v6.check("10.1.1.2:8080", "[fd00::1]:8080");
    // Neither another pod, nor one of that address on another network.
    let stranger = Case::of(SANDWICH, "pod infra/else ip=10.1.0.7 of=infra/other");
    let stranger = Case {
        local: "10.1.0.7:15008",
        ..stranger
    };
    stranger.check("10.0.0.1:8080", "BAD_REQUEST");
    stranger.check("10.0.0.4:8080", "10.1.0.7:8080");
    let far = Case::of(
        "svc shop/by-pod vip=10.0.0.3 waypoint=far@10.1.0.1; pod a/far ip=10.1.0.1 network=far",
        WAYPOINT,
    );
    far.check("10.0.0.3:8080", "BAD_REQUEST");
}

#[test]
fn in_a_partial_mesh_the_services_of_the_pod_are_asked_for() {
    let mesh = Mesh::partial();
    let pod = workload("pod shop/web of=shop/web of=a/web of=shop/other");
    let first = asks(&mesh, &pod, "web:80");
    assert_eq!(text(first.as_ref()), "shop/web");
    let mesh = mesh.with_absences(&first, []);
    assert_eq!(text(asks(&mesh, &pod, "web:80").as_ref()), "a/web");
    assert_eq!(asks(&mesh, &pod, "stranger:80"), None);
    assert_eq!(asks(&mesh, &pod, "10.1.0.1:80"), None);
    assert_eq!(asks(&crate::fixture::mesh(""), &pod, "web:80"), None);
}

#[test]
fn in_a_partial_mesh_it_is_asked_whose_waypoint_the_pod_is() {
    use crate::fixture::upserts;
    use crate::snapshot::Delta;
    let put = |mesh: &Mesh, text: &str| {
        mesh.apply(Delta {
            upserts: upserts(text),
            removals: alloc::vec![],
        })
    };
    let pod = workload("pod infra/wp ip=10.1.0.1 of=infra/wp");
    let mesh = Mesh::partial();
    let asked = asks(&mesh, &pod, "10.0.0.1:80");
    assert_eq!(text(asked.as_ref()), "/10.0.0.1");
    let absent = mesh.with_absences(&asked, []);
    assert_eq!(asks(&absent, &pod, "10.0.0.1:80"), None);
    for (waypoint, expected) in [
        ("waypoint=infra/wp", "infra/wp"),
        ("waypoint=10.0.0.9", "/10.0.0.9"),
        ("", ""),
    ] {
        let mesh = put(&mesh, &format!("svc shop/web vip=10.0.0.1 {waypoint}"));
        let asked = asks(&mesh, &pod, "10.0.0.1:80");
        assert_eq!(text(asked.as_ref()), expected);
        let answered = put(&mesh, "svc infra/wp vip=10.0.0.9");
        assert_eq!(asks(&answered, &pod, "10.0.0.1:80"), None);
    }
    let tunnel = workload("pod infra/wp ip=10.1.0.1 app-tunnel=proxy:15088");
    assert_eq!(asks(&Mesh::partial(), &tunnel, "10.0.0.1:80"), None);
}

fn text(key: Option<&Key>) -> String {
    key.map_or_else(String::new, ToString::to_string)
}

fn asks(mesh: &Mesh, pod: &Workload, asked: &str) -> Option<Key> {
    let connect = Connect {
        own_network: "",
        pod,
        authority: &authority(asked),
        local: "10.1.0.1:15008".parse().unwrap(),
        localhost_app_tunnel: true,
    };
    lacking(mesh, &connect)
}
