//! The sessions that go on now, to be ended when a certificate of their peer is revoked.
//!
//! Invariants: a session is judged by the roots it began with and at the time it began: neither a root that was
//! dropped nor a certificate that expired since ends it, only a revocation does. A revocation misses no session: one
//! is registered before it is checked against the lists of that moment, and lists are replaced before the registered
//! ones are checked. Bounded. A session costs one lock when it begins and one when it ends; in between, the thread
//! that carries it polls a channel that has no lock.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::oneshot;

use super::handshake::HandshakeError;
use super::revocation::RevocationLists;
use super::trust::Trusted;
use super::verified::ChainId;
use super::verify::{PeerRoots, Usage};

/// Far more tunnels than a node can serve; each costs its peer's chain, some 1.5 KiB.
pub(super) const MAX_SESSIONS: usize = 1 << 16;

/// The sessions of a node.
#[derive(Debug, Default)]
pub(super) struct LiveSessions(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    sessions: HashMap<u64, (Arc<Session>, oneshot::Sender<()>)>,
}

/// What a session's peer showed, and what it was judged by.
#[derive(Debug)]
struct Session {
    id: ChainId,
    chain: Vec<CertificateDer<'static>>,
    usage: Usage,
    roots: PeerRoots,
    trusted: Arc<Trusted>,
    since: UnixTime,
}

/// Tells when a certificate of one session's peer is revoked. The session is registered as long as this lives.
#[derive(Debug, Default)]
pub struct RevocationWatch(Option<Watched>);

#[derive(Debug)]
struct Watched {
    live: Arc<LiveSessions>,
    number: u64,
    revoked: oneshot::Receiver<()>,
}

impl LiveSessions {
    pub(super) fn watch(
        self: &Arc<Self>,
        certs: &[CertificateDer<'static>],
        roots: &PeerRoots,
        usage: Usage,
        lists: impl FnOnce() -> Arc<RevocationLists>,
    ) -> Result<RevocationWatch, HandshakeError> {
        let [leaf, intermediates @ ..] = certs else {
            return Ok(RevocationWatch::default()); // The handshake has seen to it that there is one.
        };
        let session = Arc::new(Session {
            id: ChainId::of(usage, leaf, intermediates),
            chain: certs.to_vec(),
            usage,
            trusted: roots.current(),
            roots: roots.clone(),
            since: UnixTime::now(),
        });
        let (tell, revoked) = oneshot::channel();
        let number = {
            let mut open = self.open();
            if open.sessions.len() >= MAX_SESSIONS {
                return Err(HandshakeError::TooMany);
            }
            let number = open.next;
            open.next += 1;
            open.sessions.insert(number, (Arc::clone(&session), tell));
            number
        };
        let watch = RevocationWatch(Some(Watched {
            live: Arc::clone(self),
            number,
            revoked,
        }));
        let lists = lists();
        // Usually the handshake went by the same ones.
        if !Arc::ptr_eq(&lists, &session.trusted.lists) && session.is_revoked(&lists) {
            let revoked = rustls::Error::InvalidCertificate(CertificateError::Revoked);
            let error = io::Error::new(io::ErrorKind::InvalidData, revoked);
            return Err(HandshakeError::Failed(error));
        }
        Ok(watch)
    }

    /// Ends the sessions whose peers are in `lists`, and says how many.
    pub(super) fn judge_again(&self, lists: &RevocationLists) -> usize {
        let sessions: Vec<_> = self
            .open()
            .sessions
            .iter()
            .map(|(number, (session, _))| (*number, Arc::clone(session)))
            .collect();
        // Most sessions are with the same few peers.
        let mut judged: HashMap<ChainId, bool> = HashMap::new();
        let mut ended = 0;
        for (number, session) in sessions {
            let revoked = judged
                .entry(session.id)
                .or_insert_with(|| session.is_revoked(lists));
            if *revoked && let Some((_, tell)) = self.open().sessions.remove(&number) {
                // One that has ended by itself meanwhile needs no telling.
                let _ = tell.send(());
                ended += 1;
            }
        }
        ended
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn is_revoked(&self, lists: &RevocationLists) -> bool {
        let [leaf, intermediates @ ..] = self.chain.as_slice() else {
            return false;
        };
        let Self {
            trusted,
            since,
            usage,
            ..
        } = self;
        let verified = self
            .roots
            .verify_path(trusted, lists, leaf, intermediates, *since, *usage);
        matches!(verified, Err(webpki::Error::CertRevoked))
    }
}

impl RevocationWatch {
    /// Ready, once, when a certificate of the peer was revoked.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(watched) = &mut self.0 else {
            return Poll::Pending;
        };
        match Pin::new(&mut watched.revoked).poll(cx) {
            Poll::Ready(_) => {
                self.0 = None;
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.live.open().sessions.remove(&self.number);
    }
}
