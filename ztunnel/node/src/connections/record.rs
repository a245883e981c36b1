//! The one record of a connection.

use std::cell::RefMut;
use std::error::Error;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use pin_project_lite::pin_project;

use ztunnel_mesh::Refusal;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::Peer;
use ztunnel_mesh::reason::Reason;

use super::registry::{Connection, Registry};
use crate::telemetry::{Ended, Facts, Traffic};

/// Why a connection was cut by somebody else than its ends.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Cut {
    #[error("policy has changed since the connection began: {}", .0.detail)]
    Policy(Refusal),
    #[error("the pod leaves the mesh, or the daemon stops, and the time to end is over")]
    Drained,
}

impl Cut {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Policy(refusal) => refusal.reason,
            Self::Drained => Reason::Drained,
        }
    }
}

#[derive(Debug)]
pub(super) enum State {
    /// Goes on, as far as others are concerned. Whom to wake when that changes.
    Open(Option<Waker>),
    Cut(Cut),
}

/// The record of a connection, held by whoever serves it.
#[derive(Debug)]
pub struct Record {
    registry: Rc<Registry>,
    connection: Rc<Connection>,
}

pin_project! {
    /// Work that ends when its connection is cut. As an async function it would have room for the work twice.
    #[must_use = "futures do nothing unless polled"]
    pub struct UnlessCut<'a, F> {
        record: &'a Record,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for UnlessCut<'_, F> {
    type Output = Result<F::Output, Cut>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match &mut *this.record.connection.state.borrow_mut() {
            State::Cut(cut) => return Poll::Ready(Err(cut.clone())),
            State::Open(waker) => {
                if !waker.as_ref().is_some_and(|old| old.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
            }
        }
        this.work.poll(cx).map(Ok)
    }
}

impl Record {
    pub(super) fn new(registry: Rc<Registry>, connection: Rc<Connection>) -> Self {
        Self {
            registry,
            connection,
        }
    }

    /// Who connected.
    #[must_use]
    pub fn src(&self) -> ClientAddr {
        self.connection.src
    }

    /// What is known of it; to be let go before anything else happens.
    #[must_use]
    pub fn facts(&self) -> RefMut<'_, Facts> {
        self.connection.facts.borrow_mut()
    }

    /// Its bytes, to be counted while they move.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.connection.traffic
    }

    /// Policy is about to be asked about it, and will be again for as long as it is open.
    pub(crate) fn admit(&self, peer: Peer<'_>, app: AppAddr) {
        self.registry.admit(&self.connection, peer, app);
    }

    /// Does `work` for as long as the connection may go on; otherwise drops it.
    ///
    /// # Errors
    /// When it was cut.
    pub fn unless_cut<F: Future>(&self, work: F) -> UnlessCut<'_, F> {
        UnlessCut { record: self, work }
    }

    /// Both ends are known now: it is counted as opened.
    pub fn opened(&self) {
        let Connection {
            direction,
            facts,
            traffic,
            ..
        } = &*self.connection;
        let table = &self.registry.telemetry.metrics.traffic;
        let pairs = &self.registry.pairs;
        pairs.open(table, *direction, &facts.borrow(), traffic);
    }

    /// It can carry bytes now.
    pub fn connected(&self) {
        let after = self.connection.accepted.elapsed();
        let metrics = &self.registry.telemetry.metrics;
        metrics.connected(self.connection.direction, after);
        let Registry { watch, pod, .. } = &*self.registry;
        watch.connected(pod, &self.connection);
    }

    /// The connection ended as both sides wanted.
    pub fn complete(self) {
        self.end(Reason::Complete, None);
    }

    /// The connection ended or was refused, and why.
    pub fn failed(self, reason: Reason, error: impl Error + Send + Sync + 'static) {
        self.end(reason, Some(Box::new(error)));
    }

    /// Nothing is to be told about it: others do.
    pub fn dismiss(self) {
        self.connection.ended.set(true);
    }

    fn end(self, reason: Reason, error: Option<Box<dyn Error + Send + Sync>>) {
        self.tell(reason, error);
    }

    fn tell(&self, reason: Reason, error: Option<Box<dyn Error + Send + Sync>>) {
        let connection = &*self.connection;
        connection.ended.set(true);
        let Connection {
            direction,
            facts,
            traffic,
            ..
        } = connection;
        let Registry {
            telemetry,
            sampler,
            watch,
            pod,
            ..
        } = &*self.registry;
        watch.ended(pod, connection, reason, error.as_deref());
        let opened = telemetry.ended(*direction, reason, traffic);
        let told = telemetry.tells(reason, opened, sampler);
        if !told && reason.is_success() {
            return;
        }
        let ended = Box::new(Ended {
            at: SystemTime::now(),
            direction: *direction,
            pod: self.registry.pod.clone(),
            client: self.connection.src,
            facts: facts.take(),
            bytes_sent: traffic.sent(),
            bytes_received: traffic.received(),
            duration: self.connection.accepted.elapsed(),
            opened,
            reason,
            error,
        });
        match told {
            true => telemetry.log.connection(ended),
            false => telemetry.log.failures().keep(ended),
        }
    }
}

#[cfg(test)]
impl Record {
    pub(crate) fn is_cut(&self) -> bool {
        matches!(*self.connection.state.borrow(), State::Cut(_))
    }

    pub(crate) fn admitted(&self) -> Option<&super::registry::Admitted> {
        self.connection.admitted.get().map(|admitted| &**admitted)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.connection.ended.get() {
            self.tell(Reason::Drained, None);
        }
        self.registry.leave(&self.connection);
    }
}
