//! The control plane is away for long, and the world changes meanwhile.

use std::time::{Duration, SystemTime};

use lab::tester::{Check, Outcome, Service};
use lab::{Lab, MeshFile, Validity};

use super::{MESH, Scene, Steady, assert_good, assert_no_more_lines_than, echo, pods, said, times};
use crate::access::{self, eventually};
use crate::identity::BOUND;
use crate::readiness::pending;

#[test]
fn certificates_serve_to_their_end_and_then_the_reason_is_clear() {
    let lab = Lab::from_yaml(MESH).unwrap();
    let plane = lab.control_plane();
    plane.limit_certificates(Validity {
        back_dated: Duration::ZERO,
        lifetime: Duration::from_secs(3),
    });
    lab.start_daemons().unwrap();
    lab.enroll_all().unwrap();
    let [client, far] = pods(&lab);
    let _server = far.serve().unwrap();
    let steady = Steady::start(&client, &far);
    let node = lab.node("node1");
    plane.pause();
    let ends = plane
        .issued()
        .iter()
        .map(|issued| issued.not_after)
        .max()
        .unwrap();

    eventually("a renewal has failed", || {
        times(node, "certificate request failed") >= 1
    });
    let log = said(node);
    let renewal = log
        .iter()
        .find(|line| line.contains("certificate request failed"));
    assert!(renewal.unwrap().contains("old_one_serves=true"), "{log:#?}");
    // A tunnel that is not there yet, so the certificates are shown once more.
    let report = echo(&client, far.v6().unwrap());
    let in_time = SystemTime::now() < ends;
    assert!(report.outcome == Outcome::Good || !in_time, "{report:?}");
    eventually("the certificates have ended", || SystemTime::now() >= ends);
    // Certificates name seconds, so this is not the moment itself.
    let report = echo(&client, far.v6().unwrap());
    assert_eq!(report.outcome, Outcome::Reset, "{report:?}");
    assert!(
        u128::from(report.elapsed_ms) < BOUND.as_millis(),
        "{report:?}"
    );
    let refused = [
        ("direction", "outbound"),
        ("reason", "IDENTITY_UNAVAILABLE"),
    ];
    let line = access::line(node, &refused);
    let error = line.field("error");
    assert!(error.contains(client.identity()), "{line:?}");
    assert!(
        error.contains("Unavailable") && error.contains("Connection refused"),
        "{line:?}"
    );
    // Readiness is about the start; what is open goes on.
    assert_eq!(pending(node), "");
    assert_no_more_lines_than(node, 60);

    plane.resume().unwrap();
    eventually("connections work again", || {
        echo(&client, far.v6().unwrap()).outcome == Outcome::Good
    });
    steady.stop();
}

#[test]
fn what_changed_while_nobody_was_there_to_tell_is_caught_up_with() {
    const OTHER: &str = "
  - {name: other, namespace: shop, addresses: [10.96.0.20], ports: {7001: 7001}, workloads: [far]}
policies:
  - {name: not-that-port, namespace: shop, action: DENY, rules: [[[{destination_ports: [7002]}]]]}
";
    let scene = Scene::start();
    let plane = scene.plane();
    let banner = |to: &str| {
        let check = Check::of(Service::Banner).timeout(Duration::from_secs(2));
        scene
            .client
            .check(to.parse().unwrap(), &check)
            .unwrap()
            .outcome
    };
    assert_eq!(banner("10.244.2.10"), Outcome::Good);

    plane.pause();
    eventually("the daemons notice", || {
        scene
            .lab
            .nodes()
            .iter()
            .all(|node| times(node, "discovery stream lost") >= 1)
    });
    // One service comes in place of another, and a policy comes.
    let after = MeshFile::parse("after", &format!("{}{OTHER}", MESH.trim_end())).unwrap();
    plane
        .update(|mesh| {
            mesh.policies.clone_from(&after.policies);
            mesh.services = vec![after.service("shop/other").unwrap().clone()];
        })
        .unwrap();
    assert_good(&scene.client, "10.96.0.10".parse().unwrap());
    assert_eq!(banner("10.244.2.10"), Outcome::Good, "the old state holds");

    plane.resume().unwrap();
    scene.lab.settle().unwrap();
    assert_good(&scene.client, "10.96.0.20".parse().unwrap());
    assert_eq!(banner("10.244.2.10"), Outcome::Reset, "the policy holds");
    let gone = "10.96.0.10".parse().unwrap();
    let link = scene.client.tap(&[]).unwrap();
    let check = Check::echo("hello").timeout(Duration::from_millis(300));
    assert_ne!(
        scene.client.check(gone, &check).unwrap().outcome,
        Outcome::Good
    );
    // The mesh has nothing to say about it any more: it leaves as it is.
    assert!(link.stop().unwrap().tcp_opened.contains_key(&(gone, 7001)));
    scene.steady.stop();
}
