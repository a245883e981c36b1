//! The outgoing tunnels of one pod on one thread.
//!
//! Invariants: tunnels are never shared between two source identities or two sets of expected identities. At most
//! one attempt to connect per key runs at a time, in a task of its own, so that whoever started it may go away;
//! everybody who waits for it learns how it ended. A tunnel that was full, broken or going away never comes back
//! into the pool; its streams go on without it.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use ztunnel_hbone::{Answer, Connect, ErrorCode};
use ztunnel_mesh::addr::HboneAddr;
use ztunnel_mesh::name::Identity;
use ztunnel_mesh::reason::Reason;

use super::client::{DialError, NoSlot, Slot, Tunnel, TunnelFacts, dial};
use super::settings::TunnelSettings;
use super::stream::{Stream, io_error};
use crate::task::{Shutdown, TaskGroup};
use crate::tls::Credential;

/// A peer, and as whom to talk to whom there.
#[derive(Clone, Debug)]
pub struct Destination {
    pub peer: HboneAddr,
    pub credential: Arc<Credential>,
    /// The peer must prove one of these.
    pub expected: Arc<[Identity]>,
}

/// A stream that the peer has accepted.
pub struct Opened {
    pub stream: Stream,
    pub tunnel: TunnelFacts,
}

/// Why the pool gives no stream.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Shared by everybody who waited for the tunnel.
    #[error(transparent)]
    Dial(Rc<DialError>),
    #[error("the CONNECT for {peer} cannot be written")]
    Request {
        peer: HboneAddr,
        #[source]
        source: http::Error,
    },
    #[error("{peer} did not answer the CONNECT within {after:?}")]
    NoAnswer { peer: HboneAddr, after: Duration },
    #[error("{peer} refused the CONNECT with {status}")]
    Refused { peer: HboneAddr, status: StatusCode },
    #[error("{peer} reset the stream with {code} instead of answering")]
    Reset { peer: HboneAddr, code: ErrorCode },
    #[error("the tunnel to {peer} is closing")]
    Closing { peer: HboneAddr },
    #[error("the tunnel to {peer} was cut before the answer to the CONNECT: {reason}")]
    Cut { peer: HboneAddr, reason: Reason },
    #[error("the tunnel to {peer} broke before the answer to the CONNECT")]
    Broken {
        peer: HboneAddr,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Dial(err) => err.reason(),
            Self::Request { .. } => Reason::NoRoute,
            Self::NoAnswer { .. } | Self::Closing { .. } => Reason::PeerUnreachable,
            Self::Cut { reason, .. } => *reason,
            Self::Refused { .. } => Reason::PeerRefused,
            Self::Reset { .. } => Reason::PeerProtocol,
            Self::Broken { source, .. } => match source.kind() {
                // In TLS 1.3 a server looks at the client's certificate when the client is done: its alert comes late.
                io::ErrorKind::InvalidData => Reason::PeerTlsFailed,
                io::ErrorKind::Other => Reason::PeerProtocol,
                _ => Reason::PeerUnreachable,
            },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Identity,
    expected: Arc<[Identity]>,
    peer: HboneAddr,
}

type Outcome = Result<Rc<Tunnel>, Rc<DialError>>;

enum Entry {
    Ready(Rc<Tunnel>),
    /// Somebody connects.
    Dialing(watch::Receiver<Option<Outcome>>),
}

/// The outgoing tunnels of one pod on one thread. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    entries: RefCell<HashMap<Key, Entry>>,
    settings: Arc<TunnelSettings>,
    tasks: TaskGroup,
    shutdown: Shutdown,
}

/// Where a slot came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The tunnel has been there for a while: it may be dead without anybody knowing.
    Reused,
    /// It was made just now.
    Fresh,
}

impl Pool {
    /// An empty pool; its tunnels are run by tasks in `tasks`, and let go on `shutdown` when their streams end.
    #[must_use]
    pub fn new(settings: Arc<TunnelSettings>, tasks: TaskGroup, shutdown: Shutdown) -> Self {
        Self(Rc::new(Inner {
            entries: RefCell::default(),
            settings,
            tasks,
            shutdown,
        }))
    }

