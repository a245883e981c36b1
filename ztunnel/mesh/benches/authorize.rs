//! What a policy decision costs when a thousand policies apply.
//!
//! Question: how long does one decision take, for the kinds of policies that people write, when a match comes
//! first, last or never? `cargo bench -p ztunnel-mesh --bench authorize`. The baseline in the same run asks a single
//! policy.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::{Peer, PodPolicies};
use ztunnel_mesh::name::{Identity, PolicyName, Principal};
use ztunnel_mesh::policy::{
    Action, Attribute, Clause, Match, Policy, PolicyScope, Rule, StringMatch,
};
use ztunnel_mesh::{Delta, Mesh, Upsert, Workload};

const POLICIES: usize = 1_000;
const DECISIONS: u32 = 200_000;
const ROUNDS: usize = 7;

fn main() {
    println!(
        "{:<44} {:>12} {:>12}",
        "ns for each decision, median", "1 policy", "1000"
    );
    let who = |number| format!("cluster.local/ns/team-{}/sa/app-{number}", number % 50);
    bench("principals, the last one matches", |number, m| {
        m.principals = only(StringMatch::Exact(who(number).into()));
    });
    bench("a rule with principals and ports", |number, m| {
        m.principals = only(StringMatch::Exact(who(number).into()));
        m.destination_ports = only(8080);
    });
    bench("namespaces by prefix, most lengths in use", |number, m| {
        let prefix = format!(
            "cluster.local/ns/team-{}/{}",
            number % 50,
            &"sa/app-"[..number % 8]
        );
        m.principals = only(StringMatch::Prefix(prefix.into()));
    });
    bench("source ranges", |number, m| {
        let net = format!("10.{}.{}.0/24", number / 250, number % 250);
        m.source_ips = only(net.parse().expect("a range"));
    });
    bench("not from a namespace: cannot be indexed", |number, m| {
        let not = if number + 1 == POLICIES {
            "team-0"
        } else {
            "team-49"
        };
        m.namespaces.is_not = [StringMatch::Exact(not.into())].into();
    });
}

fn only<T>(value: T) -> Attribute<T> {
    Attribute {
        is: [value].into(),
        is_not: Box::default(),
    }
}

fn bench(name: &str, restrict: impl Fn(usize, &mut Match)) {
    let few = time(1, &restrict);
    let many = time(POLICIES, &restrict);
    println!("{name:<44} {few:>12.0} {many:>12.0}");
}

fn time(policies: usize, restrict: &impl Fn(usize, &mut Match)) -> f64 {
    let upserts = (POLICIES - policies..POLICIES).map(|number| {
        let mut one = Match::default();
        restrict(number, &mut one);
        let clauses = [Clause {
            matches: [one].into(),
        }];
        Upsert::Policy(Arc::new(Policy {
            key: PolicyName::new("shop", &format!("policy-{number:04}")),
            scope: PolicyScope::Namespace,
            action: Action::Allow,
            dry_run: false,
            rules: [Rule {
                clauses: clauses.into(),
            }]
            .into(),
        }))
    });
    let mesh = Mesh::default().apply(Delta {
        upserts: upserts.collect(),
        removals: Vec::new(),
    });
    let mut pod = Workload::new("Kubernetes//Pod/shop/web");
    pod.namespace = "shop".into();
    let policies = PodPolicies::new(&mesh, &Arc::new(pod));
    let last = format!("spiffe://cluster.local/ns/team-49/sa/app-{}", POLICIES - 1);
    let principal = Principal::from(last.parse::<Identity>().expect("an identity"));
    let peer = Peer {
        principal: Some(&principal),
        addr: ClientAddr(([10, 3, 249, 7], 40_000).into()),
    };
    let app = AppAddr(([10, 1, 0, 1], 8080).into());
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..DECISIONS {
                black_box(policies.authorize(black_box(peer), app)).expect("the last one allows");
            }
            began.elapsed().as_nanos() as f64 / f64::from(DECISIONS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}
