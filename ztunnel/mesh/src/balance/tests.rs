//! The pick against a plain reading of the rules: look at every endpoint, keep the ones that fit best.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;

use super::*;
use crate::fixture::{Lcg, upserts};
use crate::name::ServiceName;
use crate::snapshot::Delta;

const PORTS: [u16; 3] = [80, 81, 82];

/// Random numbers of somebody who avoids these ports of these workloads.
struct Wary<'a> {
    random: &'a mut Lcg,
    avoided: BTreeSet<(Arc<str>, u16)>,
    /// How often that was asked.
    asked: Cell<usize>,
}

impl<'a> Wary<'a> {
    fn new(random: &'a mut Lcg, avoided: BTreeSet<(Arc<str>, u16)>) -> Self {
        Self {
            random,
            avoided,
            asked: Cell::new(0),
        }
    }
}

impl Rng for Wary<'_> {
    fn next_u32(&mut self) -> u32 {
        self.random.next_u32()
    }

    fn avoids(&self, uid: &str, port: u16) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.avoided.contains(&(uid.into(), port))
    }
}

/// Endpoints that may be picked, by weight, and the port to use.
fn reference<'a>(
    mesh: &'a Mesh,
    service: &Service,
    port: u16,
    client: &Workload,
    purpose: Purpose,
    avoided: &BTreeSet<(Arc<str>, u16)>,
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
    let mut usable: Vec<_> = usable.collect();
    let fine = |(_, endpoint, port): &(usize, &Endpoint, u16)| {
        !avoided.contains(&(Arc::clone(&endpoint.workload.uid), *port))
    };
    if usable.iter().any(fine) {
        usable.retain(fine);
    }
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

/// Draws until what is drawn no longer can be chance. With `wary`, a random half of the endpoints is to be avoided.
fn check(mesh: &Mesh, random: &mut Lcg, wary: bool) {
    let service = Arc::clone(mesh.service(&ServiceName::new("a", "s")).unwrap());
    for client in mesh.workloads().filter(|w| *w.namespace == *"clients") {
        let purposes = [Purpose::Destination, Purpose::Waypoint];
        let all = PORTS.map(|port| purposes.map(|purpose| (port, purpose)));
        for (port, purpose) in all.into_iter().flatten() {
            let mut avoided = BTreeSet::new();
            for endpoint in mesh.endpoints(&service.key) {
                for port in [80, 81, 82, 8000, 8080, 8181] {
                    if wary && random.next_u32().is_multiple_of(2) {
                        avoided.insert((Arc::clone(&endpoint.workload.uid), port));
                    }
                }
            }
            let expected = reference(mesh, &service, port, client, purpose, &avoided);
            let rng = &mut Wary::new(random, avoided);
            let total: u64 = expected.values().map(|(weight, _)| weight).sum();
            let mut drawn = BTreeMap::<&str, u64>::new();
            let draws = 40 * total.max(1);
            for _ in 0..draws {
                let Some(picked) = pick(mesh, &service, port, client, purpose, rng) else {
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
    // Sometimes more than fits into one leaf.
    check_random_meshes(7, 90, false);
}

#[test]
fn picks_what_fits_best_of_what_is_not_avoided_if_there_is_any() {
    check_random_meshes(8, 60, true);
}

/// With up to so many endpoints.
fn check_random_meshes(seed: u64, most: usize, wary: bool) {
    let clients = "pod clients/1 ip=10.1.0.1 locality=eu/z1/r1 node=n1 cluster=c1; \
                   pod clients/2 ip=10.1.0.2 network=far locality=us/z1/r1 node=n3 cluster=c2; \
                   pod clients/3 ip=10.1.0.3 network=elsewhere; ";
    let mut random = Lcg(seed);
    for _ in 0..60 {
        let mut mesh = crate::fixture::mesh(clients);
        let endpoints = 1 + random.next_u32() as usize % most;
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
        check(&mesh, &mut random, wary);
    }
}

/// Many endpoints near the client, all to be avoided, and as many farther away that are not.
#[test]
fn a_zone_to_be_avoided_is_left_by_failover_but_not_by_strict_and_in_few_steps() {
    const MANY: usize = 500;
    for (mode, farther) in [("failover", true), ("strict", false), ("", true)] {
        let preferences = match mode {
            "" => String::new(),
            mode => format!("{mode}=network,region,zone"),
        };
        let mut text = format!(
            "pod clients/1 ip=10.1.0.1 locality=eu/z1; svc a/s vip=10.0.0.2 ports=80 {preferences}; "
        );
        for number in 0..MANY {
            let ip = format!("10.2.{}.{}", number / 250, number % 250);
            text += &format!("pod near/{number} ip={ip} locality=eu/z1 of=a/s; ");
            text += &format!("pod far/{number} ip={ip} locality=eu/z2 of=a/s; ");
        }
        let mesh = crate::fixture::mesh(&text);
        let service = Arc::clone(mesh.service(&ServiceName::new("a", "s")).unwrap());
        let client = mesh.workload(&crate::fixture::uid("clients/1")).unwrap();
        let all = mesh.endpoints(&service.key).into_iter();
        let near = all.filter(|endpoint| *endpoint.workload.namespace == *"near");
        let avoided = near
            .map(|near| (Arc::clone(&near.workload.uid), 80))
            .collect();
        let mut random = Lcg(9);
        let rng = &mut Wary::new(&mut random, avoided);
        let mut drawn = BTreeSet::new();
        for _ in 0..MANY {
            rng.asked.set(0);
            let picked = pick(&mesh, &service, 80, client, Purpose::Destination, rng).unwrap();
            let workload = &picked.endpoint.workload;
            assert_eq!(*workload.namespace == *"far", farther, "{mode}");
            assert!(rng.asked.get() <= 120, "{mode}: {}", rng.asked.get());
            drawn.insert(Arc::clone(&workload.uid));
        }
        // Not all connections go to the same few.
        assert!(drawn.len() > MANY / 4, "{mode}: {}", drawn.len());
    }
}
