use ztunnel_mesh::name::{PolicyName, ServiceName};
use ztunnel_mesh::policy::{Action, Clause, Match, Policy, PolicyScope, Rule};
use ztunnel_mesh::service::Vip;
use ztunnel_mesh::workload::{Addresses, Place, TunnelProtocol};
use ztunnel_mesh::{Delta, Service, Upsert};

use super::*;
use crate::state::mesh_channel;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn workload(name: &str, node: &str, ip: &str) -> Workload {
    let mut workload = Workload::new(&format!("Kubernetes//Pod/shop/{name}"));
    workload.namespace = "shop".into();
    workload.name = name.into();
    workload.service_account = name.into();
    workload.addresses = Addresses::One(ip.parse().unwrap());
    workload.tunnel = TunnelProtocol::Hbone;
    let place = Arc::make_mut(&mut workload.place);
    *place = Place {
        node: node.into(),
        ..place.clone()
    };
    workload
}

/// A policy for namespace `shop` against clients from one address.
fn deny_from(net: &str) -> Policy {
    let mut from = Match::default();
    from.source_ips.is = [net.parse().unwrap()].into();
    let clause = Clause {
        matches: [from].into(),
    };
    Policy {
        key: PolicyName::new("shop", "not-from"),
        scope: PolicyScope::Namespace,
        action: Action::Deny,
        dry_run: false,
        rules: [Rule {
            clauses: [clause].into(),
        }]
        .into(),
    }
}

struct Here {
    explainer: Explainer,
    pods: Vec<KnownPod>,
}

/// `web` is enrolled here, `db` is on another node, `plain` takes no tunnels and is on this node, `lost` is enrolled and
/// the control plane does not know it, `gone` is leaving.
fn here(mesh: Mesh) -> Here {
    let mut service = Service::new(ServiceName::new("shop", "db.shop"));
    service.vips = [Vip::new("".into(), "10.0.0.2/32".parse().unwrap())].into();
    let plain = Workload {
        tunnel: TunnelProtocol::None,
        ..workload("plain", "one", "10.1.0.3")
    };
    let upserts = vec![
        Upsert::Workload(Arc::new(workload("web", "one", "10.1.0.1"))),
        Upsert::Workload(Arc::new(workload("db", "two", "10.1.0.2"))),
        Upsert::Workload(Arc::new(plain)),
        Upsert::Service(Arc::new(service)),
        Upsert::Policy(Arc::new(deny_from("10.1.0.1/32"))),
    ];
    let (mut writer, mesh_reader) = mesh_channel();
    let removals = vec![];
    writer.publish(mesh.apply(Delta { upserts, removals }));
    let pod = |name: &str, ip: &str, served| KnownPod {
        name: PodName {
            namespace: "shop".into(),
            name: name.into(),
            service_account: name.into(),
        },
        addresses: vec![ip.parse().unwrap()],
        listeners: [40000].into(),
        served,
    };
    Here {
        explainer: Explainer {
            node: "one".into(),
            network: "".into(),
            mesh: mesh_reader,
        },
        pods: vec![
            pod("web", "10.1.0.1", true),
            pod("plain", "10.1.0.3", true),
            pod("lost", "10.1.0.8", true),
            pod("gone", "10.1.0.9", false),
        ],
    }
}

impl Here {
    fn outbound(&self, from: &str, to: &str) -> Result<Explanation, ExplainError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let question = Question::Outbound { from, to };
        self.explainer.explain(&self.pods, &question)
    }

    fn inbound(
        &self,
        to: &str,
        peer: &str,
        from_ip: Option<&str>,
    ) -> Result<Explanation, ExplainError> {
        let question = Question::Inbound {
            to: to.to_owned(),
            peer: peer.to_owned(),
            from_ip: from_ip.map(str::to_owned),
        };
        self.explainer.explain(&self.pods, &question)
    }
}

/// The code of a refusal, or nothing.
fn code(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Refused(refused) => &refused.reason,
        _ => "",
    }
}

#[test]
fn a_plan_says_where_it_goes_and_what_the_destination_makes_of_it() {
    let here = here(Mesh::default());
    let explained = here.outbound("shop/web", "10.1.0.2:5432").unwrap();
    let Verdict::Go(plan) = &explained.verdict else {
        panic!("{explained:?}");
    };
    assert_eq!(plan.to, "10.1.0.2:15008");
    let tunnel = plan.tunnel.as_ref().unwrap();
    assert_eq!(tunnel.connect, "10.1.0.2:5432");
    assert_eq!(tunnel.expected, ["spiffe://cluster.local/ns/shop/sa/db"]);
    let there = explained.destination.unwrap();
    assert_eq!((&*there.workload, &*there.node), ("shop/db", "two"));
    // The policy is about the client's address, and it is judged by it.
    assert_eq!(code(&there.verdict), "POLICY_DENIED");
    assert!(there.steps[1].text.contains("DENY shop/not-from matches"));
    // What does not end at a proxy is nobody's to judge.
    let plain = here.outbound("shop/web", "10.1.0.3:80").unwrap();
    assert!(matches!(&plain.verdict, Verdict::Go(plan) if plan.tunnel.is_none()));
    assert_eq!(plain.destination, None);
}

