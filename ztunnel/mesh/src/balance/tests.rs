//! The pick against a plain reading of the rules: look at every endpoint, keep the ones that fit best.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::*;
use crate::fixture::{Lcg, upserts};
use crate::name::ServiceName;
use crate::snapshot::Delta;

const PORTS: [u16; 3] = [80, 81, 82];

/// Endpoints that may be picked, by weight, and the port to use.
fn reference<'a>(
    mesh: &'a Mesh,
    service: &Service,
    port: u16,
    client: &Workload,
    purpose: Purpose,
) -> BTreeMap<&'a str, (u64, u16)> {
    let usable = mesh
        .endpoints(&service.key)
        .into_iter()
        .filter_map(|endpoint| {
            let workload = &endpoint.workload;
            let own_port = endpoint.membership().target_port(port);
            let tunnel = workload.application_tunnel;
            let has_port = match purpose {
                Purpose::Destination => service.has_port(port),
                Purpose::Waypoint => service.has_port(port) || tunnel.is_some(),
            };
            let port_of_tunnel = match purpose {
                Purpose::Destination => None,
                Purpose::Waypoint => tunnel.and_then(|tunnel| tunnel.port).map(|_| port),
            };
            let known_port = own_port.or(service.target_port(port));
            let target = known_port.or(port_of_tunnel)?;
            let healthy = workload.health == Health::Healthy
                || service.load_balancing.health_policy == HealthPolicy::AllowAll;
            let reachable = !workload.addresses.is_empty()
                || !workload.hostname.is_empty()
                || (workload.network_gateway.is_some() && workload.network != client.network);
            let rank = rank(service, client, workload)?;
            (has_port && healthy && reachable && workload.capacity > 0)
                .then_some((rank, endpoint, target))
        });
    let usable: Vec<_> = usable.collect();
    let best = usable.iter().map(|(rank, ..)| *rank).max();
    let best = usable.iter().filter(|(rank, ..)| Some(*rank) == best);
    best.map(|(_, endpoint, target)| {
        let workload = &endpoint.workload;
        (&*workload.uid, (u64::from(workload.capacity), *target))
    })
    .collect()
}

fn rank(service: &Service, client: &Workload, endpoint: &Workload) -> Option<usize> {
    let same = |scope: &Scope| scope.of(client) == scope.of(endpoint);
    let in_a_row = |scopes: &[Scope]| scopes.iter().take_while(|scope| same(scope)).count();
    let scopes = &*service.load_balancing.preferences;
    match (service.load_balancing.mode, scopes) {
        (LoadBalancingMode::Unspecified, _) => Some(0),
        (LoadBalancingMode::Strict, _) => scopes.iter().all(same).then_some(0),
        (_, [Scope::Network, rest @ ..]) if !same(&Scope::Network) => Some(in_a_row(rest)),
        (_, [Scope::Network, rest @ ..]) => Some(1 + rest.len() + in_a_row(rest)),
        _ => Some(in_a_row(scopes)),
    }
}

fn endpoint(random: &mut Lcg, number: usize) -> String {
    let address = format!("ip=10.2.{}.{}", number / 256, number % 256);
    let address = random.one_of(&[
        &*address,
        &*address,
        "",
        "gateway=10.9.9.9",
        "hostname=x.io",
    ]);
    let network = random.one_of(&["", "", "network=far", "network=off"]);
    let locality = random.one_of(&["eu/z1/r1", "eu/z1/r2", "eu/z2/r1", "us/z1/r1", ""]);
    let node = random.one_of(&["n1", "n2", "n3"]);
    let cluster = random.one_of(&["c1", "c2"]);
    let health = random.one_of(&["", "", "unhealthy"]);
    let capacity = random.one_of(&["0", "1", "1", "5"]);
    let ports = random.one_of(&["", "+80:8080", "+80:8080+81:0", "+81:8181"]);
    let tunnel = random.one_of(&["", "", "app-tunnel=none", "app-tunnel=none:15088"]);
    format!(
        "pod a/{number} {tunnel} {address} {network} locality={locality} node={node} cluster={cluster} {health} \
         capacity={capacity} of=a/s{ports}; "
    )
}

fn service(random: &mut Lcg) -> String {
    let scopes = random.one_of(&[
        "network,region,zone,subzone,node",
        "region,zone",
        "network,region",
        "node",
        "zone,network",
        "cluster,region",
        "",
    ]);
    let mode = random.one_of(&["failover", "failover", "strict", "passthrough"]);
    let lb = format!("{mode}={scopes}");
    let lb = random.one_of(&[&*lb, &*lb, &*lb, ""]);
    let health = random.one_of(&["", "", "any-health"]);
    let ports = random.one_of(&["80,81:0", "80:8000"]);
    format!("svc a/s vip=10.0.0.2 ports={ports} {lb} {health}; ")
}

/// Draws until what is drawn no longer can be chance.
fn check(mesh: &Mesh, random: &mut Lcg) {
    let service = Arc::clone(mesh.service(&ServiceName::new("a", "s")).unwrap());
    for client in mesh.workloads().filter(|w| *w.namespace == *"clients") {
        let purposes = [Purpose::Destination, Purpose::Waypoint];
        let all = PORTS.map(|port| purposes.map(|purpose| (port, purpose)));
        for (port, purpose) in all.into_iter().flatten() {
            let expected = reference(mesh, &service, port, client, purpose);
            let total: u64 = expected.values().map(|(weight, _)| weight).sum();
            let mut drawn = BTreeMap::<&str, u64>::new();
            let draws = 40 * total.max(1);
            for _ in 0..draws {
                let Some(picked) = pick(mesh, &service, port, client, purpose, random) else {
                    assert!(expected.is_empty(), "{expected:?} for {client:?}");
                    continue;
                };
                let uid = &*picked.endpoint.workload.uid;
                let (_, target) = expected.get(uid).expect("one of those that fit best");
                assert_eq!(picked.port, *target);
                *drawn.entry(uid).or_default() += 1;
            }
            for (uid, (weight, _)) in &expected {
                let (times, mean) = (drawn.get(uid).copied().unwrap_or(0), 40 * weight);
                assert!(
                    (mean / 4..=mean * 3).contains(&times),
                    "{uid}: {times} of {draws}"
                );
            }
        }
    }
}

#[test]
fn picks_what_the_rules_say_whatever_came_and_went_before() {
    let clients = "pod clients/1 ip=10.1.0.1 locality=eu/z1/r1 node=n1 cluster=c1; \
                   pod clients/2 ip=10.1.0.2 network=far locality=us/z1/r1 node=n3 cluster=c2; \
                   pod clients/3 ip=10.1.0.3 network=elsewhere; ";
    let mut random = Lcg(7);
    for _ in 0..60 {
        let mut mesh = crate::fixture::mesh(clients);
        // Sometimes more than fits into one leaf.
        let endpoints = 1 + random.next_u32() as usize % 90;
        for step in 0..endpoints {
            let mut text = endpoint(&mut random, step);
            // Others change, or move to another place.
            text += &endpoint(&mut random, step / 2);
            if step == endpoints / 2 || random.next_u32().is_multiple_of(16) {
                text += &service(&mut random);
            }
            mesh = mesh.apply(Delta {
                upserts: upserts(&text),
                removals: Vec::new(),
            });
        }
        check(&mesh, &mut random);
    }
}
