//! Lines as an operator sees them.

use std::time::{Duration, SystemTime};

use tracing_subscriber::layer::SubscriberExt as _;
use ztunnel_mesh::Workload;
use ztunnel_mesh::addr::{ClientAddr, HboneAddr};
use ztunnel_mesh::name::PodName;
use ztunnel_mesh::reason::Reason;

use super::event::EventLines;
use super::*;

fn ended(reason: Reason) -> Box<Ended> {
    let pod = |name: &str| {
        let mut pod = Workload::new(&format!("Kubernetes//Pod/default/{name}"));
        (pod.name, pod.namespace) = (name.into(), "default".into());
        Party::Workload(Arc::new(pod))
    };
    let identity = |sa| format!("spiffe://cluster.local/ns/default/sa/{sa}").parse();
    Box::new(Ended {
        at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_208_538_127_037),
        direction: Direction::Outbound,
        pod: PodName {
            namespace: "default".into(),
            name: "pod-a".into(),
            service_account: "sa-a".into(),
        },
        client: ClientAddr(([10, 77, 0, 2], 37088).into()),
        facts: Facts {
            src: pod("pod-a"),
            src_identity: identity("sa-a").ok(),
            dst: pod("pod-b"),
            dst_identity: identity("sa-b").ok(),
            told_service: Some("b.default.svc.cluster.local".into()),
            dst_addr: Some(([10, 96, 0, 7], 80).into()),
            via: Via::Hbone(HboneAddr(([10, 77, 0, 3], 15008).into())),
            authority: Some(ztunnel_hbone::Authority::Ip(([10, 77, 0, 3], 8080).into())),
            ..Facts::default()
        },
        bytes_sent: 73,
        bytes_received: 1310,
        duration: Duration::from_micros(4_700),
        opened: true,
        reason,
        error: (reason != Reason::Complete).then(|| "policy says \"no\"\nand ends here".into()),
    })
}

fn written(format: LogFormat, tell: impl FnOnce(&Log)) -> String {
    let (log, written) = written::Written::start_as(format);
    tell(&log);
    log.flush();
    assert_eq!(log.queued().0, 0);
    written.text()
}

#[test]
fn a_connection_is_one_line_with_the_fields_of_the_contract_in_their_order() {
    let text = written(LogFormat::Plain, |log| {
        log.connection(ended(Reason::Complete))
    });
    assert_eq!(
        text,
        "2026-11-20T21:02:18.127037Z\tinfo\taccess\tconnection complete\tsrc.addr=10.77.0.2:37088 \
         src.workload=\"pod-a\" src.namespace=\"default\" \
         src.identity=\"spiffe://cluster.local/ns/default/sa/sa-a\" src.cluster=\"Kubernetes\" \
         dst.addr=10.77.0.3:15008 dst.hbone_addr=10.77.0.3:8080 \
         dst.service=\"b.default.svc.cluster.local\" dst.workload=\"pod-b\" dst.namespace=\"default\" \
         dst.identity=\"spiffe://cluster.local/ns/default/sa/sa-b\" dst.cluster=\"Kubernetes\" \
         direction=\"outbound\" bytes_sent=73 bytes_recv=1310 duration=\"4ms\" protocol=\"HBONE\" \
         pod=\"default/pod-a\" dst.orig_addr=10.96.0.7:80 reason=\"COMPLETE\"\n"
    );
}

#[test]
fn json_has_the_same_and_numbers_stay_numbers() {
    let text = written(LogFormat::Json, |log| {
        log.connection(ended(Reason::PolicyDenied))
    });
    assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text}");
    assert!(
        text.starts_with("{\"level\":\"error\",\"time\":\"2026-11-20T21:02:18.127037Z\",\"scope\":\"access\",\"message\":"),
        "{text}"
    );
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["bytes_recv"], 1310);
    assert_eq!(line["duration"], "4ms");
    assert_eq!(line["src.addr"], "10.77.0.2:37088");
    assert_eq!(line["reason"], "POLICY_DENIED");
    assert_eq!(line["error"], "policy says \"no\"\nand ends here");
}

#[test]
fn text_from_outside_cannot_begin_a_line_of_its_own() {
    let text = written(LogFormat::Plain, |log| log.connection(ended(Reason::Reset)));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.ends_with("error=\"policy says \\\"no\\\"\\nand ends here\"\n"),
        "{text}"
    );
}

#[test]
fn events_are_lines_with_their_spans() {
    let tell = |format| {
        written(format, |log| {
            let lines = tracing_subscriber::registry().with(EventLines::new(log.clone(), format));
            tracing::subscriber::with_default(lines, || {
                let span = tracing::info_span!("outbound", id = %"ab12");
                let _entered = span.enter();
                tracing::info!(target: "ztunnel_node::pod", count = 3, name = "a b", addr = %"x:1", "pod started");
            });
        })
    };
    let plain = tell(LogFormat::Plain);
    let rest = plain.split_once('\t').unwrap().1;
    assert_eq!(
        rest,
        "info\tpod:outbound{id=ab12}\tpod started\tcount=3 name=\"a b\" addr=x:1\n"
    );
    let json: serde_json::Value = serde_json::from_str(&tell(LogFormat::Json)).unwrap();
    assert_eq!(json["scope"], "ztunnel_node::pod");
    assert_eq!(json["name"], "a b");
    assert_eq!(json["outbound"]["id"], "ab12");
}

#[test]
fn a_log_that_nobody_takes_makes_nobody_wait() {
    let log = Log::unread();
    for _ in 0..20_000 {
        log.connection(ended(Reason::Complete));
    }
    assert_eq!(log.dropped(), 20_000);
    // A reader that is stuck.
    let (log, items) = Log::new();
    for _ in 0..20_000 {
        log.connection(ended(Reason::Complete));
    }
    assert!(log.dropped() > 10_000, "{}", log.dropped());
    let (waiting, limit) = log.queued();
    assert_eq!((waiting, waiting as u64 + log.dropped()), (limit, 20_000));
    drop(items);
}

#[test]
fn levels_are_followed_and_misspelled_ones_are_refused() {
    for good in ["info", "access=off,debug", "ztunnel_node::pod=trace"] {
        assert!(directives(good).is_ok(), "{good}");
    }
    for bad in ["inof", "access=", "access:debug", ""] {
        assert!(directives(bad).is_err(), "{bad}");
    }
}
