use std::future::pending;
use std::rc::Rc;

use tokio::time::{Duration, timeout};
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::name::PodName;
use ztunnel_mesh::reason::Reason;

use super::*;
use crate::telemetry::{Direction, Telemetry};

fn registry() -> Rc<Registry> {
    Registry::new(
        PodName {
            namespace: "shop".into(),
            name: "web-0".into(),
            service_account: "web".into(),
        },
        Telemetry::default(),
    )
}

fn start(registry: &Rc<Registry>) -> Record {
    registry.start(
        Direction::Outbound,
        ClientAddr(([10, 0, 0, 1], 40_000).into()),
    )
}

#[tokio::test]
async fn a_cut_ends_whoever_is_open_and_says_why() {
    let registry = registry();
    let records: Vec<_> = (0..1_000).map(|_| start(&registry)).collect();
    start(&registry).complete();
    assert_eq!(registry.cut_all(Cut::Drained).await, 1_000);
    assert_eq!(registry.cut_all(Cut::Drained).await, 0, "each only once");
    for record in records {
        let cut = record.unless_cut(pending::<()>()).await.unwrap_err();
        assert_eq!(cut.reason(), Reason::Drained);
        record.failed(cut.reason(), cut);
    }
    let later = start(&registry);
    assert!(
        timeout(Duration::ZERO, later.unless_cut(pending::<()>()))
            .await
            .is_err()
    );
}

fn wanted(limit: usize) -> Wanted {
    Wanted {
        sort: Sort::Bytes,
        limit,
        ..Wanted::nothing_but_numbers()
    }
}

#[tokio::test]
async fn the_first_of_many_are_found_while_others_get_their_turn() {
    let (one, two) = (registry(), registry());
    let records: Vec<_> = (0..1_000)
        .map(|number| {
            let record = start(if number % 2 == 0 { &one } else { &two });
            record.traffic().add_sent(number);
            record.traffic().add_received(1);
            record
        })
        .collect();
    let turns = std::cell::Cell::new(0);
    let (registries, wanted) = ([one, two], wanted(3));
    let mut found = std::pin::pin!(find(&registries, &wanted, || false));
    let found = loop {
        tokio::select! {
            biased;
            found = &mut found => break found,
            () = tokio::task::yield_now() => turns.set(turns.get() + 1),
        }
    };
    assert_eq!((found.open, found.matched), (1_000, 1_000));
    let sent: Vec<_> = found.chosen.iter().map(|one| one.sent).collect();
    assert_eq!(sent, [999, 998, 997]);
    assert!(turns.get() >= 2, "others waited for all of it");
    // Of several workers, the first of all.
    let again = find(&registries[..1], &wanted, || false).await;
    let merged = wanted.merge(vec![again.clone(), found, Found::default()]);
    let sent: Vec<_> = merged.chosen.iter().map(|one| one.sent).collect();
    assert_eq!((merged.open, sent), (1_500, vec![999, 998, 998]));
    drop(records);
    assert_eq!(find(&registries, &wanted, || false).await.open, 0);
}

#[tokio::test]
async fn only_what_is_wanted_is_found() {
    let registry = registry();
    let addr = |port| (std::net::Ipv4Addr::LOCALHOST, port).into();
    let outbound = start(&registry);
    outbound.facts().dst_addr = Some(addr(1));
    outbound.facts().dst_identity = "spiffe://td/ns/shop/sa/db".parse().ok();
    outbound.facts().told_service = Some("db.shop".into());
    let inbound = registry.start(Direction::InboundPlaintext, ClientAddr(addr(2)));
    let registries = [Rc::clone(&registry)];
    let count = async |wanted: Wanted| find(&registries, &wanted, || false).await.matched;
    let of_peer = |peer: &str| Wanted {
        peer: Some(peer.parse().unwrap()),
        ..wanted(10)
    };
    for (peer, expected) in [
        ("127.0.0.1", 2),
        ("10.0.0.1", 0), // The client of the outbound one, which is this pod's.
        ("spiffe://td/ns/shop/sa/db", 1),
        ("spiffe://td/ns/shop/sa/other", 0),
        ("db.shop", 1),
        ("shop/web-0", 0),
    ] {
        assert_eq!(count(of_peer(peer)).await, expected, "{peer}");
    }
    for (pod, expected) in [("shop/web-0", 2), ("shop/web", 0), ("other/web-0", 0)] {
        let pod = Some(pod.parse().unwrap());
        assert_eq!(count(Wanted { pod, ..wanted(10) }).await, expected);
    }
    for way in [Way::Inbound, Way::Outbound] {
        let direction = Some(way);
        assert_eq!(
            count(Wanted {
                direction,
                ..wanted(10)
            })
            .await,
            1
        );
    }
    for bad in ["", "web", "shop/", "/web", "a/b/c", "http://x.y/"] {
        assert!(bad.parse::<WantedPeer>().is_err(), "{bad}");
        assert!(bad.parse::<WantedPod>().is_err(), "{bad}");
    }
    drop((outbound, inbound));
}

#[tokio::test]
async fn only_the_connection_that_is_watched_is_told_about_and_only_for_so_long() {
    let name = registry().pod.clone();
    let watch = Watch::default();
    let registry = Registry::watched(name.clone(), Telemetry::default(), watch.clone());
    let from = |port: u16| {
        let client = ClientAddr(([10, 0, 0, 1], port).into());
        registry.start(Direction::Outbound, client)
    };
    let mut watching = watch.follow(name.clone(), 40_000).unwrap();
    assert!(
        watch.follow(name.clone(), 40_001).is_none(),
        "one at a time"
    );
    from(40_001).complete();
    let inbound = ClientAddr(([10, 0, 0, 1], 40_000).into());
    registry.start(Direction::InboundHbone, inbound).complete();
    let record = from(40_000);
    assert!(matches!(watching.next().await, Some(Seen::Accepted)));
    record.connected();
    assert!(matches!(watching.next().await, Some(Seen::Connected(_))));
    record.traffic().add_sent(7);
    record.complete();
    match watching.next().await {
        Some(Seen::Ended {
            connection, reason, ..
        }) => assert_eq!((connection.sent, reason), (7, Reason::Complete)),
        other => panic!("{other:?}"),
    }
    drop(watching);
    from(40_000).complete();
    let mut next = watch.follow(name, 40_000).unwrap();
    let told = timeout(Duration::from_millis(1), next.next()).await;
    assert!(told.is_err(), "it ended before: {told:?}");
}

#[tokio::test]
async fn a_failure_that_the_log_does_not_tell_is_kept_all_the_same() {
    // No filter lets anything through here.
    let registry = registry();
    let failures = registry.telemetry.log.failures();
    start(&registry).complete();
    assert!(failures.list().is_empty());
    start(&registry).failed(Reason::PolicyDenied, Cut::Drained);
    assert_eq!(failures.list().len(), 1);
}

/// What a connection takes for as long as it lasts, whatever becomes of it.
#[test]
fn a_record_takes_little_memory() {
    // With its two counts it just fits what the allocator gives for 512.
    let bytes = size_of::<registry::Connection>();
    assert!(bytes <= 496, "{bytes}");
}
