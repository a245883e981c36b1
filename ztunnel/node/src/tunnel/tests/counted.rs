//! What the pool tells metrics.

use super::pool::echo;
use super::*;

fn counted(metrics: &PoolMetrics) -> [u64; 3] {
    [&metrics.found, &metrics.opened, &metrics.waited].map(prometheus::IntCounter::get)
}

fn retired(client: &Client, why: &str) -> u64 {
    client.metrics.retired.with_label_values(&[why]).get()
}

#[test]
fn tunnels_and_those_who_need_them_are_counted() {
    run(async {
        let ca = TestCa::new("one");
        let settings = TunnelSettings {
            max_streams: 3,
            ping_interval: Duration::from_millis(20),
            idle_release: Duration::from_millis(50),
            ..TunnelSettings::default()
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, settings);
        let metrics = &client.metrics;
        let first = client.open_all(2).await;
        assert!(first.iter().all(Result::is_ok));
        assert_eq!(counted(metrics), [0, 1, 1]);
        assert_eq!((metrics.open.get(), metrics.streams.get()), (1, 2));
        let third = client.open().await.unwrap();
        assert_eq!((counted(metrics), retired(&client, "full")), ([1, 1, 1], 1));
        let fourth = client.open().await.unwrap();
        assert_eq!(counted(metrics), [1, 2, 1]);
        assert_eq!((metrics.open.get(), metrics.streams.get()), (2, 4));
        assert_eq!(metrics.dial_seconds.get_sample_count(), 2);
        drop((first, third, fourth));
        until(|| metrics.open.get() == 0).await;
        assert_eq!(metrics.streams.get(), 0);
        // The full one was counted as that, when it was.
        assert_eq!(
            ["full", "idle", "closed"].map(|why| retired(&client, why)),
            [1, 1, 0]
        );
    });
}

#[test]
fn attempts_that_fail_are_counted_by_their_reason() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(WEB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let failed = client.open_all(5).await;
        assert!(failed.iter().all(Result::is_err));
        let metrics = &client.metrics;
        let by_reason = &metrics.dials_failed;
        let mismatch = by_reason.with_label_values(&["PEER_IDENTITY_MISMATCH"]);
        assert_eq!(mismatch.get(), 1, "of one attempt");
        assert_eq!(counted(metrics), [0, 1, 4]);
        assert_eq!(metrics.dial_seconds.get_sample_count(), 0);
        assert_eq!((metrics.open.get(), metrics.streams.get()), (0, 0));
    });
}
