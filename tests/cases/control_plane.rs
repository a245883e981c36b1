//! The control plane: its changes are followed while traffic runs, and it may be away without anybody noticing.

use std::fs;
use std::time::Duration;

use lab::Lab;
use lab::tester::{Check, Outcome, Report, Service};

use crate::access::eventually;
use crate::mesh::{MESH, enrolled};

/// A service that the usual mesh does not have.
const MORE: &str = "  - {name: more, namespace: shop, addresses: [10.96.0.77], ports: {7001: 7001}, workloads: [far]}\n";
const MORE_VIP: &str = "10.96.0.77";

fn check(lab: &Lab, to: &str) -> Report {
    let client = lab.pod("shop/client");
    client
        .check(to.parse().unwrap(), &Check::echo("hello"))
        .unwrap()
}

/// The address is not, or no longer, anybody's: what the pod sends there comes to nothing.
fn is_gone(lab: &Lab, to: &str) -> bool {
    let client = lab.pod("shop/client");
    let check = Check::echo("hello").timeout(Duration::from_millis(300));
    let report = client.check(to.parse().unwrap(), &check).unwrap();
    report.outcome != Outcome::Good
}

/// Puts a service with the VIP [`MORE_VIP`] into the mesh, or takes it out again.
fn set_more(lab: &Lab, there: bool) {
    let more = lab::MeshFile::parse("more", &format!("{MESH}{MORE}")).unwrap();
    let change = |mesh: &mut lab::MeshFile| {
        mesh.services.retain(|service| service.name != "more");
        if there {
            mesh.services.extend(more.service("shop/more").cloned());
        }
    };
    lab.control_plane().update(change).unwrap();
}

#[test]
fn edits_of_the_mesh_take_effect_while_everything_runs() {
    let lab = enrolled().unwrap();
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();
    let mut held = lab
        .pod("shop/client")
        .hold((far.v4().unwrap(), Service::Echo.port()).into())
        .unwrap();
    assert!(is_gone(&lab, MORE_VIP));
    // By hand, as somebody who tries things out would.
    let file = lab.control_plane().mesh_file();
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{MESH}{MORE}")).unwrap();
    eventually("the new service answers", || !is_gone(&lab, MORE_VIP));
    fs::write(&file, before).unwrap();
    eventually("the new service is gone again", || is_gone(&lab, MORE_VIP));
    // An edit that makes no sense changes nothing.
    fs::write(&file, "workloads: [{name: half").unwrap();
    eventually("the bad edit was seen", || {
        let log = fs::read_to_string(lab.control_plane().log_file()).unwrap();
        log.contains("kept the last good state")
    });
    assert_eq!(check(&lab, "10.96.0.10").outcome, Outcome::Good);
    assert_eq!(held.exchange("still here").unwrap().outcome, Outcome::Good);
    assert_eq!(lab.control_plane().connected().len(), 2);
}

#[test]
fn pods_come_and_go() {
    let lab = enrolled().unwrap();
    let late = lab::MeshFile::parse(
        "late",
        "workloads: [{name: late, namespace: shop, node: node2, service_account: late, addresses: [10.244.2.50]}]",
    )
    .unwrap();
    let late = lab.add_pod(late.workloads[0].clone()).unwrap();
    lab.enroll(&["shop/late"]).unwrap();
    let server = late.serve().unwrap();
    assert_eq!(check(&lab, "10.244.2.50").outcome, Outcome::Good);
    assert_eq!(lab.control_plane().issued_for(late.identity()), 1);

    drop(server);
    lab.remove_pod("shop/late").unwrap();
    lab.settle().unwrap();
    assert!(is_gone(&lab, "10.244.2.50"));
}

#[test]
fn a_control_plane_that_is_away_is_not_missed_and_caught_up_with() {
    let lab = enrolled().unwrap();
    let [client, far] = ["client", "far"].map(|name| lab.pod(&format!("shop/{name}")));
    let _server = far.serve().unwrap();
    set_more(&lab, true);
    lab.settle().unwrap();
    assert_eq!(check(&lab, MORE_VIP).outcome, Outcome::Good);
    let to = (far.v4().unwrap(), Service::Echo.port()).into();
    let mut held = client.hold(to).unwrap();

    let plane = lab.control_plane();
    let answered = plane.answers().len();
    plane.pause();
    eventually("the daemons notice", || {
        lab.nodes()
            .iter()
            .all(|node| node.log().contains("discovery stream lost"))
    });
    assert_eq!(
        held.exchange("anybody there?").unwrap().outcome,
        Outcome::Good
    );
    // The address of the other family is another tunnel: everything that it needs is there already.
    for to in ["10.244.2.10", "fd00:2::10", MORE_VIP] {
        assert_eq!(check(&lab, to).outcome, Outcome::Good, "{to}");
    }

    // What went meanwhile is taken back only from those who say what they still have.
    set_more(&lab, false);
    plane
        .update(|mesh| {
            mesh.service_mut("shop/far")
                .unwrap()
                .addresses
                .push("10.96.0.78".parse().unwrap())
        })
        .unwrap();
    plane.resume().unwrap();
    lab.settle().unwrap();
    assert!(is_gone(&lab, MORE_VIP));
    for to in ["10.96.0.78", "10.96.0.10", "10.244.2.10"] {
        assert_eq!(check(&lab, to).outcome, Outcome::Good, "{to}");
    }
    assert_eq!(
        held.exchange("welcome back").unwrap().outcome,
        Outcome::Good
    );
    assert_eq!(held.close().unwrap().outcome, Outcome::Good);
    let answers = plane.answers().split_off(answered);
    assert!(
        answers.iter().all(|answer| answer.rejected.is_none()),
        "{answers:?}"
    );
    // Nobody asked for a second certificate.
    assert_eq!(plane.issued_for(client.identity()), 1);
}

#[test]
fn a_token_that_changes_is_used_from_then_on() {
    let lab = enrolled().unwrap();
    let _server = lab.pod("shop/far").serve().unwrap();
    for node in ["node1", "node2"] {
        lab.control_plane().rotate_token(node).unwrap();
    }
    lab.control_plane().pause();
    lab.control_plane().resume().unwrap();
    set_more(&lab, true);
    lab.settle().unwrap();
    assert_eq!(check(&lab, MORE_VIP).outcome, Outcome::Good);
}

#[test]
fn a_resource_nobody_can_read_does_not_stop_the_others() {
    const NONSENSE: &str = "Kubernetes//Pod/shop/nonsense";
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    // Once in the first response, with everything else, and once in a later one.
    plane.announce_nonsense(&[NONSENSE]);
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    let _server = lab.pod("shop/far").serve().unwrap();
    assert_eq!(check(&lab, "10.96.0.10").outcome, Outcome::Good);
    plane.announce_nonsense(&[NONSENSE, "shop/nonsense.shop.svc.cluster.local"]);
    set_more(&lab, true);
    lab.settle().unwrap();
    assert_eq!(check(&lab, MORE_VIP).outcome, Outcome::Good);
    for node in lab.nodes() {
        let answers = plane.answers().into_iter();
        let rejected: Vec<_> = answers
            .filter(|answer| answer.node == node.name())
            .filter_map(|answer| answer.rejected)
            .collect();
        assert!(
            rejected.iter().any(|why| why.contains(NONSENSE)),
            "{rejected:?}"
        );
        assert!(node.log().contains(NONSENSE));
    }
    plane.announce_nonsense(&[]);
    lab.settle().unwrap();
    assert_eq!(check(&lab, "10.96.0.10").outcome, Outcome::Good);
    assert_eq!(plane.connected().len(), 2, "nobody hung up");
}
