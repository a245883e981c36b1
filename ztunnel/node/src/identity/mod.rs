//! Certificates of the pods' identities: asked for once, shared by everybody, renewed in time.
//!
//! Invariants: at most one request in flight per identity, by a task of that identity's own, and at most eight in
//! all, in the order that `queue` decides. Whoever waits, waits a bounded time. A renewal that fails leaves the
//! present certificate in use until it expires. Tasks run on the control runtime, whichever worker thread asks.
//!
//! A connection never makes the CA's work harder: it waits for the next try when that comes in time, and otherwise
//! gets the last failure at once. The first tries come quickly, since the CA knows a fresh pod a moment after us.
//!
//! An identity is kept as long as somebody holds it. Without a holder it is forgotten one to two minutes after it
//! was last asked for; and when [`MAX_UNHELD`] identities are known, only a hold begins another one. A request for
//! what is forgotten is given up, and its answer with it. So there are as many tasks, and places in the queue, as
//! there are identities of enrolled pods, or [`MAX_UNHELD`].

mod ca;
mod csr;
mod keep;
mod list;
mod queue;
mod schedule;
mod turn;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use ztunnel_mesh::name::Identity;
use ztunnel_mesh::reason::Reason;

use crate::control_plane::{ControlPlaneError, Endpoint};
use crate::task::{Shutdown, TaskGroup};
use crate::telemetry::CaMetrics;
use crate::tls::{self, ChainError, Credential};

use ca::{CertificateAuthority, Sign};
use keep::{Latest, keep};
pub use list::{CertificateState, CertificateStatus, KnownIdentity};
use queue::{Queue, Ticket};

/// How long a connection waits for its pod's first certificate.
pub const WAIT: Duration = Duration::from_secs(5);
/// How many identities may be known before one that nobody holds is turned away.
pub const MAX_UNHELD: usize = 1024;
/// How long an identity that nobody holds stays at least after it was last asked for.
const UNHELD_FOR: Duration = Duration::from_secs(60);

/// Where certificates come from.
#[derive(Clone, Debug)]
pub struct CaConfig {
    pub endpoint: Endpoint,
    /// The lifetime to ask for. Renewal goes by the lifetime that was given.
    pub secret_ttl: Duration,
    /// What the certificates are used with.
    pub tls: tls::Context,
    pub metrics: CaMetrics,
}

/// Why there is no certificate for a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// The CA has not answered yet.
    #[error("no certificate for {identity} after {waited:?}")]
    Pending {
        identity: Identity,
        waited: Duration,
    },
    /// The last try failed, and the next one comes too late for this connection.
    #[error("no certificate for {identity}; the next try is in {next_try:?}")]
    Unavailable {
        identity: Identity,
        next_try: Duration,
        source: Arc<FetchError>,
    },
    /// A guard against keeping certificates for everything that is ever asked for.
    #[error("no certificate for {identity}: {MAX_UNHELD} identities are in use already")]
    TooMany { identity: Identity },
    /// The daemon stops.
    #[error("no certificate for {identity}: shutting down")]
    Stopped { identity: Identity },
}

impl IdentityError {
    /// The reason a connection ends with.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Pending { .. } => Reason::IdentityUnavailable,
            Self::Unavailable { source, .. } => source.reason(),
            Self::TooMany { .. } => Reason::Overloaded,
            Self::Stopped { .. } => Reason::Drained,
        }
    }
}

