//! The connections to a pod's apps, judged again when policy changes.
//!
//! Invariants: no open connection goes on under policies that deny it. One is registered before it is judged for the
//! first time, on the thread that judges all of them again, so a change in between is never missed; and when the
//! policies it was judged by are not those that all were judged by last, that is remembered, for they may come back
//! before anybody looks.
//!
//! What is judged is the connection as it was made (who, from where, to which app). The policies are those of the pod as
//! the mesh knows it now: a policy that is attached to the workload later counts, which is stricter than other
//! implementations are. A pod that the mesh no longer knows is judged as it was known last.
//!
//! Absent on purpose: outgoing connections, which are judged where they arrive.

use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;
use ztunnel_mesh::addr::AppAddr;
use ztunnel_mesh::authorize::{Peer, Permit, PodPolicies};
use ztunnel_mesh::{Mesh, Refusal, Workload};

use crate::connections::{Cut, Record, Registry};
use crate::state::MeshReader;

/// How long a policy that the workload lists may be on its way before its absence ends connections that were permitted
/// without it. The control plane tells of the workload and of the policy in two responses, in either order, and without
/// this every new selector policy would end all connections of its pods, whatever it says. New connections are refused
/// meanwhile, and whoever the policies that did arrive deny is cut at once.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// At least so much time lies between two looks, however often the mesh changes.
const PAUSE: Duration = Duration::from_millis(50);
/// By which policies the open connections of a registry were permitted.
#[derive(Debug)]
pub struct Live {
    connections: Rc<Registry>,
    judged: RefCell<Judged>,
}

/// By what the open connections were permitted.
#[derive(Debug, Default)]
struct Judged {
    /// By these, all of them; none before the first connection.
    by: Option<Rc<PodPolicies>>,
    /// Except that some were permitted by others since.
    and_others: bool,
    /// Since when a listed policy is missing, and nobody was cut for that yet.
    lenient_since: Option<Instant>,
    /// Whether it was counted that one is missing.
    missing_counted: bool,
}

impl Live {
    /// Of these, which are those of one pod.
    #[must_use]
    pub fn new(connections: Rc<Registry>) -> Self {
        Self {
            connections,
            judged: RefCell::default(),
        }
    }

    /// Takes a connection of `peer` to `app` in if the policies, which have to be those of now, permit it.
    ///
    /// # Errors
    /// When they do not.
    pub fn admit(
        &self,
        record: &Record,
        policies: &Rc<PodPolicies>,
        peer: Peer<'_>,
        app: AppAddr,
    ) -> Result<Permit, Refusal> {
        let first = self.connections.none_admitted();
        record.admit(peer, app);
        let permit = policies.authorize(peer, app)?;
        self.judged.borrow_mut().admitted(policies, first);
        Ok(permit)
    }

    /// Cuts connections as soon as they are denied, until there will be no more snapshots. `current` gives the policies
    /// of the pod in a snapshot, which may not know the pod any more: then of what was known of it last.
    pub async fn follow(
        &self,
        mut mesh: MeshReader,
        current: impl Fn(&Mesh, &Arc<Workload>) -> Rc<PodPolicies>,
    ) {
        loop {
            let patience_ends = self.judged.borrow().patience_ends();
            let patience = async {
                match patience_ends {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                more = mesh.changed() => if !more {
                    return;
                },
                () = patience => {}
            }
            self.judge_again(&mesh, &current).await;
            sleep(PAUSE).await;
        }
    }

    async fn judge_again(
        &self,
        mesh: &MeshReader,
        current: &impl Fn(&Mesh, &Arc<Workload>) -> Rc<PodPolicies>,
    ) {
        let (policies, missing_counts) = {
            let mut judged = self.judged.borrow_mut();
            if self.connections.none_admitted() {
                *judged = Judged::default();
                return;
            }
            let Some(by) = &judged.by else {
                return;
            };
            // Not kept: the next snapshot should not have to wait for this to be freed.
            let policies = current(&mesh.load(), by.pod());
            if !judged.turn_to(&policies) {
                return;
            }
            (policies, judged.missing_counted)
        };
        // Whoever comes from here on is judged by these policies, or by newer ones, and then will be again.
        let mut batch = self.connections.all();
        while self.connections.judge(&mut batch, |admitted| {
            let again = policies.reconsider(admitted.peer(), admitted.app(), missing_counts);
            again.err().map(Cut::Policy)
        }) {
            yield_now().await;
        }
        let cut = batch.cut;
        debug!(pod = %policies.pod().uid, cut, "policies changed, connections were judged again");
    }
}

impl Judged {
    /// A connection was permitted by these policies; perhaps it is the only one.
    fn admitted(&mut self, policies: &Rc<PodPolicies>, first: bool) {
        let known = self.by.as_ref();
        if known.is_some_and(|by| Rc::ptr_eq(by, policies)) {
            return;
        }
        if first || known.is_none() {
            *self = Self {
                by: Some(Rc::clone(policies)),
                ..Self::default()
            };
        } else if known.is_some_and(|by| !by.decides_like(policies)) {
            self.and_others = true;
        }
    }

    /// From now on these apply; says whether that makes a difference for open connections.
    fn turn_to(&mut self, policies: &Rc<PodPolicies>) -> bool {
        let missing_counts = match (policies.missing(), self.lenient_since) {
            (None, _) => {
                self.lenient_since = None;
                false
            }
            (Some(_), None) => {
                // Known to be missing for long, perhaps another one than now.
                if !self.missing_counted {
                    self.lenient_since = Some(Instant::now());
                }
                self.missing_counted
            }
            (Some(_), Some(since)) => since.elapsed() >= ON_ITS_WAY,
        };
        if missing_counts {
            self.lenient_since = None;
        }
        let same = self
            .by
            .as_ref()
            .is_some_and(|by| Rc::ptr_eq(by, policies) || by.decides_like(policies));
        let judge = !same || self.and_others || missing_counts != self.missing_counted;
        self.by = Some(Rc::clone(policies));
        self.and_others = false;
        self.missing_counted = missing_counts;
        judge
    }

    /// When a missing policy begins to count.
    fn patience_ends(&self) -> Option<Instant> {
        Some(self.lenient_since? + ON_ITS_WAY)
    }
}

#[cfg(test)]
mod tests;
