//! What Prometheus scrapes from port 15020.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Check, Outcome, Service};
use lab::{DaemonOptions, Lab, Node};

use crate::access::{self, eventually};
use crate::mesh::{MESH, enrolled};
use crate::reference::Reference;

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
pub(crate) fn value(text: &str, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
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
            "tokio_worker_total_busy_duration_seconds_total",
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

#[test]
fn of_what_ended_well_a_share_is_logged_and_of_what_failed_all() {
    const GOOD: usize = 40;
    let lab = Lab::from_yaml(MESH).unwrap();
    let sampled = DaemonOptions::default().env("ACCESS_LOG_SAMPLE_PERCENT", "25");
    let node = lab.node("node1");
    node.start_daemon_with(&sampled).unwrap();
    lab.node("node2").start_daemon().unwrap();
    lab.enroll_all().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let far = far.v4().unwrap();
    for _ in 0..GOOD {
        let report = client.check(far, &Check::echo("hello")).unwrap();
        assert_eq!(report.outcome, Outcome::Good, "{report:?}");
    }
    for _ in 0..5 {
        let nobody = SocketAddr::new(far, 9);
        let report = client.check_at(nobody, &Check::echo("hello")).unwrap();
        assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    }
    let counted = |family: &str, labels: &[_]| {
        let (_, text) = scrape(node, "/metrics");
        value(&text, family, labels).unwrap() as usize
    };
    let ended = [("reporter", "source"), ("reason", "COMPLETE")];
    eventually("all have ended", || {
        counted("ztunnel_connections_total", &ended) == GOOD
    });
    let told = |node: &str, reason| access::lines(lab.node(node), &[("reason", reason)]).len();
    eventually("failures are told", || told("node1", "PEER_REFUSED") == 5);
    let left_out = counted("ztunnel_log_sampled_out_total", &[]);
    eventually("the rest is told", || {
        told("node1", "COMPLETE") + left_out == GOOD
    });
    // Two workers, and each begins somewhere.
    assert!(left_out.abs_diff(GOOD * 3 / 4) <= 2, "{left_out}");
    eventually("the other node tells all", || {
        told("node2", "COMPLETE") == GOOD
    });
}

/// Families that have no series before something has happened that did not happen here.
const UNUSUAL: [&str; 9] = [
    "istio_tcp_connections_failed_total",
    "istio_xds_connection_terminations_total",
    "istio_on_demand_dns_total",
    "istio_crl_policy_rejections_total",
    "istio_crl_untracked_connections_total",
    "ztunnel_tunnel_dials_failed_total",
    "ztunnel_tunnels_retired_total",
    "ztunnel_tunnels_refused_total",
    "ztunnel_certificate_requests_failed_total",
];

#[test]
fn the_reference_has_all_that_is_exposed_and_no_more() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let report = client.check(far.v4().unwrap(), &Check::echo("hello"));
    assert_eq!(report.unwrap().outcome, Outcome::Good);
    access::line(lab.node("node1"), &[("reason", "COMPLETE")]);
    let reference = Reference::read();
    let (_, text) = scrape(lab.node("node1"), "/metrics");
    let mut shown = BTreeSet::new();
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap();
            let family = reference.0.get(name);
            let family = family.unwrap_or_else(|| panic!("{name} is not in the reference"));
            assert_eq!(family.kind, kind, "{name}");
            assert!(shown.insert(name), "{name} is there twice");
        } else if !line.starts_with('#') {
            let (series, labels) = series(line);
            let (name, family) = reference.of(series).unwrap();
            assert!(shown.contains(name), "{line} comes before its type");
            // All of them, always; `le` is the histogram's own.
            let labels: BTreeSet<_> = labels.into_iter().filter(|label| label != "le").collect();
            assert_eq!(labels, family.labels, "{line}");
        }
    }
    let hidden = |name: &&String| !shown.contains(name.as_str());
    let hidden: BTreeSet<_> = reference.0.keys().filter(hidden).collect();
    let unusual = UNUSUAL.map(str::to_owned);
    assert_eq!(hidden, unusual.iter().collect());
}

/// The name of a series and those of its labels, whose values have no quotes in them here.
fn series(line: &str) -> (&str, Vec<String>) {
    let (series, _) = line.rsplit_once(' ').unwrap();
    let Some((name, labels)) = series.split_once('{') else {
        return (series, Vec::new());
    };
    let labels = labels.split('"').step_by(2);
    let labels = labels.filter_map(|part| part.trim_start_matches(',').strip_suffix('='));
    (name, labels.map(str::to_owned).collect())
}

#[test]
fn pods_are_counted_by_how_they_are() {
    let lab = enrolled().unwrap();
    let (node, client) = (lab.node("node1"), lab.pod("shop/client"));
    let states = || {
        let (_, text) = scrape(node, "/metrics");
        let of = |state| value(&text, "ztunnel_pods", &[("state", state)]).unwrap();
        let manager = |what| value(&text, &format!("workload_manager_{what}"), &[]).unwrap();
        (
            ["captured", "defective", "unmeasured"].map(of),
            ["active_proxy_count", "pending_proxy_count"].map(manager),
            ["proxies_started_total", "proxies_stopped_total"].map(manager),
        )
    };
    eventually("both pods are measured", || {
        states() == ([2.0, 0.0, 0.0], [2.0, 0.0], [2.0, 0.0])
    });
    let flush = ["ip", "-4", "route", "flush", "table", "31348"];
    client.run(flush).unwrap().success().unwrap();
    // Nobody asks: it is found by looking again, at least every 30 s.
    let deadline = Instant::now() + Duration::from_secs(45);
    while states().0 != [1.0, 1.0, 0.0] {
        assert!(Instant::now() < deadline, "{:?}", states());
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(states().1, [2.0, 0.0]);
    eventually("the log says so", || {
        let log = node.log();
        let line = log
            .lines()
            .find(|line| line.contains("capture of a pod is damaged"));
        line.is_some_and(|line| line.contains("shop/client"))
    });
    node.daemon(|daemon| daemon.enroll(&client)).unwrap();
    assert_eq!(states(), ([2.0, 0.0, 0.0], [2.0, 0.0], [2.0, 0.0]));
    lab.unenroll(&["shop/client"]).unwrap();
    assert_eq!(states(), ([1.0, 0.0, 0.0], [1.0, 0.0], [2.0, 1.0]));
}