#[test]
fn what_is_refused_comes_with_its_reason() {
    let here = here(Mesh::default());
    for (from, to, reason) in [
        ("shop/web", "10.0.0.2:80", "NO_SUCH_PORT"),
        ("shop/lost", "10.1.0.2:80", "WORKLOAD_UNKNOWN"),
        ("shop/plain", "10.1.0.3:80", "LOOP"),
    ] {
        let explained = here.outbound(from, to).unwrap();
        assert_eq!(code(&explained.verdict), reason, "{explained:?}");
    }
    for (to, reason) in [
        ("10.1.0.1:15008", "LOOP"),
        ("10.1.0.1:40000", "LOOP"),
        ("10.1.0.8:80", "WORKLOAD_UNKNOWN"),
        ("10.1.0.1:80", ""),
    ] {
        for peer in [CART, "plaintext"] {
            let explained = here.inbound(to, peer, None).unwrap();
            assert_eq!(code(&explained.verdict), reason, "{explained:?}");
        }
    }
}

#[test]
fn policies_about_addresses_are_told_when_there_is_none() {
    let here = here(Mesh::default());
    let without = here.inbound("10.1.0.1:80", CART, None).unwrap();
    assert!(without.steps[0].text.contains("--from-ip"), "{without:?}");
    let other = here.inbound("10.1.0.1:80", CART, Some("10.9.9.9")).unwrap();
    assert_eq!(other.steps[0].about, "policy");
    assert_eq!(code(&other.verdict), "");
    for peer in [CART, "plaintext"] {
        let denied = here
            .inbound("10.1.0.1:80", peer, Some("::ffff:10.1.0.1"))
            .unwrap();
        assert_eq!(code(&denied.verdict), "POLICY_DENIED", "{denied:?}");
    }
}

#[test]
fn what_has_to_be_asked_for_is_said() {
    let here = here(Mesh::partial());
    let explained = here.outbound("shop/web", "192.0.2.1:443").unwrap();
    let key = "/192.0.2.1".to_owned();
    assert_eq!(explained.verdict, Verdict::LookUp { key });
}

#[test]
fn bad_questions_are_told_apart_and_say_how_to_ask() {
    let here = here(Mesh::default());
    for (from, to, code, said) in [
        ("web", "10.1.0.2:80", "INVALID_POD", "namespace/name"),
        ("shop/", "10.1.0.2:80", "INVALID_POD", "namespace/name"),
        (
            "shop/web",
            "db:80",
            "INVALID_ADDRESS",
            "kubectl get service",
        ),
        ("shop/web", "10.1.0.2", "INVALID_ADDRESS", "10.96.0.10:80"),
        ("shop/web", "127.0.0.1:80", "NOT_CAPTURED", "loopback"),
        (
            "shop/web",
            "[::ffff:127.0.0.1]:80",
            "NOT_CAPTURED",
            "loopback",
        ),
        ("shop/db", "10.1.0.2:80", "OTHER_NODE", "on node two"),
        ("shop/nobody", "10.1.0.2:80", "NOT_ENROLLED", "ztunnel pods"),
        ("shop/gone", "10.1.0.2:80", "NOT_SERVED", "leaving"),
    ] {
        let err = here.outbound(from, to).unwrap_err();
        assert_eq!(err.code(), code, "{from} {to}");
        assert!(err.to_string().contains(said), "{err}");
    }
    for (to, peer, from_ip, code, said) in [
        (
            "10.1.0.1:80",
            "shop/cart",
            None,
            "INVALID_IDENTITY",
            "plaintext",
        ),
        ("10.1.0.1:80", CART, Some("here"), "INVALID_ADDRESS", "here"),
        ("10.1.0.2:80", CART, None, "OTHER_NODE", "on node two"),
        ("10.0.0.2:80", CART, None, "NO_POD", "shop/db.shop"),
        ("10.1.0.77:80", CART, None, "NO_POD", "no address of a pod"),
        ("10.1.0.9:80", CART, None, "NOT_SERVED", "leaving"),
    ] {
        let err = here.inbound(to, peer, from_ip).unwrap_err();
        assert_eq!(err.code(), code, "{to} {peer}");
        assert!(err.to_string().contains(said), "{err}");
    }
}
