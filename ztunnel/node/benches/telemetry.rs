//! What does it cost a connection to be counted and told about? From the record's beginning to its end, with both ends
//! known, some bytes, and a line in the access log, which another thread formats and writes.
//!
//! ```text
//! cargo bench -p ztunnel-node --bench telemetry
//! ```
//! Target: under 2 µs for each connection.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::sync::Arc;
use std::time::Instant;

use tikv_jemallocator::Jemalloc;
use ztunnel_hbone::{Authority, Traceparent};
use ztunnel_mesh::Workload;
use ztunnel_mesh::addr::{ClientAddr, HboneAddr};
use ztunnel_mesh::name::{PodName, ServiceName};
use ztunnel_mesh::service::Service;
use ztunnel_node::connections::Registry;
use ztunnel_node::telemetry::{
    Direction, Facts, LogFormat, MOST_PAIRS, Metrics, Party, Telemetry, Via, start_log,
};

/// That of the daemon.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// No more at a time than the log has room for: what is dropped costs less.
const CONNECTIONS: u64 = 4_000;
const WRITES: u64 = 1_000_000;
const ROUNDS: usize = 25;

fn main() {
    // The log goes to standard output, which nobody wants to see here: the report goes to standard error.
    let (log, _levels) = start_log("info", LogFormat::Plain).unwrap();
    let telemetry = Telemetry::new(Metrics::new("bench", MOST_PAIRS), log.clone());
    let registry = Registry::new(
        PodName {
            namespace: "shop".into(),
            name: "web-0".into(),
            service_account: "web".into(),
        },
        telemetry,
    );
    let workload = |name: &str| {
        let mut workload = Workload::new(&format!("Kubernetes//Pod/shop/{name}"));
        (workload.name, workload.namespace) = (name.into(), "shop".into());
        Arc::new(workload)
    };
    let (web, db) = (workload("web-0"), workload("db-0"));
    let service = Arc::new(Service::new(ServiceName::new("shop", "db.shop.svc")));
    let facts = || Facts {
        src: Party::Workload(Arc::clone(&web)),
        src_identity: Some(web.identity()),
        dst: Party::Workload(Arc::clone(&db)),
        dst_identity: Some(db.identity()),
        service: Some(Arc::clone(&service)),
        dst_addr: Some(([10, 96, 0, 1], 80).into()),
        via: Via::Hbone(HboneAddr(([10, 244, 2, 10], 15008).into())),
        authority: Some(Authority::Ip(([10, 244, 2, 10], 8080).into())),
        tls_cipher: Some("TLS_AES_128_GCM_SHA256"),
        tls_key_exchange: Some("X25519MLKEM768"),
        trace: Some(Traceparent::new(7, 7)),
        ..Facts::default()
    };
    let client = ClientAddr(([10, 244, 1, 10], 40_000).into());
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..CONNECTIONS {
            let record = registry.start(Direction::Outbound, client);
            *record.facts() = facts();
            record.opened();
            record.connected();
            record.traffic().add_sent(100);
            record.traffic().add_received(1_000);
            record.complete();
        }
        let each = began.elapsed().as_nanos() as u64 / CONNECTIONS;
        rounds.push(each);
        log.flush();
    }
    rounds.sort_unstable();
    let [best, median, worst] = [0, ROUNDS / 2, ROUNDS - 1].map(|at| rounds[at]);
    eprintln!("a connection: {median} ns median, {best} best, {worst} worst");
    eprintln!("  lines dropped: {}", log.dropped());

    let record = registry.start(Direction::Outbound, client);
    *record.facts() = facts();
    record.opened();
    let began = Instant::now();
    for _ in 0..WRITES {
        record.traffic().add_sent(100);
    }
    let each = began.elapsed().as_nanos() as f64 / WRITES as f64;
    eprintln!("a write: {each:.1} ns");
    record.complete();
}
