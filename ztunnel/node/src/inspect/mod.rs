//! Shows what this node knows and does, for people and for programs: lists, and the node at a glance.
//!
//! Invariants: an answer is made from one snapshot and changes nothing. However much there is, whoever asks gets it in
//! pages, made by a thread that serves nobody else, and no faster than they are read.

mod connections;
mod mesh;
mod status;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

pub use crate::connections::{Sort, Wanted, WantedPeer, WantedPod, Way};
pub use crate::discovery::LinkStatus;
pub use crate::identity::{CertificateState, CertificateStatus};
pub use connections::{ConnectionEnd, ConnectionRow};
pub use mesh::{PolicyRow, ServicePort, ServiceRow, WorkloadRow};
pub(crate) use status::REPAIR;
pub use status::{Attention, Failures, NodeStatus, PodsGlance};

use crate::admin::Readiness;
use crate::connections::Found;
use crate::discovery::Link;
use crate::identity::Identities;
use crate::pod::Workers;
use crate::state::MeshReader;
use crate::telemetry::Lately;

/// Rows of a page.
const PAGE: usize = 256;
/// How long the workers may take to say what is open.
const WORKERS_DEADLINE: Duration = Duration::from_secs(5);

/// What to list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum List {
    Workloads(WantedOfMesh),
    Services(WantedOfMesh),
    Policies(WantedOfMesh),
    Certificates { limit: usize },
    Connections(Wanted),
}

/// Which of the things that the control plane has told about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedOfMesh {
    pub namespace: Option<String>,
    /// For workloads: those of one node.
    pub node: Option<String>,
    pub limit: usize,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub rows: Rows,
    /// With the last one.
    pub end: Option<End>,
}

/// What is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    Workloads(Vec<WorkloadRow>),
    Services(Vec<ServiceRow>),
    Policies(Vec<PolicyRow>),
    Certificates(Vec<CertificateStatus>),
    Connections(Vec<ConnectionRow>),
}

impl Rows {
    /// Adds the rows of the next page, which are of the same kind.
    pub fn append(&mut self, next: Self) {
        match (self, next) {
            (Self::Workloads(rows), Self::Workloads(next)) => rows.extend(next),
            (Self::Services(rows), Self::Services(next)) => rows.extend(next),
            (Self::Policies(rows), Self::Policies(next)) => rows.extend(next),
            (Self::Certificates(rows), Self::Certificates(next)) => rows.extend(next),
            (Self::Connections(rows), Self::Connections(next)) => rows.extend(next),
            (this, other) => *this = other,
        }
    }
}

/// How many rows there would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Without a filter and a limit.
    pub total: usize,
    /// Without a limit.
    pub matched: usize,
    /// By the limit.
    pub left_out: usize,
}

impl End {
    fn new(total: usize, matched: usize, listed: usize) -> Self {
        Self {
            total,
            matched,
            left_out: matched.saturating_sub(listed),
        }
    }
}

/// The workers did not say in time what is open.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the workers did not say within {WORKERS_DEADLINE:?} what is open: the node is very busy; try again"
)]
pub struct Busy;

/// Knows where to look. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inspector {
    /// The name of the node, and the network of its pods.
    pub node: Arc<str>,
    pub network: Arc<str>,
    /// Of Istio, that the daemon was told to say.
    pub istio_version: Arc<str>,
    pub started: Instant,
    pub mesh: MeshReader,
    pub link: Link,
    pub identities: Identities,
    pub workers: Workers,
    pub lately: Lately,
    pub readiness: Readiness,
}

impl Inspector {
    /// Lists something, page by page.
    ///
    /// # Errors
    /// When the workers are too busy to say what is open.
    pub async fn list(&self, list: List) -> Result<mpsc::Receiver<Page>, Busy> {
        let mesh = self.mesh.load();
        Ok(match list {
            List::Workloads(wanted) => pages(
                move || mesh::workloads(&mesh, &wanted),
                |all| Rows::Workloads(all.iter().map(|one| WorkloadRow::new(one)).collect()),
            ),
            List::Services(wanted) => {
                let of = Arc::clone(&mesh);
                pages(
                    move || mesh::services(&mesh, &wanted),
                    move |all| {
                        let rows = all.iter().map(|one| ServiceRow::new(&of, one));
                        Rows::Services(rows.collect())
                    },
                )
            }
            List::Policies(wanted) => pages(
                move || mesh::policies(&mesh, &wanted),
                |all| Rows::Policies(all.iter().map(|one| PolicyRow::new(one)).collect()),
            ),
            List::Certificates { limit } => {
                let mut all = self.identities.list();
                let total = all.len();
                all.truncate(limit);
                let end = End::new(total, total, all.len());
                pages(move || (all, end), |all| Rows::Certificates(all.to_vec()))
            }
            List::Connections(wanted) => {
                let found = self.connections(wanted).await?;
                let end = End::new(found.open, found.matched, found.chosen.len());
                let row = ConnectionRow::new;
                pages(
                    move || (found.chosen, end),
                    move |all| Rows::Connections(all.iter().map(row).collect()),
                )
            }
        })
    }

    /// Which connections are open.
    ///
    /// # Errors
    /// When the workers are too busy to say it.
    pub async fn connections(&self, wanted: Wanted) -> Result<Found, Busy> {
        let found = timeout(WORKERS_DEADLINE, self.workers.find(wanted)).await;
        found.map_err(|_| Busy)
    }
}

/// Makes rows of what is listed, as fast as they are taken, on a thread of its own.
fn pages<T: Send + 'static>(
    all: impl FnOnce() -> (Vec<T>, End) + Send + 'static,
    rows: impl Fn(&[T]) -> Rows + Send + 'static,
) -> mpsc::Receiver<Page> {
    let (send, receive) = mpsc::channel(1);
    drop(spawn_blocking(move || {
        let (all, end) = all();
        let mut left = &all[..];
        loop {
            let (page, rest) = left.split_at(left.len().min(PAGE));
            let (rows, end) = (rows(page), rest.is_empty().then_some(end));
            let last = end.is_some();
            // Whoever asked may have gone.
            if send.blocking_send(Page { rows, end }).is_err() || last {
                return;
            }
            left = rest;
        }
    }));
    receive
}

#[cfg(test)]
mod tests;
