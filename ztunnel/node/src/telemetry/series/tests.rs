use ztunnel_mesh::Workload;
use ztunnel_mesh::name::ServiceName;
use ztunnel_mesh::service::Service;

use super::*;
use crate::telemetry::{Facts, KnownPairs, Party, Traffic, Via};

fn table(limit: usize) -> SeriesTable {
    let overflowed = IntCounter::new("overflowed", "In tests.").unwrap();
    SeriesTable::new(limit, overflowed)
}

fn pod(number: usize) -> Party {
    let mut pod = Workload::new(&format!("cluster//Pod/shop/pod-{number}"));
    pod.name = format!("pod-{number}").into();
    pod.namespace = "shop".into();
    let mut app = (*pod.app).clone();
    app.workload_name = format!("app-{number}").into();
    app.canonical_name = "a \"quoted\" one".into();
    pod.app = Arc::new(app);
    Party::Workload(Arc::new(pod))
}

fn facts(source: &Party, destination: &Party) -> Facts {
    Facts {
        src: source.clone(),
        dst: destination.clone(),
        dst_identity: Some("spiffe://cluster.local/ns/shop/sa/db".parse().unwrap()),
        via: Via::Hbone(ztunnel_mesh::addr::HboneAddr(([10, 0, 0, 2], 15008).into())),
        ..Facts::default()
    }
}

fn exposed(table: &SeriesTable) -> String {
    let chunks: Vec<Bytes> = table.expose().collect();
    String::from_utf8(chunks.concat()).unwrap()
}

/// The values of all series of a family.
fn values(text: &str, family: &str) -> Vec<u64> {
    let lines = text
        .lines()
        .filter(|l| l.starts_with(&format!("{family}{{")));
    lines
        .map(|l| l.rsplit_once(' ').unwrap().1.parse().unwrap())
        .collect()
}

#[test]
fn a_series_has_the_labels_of_the_contract_in_their_order() {
    let (table, known) = (table(10), KnownPairs::default());
    let (web, db) = (pod(1), pod(2));
    let mut facts = facts(&web, &db);
    facts.service = Some(Arc::new(Service {
        name: "db".into(),
        ..Service::new(ServiceName::new("shop", "db.shop.svc.cluster.local"))
    }));
    let traffic = Traffic::default();
    known.open(&table, Direction::Outbound, &facts, &traffic);
    traffic.add_sent(3);
    traffic.add_received(5);
    let text = exposed(&table);
    let line = text
        .lines()
        .find(|line| line.starts_with("istio_tcp_received_bytes_total"))
        .unwrap();
    assert_eq!(
        line,
        "istio_tcp_received_bytes_total{reporter=\"source\",source_workload=\"app-1\",\
         source_canonical_service=\"a \\\"quoted\\\" one\",source_canonical_revision=\"unknown\",\
         source_workload_namespace=\"shop\",source_principal=\"unknown\",\
         source_app=\"a \\\"quoted\\\" one\",source_version=\"unknown\",source_cluster=\"Kubernetes\",\
         destination_service=\"db.shop.svc.cluster.local\",destination_service_namespace=\"shop\",\
         destination_service_name=\"db\",destination_workload=\"app-2\",\
         destination_canonical_service=\"a \\\"quoted\\\" one\",destination_canonical_revision=\"unknown\",\
         destination_workload_namespace=\"shop\",destination_principal=\"spiffe://cluster.local/ns/shop/sa/db\",\
         destination_app=\"a \\\"quoted\\\" one\",destination_version=\"unknown\",destination_cluster=\"Kubernetes\",\
         request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",\
         source_region=\"unknown\",source_zone=\"unknown\",destination_region=\"unknown\",\
         destination_zone=\"unknown\"} 3"
    );
    assert_eq!(values(&text, "istio_tcp_sent_bytes_total"), [5]);
    assert_eq!(values(&text, "istio_tcp_connections_opened_total"), [1]);
    assert!(
        !text.contains("istio_tcp_connections_closed_total"),
        "{text}"
    );
    assert_eq!(text.matches("# TYPE ").count(), 3, "{text}");

    traffic.close(Reason::PolicyDenied, table.now());
    let text = exposed(&table);
    for family in ["closed", "failed"] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("istio_tcp_connections_{family}_total")));
        let line = line.unwrap();
        assert!(line.contains("response_flags=\"DENY\""), "{line}");
        assert!(line.ends_with(" 1"), "{line}");
    }
}