    /// Opens a stream in a tunnel to `to`; makes the tunnel with a TCP connection of `connect` when needed.
    ///
    /// # Errors
    /// When there is no tunnel, or the peer does not accept.
    pub async fn open<F>(
        &self,
        to: &Destination,
        request: &Connect<'_>,
        connect: impl Fn() -> F,
    ) -> Result<Opened, OpenError>
    where
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        let (slot, origin) = self.slot(to, &connect).await?;
        match self.connect_stream(to.peer, slot, request).await {
            // The peer did not look at it, or the tunnel was dead already: nothing was done, so it may be done again.
            Err(OpenError::Closing { .. }) => {}
            Err(OpenError::Broken { .. }) if origin == Origin::Reused => {}
            result => return result,
        }
        let (slot, _) = self.slot(to, &connect).await?;
        self.connect_stream(to.peer, slot, request).await
    }

    /// A place in a tunnel: of one that is there, of one that somebody is making, or of a new one.
    async fn slot<F>(
        &self,
        to: &Destination,
        connect: &impl Fn() -> F,
    ) -> Result<(Slot, Origin), OpenError>
    where
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        let key = Key {
            source: to.credential.identity().clone(),
            expected: Arc::clone(&to.expected),
            peer: to.peer,
        };
        loop {
            let mut dialing = match self.0.find(&key) {
                Found::Slot(slot) => return Ok((slot, Origin::Reused)),
                Found::Dialing(dialing) => dialing,
                Found::Nothing => self
                    .dial(&key, to, connect())
                    .map_err(|err| OpenError::Dial(Rc::new(err)))?,
            };
            let outcome = match dialing.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None,
            };
            let cut = || Rc::new(DialError::Cut { peer: to.peer });
            let tunnel = outcome
                .ok_or_else(cut)
                .and_then(|outcome| outcome)
                .map_err(OpenError::Dial)?;
            match self.0.take(&key, &tunnel) {
                Ok(slot) => return Ok((slot, Origin::Fresh)),
                // More waited than fit in: on to the next tunnel.
                Err(NoSlot::Full) => {}
                // It broke at once, and so would the next.
                Err(NoSlot::Broken(err)) => return Err(failure(to.peer, err)),
            }
        }
    }

    fn dial(
        &self,
        key: &Key,
        to: &Destination,
        connect: impl Future<Output = io::Result<TcpStream>> + 'static,
    ) -> Result<watch::Receiver<Option<Outcome>>, DialError> {
        self.0.make_room(key.peer)?;
        let (tell, dialing) = watch::channel(None);
        let entry = Entry::Dialing(dialing.clone());
        self.0.entries.borrow_mut().insert(key.clone(), entry);
        let attempt = Attempt {
            pool: Rc::clone(&self.0),
            key: key.clone(),
        };
        let (credential, expected) = (Arc::clone(&to.credential), Arc::clone(&to.expected));
        // Boxed: the futures of a TLS handshake are large, and tasks of a group are moved around.
        self.0.tasks.spawn_local(Box::pin(async move {
            let pool = Rc::clone(&attempt.pool);
            let key = attempt.key.clone();
            let dialed = dial(key.peer, connect, &credential, expected, &pool.settings).await;
            // Kept no longer than needed: the roots it came with are trusted as long as it is there.
            drop(credential);
            let (tunnel, driver) = match dialed {
                Ok(dialed) => dialed,
                Err(err) => {
                    drop(attempt);
                    tell.send_replace(Some(Err(Rc::new(err))));
                    return;
                }
            };
            let weak = Rc::downgrade(&tunnel);
            pool.entries
                .borrow_mut()
                .insert(key.clone(), Entry::Ready(Rc::clone(&tunnel)));
            drop(attempt);
            tell.send_replace(Some(Ok(tunnel)));
            // With the sender and the last waiter goes their copy of the tunnel.
            drop(tell);
            let shutdown = pool.shutdown.clone();
            let release = || {
                if let Some(tunnel) = weak.upgrade() {
                    pool.forget(&key, &tunnel);
                }
            };
            driver.run(weak.clone(), shutdown, release).await;
        }));
        Ok(dialing)
    }

    async fn connect_stream(
        &self,
        peer: HboneAddr,
        slot: Slot,
        request: &Connect<'_>,
    ) -> Result<Opened, OpenError> {
        let request = request
            .request()
            .map_err(|source| OpenError::Request { peer, source })?;
        let cut = slot.0.cut.clone();
        let failed = |err| match cut.reason() {
            Some(reason) => OpenError::Cut { peer, reason },
            None => failure(peer, err),
        };
        let mut requests = slot.0.requests().ready().await.map_err(failed)?;
        let (response, send) = requests.send_request(request, false).map_err(failed)?;
        let after = self.0.settings.answer_timeout;
        let response = timeout(after, response)
            .await
            .map_err(|_| OpenError::NoAnswer { peer, after })?
            .map_err(failed)?;
        match Answer::classify(&response) {
            Answer::Open => Ok(Opened {
                tunnel: slot.0.facts.clone(),
                stream: Stream::new(send, response.into_body(), slot.0.cut.clone(), Some(slot)),
            }),
            Answer::Refused(status) => Err(OpenError::Refused { peer, status }),
        }
    }

    /// How many tunnels are there or being made.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.entries.borrow().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

