use alloc::boxed::Box;
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
