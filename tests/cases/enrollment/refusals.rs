//! What is refused: with a code for machines, with a reason for people, and with nothing changed.

use std::path::Path;

use lab::{Lab, Pod};

use crate::local_api::Api;
use crate::mesh::MESH;

/// Expects a refusal, and the pod as it was.
fn refuse(lab: &Lab, pod: &Pod, uid: &str, netns: &Path, code: &str, reason: &[&str]) {
    let node = lab.node(pod.node());
    let before = pod.fingerprint().unwrap();
    let workload = pod.workload();
    let netns = netns.to_string_lossy();
    let said = node
        .daemon(|daemon| {
            daemon.ask(&[
                "enroll",
                "--uid",
                uid,
                "--netns",
                &netns,
                "--namespace",
                &workload.namespace,
                "--name",
                &workload.name,
            ])
        })
        .unwrap();
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    assert_eq!(said.stdout, "");
    let start = format!("ztunnel: {code}: ");
    assert!(said.stderr.starts_with(&start), "{code}: {said:?}");
    for part in reason {
        assert!(said.stderr.contains(part), "no {part:?} in {said:?}");
    }
    assert_eq!(
        pod.fingerprint().unwrap().changes_since(&before),
        Vec::<String>::new(),
        "{code}"
    );
}

#[test]
fn what_cannot_be_enrolled_is_refused_with_code_and_reason_and_nothing_changes() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    node.start_daemon().unwrap();
    let (client, near) = (lab.pod("shop/client"), lab.pod("shop/near"));
    lab.remember("shop/near").unwrap();
    let own = near.namespace().path();
    let uid = near.uid();

    for bad in ["", "../escape", "a b", &"x".repeat(129)] {
        refuse(&lab, &near, bad, &own, "INVALID_UID", &["128 letters"]);
    }
    for (path, why) in [
        ("/proc/self/ns/none", "No such file or directory"),
        ("/etc/hostname", "Invalid argument"),
        ("/proc/self/ns/mnt", "Invalid argument"),
        ("/proc", ""),
    ] {
        refuse(
            &lab,
            &near,
            uid,
            Path::new(path),
            "NETNS_UNAVAILABLE",
            &[path, why],
        );
    }
    let host = node.namespace().path();
    let shown = host.display().to_string();
    refuse(
        &lab,
        &near,
        uid,
        &host,
        "HOST_NETWORK",
        &[&shown, "host-network pods"],
    );
    let notes = std::fs::read_dir(node.dir().join("pods")).unwrap();
    assert_eq!(
        notes.count(),
        0,
        "nothing is remembered of what was refused"
    );

    lab.enroll(&["shop/client"]).unwrap();
    let taken = client.namespace().path();
    let enrolled = client.fingerprint().unwrap();
    refuse(
        &lab,
        &near,
        uid,
        &taken,
        "NETNS_TAKEN",
        &[client.uid(), "unenroll that one first"],
    );
    assert_eq!(
        client.fingerprint().unwrap().changes_since(&enrolled),
        Vec::<String>::new()
    );

    let left = lab.pod_leftovers("shop/near").unwrap();
    assert_eq!(left, Vec::<String>::new());

    // Loopback and the addresses that every link gives itself do not count.
    for family in ["-4", "-6"] {
        let flush = [
            "ip", family, "addr", "flush", "dev", "eth0", "scope", "global",
        ];
        near.run(flush).unwrap().success().unwrap();
    }
    refuse(
        &lab,
        &near,
        uid,
        &own,
        "NO_ADDRESS",
        &["after its network is set up"],
    );

    // Only the pod that was enrolled is known, and it is well.
    let states = Api::connect(node).unwrap().states().unwrap();
    assert_eq!(
        states,
        [("shop/client".to_owned(), "captured".to_owned(), None)]
    );
}
