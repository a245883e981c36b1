//! The pods of this node: what was measured of those that are enrolled, beside those that the control plane has here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use ztunnel_mesh::workload::{NetworkMode, TunnelProtocol};
use ztunnel_mesh::{Mesh, Workload};

use crate::enroll::{PodState, PodStatus};
use crate::inspect::{Attention, REPAIR};

const ENROLL: &str = "Others reach it through tunnels only, and nobody takes them here. See whether the CNI agent of \
                      this node runs; `ztunnel enroll` does it by hand.";

/// Enrollment and the control plane do not hear of a pod, or of its end, at the same moment.
const SETTLES: Duration = Duration::from_secs(5);

/// Whether a pod of this node is in the mesh, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodMembership {
    /// Enrolled, and something that captures its traffic is missing in the kernel.
    Defective,
    /// The control plane says that it is in the mesh, and it is not enrolled here.
    NotEnrolled,
    /// As that, for a moment.
    Pending,
    /// Unenrolled; its last connections are ending.
    Leaving,
    /// Measured in the kernel: everything that captures its traffic is in place.
    Captured,
    /// Neither enrolled nor meant to be.
    Outside,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRow {
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub addresses: Vec<IpAddr>,
    pub state: PodMembership,
    pub problem: Option<String>,
    pub next_step: Option<String>,
}

/// Since when pods are missing, by namespace and name, as far as somebody has looked.
pub(super) type Missing = BTreeMap<(String, String), Instant>;

/// Those that need somebody first.
pub(super) fn rows(
    measured: Vec<PodStatus>,
    mesh: &Mesh,
    node: &str,
    missing: &mut Missing,
) -> Vec<PodRow> {
    let now = Instant::now();
    let before = std::mem::take(missing);
    let mut rows: Vec<_> = measured.into_iter().map(PodRow::measured).collect();
    let enrolled = rows.len();
    let here = |workload: &&std::sync::Arc<Workload>| {
        *workload.place.node == *node && workload.network_mode == NetworkMode::Standard
    };
    for workload in mesh.workloads().filter(here) {
        let known =
            |row: &PodRow| row.namespace == *workload.namespace && row.name == *workload.name;
        if !rows[..enrolled].iter().any(known) {
            let mut row = PodRow::told(workload);
            if row.state == PodMembership::NotEnrolled {
                let key = (row.namespace.clone(), row.name.clone());
                let since = *before.get(&key).unwrap_or(&now);
                missing.insert(key, since);
                if now - since < SETTLES {
                    row.state = PodMembership::Pending;
                    (row.problem, row.next_step) = (None, None);
                }
            }
            rows.push(row);
        }
    }
    rows.sort_by(|a, b| (a.state, &a.namespace, &a.name).cmp(&(b.state, &b.namespace, &b.name)));
    rows
}

/// What those who ask the daemon only about what it has enrolled cannot know.
pub(super) fn attention(pods: &[PodRow]) -> Option<Attention> {
    let mut missing = pods
        .iter()
        .filter(|pod| pod.state == PodMembership::NotEnrolled);
    let first = missing.next()?;
    let (pod, more) = (
        format!("{}/{}", first.namespace, first.name),
        missing.count(),
    );
    let problem = match more {
        0 => {
            format!("pod {pod} is not enrolled, and the control plane says that it is in the mesh")
        }
        more => format!(
            "pod {pod} and {more} more are not enrolled, and the control plane says that they are in the mesh"
        ),
    };
    let next_step = ENROLL.to_owned();
    Some(Attention { problem, next_step })
}

impl PodRow {
    fn measured(pod: PodStatus) -> Self {
        let (state, next_step) = match pod.state {
            PodState::Captured => (PodMembership::Captured, None),
            PodState::Leaving => (PodMembership::Leaving, None),
            PodState::Defective => (PodMembership::Defective, Some(REPAIR.to_owned())),
        };
        Self {
            namespace: pod.namespace,
            name: pod.name,
            service_account: pod.service_account,
            addresses: pod.addresses,
            state,
            problem: pod.problem,
            next_step,
        }
    }

    fn told(workload: &Workload) -> Self {
        // What ends tunnels itself, such as a waypoint, is not for this daemon to serve.
        let meant = workload.tunnel == TunnelProtocol::Hbone && !workload.native_tunnel;
        let (state, problem, next_step) = match meant {
            true => (
                PodMembership::NotEnrolled,
                Some("the control plane says that it is in the mesh"),
                Some(ENROLL),
            ),
            false if workload.native_tunnel => {
                (PodMembership::Outside, Some("takes tunnels itself"), None)
            }
            false => (PodMembership::Outside, None, None),
        };
        Self {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            service_account: workload.service_account.to_string(),
            addresses: workload.addresses.to_vec(),
            state,
            problem: problem.map(str::to_owned),
            next_step: next_step.map(str::to_owned),
        }
    }
}
