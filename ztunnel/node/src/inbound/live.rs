//! The connections to a pod's apps that are open now on one worker thread, judged again when policy changes.
//!
//! Invariants: no open connection goes on under policies that deny it. One is registered before it is judged for the
//! first time, on the thread that judges all of them again, so a change in between is never missed; and when the
//! policies it was judged by are not those that all were judged by last, that is remembered, for they may come back
//! before anybody looks. A cut is about one connection, never about the tunnel it came through.
//!
//! Bounded by the connections there are. Others are served between batches: to judge `BATCH` connections takes some
//! 0.03 ms (50,000 take 6 ms in all), to end `MOST_CUT` 0.5 to 0.9 ms (`tests/measure.rs`). A connection that is not cut
//! pays for a look at its own state whenever it is polled, which takes no lock.
//!
//! What is judged is the connection as it was made (who, from where, to which app). The policies are those of the pod as
//! the mesh knows it now: a policy that is attached to the workload later counts, which is stricter than other
//! implementations are. A pod that the mesh no longer knows is judged as it was known last.
//!
//! Absent on purpose: outgoing connections, which are judged where they arrive; ending connections when the pod is
//! drained, which its task groups do for both directions.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::{Peer, Permit, PodPolicies};
use ztunnel_mesh::name::Principal;
use ztunnel_mesh::reason::Reason;
use ztunnel_mesh::{Mesh, Refusal, Workload};

use crate::state::MeshReader;

/// How long a policy that the workload lists may be on its way before its absence ends connections that were permitted
/// without it. The control plane tells of the workload and of the policy in two responses, in either order, and without
/// this every new selector policy would end all connections of its pods, whatever it says. New connections are refused
/// meanwhile, and whoever the policies that did arrive deny is cut at once.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// At least so much time lies between two looks, however often the mesh changes.
const PAUSE: Duration = Duration::from_millis(50);
/// So many connections are judged before others get their turn,
const BATCH: usize = 256;
/// or so many cut: ending one costs far more than judging it.
const MOST_CUT: usize = 16;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// In the order in which they began.
    open: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next: Cell<u64>,
    judged: RefCell<Judged>,
}

/// What policies look at in one connection, and what has become of it.
#[derive(Debug)]
struct Connection {
    principal: Option<Principal>,
    client: ClientAddr,
    app: AppAddr,
    state: RefCell<State>,
}

#[derive(Debug)]
enum State {
    /// Goes on, as far as policy is concerned. Whom to wake when that changes.
    Open(Option<Waker>),
    Cut(Refusal),
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

/// The place of one connection among the open ones, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    live: &'a Live,
    number: u64,
    connection: Rc<Connection>,
}

/// Policy denies a connection that it had permitted.
#[derive(Clone, Debug, thiserror::Error)]
#[error("policy has changed since the connection began: {}", .0.detail)]
pub(super) struct Cut(Refusal);

impl Cut {
    pub(super) fn reason(&self) -> Reason {
        self.0.reason
    }
}

impl Live {
    /// Takes a connection of `peer` to `app` in if the policies, which have to be those of now, permit it.
    pub(super) fn admit(
        &self,
        policies: &Rc<PodPolicies>,
        peer: Peer<'_>,
        app: AppAddr,
    ) -> Result<(Place<'_>, Permit), Refusal> {
        let first = self.open.borrow().is_empty();
        let place = self.register(peer, app);
        let permit = policies.authorize(peer, app)?;
        self.judged.borrow_mut().admitted(policies, first);
        Ok((place, permit))
    }

    fn register(&self, peer: Peer<'_>, app: AppAddr) -> Place<'_> {
        let connection = Rc::new(Connection {
            principal: peer.principal.cloned(),
            client: peer.addr,
            app,
            state: RefCell::new(State::Open(None)),
        });
        let number = self.next.get();
        self.next.set(number + 1);
        let open = Rc::clone(&connection);
        self.open.borrow_mut().insert(number, open);
        Place {
            live: self,
            number,
            connection,
        }
    }

    /// Cuts connections as soon as they are denied, until there will be no more snapshots. `current` gives the policies
    /// of the pod in a snapshot, which may not know the pod any more: then of what was known of it last.
    pub(super) async fn follow(
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
            if self.open.borrow().is_empty() {
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
        let (mut from, end, mut cut) = (0, self.next.get(), 0);
        while let Some(next) = self.judge_batch(from..end, &policies, missing_counts, &mut cut) {
            from = next;
            yield_now().await;
        }
        debug!(pod = %policies.pod().uid, cut, "policies changed, connections were judged again");
    }

    /// Judges the first of these, and says where the next batch begins.
    fn judge_batch(
        &self,
        numbers: std::ops::Range<u64>,
        policies: &PodPolicies,
        missing_counts: bool,
        cut: &mut usize,
    ) -> Option<u64> {
        let most_cut = *cut + MOST_CUT;
        let open = self.open.borrow();
        for (judged, (number, connection)) in open.range(numbers).enumerate() {
            if judged == BATCH || *cut == most_cut {
                return Some(*number);
            }
            let peer = Peer {
                principal: connection.principal.as_ref(),
                addr: connection.client,
            };
            if let Err(refusal) = policies.reconsider(peer, connection.app, missing_counts) {
                connection.cut(refusal);
                *cut += 1;
            }
        }
        None
    }
}

impl Judged {
    /// A connection was permitted by these policies; perhaps it is the only one.
    fn admitted(&mut self, policies: &Rc<PodPolicies>, first: bool) {
        let known = self.by.as_ref();
        if known.is_some_and(|by| Rc::ptr_eq(by, policies)) {
            return;
        }
        if first {
            *self = Self {
                by: Some(Rc::clone(policies)),
                ..Self::default()
            };
        } else if known.is_none_or(|by| !by.decides_like(policies)) {
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

impl Connection {
    fn cut(&self, refusal: Refusal) {
        let mut state = self.state.borrow_mut();
        if let State::Open(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Cut(refusal);
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Place<'_> {
    /// Does `work` for as long as the connection may go on; otherwise drops it.
    pub(super) async fn unless_cut<T>(&self, work: impl Future<Output = T>) -> Result<T, Cut> {
        let cut = poll_fn(|cx| match &mut *self.connection.state.borrow_mut() {
            State::Cut(refusal) => Poll::Ready(Cut(refusal.clone())),
            State::Open(waker) => {
                if !waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        });
        let work = pin!(work);
        tokio::select! {
            biased;
            cut = cut => Err(cut),
            done = work => Ok(done),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.live.open.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
