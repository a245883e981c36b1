//! Certificates of the pods' identities: asked for once, shared by everybody, renewed in time.
//!
//! Invariants: at most one request in flight per identity, by a task of that identity's own, and at most eight in
//! all. Whoever waits, waits a bounded time. A renewal that fails leaves the present certificate in use until it
//! expires. Tasks run on the control runtime, whichever worker thread asks.
//!
//! An identity is kept as long as somebody holds it. Without a holder it is forgotten one to two minutes after it
//! was last asked for; and when [`MAX_UNHELD`] identities are known, only a hold begins another one.

mod ca;
mod csr;
mod keep;
mod schedule;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use ztunnel_mesh::name::Identity;
use ztunnel_mesh::reason::Reason;

use crate::control_plane::{ControlPlaneError, Endpoint};
use crate::task::{Shutdown, TaskGroup};
use crate::tls::{self, ChainError, Credential};

use ca::{CertificateAuthority, Sign};
use keep::{Latest, keep};

/// How long a connection waits for its pod's first certificate.
pub const WAIT: Duration = Duration::from_secs(5);
/// How many identities may be known before one that nobody holds is turned away.
pub const MAX_UNHELD: usize = 1024;
/// How long an identity that nobody holds stays at least after it was last asked for.
const UNHELD_FOR: Duration = Duration::from_secs(60);
const MAX_IN_FLIGHT: usize = 8;

/// Where certificates come from.
#[derive(Clone, Debug)]
pub struct CaConfig {
    pub endpoint: Endpoint,
    /// The lifetime to ask for. Renewal goes by the lifetime that was given.
    pub secret_ttl: Duration,
    /// What the certificates are used with.
    pub tls: tls::Context,
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
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Pending { .. } | Self::Unavailable { .. } | Self::Stopped { .. } => {
                Reason::IdentityUnavailable
            }
            Self::TooMany { .. } => Reason::Overloaded,
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
    in_flight: Semaphore,
    tasks: TaskGroup,
    shutdown: Shutdown,
    runtime: Handle,
    /// Held for moments, never across an await.
    known: Mutex<HashMap<Identity, Known>>,
}

#[derive(Debug)]
struct Known {
    holds: usize,
    waiting: usize,
    asked: Instant,
    latest: watch::Receiver<Latest>,
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
                in_flight: Semaphore::new(MAX_IN_FLIGHT),
                tasks,
                shutdown,
                runtime: Handle::current(),
                known: Mutex::default(),
            }),
        }
    }

    /// Gives the certificate of `identity`; waits for it when there is none yet.
    ///
    /// # Errors
    /// When there is none after [`WAIT`], or none can come before that.
    pub async fn credential(&self, identity: &Identity) -> Result<Arc<Credential>, IdentityError> {
        let (mut latest, _waiting) = {
            let mut known = self.shared.known();
            if !known.contains_key(identity) && known.len() >= MAX_UNHELD {
                return Err(IdentityError::TooMany {
                    identity: identity.clone(),
                });
            }
            let entry = self.shared.entry(&mut known, identity);
            entry.asked = Instant::now();
            if let Some(credential) = entry.latest.borrow().credential(SystemTime::now()) {
                return Ok(credential);
            }
            entry.waiting += 1;
            let waiting = Waiting {
                shared: &self.shared,
                identity,
            };
            (entry.latest.clone(), waiting)
        };
        wait(&mut latest, identity).await
    }

    /// Keeps the certificate of `identity` at hand for as long as the result lives. Starts to fetch it.
    #[must_use]
    pub fn hold(&self, identity: Identity) -> IdentityHold {
        let mut known = self.shared.known();
        let entry = self.shared.entry(&mut known, &identity);
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

    /// As [`Identities::credential`], without the look-up.
    ///
    /// # Errors
    /// When there is none after [`WAIT`], or none can come before that.
    pub async fn credential(&self) -> Result<Arc<Credential>, IdentityError> {
        if let Some(credential) = self.latest.borrow().credential(SystemTime::now()) {
            return Ok(credential);
        }
        wait(&mut self.latest.clone(), &self.identity).await
    }
}

impl Drop for IdentityHold {
    fn drop(&mut self) {
        let mut known = self.shared.known();
        let Some(entry) = known.get_mut(&self.identity) else {
            return;
        };
        entry.holds -= 1;
        if entry.holds == 0 && entry.waiting == 0 {
            entry.forget.cancel();
            known.remove(&self.identity);
        }
    }
}

/// Somebody waits for the first certificate.
struct Waiting<'a> {
    shared: &'a Shared,
    identity: &'a Identity,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.shared.known().get_mut(self.identity) {
            entry.waiting -= 1;
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, HashMap<Identity, Known>> {
        // Nothing that is done under the lock can leave the map half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of `identity`, and with a new one the task that keeps it.
    fn entry<'a>(
        self: &Arc<Self>,
        known: &'a mut HashMap<Identity, Known>,
        identity: &Identity,
    ) -> &'a mut Known {
        known.entry(identity.clone()).or_insert_with(|| {
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
                forget,
            }
        })
    }

    /// Forgets `identity` when nobody needs it any more. Says whether it did.
    fn forget_unheld(&self, identity: &Identity, forget: &CancellationToken) -> bool {
        let mut known = self.known();
        let unneeded = known.get(identity).is_some_and(|entry| {
            entry.holds == 0 && entry.waiting == 0 && entry.asked.elapsed() >= UNHELD_FOR
        });
        if unneeded && !forget.is_cancelled() {
            known.remove(identity);
        }
        unneeded
    }
}

async fn wait(
    latest: &mut watch::Receiver<Latest>,
    identity: &Identity,
) -> Result<Arc<Credential>, IdentityError> {
    let until = Instant::now() + WAIT;
    let decided = latest.wait_for(|latest| {
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
    credential.ok_or_else(|| latest.borrow().error(identity))
}

#[cfg(test)]
mod tests;
