//! Policies that change while connections are open: whoever is denied now is cut off, and nobody else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::tester::{Check, Held, Outcome, Service};
use lab::{Lab, MeshFile, Place, Pod};

use crate::access::{self, Access, eventually};
use crate::mesh::enrolled;

/// From the change at the control plane until a cut is in the log: a second, and something for a busy machine.
const SOON: Duration = Duration::from_secs(3);

const DENY_CLIENT: &str = "
  - {name: no-client, namespace: shop, action: DENY, rules: [[[{principals: [cluster.local/ns/shop/sa/client]}]]]}
";

fn hold_at(from: &Place, to: &Pod, port: u16) -> Held {
    let to = SocketAddr::new(to.v4().unwrap(), port);
    let mut held = from.hold(to).unwrap();
    assert_eq!(held.exchange("hello").unwrap().outcome, Outcome::Good);
    held
}

fn hold(from: &Place, to: &Pod) -> Held {
    hold_at(from, to, Service::Echo.port())
}

fn assert_open(held: &mut Held) {
    let report = held.exchange("still there?").unwrap();
    assert_eq!(report.outcome, Outcome::Good, "{report:?}");
}

fn assert_cut(held: &mut Held) {
    let report = held.exchange("still there?").unwrap();
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
}

/// From now on there are these policies, and those of `far` that select are these.
fn change(lab: &Lab, policies: &str, of_far: &[&str]) {
    let policies = MeshFile::parse("policies", &format!("policies:{policies}")).unwrap();
    let change = |mesh: &mut MeshFile| {
        mesh.policies = policies.policies;
        let far = mesh.workload_mut("shop/far").unwrap();
        far.authorization_policies = of_far.iter().map(|&name| name.to_owned()).collect();
    };
    lab.control_plane().update(change).unwrap();
}

/// The lines about live connections of `far` that policy has cut.
fn cuts(lab: &Lab) -> Vec<Access> {
    let mut lines = access::lines(lab.node("node2"), &[("pod", "shop/far")]);
    lines.retain(|line| line.contains("policy has changed since the connection began"));
    for line in &lines {
        assert!(line.field("reason").starts_with("POLICY_"), "{line:?}");
    }
    lines
}

/// Waits until so many have been cut in all, which must not take long.
fn wait_for_cuts(lab: &Lab, count: usize) -> Vec<Access> {
    let since = Instant::now();
    eventually("connections are cut", || cuts(lab).len() >= count);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let cuts = cuts(lab);
    assert_eq!(cuts.len(), count, "{cuts:#?}");
    cuts
}

#[test]
fn a_new_deny_cuts_the_streams_of_whom_it_names_and_no_others() {
    let lab = enrolled().unwrap();
    let [client, near, far] =
        ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let other = lab.pod("bank/other");
    let _servers = [far.serve().unwrap(), other.serve().unwrap()];
    let mut denied = [hold(&client, &far), hold(&client, &far)];
    let mut others = [
        hold(&near, &far),
        hold(lab.outside(), &far),
        hold(&client, &other),
    ];

    change(&lab, DENY_CLIENT, &[]);
    for line in wait_for_cuts(&lab, 2) {
        assert_eq!(line.field("direction"), "inbound");
        assert_eq!(line.field("src.identity"), client.identity());
        assert!(line.contains("shop/no-client"), "{line:?}");
    }
    denied.iter_mut().for_each(assert_cut);
    others.iter_mut().for_each(assert_open);
    let hello = Check::echo("hello");
    let report = client.check(far.v4().unwrap(), &hello).unwrap();
    assert_eq!(report.outcome, Outcome::Reset);

    // It may come back, and those who stayed never noticed.
    change(&lab, " []", &[]);
    lab.settle().unwrap();
    let mut again = hold(&client, &far);
    others.iter_mut().for_each(assert_open);
    assert_open(&mut again);
    assert_eq!(cuts(&lab).len(), 2);
    for held in others {
        assert_eq!(held.close().unwrap().outcome, Outcome::Good);
    }
}

#[test]
fn a_stream_is_cut_and_the_tunnel_it_came_through_is_not() {
    const STREAMS: usize = 4;
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let echo = SocketAddr::from(([127, 0, 0, 1], Service::Echo.port()));
    let second: SocketAddr = "0.0.0.0:7101".parse().unwrap();
    let _forward = far.forward(second, &[echo]).unwrap();
    let link = lab.tap("node1", "node2", &[]).unwrap();
    let mut denied: Vec<_> = (0..STREAMS)
        .map(|_| hold_at(&client, &far, second.port()))
        .collect();
    let mut others: Vec<_> = (0..STREAMS).map(|_| hold(&client, &far)).collect();

    change(
        &lab,
        "
  - {name: no-7101, namespace: shop, action: DENY, rules: [[[{destination_ports: [7101]}]]]}
",
        &[],
    );
    wait_for_cuts(&lab, STREAMS);
    denied.iter_mut().for_each(assert_cut);
    others.iter_mut().for_each(assert_open);
    others.push(hold(&client, &far));
    // Of two workers one tunnel each at most: all of that was in the same ones.
    let seen = link.stop().unwrap();
    assert!((1..=2).contains(&seen.opened_to(15008)), "{seen:?}");
}