/// Why one request for a certificate failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Key or request could not be made.
    #[error("make the certificate request")]
    Request(#[source] rcgen::Error),
    /// The CA could not be called.
    #[error("call the CA")]
    Call(#[source] ControlPlaneError),
    /// The CA is silent.
    #[error("the CA did not answer within {after:?}")]
    Timeout { after: Duration },
    /// The CA says no, or cannot be reached. It does not say more about why it refuses to impersonate.
    #[error("the CA answered {code:?}: {explanation}{}", hint(*code))]
    Refused {
        code: tonic::Code,
        explanation: String,
    },
    /// The CA said yes, but not with a certificate that works.
    #[error("the CA's answer is unusable")]
    Answer(#[source] ChainError),
}

impl FetchError {
    /// The reason of the connections that needed it.
    const fn reason(&self) -> Reason {
        match self {
            Self::Request(_) | Self::Call(_) | Self::Timeout { .. } => Reason::IdentityUnavailable,
            Self::Refused { code, .. } => match code {
                // Nobody has thought about it yet, or nobody is there to.
                tonic::Code::Unavailable
                | tonic::Code::DeadlineExceeded
                | tonic::Code::Cancelled
                | tonic::Code::Aborted
                | tonic::Code::ResourceExhausted
                | tonic::Code::Internal
                | tonic::Code::Unknown => Reason::IdentityUnavailable,
                _ => Reason::IdentityRefused,
            },
            Self::Answer(_) => Reason::IdentityRefused,
        }
    }
}

const fn hint(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
            "; check this node's token and cluster id, that the CA trusts this service account, and that a pod with \
             this identity runs on this node"
        }
        _ => "",
    }
}

/// All identities of this node. Cheap to clone, to be used from any thread.
#[derive(Clone, Debug)]
pub struct Identities {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ca: Arc<dyn Sign>,
    tls: tls::Context,
    tasks: TaskGroup,
    shutdown: Shutdown,
    runtime: Handle,
    /// Held for moments, never across an await.
    table: Mutex<Table>,
}

/// The identities, and their requests to the CA: what waits for a certificate decides which request is next.
#[derive(Debug, Default)]
struct Table {
    known: HashMap<Identity, Known>,
    queue: Queue,
    /// Whom to tell that its turn has come.
    turns: HashMap<Ticket, oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Known {
    holds: usize,
    /// Connections that wait for a certificate.
    waiting: usize,
    asked: Instant,
    latest: watch::Receiver<Latest>,
    /// Of the last request, which may be done.
    ticket: Option<Ticket>,
    /// Ends the task that keeps it.
    forget: CancellationToken,
}

impl Identities {
    /// Fetches certificates by tasks in `tasks`, on the current runtime, until `shutdown`. After it, what is there
    /// can still be used.
    ///
    /// # Panics
    /// Outside a runtime.
    #[must_use]
    pub fn new(cfg: CaConfig, tasks: TaskGroup, shutdown: Shutdown) -> Self {
        let tls = cfg.tls.clone();
        let ca = Arc::new(CertificateAuthority::new(cfg));
        let (roots, until) = (Arc::clone(&ca), shutdown.clone());
        tasks.spawn(async move { roots.follow_roots(until).await });
        Self::with(ca, tls, tasks, shutdown)
    }

    fn with(ca: Arc<dyn Sign>, tls: tls::Context, tasks: TaskGroup, shutdown: Shutdown) -> Self {
        Self {
            shared: Arc::new(Shared {
                ca,
                tls,
                tasks,
                shutdown,
                runtime: Handle::current(),
                table: Mutex::default(),
            }),
        }
    }

    /// Gives the certificate of `identity`; waits for it when there is none yet.
    ///
    /// # Errors
    /// When there is none after [`WAIT`], or none can come before that.
    pub async fn credential(&self, identity: &Identity) -> Result<Arc<Credential>, IdentityError> {
        let waiting = {
            let mut table = self.shared.table();
            if !table.known.contains_key(identity) && table.known.len() >= MAX_UNHELD {
                return Err(IdentityError::TooMany {
                    identity: identity.clone(),
                });
            }
            let entry = self.shared.entry(&mut table, identity);
            entry.asked = Instant::now();
            if let Some(credential) = entry.latest.borrow().credential(SystemTime::now()) {
                return Ok(credential);
            }
            Waiting::begin(&self.shared, &mut table, identity)
        };
        waiting.end().await
    }

    /// How many requests wait for their turn to ask the CA.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.shared.table().queue.len()
    }

