//! The task that keeps one identity's certificate: fetch, publish, wait, again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use ztunnel_mesh::name::Identity;

use super::csr::Request;
use super::schedule::{renew_in, retry_in};
use super::turn::Turn;
use super::{FetchError, IdentityError, Shared, UNHELD_FOR};
use crate::task::Backoff;
use crate::tls::{ChainError, Credential};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(150);

/// What is known of an identity's certificate.
#[derive(Clone, Debug, Default)]
pub(super) struct Latest {
    credential: Option<Arc<Credential>>,
    /// The failure since, and when the next try is.
    failure: Option<(Arc<FetchError>, Instant)>,
}

impl Latest {
    /// The certificate, when peers still accept it.
    pub(super) fn credential(&self, now: SystemTime) -> Option<Arc<Credential>> {
        self.credential
            .as_ref()
            .filter(|credential| now < credential.not_after())
            .cloned()
    }

    /// The last certificate, which may have expired.
    pub(super) fn last(&self) -> Option<&Arc<Credential>> {
        self.credential.as_ref()
    }

    /// What the requests since failed with, and when the next one is.
    pub(super) fn failure(&self) -> Option<&(Arc<FetchError>, Instant)> {
        self.failure.as_ref()
    }

    /// Whether nothing can change before `until`: then waiting is of no use.
    pub(super) fn hopeless_before(&self, until: Instant) -> bool {
        matches!(self.failure, Some((_, next_try)) if next_try >= until)
    }

    /// What to tell somebody who waited in vain.
    pub(super) fn error(&self, identity: &Identity) -> IdentityError {
        let identity = identity.clone();
        match &self.failure {
            Some((error, next_try)) => IdentityError::Unavailable {
                identity,
                next_try: next_try.saturating_duration_since(Instant::now()),
                source: error.clone(),
            },
            None => IdentityError::Pending {
                identity,
                waited: super::WAIT,
            },
        }
    }
}

/// Keeps the certificate of `identity` until it is forgotten or the daemon stops.
pub(super) async fn keep(
    shared: Arc<Shared>,
    identity: Identity,
    publish: watch::Sender<Latest>,
    forget: CancellationToken,
) {
    let keeping = async {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let again_in = match fetch(&shared, &identity).await {
                Ok(credential) => {
                    backoff.reset();
                    install(&publish, credential)
                }
                Err(error) => {
                    let delay = backoff.delay();
                    postpone(&publish, &identity, error, delay)
                }
            };
            if !still_needed(&shared, &identity, &forget, Due::after(again_in)).await {
                return debug!(%identity, "identity forgotten, nobody holds it");
            }
        }
    };
    tokio::select! {
        // What is forgotten while it waits for its turn must not use it.
        biased;
        () = forget.cancelled() => debug!(%identity, "identity forgotten"),
        () = shared.shutdown.started() => {}
        () = keeping => {}
    }
}

async fn fetch(shared: &Shared, identity: &Identity) -> Result<Credential, FetchError> {
    let _turn = Turn::come(shared, identity).await;
    let Request { csr, key } = Request::new(identity).map_err(FetchError::Request)?;
    let chain = shared.ca.sign(identity, csr).await?;
    let credential =
        Credential::from_chain(identity, &key, &chain, &shared.tls).map_err(FetchError::Answer)?;
    if credential.not_after() <= SystemTime::now() {
        return Err(FetchError::Answer(ChainError::Expired));
    }
    Ok(credential)
}

fn install(publish: &watch::Sender<Latest>, credential: Credential) -> Duration {
    let renew_in = renew_in(
        SystemTime::now(),
        credential.refresh_at(),
        credential.not_after(),
        rand::rng().random_range(0.9..=1.1),
    );
    info!(identity = %credential.identity(), ?renew_in, "certificate issued");
    publish.send_replace(Latest {
        credential: Some(Arc::new(credential)),
        failure: None,
    });
    renew_in
}

fn postpone(
    publish: &watch::Sender<Latest>,
    identity: &Identity,
    error: FetchError,
    delay: Duration,
) -> Duration {
    let now = SystemTime::now();
    let serving = publish.borrow().credential(now);
    let retry_in = retry_in(
        now,
        delay,
        serving.as_ref().map(|credential| credential.not_after()),
    );
    warn!(
        %identity,
        error = &error as &(dyn std::error::Error + 'static),
        ?retry_in,
        old_one_serves = serving.is_some(),
        "certificate request failed"
    );
    publish.send_replace(Latest {
        credential: serving,
        failure: Some((Arc::new(error), Instant::now() + retry_in)),
    });
    retry_in
}

/// When the next request is due: by both clocks, since the one that certificates go by may be set. A node that
/// starts in the wrong year would otherwise sleep through the end of all its certificates.
struct Due {
    monotonic: Instant,
    wall: SystemTime,
}

impl Due {
    fn after(delay: Duration) -> Self {
        Self {
            monotonic: Instant::now() + delay,
            wall: SystemTime::now() + delay,
        }
    }

    fn left(&self) -> Duration {
        let wall = self.wall.duration_since(SystemTime::now());
        let monotonic = self.monotonic.saturating_duration_since(Instant::now());
        monotonic.min(wall.unwrap_or_default())
    }
}

/// Waits until `due`. Looks from time to time whether anybody still needs the identity; false when not.
async fn still_needed(
    shared: &Shared,
    identity: &Identity,
    forget: &CancellationToken,
    due: Due,
) -> bool {
    loop {
        tokio::time::sleep(due.left().min(UNHELD_FOR)).await;
        if shared.forget_unheld(identity, forget) {
            return false;
        }
        if due.left().is_zero() {
            return true;
        }
    }
}