enum Found {
    Slot(Slot),
    Dialing(watch::Receiver<Option<Outcome>>),
    Nothing,
}

impl Inner {
    fn find(&self, key: &Key) -> Found {
        let tunnel = match self.entries.borrow().get(key) {
            Some(Entry::Dialing(dialing)) => return Found::Dialing(dialing.clone()),
            Some(Entry::Ready(tunnel)) => Rc::clone(tunnel),
            None => return Found::Nothing,
        };
        match self.take(key, &tunnel) {
            Ok(slot) => Found::Slot(slot),
            Err(NoSlot::Full | NoSlot::Broken(_)) => Found::Nothing,
        }
    }

    /// A slot of `tunnel`, which leaves the pool when that was its last, or when it has none.
    fn take(&self, key: &Key, tunnel: &Rc<Tunnel>) -> Result<Slot, NoSlot> {
        let slot = tunnel.slot();
        if tunnel.is_retired() {
            self.forget(key, tunnel);
        }
        slot
    }

    fn forget(&self, key: &Key, tunnel: &Rc<Tunnel>) {
        let mut entries = self.entries.borrow_mut();
        if matches!(entries.get(key), Some(Entry::Ready(ready)) if Rc::ptr_eq(ready, tunnel)) {
            entries.remove(key);
        }
    }

    /// Keeps the pool in its bound by letting go of the tunnel that has been without streams for longest.
    fn make_room(&self, peer: HboneAddr) -> Result<(), DialError> {
        let mut entries = self.entries.borrow_mut();
        let tunnels = entries.len();
        if tunnels < self.settings.max_tunnels {
            return Ok(());
        }
        let idle = entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Ready(tunnel) => Some((key, tunnel.idle()?)),
            Entry::Dialing(_) => None,
        });
        let longest = idle
            .max_by_key(|(_, idle)| *idle)
            .map(|(key, _)| key.clone());
        match longest {
            Some(key) => {
                entries.remove(&key);
                Ok(())
            }
            None => Err(DialError::TooMany { peer, tunnels }),
        }
    }
}

/// A running attempt to connect: its entry goes with it, unless the tunnel took its place.
struct Attempt {
    pool: Rc<Inner>,
    key: Key,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut entries = self.pool.entries.borrow_mut();
        if matches!(entries.get(&self.key), Some(Entry::Dialing(_))) {
            entries.remove(&self.key);
        }
    }
}

fn failure(peer: HboneAddr, err: h2::Error) -> OpenError {
    match err.reason().map(|code| ErrorCode(code.into())) {
        Some(ErrorCode::REFUSED_STREAM) => OpenError::Closing { peer },
        Some(ErrorCode::NO_ERROR) if err.is_go_away() => OpenError::Closing { peer },
        Some(code) if err.is_reset() => OpenError::Reset { peer, code },
        _ => OpenError::Broken {
            peer,
            source: io_error(err),
        },
    }
}
