//! A push of many workloads must not keep the processor: between two breaths there is little work.

use super::*;
use crate::state::mesh_channel;
use crate::task::breath::{looks, step};

const WORKLOADS: usize = 4000;

/// All of them in a new version.
fn push(version: &str) -> DeltaDiscoveryResponse {
    let uids = (0..WORKLOADS).map(|number| format!("c//Pod/shop/web-{number}"));
    addresses(uids.map(|uid| workload(&uid, version)).collect(), &[])
}

/// A step for each workload.
fn check<T>(phase: &str, work: impl FnOnce() -> T) -> T {
    check_steps(WORKLOADS, phase, work)
}

fn check_steps<T>(steps: usize, phase: &str, work: impl FnOnce() -> T) -> T {
    let (looks, done) = looks::during(work);
    let least = looks::in_steps(steps);
    assert!(looks >= least, "{phase}: {looks} looks, not {least}");
    done
}

#[test]
fn a_push_of_many_workloads_takes_breaths_all_along() {
    let mut session = AdsSession::new(Node::default(), Subscription::Everything);
    session.open(Resume::Tell);
    let (mut writer, _reader) = mesh_channel();
    let mut mesh = Mesh::default();
    for version in ["1", "2"] {
        let received = check("convert", || session.receive(push(version)));
        mesh = check("apply", || mesh.apply_in_steps(received.delta, &mut step));
        assert_eq!(mesh.counts().0, WORKLOADS);
        session.tidy();
        let mut publish = || writer.publish(mesh.clone());
        match version {
            "1" => publish(),
            // Leaf by leaf of each index.
            _ => check_steps(WORKLOADS / 32, "free the old snapshot", publish),
        }
    }
    let gone: Vec<_> = session.types[0].held.names().into_iter().collect();
    let gone: Vec<&str> = gone.iter().map(|name| &**name).collect();
    let received = check("remove", || session.receive(addresses(vec![], &gone)));
    let empty = check("apply removals", || {
        mesh.apply_in_steps(received.delta, &mut step)
    });
    assert_eq!(empty.counts().0, 0);
}

#[test]
fn a_long_list_of_what_we_hold_takes_breaths() {
    let mut session = AdsSession::new(Node::default(), Subscription::Everything);
    session.open(Resume::Tell);
    session.receive(push("1"));
    let [request, _] = check("tell", || session.open(Resume::Tell));
    assert_eq!(request.initial_resource_versions.len(), WORKLOADS);
    session.open(Resume::StartOver);
    let received = check("what is gone", || session.receive(addresses(vec![], &[])));
    assert_eq!(received.delta.removals.len(), WORKLOADS);
}

#[test]
fn a_push_of_nothing_but_mistakes_takes_breaths() {
    let mut session = AdsSession::new(Node::default(), Subscription::Everything);
    session.open(Resume::Tell);
    let names = (0..WORKLOADS).map(|number| format!("c//Pod/shop/web-{number}"));
    let response = addresses(names.map(|name| broken(&name, "1")).collect(), &[]);
    let received = check("reject", || session.receive(response));
    assert_eq!(received.rejected.len(), WORKLOADS);
}
