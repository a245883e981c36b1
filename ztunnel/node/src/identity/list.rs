//! The certificates of this node, for those who look at it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use ztunnel_mesh::name::Identity;

use super::Identities;
use crate::telemetry::chain;

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

impl Identities {
    /// All of them, the worst first.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateStatus> {
        let known: Vec<_> = {
            let table = self.shared.table();
            let known = table.known.iter();
            known
                .map(|(identity, known)| (identity.clone(), known.holds, known.latest.clone()))
                .collect()
        };
        let now = SystemTime::now();
        let status = |(identity, holds, latest): (Identity, usize, _)| {
            let latest: tokio::sync::watch::Receiver<super::Latest> = latest;
            let (not_after, failure) = latest.borrow().standing();
            let left = not_after.map(|end| match end.duration_since(now) {
                Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                Err(past) => -i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX),
            });
            let state = match (left, &failure) {
                (Some(left), None) if left > 0 => CertificateState::Valid,
                (Some(left), Some(_)) if left > 0 => CertificateState::RenewalFailing,
                (Some(_), _) => CertificateState::Expired,
                (None, Some(_)) => CertificateState::Failing,
                (None, None) => CertificateState::Pending,
            };
            CertificateStatus {
                identity: identity.to_string(),
                state,
                seconds_left: left,
                failure: failure.as_ref().map(|(error, _)| chain(&**error)),
                next_try_seconds: failure
                    .map(|(_, at)| at.saturating_duration_since(Instant::now()).as_secs()),
                in_use: holds > 0,
            }
        };
        let mut list: Vec<_> = known.into_iter().map(status).collect();
        list.sort_by(|a, b| (a.state, &a.identity).cmp(&(b.state, &b.identity)));
        list
    }
}