#[test]
fn on_the_destination_side_the_app_is_who_sends_back() {
    let (table, known) = (table(10), KnownPairs::default());
    let traffic = Traffic::default();
    let facts = facts(&pod(1), &pod(2));
    known.open(&table, Direction::InboundHbone, &facts, &traffic);
    traffic.add_sent(3);
    traffic.add_received(5);
    let text = exposed(&table);
    assert_eq!(values(&text, "istio_tcp_sent_bytes_total"), [3]);
    assert_eq!(values(&text, "istio_tcp_received_bytes_total"), [5]);
}

/// 10,000 pods that come and go, each with one connection.
#[test]
fn short_lived_pods_leave_a_bounded_number_of_series() {
    const LIMIT: usize = 500;
    let (table, known, db) = (table(LIMIT), KnownPairs::default(), pod(0));
    for number in 1..=10_000 {
        let traffic = Traffic::default();
        let facts = facts(&pod(number), &db);
        known.open(&table, Direction::Outbound, &facts, &traffic);
        traffic.add_sent(1);
        traffic.close(Reason::Complete, table.now());
    }
    assert_eq!(table.len(), LIMIT);
    assert_eq!(table.overflowed.get(), 10_000 - LIMIT as u64);
    let text = exposed(&table);
    for family in ["connections_opened", "connections_closed", "received_bytes"] {
        let values = values(&text, &format!("istio_tcp_{family}_total"));
        assert_eq!(values.len(), LIMIT + 1, "with one for the rest");
        assert_eq!(values.iter().sum::<u64>(), 10_000, "nothing is lost");
    }
}

#[test]
fn who_is_idle_makes_room_and_who_is_open_stays() {
    let (table, known) = (table(2), KnownPairs::default());
    let (a, b, c, db) = (pod(1), pod(2), pod(3), pod(0));
    let open = |source: &Party| {
        let traffic = Traffic::default();
        let facts = facts(source, &db);
        known.open(&table, Direction::Outbound, &facts, &traffic);
        traffic
    };
    let long = open(&a);
    open(&b).close(Reason::Complete, 0);
    // Long ago: as if the table had begun earlier.
    let began = Instant::now().checked_sub(2 * IDLE).unwrap();
    let table_later = SeriesTable {
        began,
        limit: 2,
        pairs: Mutex::new(std::mem::take(&mut table.pairs.lock().unwrap())),
        overflowed: table.overflowed.clone(),
    };
    let traffic = Traffic::default();
    known.open(&table_later, Direction::Outbound, &facts(&c, &db), &traffic);
    assert_eq!(
        table_later.overflowed.get(),
        0,
        "the idle one has made room"
    );
    let again = Traffic::default();
    known.open(&table_later, Direction::Outbound, &facts(&b, &db), &again);
    again.add_sent(9);
    assert_eq!(
        table_later.overflowed.get(),
        1,
        "what was dropped is not used again"
    );
    long.add_sent(7);
    let mut received = values(&exposed(&table_later), "istio_tcp_received_bytes_total");
    received.sort_unstable();
    assert_eq!(received, [0, 7, 9]);
}

#[test]
fn what_peers_say_of_themselves_is_bounded_and_cannot_break_the_format() {
    let (table, known) = (table(10), KnownPairs::default());
    let long = "x".repeat(10_000);
    for name in ["fine", "\"} 7\nevil 1", &long] {
        let told = ztunnel_hbone::Baggage {
            namespace: "far",
            workload_name: name,
            ..ztunnel_hbone::Baggage::default()
        };
        let facts = facts(&told.into(), &pod(2));
        let traffic = Traffic::default();
        known.open(&table, Direction::InboundHbone, &facts, &traffic);
    }
    let text = exposed(&table);
    assert!(text.contains("source_workload=\"fine\""), "{text}");
    assert!(!text.contains("evil") && !text.contains("xxx"), "{text}");
    assert_eq!(
        values(&text, "istio_tcp_connections_opened_total")
            .iter()
            .sum::<u64>(),
        3
    );
}
