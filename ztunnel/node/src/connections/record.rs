//! The one record of a connection, and its line in the access log.

use std::cell::RefMut;
use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use tracing::info;
use ztunnel_hbone::Traceparent;
use ztunnel_mesh::Refusal;
use ztunnel_mesh::addr::{AppAddr, HboneAddr};
use ztunnel_mesh::authorize::Peer;
use ztunnel_mesh::name::Identity;
use ztunnel_mesh::reason::Reason;

use super::registry::{Connection, Registry};
use crate::telemetry::{Traffic, chain};

/// Which way a connection crosses the pod's edge, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// An app of this pod connected.
    Outbound,
    /// A stream of a tunnel to this pod.
    InboundHbone,
    /// Plain TCP from outside the mesh, or a client that does not use the tunnel.
    InboundPlaintext,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::InboundHbone => "inbound",
            Self::InboundPlaintext => "inbound-plaintext",
        }
    }
}

/// Everything there is to say about one connection. Filled in as it becomes known.
#[derive(Debug, Default)]
pub struct Facts {
    pub src_identity: Option<Identity>,
    /// Where the client meant to connect.
    pub dst: Option<SocketAddr>,
    /// Hostname of the service the client asked for.
    pub dst_service: Option<Arc<str>>,
    pub dst_identity: Option<Identity>,
    /// The 15008 that the stream goes to, or came in by.
    pub hbone: Option<HboneAddr>,
    pub tls_cipher: Option<&'static str>,
    pub tls_key_exchange: Option<&'static str>,
    pub trace: Option<Traceparent>,
}

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
    ended: bool,
}

impl Record {
    pub(super) fn new(registry: Rc<Registry>, connection: Rc<Connection>) -> Self {
        Self {
            registry,
            connection,
            ended: false,
        }
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
    pub async fn unless_cut<T>(&self, work: impl Future<Output = T>) -> Result<T, Cut> {
        let cut = poll_fn(|cx| match &mut *self.connection.state.borrow_mut() {
            State::Cut(cut) => Poll::Ready(cut.clone()),
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

    /// The connection ended as both sides wanted.
    pub fn complete(self) {
        self.end(Reason::Complete, None);
    }

    /// The connection ended or was refused, and why.
    pub fn failed(self, reason: Reason, error: &(dyn Error + 'static)) {
        self.end(reason, Some(chain(error)));
    }

    /// Nothing is to be told about it: others do.
    pub fn dismiss(mut self) {
        self.ended = true;
    }

    fn end(mut self, reason: Reason, error: Option<String>) {
        self.log(reason, error);
        self.ended = true;
    }

    fn log(&self, reason: Reason, error: Option<String>) {
        let connection = &*self.connection;
        let facts = connection.facts.borrow();
        let duration = connection.accepted.elapsed().as_millis();
        info!(
            target: "access",
            direction = connection.direction.as_str(),
            pod = %self.registry.pod,
            src = %connection.src,
            src_identity = facts.src_identity.as_ref().map(tracing::field::display),
            dst = facts.dst.map(tracing::field::display),
            dst_service = facts.dst_service.as_deref(),
            dst_identity = facts.dst_identity.as_ref().map(tracing::field::display),
            hbone = facts.hbone.map(tracing::field::display),
            tls_cipher = facts.tls_cipher,
            tls_key_exchange = facts.tls_key_exchange,
            trace = facts.trace.as_ref().map(Traceparent::trace_id),
            bytes_out = connection.traffic.sent(),
            bytes_in = connection.traffic.received(),
            duration_ms = u64::try_from(duration).unwrap_or(u64::MAX),
            reason = reason.code(),
            error,
            "connection closed"
        );
    }
}

#[cfg(test)]
impl Record {
    pub(crate) fn is_cut(&self) -> bool {
        matches!(*self.connection.state.borrow(), State::Cut(_))
    }

    pub(crate) fn admitted(&self) -> Option<&super::registry::Admitted> {
        self.connection.admitted.get()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.log(Reason::Drained, None);
        }
        self.registry.leave(&self.connection);
    }
}
