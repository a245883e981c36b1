//! What Prometheus scrapes from port 15020.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lab::Node;
use lab::tester::{Check, Outcome, Service};

use crate::access::{self, eventually};
use crate::mesh::enrolled;

const PORT: u16 = 15020;
const PATIENCE: Duration = Duration::from_secs(10);

/// One scrape, undone from its chunks.
pub(crate) fn scrape(node: &Node, path: &str) -> (String, String) {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let mut connection = node.connect(to, PATIENCE).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    // What HTTP/1.0 is answered has no chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: node\r\n\r\n");
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The value of the first series of a family that has all these labels.
fn value(text: &str, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |line: &&str| {
        let of_family = line
            .strip_prefix(family)
            .is_some_and(|rest| rest.starts_with(['{', ' ']));
        of_family
            && labels
                .iter()
                .all(|(name, value)| line.contains(&format!("{name}=\"{value}\"")))
    };
    let line = text.lines().find(has)?;
    line.rsplit_once(' ').unwrap().1.parse().ok()
}

#[test]
fn a_connection_is_counted_by_both_nodes_under_the_names_that_dashboards_know() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let vip: SocketAddr = ([10, 96, 0, 10], Service::Echo.port()).into();
    for _ in 0..3 {
        let report = client.check_at(vip, &Check::echo("hello")).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    }
    let told = |node: &str| access::lines(lab.node(node), &[("reason", "COMPLETE")]).len();
    eventually("all have ended", || {
        (told("node1"), told("node2")) == (3, 3)
    });

    let bytes: f64 = access::lines(lab.node("node1"), &[("reason", "COMPLETE")])
        .iter()
        .map(|line| line.field("bytes_sent").parse::<f64>().unwrap())
        .sum();
    for (node, reporter) in [("node1", "source"), ("node2", "destination")] {
        let (head, text) = scrape(lab.node(node), "/metrics");
        assert!(head.contains(" 200 OK"), "{head}");
        assert!(
            head.contains("content-type: text/plain; version=0.0.4"),
            "{head}"
        );
        let (client_id, far_id) = (client.identity(), far.identity());
        let pair = [
            ("reporter", reporter),
            ("source_workload_namespace", "shop"),
            ("source_principal", client_id),
            ("destination_service", "far.shop.svc.cluster.local"),
            ("destination_service_name", "far"),
            ("destination_workload_namespace", "shop"),
            ("destination_principal", far_id),
            ("response_flags", "-"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let counted = |family: &str| value(&text, &format!("istio_tcp_{family}_total"), &pair);
        assert_eq!(counted("connections_opened"), Some(3.0), "{text}");
        assert_eq!(counted("connections_closed"), Some(3.0), "{text}");
        assert_eq!(counted("received_bytes"), Some(bytes), "{text}");
        assert_eq!(counted("sent_bytes"), Some(bytes), "{text}");
        assert_eq!(counted("connections_failed"), None, "{text}");
        let ended = [("reporter", reporter), ("reason", "COMPLETE")];
        assert_eq!(value(&text, "ztunnel_connections_total", &ended), Some(3.0));
        for family in [
            "istio_build",
            "workload_manager_proxies_started_total",
            "process_open_fds",
            "process_resident_memory_bytes",
        ] {
            let value = value(&text, family, &[]);
            assert!(value.is_some_and(|value| value > 0.0), "{family} in {text}");
        }
        let addresses = [("url", "type.googleapis.com/istio.workload.Address")];
        for family in ["istio_xds_message_total", "istio_xds_message_bytes_total"] {
            let value = value(&text, family, &addresses);
            assert!(value.is_some_and(|value| value > 0.0), "{family} in {text}");
        }
    }
    let (_, text) = scrape(lab.node("node2"), "/stats/prometheus");
    let certificate = [("identity", far.identity())];
    let left = value(&text, "ztunnel_certificate_seconds_left", &certificate);
    assert!(left.is_some_and(|left| left > 3600.0), "{text}");
    let reserved = value(
        &text,
        "ztunnel_tunnel_memory_bytes",
        &[("what", "reserved")],
    );
    assert!(reserved.is_some_and(|bytes| bytes > 0.0), "{text}");
    assert_eq!(value(&text, "ztunnel_tunnels_served", &[]), Some(1.0));
}

#[test]
fn what_is_refused_is_counted_by_its_reason() {
    let lab = enrolled().unwrap();
    let client = lab.pod("shop/client");
    // Nobody listens there.
    let to = SocketAddr::new(lab.pod("shop/far").v4().unwrap(), 9);
    let report = client.check_at(to, &Check::echo("hello")).unwrap();
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    access::line(lab.node("node2"), &[("reason", "APP_UNREACHABLE")]);
    access::line(lab.node("node1"), &[("reason", "PEER_REFUSED")]);
    for (node, reporter, reason) in [
        ("node1", "source", "PEER_REFUSED"),
        ("node2", "destination", "APP_UNREACHABLE"),
    ] {
        let (_, text) = scrape(lab.node(node), "/metrics");
        let ended = [("reporter", reporter), ("reason", reason)];
        assert_eq!(
            value(&text, "ztunnel_connections_total", &ended),
            Some(1.0),
            "{text}"
        );
        let failed = [("reporter", reporter), ("response_flags", "CONNECT")];
        let family = "istio_tcp_connections_failed_total";
        assert_eq!(value(&text, family, &failed), Some(1.0), "{text}");
    }
}
