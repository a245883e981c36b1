use alloc::string::{String, ToString as _};

use super::*;
use crate::fixture::{mesh, workload};

const SERVICES: &str =
    "svc shop/web vip=10.0.0.1 ports=80:8080,81:8181,82:0; svc shop/bare ports=80";

/// `asked` is what the CONNECT asks for; it came to 10.1.0.1 unless that is IPv6.
fn check(pod: &str, asked: &str, expected: &str) {
    let authority = match asked.parse() {
        Ok(addr) => Authority::Ip(addr),
        Err(_) => {
            let (host, port) = asked.rsplit_once(':').unwrap();
            Authority::Host {
                host: host.into(),
                port: port.parse().unwrap(),
            }
        }
    };
    let local = "[::ffff:10.1.0.1]:15008".parse().unwrap();
    let target: String = match target(&mesh(SERVICES), &workload(pod), &authority, local) {
        Ok(app) => app.to_string(),
        Err(refusal) => refusal.reason.code().into(),
    };
    assert_eq!(target, expected, "{asked} at {pod}");
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
    check(
        "pod a/wp app-tunnel=none:15006",
        "10.0.0.1:80",
        "10.1.0.1:15006",
    );
    check("pod a/wp app-tunnel=none", "10.0.0.1:80", "10.1.0.1:80");
    check("pod a/wp app-tunnel=none:99", "10.0.0.1:15008", "LOOP");
    check("pod shop/wp app-tunnel=none:99", "web:81", "10.1.0.1:99");
    check("pod shop/wp app-tunnel=none:99", "bare:80", "NO_ROUTE");
    check(
        "pod shop/wp app-tunnel=proxy:15088",
        "10.0.0.1:80",
        "NO_ROUTE",
    );
}

#[test]
fn in_a_partial_mesh_the_services_of_the_pod_are_asked_for() {
    let mesh = Mesh::partial();
    let pod = workload("pod shop/web of=shop/web of=a/web of=shop/other");
    let asked = |mesh: &Mesh, host: &str| {
        let authority = Authority::Host {
            host: host.into(),
            port: 80,
        };
        lacking(mesh, &pod, &authority).map(|key| key.to_string())
    };
    assert_eq!(asked(&mesh, "web").as_deref(), Some("shop/web"));
    let first = lacking(
        &mesh,
        &pod,
        &Authority::Host {
            host: "web".into(),
            port: 80,
        },
    );
    let mesh = mesh.with_absences(&first, []);
    assert_eq!(asked(&mesh, "web").as_deref(), Some("a/web"));
    assert_eq!(asked(&mesh, "stranger"), None);
    let ip = Authority::Ip("10.1.0.1:80".parse().unwrap());
    assert_eq!(lacking(&mesh, &pod, &ip), None);
    assert_eq!(asked(&crate::fixture::mesh(""), "web"), None);
}
