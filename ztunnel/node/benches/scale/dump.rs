//! What `/config_dump` takes when the mesh is large.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ztunnel_node::admin::{CertificateSet, ConfigDump, ConnectionEntry, PodEntry, Sources};
use ztunnel_node::connections::MOST_LISTED;
use ztunnel_node::state::MeshReader;

use super::report::{Report, quantile};
use super::resident;

/// One pod with as many connections as are shown at most.
struct Busy;

impl Sources for Busy {
    fn certificates(&self) -> Vec<CertificateSet> {
        Vec::new()
    }

    fn pods(&self) -> Pin<Box<dyn Future<Output = Vec<PodEntry>> + Send + '_>> {
        let at = |port: usize| SocketAddr::from(([10, 0, 0, 1], u16::try_from(port).unwrap()));
        let connections = (0..MOST_LISTED).map(|number| ConnectionEntry::Outbound {
            app: at(number + 1),
            dialed: at(80),
            next_hop: at(15008),
            tunnels: 1,
        });
        let pod = PodEntry {
            uid: "uid".into(),
            name: "web-0".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            up: true,
            connections: Some(connections.collect()),
        };
        Box::pin(async { vec![pod] })
    }

    fn config(&self) -> Value {
        json!({})
    }

    fn version(&self) -> Value {
        json!({})
    }
}

pub(crate) fn measure(report: &mut Report, mesh: MeshReader) {
    let dump = ConfigDump::new(mesh, Busy);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let before = resident();
    let began = Instant::now();
    let mut pieces = runtime.unwrap().block_on(dump.pieces()).unwrap();
    let (mut bytes, mut times, mut most) = (0, Vec::new(), 0);
    loop {
        let began = Instant::now();
        let Some(piece) = pieces.next() else { break };
        bytes += piece.len();
        times.push(began.elapsed());
        if times.len() % 64 == 0 {
            most = most.max(resident());
        }
    }
    let took = began.elapsed();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    report.fact("a dump of all, MB", format!("{:.1}", bytes as f64 / 1e6));
    report.target(
        "to make it, piece by piece, one CPU",
        took.as_secs_f64(),
        "s",
        5.0,
    );
    let slowest = quantile(&mut times, 1.0);
    report.fact(
        "one piece of it, median, ms",
        format!("{:.3}", milliseconds(quantile(&mut times, 0.5))),
    );
    report.fact("the slowest, ms", format!("{:.1}", milliseconds(slowest)));
    let more = most.saturating_sub(before) as f64 / 1e6;
    report.fact("memory while it is made, MB more", format!("{more:.1}"));
}
