//! The certificates of this node, for those who look at it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use ztunnel_mesh::name::Identity;

use super::{FetchError, Identities};
use crate::telemetry::chain;
use crate::tls::Credential;

/// How things stand with the certificate of one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    pub identity: String,
    pub state: CertificateState,
    /// Until peers stop accepting it; negative when they have. None when there was none yet.
    pub seconds_left: Option<i64>,
    /// What the last request failed with, when none has succeeded since.
    pub failure: Option<String>,
    /// Until it is asked for again after a failure.
    pub next_try_seconds: Option<u64>,
    /// Whether a pod of this node has it.
    pub in_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// There is none that peers accept.
    Expired,
    /// There is none, and requests fail.
    Failing,
    /// The present one is in use, and the next one does not come.
    RenewalFailing,
    /// Asked for, and not there yet.
    Pending,
    Valid,
}

impl CertificateState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Failing => "failing",
            Self::RenewalFailing => "renewal failing",
            Self::Pending => "pending",
            Self::Valid => "valid",
        }
    }

    /// Whether somebody has to look at it.
    #[must_use]
    pub const fn is_bad(self) -> bool {
        match self {
            Self::Expired | Self::Failing | Self::RenewalFailing => true,
            Self::Pending | Self::Valid => false,
        }
    }
}

/// One identity and what became of its certificate.
#[derive(Clone, Debug)]
pub struct KnownIdentity {
    pub identity: Identity,
    /// Its last certificate, which may have expired.
    pub credential: Option<Arc<Credential>>,
    /// Why the last request failed, unless one has succeeded since, and when the next is.
    pub failure: Option<(Arc<FetchError>, Instant)>,
    /// Whether a pod of this node has it.
    pub in_use: bool,
}

impl KnownIdentity {
    /// Until peers stop accepting its certificate; negative when they have.
    #[must_use]
    pub fn seconds_left(&self) -> Option<i64> {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let ends = self.credential.as_ref()?.not_after();
        Some(match ends.duration_since(SystemTime::now()) {
            Ok(left) => seconds(left),
            Err(past) => -seconds(past.duration()),
        })
    }

    fn status(&self) -> CertificateStatus {
        let left = self.seconds_left();
        let state = match (left, &self.failure) {
            (Some(left), None) if left > 0 => CertificateState::Valid,
            (Some(left), Some(_)) if left > 0 => CertificateState::RenewalFailing,
            (Some(_), _) => CertificateState::Expired,
            (None, Some(_)) => CertificateState::Failing,
            (None, None) => CertificateState::Pending,
        };
        let failure = self.failure.as_ref();
        CertificateStatus {
            identity: self.identity.to_string(),
            state,
            seconds_left: left,
            failure: failure.map(|(error, _)| chain(&**error)),
            next_try_seconds: failure
                .map(|(_, at)| at.saturating_duration_since(Instant::now()).as_secs()),
            in_use: self.in_use,
        }
    }
}

impl Identities {
    /// All of them, in no order.
    #[must_use]
    pub fn known(&self) -> Vec<KnownIdentity> {
        let table = self.shared.table();
        let known = table.known.iter().map(|(identity, known)| {
            let latest = known.latest.borrow();
            KnownIdentity {
                identity: identity.clone(),
                credential: latest.last().cloned(),
                failure: latest.failure().cloned(),
                in_use: known.holds > 0,
            }
        });
        known.collect()
    }

    /// How things stand with all of them, the worst first.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateStatus> {
        let mut list: Vec<_> = self.known().iter().map(KnownIdentity::status).collect();
        list.sort_by(|a, b| (a.state, &a.identity).cmp(&(b.state, &b.identity)));
        list
    }
}
