//! A node lives longer than its pods: nothing adds up.

use lab::Lab;

use crate::local_api::{Api, changed};
use crate::mesh::MESH;

/// What a process holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

fn held(pid: u32) -> Held {
    let count = |what| {
        std::fs::read_dir(format!("/proc/{pid}/{what}"))
            .unwrap()
            .count()
    };
    Held {
        descriptors: count("fd"),
        threads: count("task"),
    }
}

fn memory_kib(pid: u32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let digits: String = line.unwrap().chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn pods_that_come_and_go_two_hundred_times_add_up_to_nothing() {
    /// What allocators keep for themselves; 1 KiB per pod that leaked would pass.
    const GROWTH_KIB: i64 = 1024;
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    node.start_daemon().unwrap();
    let pods = [lab.pod("shop/client"), lab.pod("shop/near")];
    let pid = node.daemon_pid().unwrap();
    let mut api = Api::connect(node).unwrap();
    let mut round = |number: u32| {
        for pod in &pods {
            // As in Kubernetes: a new pod has a new uid.
            let uid = format!("pod-{number}-{}", pod.uid());
            let path = pod.namespace().path();
            assert_eq!(api.enroll_as(pod, &uid, &path).unwrap(), changed());
            assert_eq!(api.unenroll(&uid).unwrap(), changed());
        }
    };
    (0..20).for_each(&mut round);
    let (before, memory) = (held(pid), memory_kib(pid));
    (20..100).for_each(&mut round);
    let (after, grown) = (held(pid), memory_kib(pid) - memory);
    assert_eq!(after.descriptors, before.descriptors);
    assert!(after.threads <= before.threads + 1, "{before:?} {after:?}");
    eprintln!("RSS {memory} grown {grown}");
    assert!(grown < GROWTH_KIB, "grew by {grown} KiB");
}

#[test]
fn a_pod_that_is_gone_is_not_kept_alive() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let node = lab.node("node1");
    node.start_daemon().unwrap();
    let mut api = Api::connect(node).unwrap();
    for number in 0..20 {
        let pod = lab::Namespace::new("short-lived").unwrap();
        let path = pod.path();
        let shown = path.display().to_string();
        // The node's end of the link goes when the pod's does, and that goes when the kernel drops the namespace.
        let link = [
            "ip", "link", "add", "short", "type", "veth", "peer", "name", "eth0", "netns",
        ];
        let link = link.into_iter().chain([shown.as_str()]);
        node.run(link).unwrap().success().unwrap();
        pod.on_keeper(|| {
            for line in [
                "link set lo up",
                "addr add 10.244.1.99/32 dev eth0",
                "link set eth0 up",
            ] {
                let done = std::process::Command::new("ip")
                    .args(line.split(' '))
                    .status();
                assert!(done.unwrap().success(), "{line}");
            }
        })
        .unwrap();
        let uid = format!("short-{number}");
        let like = lab.pod("shop/client");
        assert_eq!(api.enroll_as(&like, &uid, &path).unwrap(), changed());
        assert_eq!(api.unenroll(&uid).unwrap(), changed());
        drop(pod);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while node
            .run(["ip", "link", "show", "short"])
            .unwrap()
            .status
            .success()
        {
            assert!(
                std::time::Instant::now() < deadline,
                "something keeps the namespace alive"
            );
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
