use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::net::IpAddr;

use super::*;
use crate::fixture::{mesh, uid, upserts, workload};
use crate::policy::{Action, PolicyScope};

fn remove(mesh: &Mesh, name: &str) -> Mesh {
    mesh.apply(Delta {
        upserts: vec![],
        removals: vec![Removal::Address(name.into())],
    })
}

fn put(mesh: &Mesh, text: &str) -> Mesh {
    mesh.apply(Delta {
        upserts: upserts(text),
        removals: vec![],
    })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoints(mesh: &Mesh, service: &str) -> Vec<String> {
    let service = ServiceName::parse(service).unwrap();
    let endpoints = mesh.endpoints(&service);
    endpoints
        .iter()
        .map(|endpoint| {
            assert_eq!(endpoint.membership().service, service);
            (*endpoint.workload.name).into()
        })
        .collect()
}

#[test]
fn a_large_change_is_made_and_the_old_snapshot_freed_in_small_steps() {
    const PODS: usize = 600;
    let service = "svc a/s vip=10.0.0.1 failover=region,zone";
    let pods = |version| {
        let pods = (0..PODS).map(|n| {
            let ip = format!("10.{version}.{}.{}", n / 256, n % 256);
            format!(
                "pod a/{n} ip={ip} of=a/s of=a/t locality=r{}/z{}/",
                n % 2,
                n % 3
            )
        });
        let pods: Vec<_> = pods.collect();
        upserts(&pods.join(";"))
    };
    let apply = |mesh: &Mesh, upserts| {
        let (mut steps, removals) = (0, vec![]);
        let delta = Delta { upserts, removals };
        (mesh.apply_in_steps(delta, &mut || steps += 1), steps)
    };
    let (unarranged, steps) = apply(&Mesh::default(), pods(1));
    assert_eq!(steps, PODS);
    // What its endpoints are arranged by is known only now.
    let (old, steps) = apply(&unarranged, upserts(service));
    assert!(steps > PODS, "{steps}");
    unarranged.free_in_steps(&mut || ());
    let (new, steps) = apply(&old, pods(2));
    assert_eq!(steps, PODS);

    let weak: Vec<_> = old.workloads().map(Arc::downgrade).collect();
    let alive = || weak.iter().filter(|w| w.strong_count() > 0).count();
    let (mut before, mut most) = (alive(), 0);
    old.free_in_steps(&mut || {
        let now = alive();
        most = most.max(before - now);
        before = now;
    });
    assert_eq!((alive(), new.counts().0), (0, PODS));
    // As many as a leaf of an index has.
    assert!(most <= 32, "{most} workloads freed in one step");
    assert_eq!(endpoints(&new, "a/s").len(), PODS);

    // What another snapshot has stays.
    new.clone().free_in_steps(&mut || ());
    assert_eq!(endpoints(&new, "a/t").len(), PODS);
    assert!(new.workload_by_ip("", ip("10.2.0.1")).is_some());
}

#[test]
fn the_order_of_arrival_does_not_matter() {
    let statements = [
        "pod a/1 ip=10.1.0.1 of=a/s of=a/t+80:8080",
        "pod a/2 ip=10.1.0.1 of=a/s unhealthy",
        "pod a/3 ip=10.1.0.3 of=a/s",
        "svc a/s vip=10.0.0.1,10.9.0.0/16 ports=80",
        "svc b/s vip=10.0.0.1,10.9.0.0/16 ports=80",
    ];
    for turn in 0..statements.len() {
        for reverse in [false, true] {
            let mut order = statements;
            order.rotate_left(turn);
            if reverse {
                order.reverse();
            }
            let together = mesh(&order.join(";"));
            let apart = order.iter().fold(Mesh::default(), |m, s| put(&m, s));
            for mesh in [together, apart] {
                assert_eq!(endpoints(&mesh, "a/s"), ["1", "2", "3"]);
                assert_eq!(endpoints(&mesh, "a/t"), ["1"]);
                let owner = mesh.workload_by_ip("", ip("10.1.0.1")).unwrap();
                assert_eq!(*owner.name, *"1");
                for vip in ["10.0.0.1", "10.9.1.1"] {
                    let service = mesh.service_by_vip("", ip(vip), "c").unwrap();
                    assert_eq!(*service.key.namespace, *"a");
                }
            }
        }
    }
}

#[test]
fn replacing_a_workload_leaves_nothing_of_the_old_one() {
    let old = mesh("svc a/s; pod a/1 ip=10.1.0.1,10.1.0.2 of=a/s of=a/t; pod a/2 of=a/s");
    let new = put(&old, "pod a/1 ip=10.1.0.2,10.1.0.3 of=a/t of=a/u");
    assert!(new.workload_by_ip("", ip("10.1.0.1")).is_none());
    assert!(new.workload_by_ip("", ip("10.1.0.2")).is_some());
    assert!(new.workload_by_ip("", ip("10.1.0.3")).is_some());
    assert_eq!(endpoints(&new, "a/s"), ["2"]);
    assert_eq!(endpoints(&new, "a/t"), ["1"]);
    assert_eq!(endpoints(&new, "a/u"), ["1"]);
    assert_eq!(new.counts(), (2, 1, 0));
    // And the old snapshot has all of it still.
    assert!(old.workload_by_ip("", ip("10.1.0.1")).is_some());
    assert_eq!(endpoints(&old, "a/s"), ["1", "2"]);
    assert!(endpoints(&old, "a/u").is_empty());
}

#[test]
fn replacing_a_service_keeps_its_endpoints_and_drops_its_old_addresses() {
    let old = mesh("pod a/1 of=a/s unhealthy; svc a/s vip=10.0.0.1,10.9.0.0/16");
    let new = put(&old, "svc a/s vip=10.0.0.2 any-health");
    assert_eq!(endpoints(&new, "a/s"), ["1"]);
    assert!(new.service_by_vip("", ip("10.0.0.1"), "a").is_none());
    assert!(new.service_by_vip("", ip("10.9.0.1"), "a").is_none());
    assert!(new.service_by_vip("", ip("10.0.0.2"), "a").is_some());
    assert!(old.service_by_vip("", ip("10.9.0.1"), "a").is_some());
}

#[test]
fn removals_are_uids_or_services() {
    let full = mesh("pod a/1 ip=10.1.0.1 of=a/s; svc a/s vip=10.0.0.1");

    let without_pod = remove(&full, &uid("a/1"));
    assert!(without_pod.workload_by_ip("", ip("10.1.0.1")).is_none());
    assert!(endpoints(&without_pod, "a/s").is_empty());
    assert_eq!(without_pod.counts(), (0, 1, 0));

    let without_service = remove(&full, "a/s");
    assert!(without_service.service_by_hostname("s", "a").is_none());
    assert_eq!(without_service.counts(), (1, 0, 0));
    // The endpoint waits for the service to come back.
    assert_eq!(endpoints(&put(&without_service, "svc a/s"), "a/s"), ["1"]);

    for unknown in ["", "x", "a/other", "Kubernetes//Pod/a/gone", "//"] {
        assert_eq!(remove(&full, unknown).counts(), (1, 1, 0), "{unknown:?}");
    }
    let twin = Workload {
        uid: "a/s".into(),
        ..workload("pod a/twin")
    };
    let both = full.apply(Delta {
        upserts: vec![Upsert::Workload(Arc::new(twin))],
        removals: vec![],
    });
    assert_eq!(remove(&both, "a/s").counts(), (1, 0, 0));
}

#[test]
fn a_delta_upserts_before_it_removes() {
    let mesh = Mesh::default().apply(Delta {
        upserts: upserts("pod a/1 of=a/s"),
        removals: vec![Removal::Address(uid("a/1"))],
    });
    assert_eq!(mesh.counts(), (0, 0, 0));
    assert!(endpoints(&mesh, "a/s").is_empty());
}

#[test]
fn networks_are_apart_and_the_empty_one_is_one() {
    let mesh = mesh(
        "pod a/1 ip=10.1.0.1; pod a/2 ip=10.1.0.1 network=far; svc a/s vip=far@10.0.0.1,far@10.9.0.0/16",
    );
    let owner = |network| &*mesh.workload_by_ip(network, ip("10.1.0.1")).unwrap().name;
    assert_eq!((owner(""), owner("far")), ("1", "2"));
    for vip in ["10.0.0.1", "10.9.0.1"] {
        assert!(mesh.service_by_vip("", ip(vip), "a").is_none());
        assert!(mesh.service_by_vip("far", ip(vip), "a").is_some());
    }
}

#[test]
fn local_workload_needs_node_name_and_account() {
    let mesh = mesh("pod a/1 node=n1 sa=web; pod a/2 node=n2; pod a/3 node=n1 sa=");
    let found = |node: &str, name: &str, account: &str| {
        let pod = PodName {
            namespace: "a".into(),
            name: name.into(),
            service_account: account.into(),
        };
        mesh.local_workload(node, &pod).is_some()
    };
    assert!(found("n1", "1", "web"));
    assert!(!found("n2", "1", "web"));
    assert!(!found("n1", "1", "other"));
    assert!(!found("n1", "9", "web"));
    assert!(found("n1", "3", "default") && found("n1", "3", ""));
}

#[test]
fn policies_are_found_by_scope_and_follow_a_change_of_it() {
    let policy = |scope| {
        Upsert::Policy(Arc::new(Policy {
            key: PolicyName::new("a", "p"),
            scope,
            action: Action::Allow,
            dry_run: false,
            rules: Box::default(),
        }))
    };
    let apply = |mesh: &Mesh, scope| {
        mesh.apply(Delta {
            upserts: vec![policy(scope)],
            removals: vec![],
        })
    };
    let reach = |mesh: &Mesh| {
        ["a", "b"].map(|ns| {
            let sets = [mesh.global_policies(), mesh.namespace_policies(ns)];
            sets.iter().flatten().filter(|set| set.has_allow()).count()
        })
    };

    let global = apply(&Mesh::default(), PolicyScope::Global);
    let namespaced = apply(&global, PolicyScope::Namespace);
    let selected = apply(&namespaced, PolicyScope::WorkloadSelector);
    assert_eq!(reach(&global), [1, 1]);
    assert_eq!(reach(&namespaced), [1, 0]);
    assert_eq!(reach(&selected), [0, 0]);
    assert_eq!(selected.counts(), (0, 0, 1));

    let gone = namespaced.apply(Delta {
        upserts: vec![],
        removals: vec![Removal::Policy(PolicyName::new("a", "p"))],
    });
    assert_eq!((reach(&gone), gone.counts()), ([0, 0], (0, 0, 0)));
}