    /// Keeps the certificate of `identity` at hand for as long as the result lives. Starts to fetch it.
    #[must_use]
    pub fn hold(&self, identity: Identity) -> IdentityHold {
        let mut table = self.shared.table();
        let entry = self.shared.entry(&mut table, &identity);
        entry.holds += 1;
        IdentityHold {
            latest: entry.latest.clone(),
            shared: self.shared.clone(),
            identity,
        }
    }
}

/// Somebody needs this identity: see [`Identities::hold`].
#[derive(Debug)]
pub struct IdentityHold {
    shared: Arc<Shared>,
    identity: Identity,
    latest: watch::Receiver<Latest>,
}

impl IdentityHold {
    /// Whose certificate is held.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// As [`Identities::credential`], without a lock when it is there.
    ///
    /// # Errors
    /// When there is none after [`WAIT`], or none can come before that.
    pub async fn credential(&self) -> Result<Arc<Credential>, IdentityError> {
        if let Some(credential) = self.latest.borrow().credential(SystemTime::now()) {
            return Ok(credential);
        }
        let waiting = {
            let mut table = self.shared.table();
            Waiting::begin(&self.shared, &mut table, &self.identity)
        };
        waiting.end().await
    }
}

impl Drop for IdentityHold {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        let Some(entry) = table.known.get_mut(&self.identity) else {
            return;
        };
        entry.holds -= 1;
        if entry.holds == 0 && entry.waiting == 0 {
            entry.forget.cancel();
            table.known.remove(&self.identity);
        }
    }
}

/// A connection waits for a certificate.
struct Waiting<'a> {
    shared: &'a Shared,
    identity: &'a Identity,
    latest: watch::Receiver<Latest>,
}

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Arc<Shared>, table: &mut Table, identity: &'a Identity) -> Self {
        let entry = shared.entry(table, identity);
        entry.waiting += 1;
        let latest = entry.latest.clone();
        table.tell(identity);
        Self {
            shared,
            identity,
            latest,
        }
    }

    async fn end(mut self) -> Result<Arc<Credential>, IdentityError> {
        let identity = self.identity;
        let until = Instant::now() + WAIT;
        let decided = self.latest.wait_for(|latest| {
            latest.credential(SystemTime::now()).is_some() || latest.hopeless_before(until)
        });
        let credential = match tokio::time::timeout_at(until, decided).await {
            Ok(Ok(latest)) => latest.credential(SystemTime::now()),
            Ok(Err(_)) => {
                return Err(IdentityError::Stopped {
                    identity: identity.clone(),
                });
            }
            Err(_) => None,
        };
        credential.ok_or_else(|| self.latest.borrow().error(identity))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        if let Some(entry) = table.known.get_mut(self.identity) {
            entry.waiting -= 1;
            table.tell(self.identity);
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that is done under the lock can leave the table half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of `identity`, and with a new one the task that keeps it.
    fn entry<'a>(self: &Arc<Self>, table: &'a mut Table, identity: &Identity) -> &'a mut Known {
        table.known.entry(identity.clone()).or_insert_with(|| {
            let (publish, latest) = watch::channel(Latest::default());
            let forget = CancellationToken::new();
            self.tasks.spawn_on(
                keep(self.clone(), identity.clone(), publish, forget.clone()),
                &self.runtime,
            );
            Known {
                holds: 0,
                waiting: 0,
                asked: Instant::now(),
                latest,
                ticket: None,
                forget,
            }
        })
    }

    /// Forgets `identity` when nobody needs it any more. Says whether it did.
    fn forget_unheld(&self, identity: &Identity, forget: &CancellationToken) -> bool {
        let mut table = self.table();
        let unneeded = table.known.get(identity).is_some_and(|entry| {
            entry.holds == 0 && entry.waiting == 0 && entry.asked.elapsed() >= UNHELD_FOR
        });
        if unneeded && !forget.is_cancelled() {
            table.known.remove(identity);
        }
        unneeded
    }
}

#[cfg(test)]
mod tests;
