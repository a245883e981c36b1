//! Pods that end, and others that come in their place.

use std::time::{Duration, Instant};

use lab::Workload;
use lab::tester::{Check, Outcome, Service};

use super::{echo, enrolled_with_deadline, hold};

#[test]
fn when_the_server_is_deleted_its_connections_end_and_new_ones_fail() {
    let lab = enrolled_with_deadline("500ms");
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let server = far.serve().unwrap();
    let (uid, ip) = (far.uid().to_owned(), far.v4().unwrap());
    let mut held = hold(&client, ip);
    assert_eq!(held.exchange("open").unwrap().outcome, Outcome::Good);

    // As Kubernetes does it: the processes end, then the network goes, then the namespace.
    drop(server);
    let report = held.exchange("nobody there").unwrap();
    let ended = [Outcome::Reset, Outcome::Ended].contains(&report.outcome);
    assert!(ended && report.elapsed_ms < 2000, "{report:?}");
    let report = echo(&client, ip, "too late");
    assert_ne!(report.outcome, Outcome::Good);

    let inode = far.namespace().inode().unwrap();
    drop(far);
    lab.remove_pod("shop/far").unwrap();
    lab.settle().unwrap();
    let node = lab.node("node2");
    let said = node.daemon(|daemon| daemon.ask(&["unenroll", "--uid", &uid]));
    said.unwrap().success().unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", node.daemon_pid().unwrap()));
    let targets = descriptors
        .unwrap()
        .flatten()
        .filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let name = format!("net:[{inode}]");
    assert!(
        !targets
            .into_iter()
            .any(|target| target.as_os_str() == name.as_str())
    );

    let tap = lab.tap("node1", "node2", &["too late"]).unwrap();
    for to in [ip, "10.96.0.10".parse().unwrap()] {
        let report = echo(&client, to, "too late");
        assert_ne!(report.outcome, Outcome::Good, "{report:?}");
        assert!(report.elapsed_ms < 2000, "{report:?}");
    }
    assert_eq!(tap.stop().unwrap().marker("too late"), 0);
}

#[test]
fn an_address_that_goes_to_another_pod_at_once_belongs_to_that_one() {
    let lab = enrolled_with_deadline("500ms");
    let client = lab.pod("shop/client");
    for number in 0..3 {
        let key = if number == 0 {
            "shop/far".to_owned()
        } else {
            format!("shop/heir{number}")
        };
        let old = lab.pod(&key);
        let server = old.serve().unwrap();
        let workload = old.workload().clone();
        let uid = old.uid().to_owned();
        let ips = workload.addresses.clone();
        for &ip in &ips {
            assert_eq!(echo(&client, ip, "to the first").outcome, Outcome::Good);
        }
        let held = hold(&client, ips[0]);

        let started = Instant::now();
        drop((server, old));
        lab.remove_pod(&key).unwrap();
        let heir = lab
            .add_pod(Workload {
                name: format!("heir{}", number + 1),
                service_account: format!("heir{}", number + 1),
                ..workload
            })
            .unwrap();
        let _server = heir.serve().unwrap();
        lab.enroll(&[&heir.key()]).unwrap();
        let took = started.elapsed();

        let tap = lab.tap("node1", "node2", &["to the heir"]).unwrap();
        for &ip in &ips {
            let report = echo(&client, ip, "to the heir");
            assert_eq!(report.outcome, Outcome::Good, "{report:?}");
        }
        let seen = client.check(ips[0], &Check::of(Service::Peer)).unwrap();
        assert_eq!(seen.seen_as.map(|seen| seen.ip()), client.v4().ok());
        assert_eq!(tap.stop().unwrap().marker("to the heir"), 0);
        let identity = format!("dst.identity=\"{}\" ", heir.identity());
        let log = lab.node("node1").log();
        assert!(
            log.contains(&identity),
            "the client knows that it is another one"
        );
        assert!(
            took < Duration::from_secs(5),
            "at once, and not after {took:?}"
        );

        // The end of the old one comes late, and takes nothing from the new one.
        let node = lab.node("node2");
        let said = node.daemon(|daemon| daemon.ask(&["unenroll", "--uid", &uid]));
        said.unwrap().success().unwrap();
        for &ip in &ips {
            assert_eq!(echo(&client, ip, "still").outcome, Outcome::Good);
        }
        drop(held);
    }
}