#[test]
fn a_policy_that_turns_strict_cuts_plaintext() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let (mut plain, mut mesh) = (hold(lab.outside(), &far), hold(&client, &far));
    // As Istio does it: the workload lists a policy that is new. The two may come in any order.
    change(
        &lab,
        "
  - name: istio_converted_static_strict
    namespace: istio-system
    scope: WORKLOAD_SELECTOR
    action: DENY
    rules: [[[{not_principals: ['*']}]]]
",
        &["istio-system/istio_converted_static_strict"],
    );
    let line = wait_for_cuts(&lab, 1).remove(0);
    assert_eq!(line.field("protocol"), "TCP");
    assert!(
        line.contains("istio-system/istio_converted_static_strict denies it"),
        "{line:?}"
    );
    assert_cut(&mut plain);
    assert_open(&mut mesh);
}

#[test]
fn an_allow_policy_that_is_attached_cuts_the_rest_and_one_that_goes_cuts_its_own() {
    let lab = enrolled().unwrap();
    let [client, near, far] =
        ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let _server = far.serve().unwrap();
    let (mut by_client, mut by_near) = (hold(&client, &far), hold(&near, &far));
    let only = |who: &str| {
        format!(
            "
  - {{name: only-{who}, namespace: shop, scope: WORKLOAD_SELECTOR, rules: [[[{{principals: [cluster.local/ns/shop/sa/{who}]}}]]]}}"
        )
    };
    // There, but not attached.
    let both = only("near") + &only("client");
    change(&lab, &both, &[]);
    lab.settle().unwrap();
    // Attached, both of them.
    change(&lab, &both, &["shop/only-near", "shop/only-client"]);
    lab.settle().unwrap();
    let mut late = hold(&near, &far);
    for held in [&mut by_client, &mut by_near] {
        assert_open(held);
    }
    change(&lab, &both, &["shop/only-near"]);
    let line = wait_for_cuts(&lab, 1).remove(0);
    assert_eq!(line.field("src.identity"), client.identity());
    assert!(line.contains("no ALLOW policy"), "{line:?}");
    assert_cut(&mut by_client);
    // Now another one is all there is.
    change(&lab, &only("client"), &["shop/only-client"]);
    wait_for_cuts(&lab, 3);
    assert_cut(&mut by_near);
    assert_cut(&mut late);
}

#[test]
fn a_policy_that_does_not_come_cuts_everybody_in_the_end() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let mut held = [hold(&client, &far), hold(lab.outside(), &far)];
    change(&lab, " []", &["shop/lost"]);
    for line in wait_for_cuts(&lab, 2) {
        assert!(line.contains("shop/lost"), "{line:?}");
        assert_eq!(line.field("reason"), "POLICY_MISSING");
    }
    held.iter_mut().for_each(assert_cut);
}

#[test]
fn changes_that_deny_nobody_cut_nobody() {
    let lab = enrolled().unwrap();
    let [client, near, far] =
        ["client", "near", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let _server = far.serve().unwrap();
    let mut held = [
        hold(&client, &far),
        hold(&near, &far),
        hold(lab.outside(), &far),
    ];
    for (policies, of_far) in [
        (
            "
  - {name: a, namespace: shop, action: DENY, rules: [[[{principals: [cluster.local/ns/shop/sa/nobody]}]]]}
",
            &[][..],
        ),
        (
            "
  - {name: a, namespace: shop, action: DENY, dry_run: true, rules: [[]]}
  - {name: b, namespace: bank, action: DENY, rules: [[]]}
  - {name: c, namespace: shop, action: DENY, scope: WORKLOAD_SELECTOR, rules: [[]]}
",
            &[],
        ),
        (
            "
  - {name: d, namespace: shop, scope: WORKLOAD_SELECTOR, rules: [[[{destination_ports: [7001]}]]]}
  - {name: e, namespace: istio-system, scope: GLOBAL, action: DENY, rules: [[[{destination_ports: [7002]}]]]}
",
            &["shop/d"],
        ),
        (" []", &[]),
    ] {
        change(&lab, policies, of_far);
        lab.settle().unwrap();
        held.iter_mut().for_each(assert_open);
    }
    // What is denied last of all is cut, so whoever looks has looked.
    let mut last = hold_at(&client, &far, Service::Echo.port());
    change(&lab, DENY_CLIENT, &[]);
    wait_for_cuts(&lab, 2);
    assert_cut(&mut last);
    let [by_client, others @ ..] = &mut held;
    assert_cut(by_client);
    others.iter_mut().for_each(assert_open);
}
