use std::time::{SystemTime, UNIX_EPOCH};

use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::name::PodName;
use ztunnel_mesh::reason::Reason;
use ztunnel_mesh::workload::{Addresses, NetworkMode, Place, TunnelProtocol};
use ztunnel_mesh::{Delta, Mesh, Upsert, Workload};

use super::*;
use crate::enroll::{PodState, PodStatus};
use crate::telemetry::{Direction, Ended, Facts};

fn workload(name: &str, node: &str, change: impl FnOnce(&mut Workload)) -> Upsert {
    let mut workload = Workload::new(&format!("Kubernetes//Pod/shop/{name}"));
    (workload.namespace, workload.name) = ("shop".into(), name.into());
    workload.addresses = Addresses::One([10, 0, 0, 1].into());
    workload.tunnel = TunnelProtocol::Hbone;
    workload.place = Arc::new(Place {
        node: node.into(),
        ..(*workload.place).clone()
    });
    change(&mut workload);
    Upsert::Workload(Arc::new(workload))
}

fn enrolled(name: &str, state: PodState) -> PodStatus {
    PodStatus {
        uid: name.to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        service_account: name.to_owned(),
        netns: "/proc/1/ns/net".into(),
        addresses: Vec::new(),
        state,
        problem: (state == PodState::Defective).then(|| "a rule is missing".to_owned()),
    }
}

#[tokio::test(start_paused = true)]
async fn pods_that_should_be_captured_and_are_not_come_first() {
    let upserts = vec![
        workload("captured", "here", |_| {}),
        workload("forgotten", "here", |_| {}),
        workload("elsewhere", "there", |_| {}),
        workload("plain", "here", |pod| pod.tunnel = TunnelProtocol::None),
        workload("waypoint", "here", |pod| pod.native_tunnel = true),
        workload("kubelet", "here", |pod| {
            pod.network_mode = NetworkMode::HostNetwork
        }),
    ];
    let mesh = Mesh::default().apply(Delta {
        upserts,
        removals: Vec::new(),
    });
    let measured = vec![
        enrolled("captured", PodState::Captured),
        enrolled("broken", PodState::Defective),
        enrolled("going", PodState::Leaving),
    ];
    let mut missing = pods::Missing::new();
    let mut look = || pods::rows(measured.clone(), &mesh, "here", &mut missing);
    let soon = look();
    let forgotten = soon.iter().find(|row| row.name == "forgotten").unwrap();
    assert_eq!(forgotten.state, PodMembership::Pending);
    assert_eq!(pods::attention(&soon), None);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let rows = look();
    let shown: Vec<_> = rows.iter().map(|row| (&*row.name, row.state)).collect();
    let expected = [
        ("broken", PodMembership::Defective),
        ("forgotten", PodMembership::NotEnrolled),
        ("going", PodMembership::Leaving),
        ("captured", PodMembership::Captured),
        ("plain", PodMembership::Outside),
        ("waypoint", PodMembership::Outside),
    ];
    assert_eq!(shown, expected);
    for row in &rows[..2] {
        assert!(row.problem.is_some() && row.next_step.is_some(), "{row:?}");
    }
    let attention = pods::attention(&rows).unwrap();
    assert!(
        attention
            .problem
            .starts_with("pod shop/forgotten is not enrolled"),
        "{attention:?}"
    );
    assert_eq!(pods::attention(&rows[2..]), None);
    // One that is enrolled after all, and goes missing again, is another matter.
    let mut measured = measured;
    measured.push(enrolled("forgotten", PodState::Captured));
    pods::rows(measured, &mesh, "here", &mut missing);
    assert!(missing.is_empty(), "{missing:?}");
}

fn failed(second: u64, port: u16, reason: Reason, error: &str) -> Arc<Ended> {
    Arc::new(Ended {
        at: UNIX_EPOCH + Duration::from_secs(second),
        direction: Direction::Outbound,
        pod: PodName {
            namespace: "shop".into(),
            name: "web".into(),
            service_account: "web".into(),
        },
        client: ClientAddr(([10, 0, 0, 1], port).into()),
        facts: Facts {
            dst_addr: Some(([10, 96, 0, 1], 80).into()),
            ..Facts::default()
        },
        bytes_sent: 0,
        bytes_received: 0,
        duration: Duration::ZERO,
        opened: false,
        reason,
        error: Some(error.into()),
    })
}

#[test]
fn failures_that_are_alike_are_one_row_with_what_to_do() {
    let long = "é".repeat(1_000);
    let rows = failures::rows(&[
        failed(9, 1, Reason::PolicyDenied, "the last"),
        failed(8, 2, Reason::NoSuchPort, &long),
        failed(7, 3, Reason::PolicyDenied, "the first"),
    ]);
    let shown: Vec<_> = rows
        .iter()
        .map(|row| (&*row.reason, row.count, row.at_ms))
        .collect();
    assert_eq!(
        shown,
        [("POLICY_DENIED", 2, 9_000), ("NO_SUCH_PORT", 1, 8_000)]
    );
    assert_eq!(rows[0].error.as_deref(), Some("the last"));
    assert!(rows[1].error.as_ref().unwrap().len() < 410);
    assert_eq!(rows[0].source.name.as_deref(), Some("web"));
    assert_eq!(
        rows[0].destination.address,
        Some(([10, 96, 0, 1], 80).into())
    );
    let meanings = failures::meanings(&rows);
    let codes: Vec<_> = meanings.keys().map(String::as_str).collect();
    assert_eq!(codes, ["NO_SUCH_PORT", "POLICY_DENIED"]);
    assert_eq!(
        meanings["POLICY_DENIED"].next_step,
        Reason::PolicyDenied.next_step()
    );
    assert!(
        failures::now_ms() / 1000
            <= SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs()
    );
}

#[test]
fn a_list_says_what_it_left_out() {
    let list = Shown::first((0..10).collect(), 3);
    assert_eq!((list.rows, list.left_out), (vec![0, 1, 2], 7));
    assert_eq!(Shown::first(vec![1], 3).left_out, 0);
}
