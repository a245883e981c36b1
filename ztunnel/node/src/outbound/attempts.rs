//! The endpoints that one connection tries, one after the other.
//!
//! Until an endpoint has accepted the connection, another one can be tried without the app noticing: nothing that the app
//! sends is taken before, but what may go along with the CONNECT, and that is kept.
//!
//! Invariants:
//! - Each attempt is a decision of its own about the mesh as it is then, which avoids who refused already. There is no
//!   other way to an endpoint than what was decided.
//! - Only endpoints that were drawn among others are given up for another one, only for failures that another one need
//!   not have, and never because policy said no.
//! - What the app has said reaches one endpoint at most: who may have got it is not given up for another one.
//! - At most [`ATTEMPTS`] endpoints, which share the time limit of one connect.

use std::fmt;
use std::io;
use std::time::Duration;

use http::StatusCode;
use nix::errno::Errno;
use tokio::time::Instant;
use tracing::debug;
use ztunnel_mesh::Rng;
use ztunnel_mesh::decide::Drawn;

use super::OutboundError;
use super::refusers::Refusers;
use crate::telemetry::chain;
use crate::tls::{HandshakeError, is_rejection};
use crate::tunnel::{DialError, OpenError};

const ATTEMPTS: u32 = 3;

/// Endpoints that did not accept a connection, each with the reason.
#[derive(Debug)]
pub(super) struct Tried(Vec<Failed>);

#[derive(Debug)]
struct Failed {
    endpoint: Drawn,
    error: OutboundError,
    /// It was given up to have time for others.
    cut_short: bool,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, failed) in self.0.iter().enumerate() {
            let separator = if place > 0 { "; " } else { "" };
            let Drawn { uid, port, .. } = &failed.endpoint;
            write!(f, "{separator}{uid} port {port}: {}", chain(&failed.error))?;
        }
        Ok(())
    }
}

/// What one connection has tried so far.
pub(super) struct Attempts<'a> {
    refusers: &'a Refusers,
    /// What all attempts that are still to come may take together.
    time: Duration,
    failed: Vec<Failed>,
    /// Refusers that others found are as good as any: better than one that has refused this connection.
    any_other: bool,
}

/// An attempt that has begun.
pub(super) struct Attempt {
    endpoint: Option<Drawn>,
    /// How long it may take to be connected to the next hop, if not as long as usual.
    pub(super) within: Option<Duration>,
    began: Instant,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(refusers: &'a Refusers, limit: Duration) -> Self {
        Self {
            refusers,
            time: limit,
            failed: Vec::new(),
            any_other: false,
        }
    }

    /// What a decision takes from outside.
    pub(super) fn chance(&self) -> Chance<'_> {
        Chance(self)
    }

    /// Whether to decide again, since all that may be used are avoided, and of them one was drawn that was tried already.
    pub(super) fn wants_another(&mut self, drawn: Option<&Drawn>) -> bool {
        let tried = drawn.is_some_and(|drawn| self.failed.iter().any(|f| f.endpoint == *drawn));
        tried && !std::mem::replace(&mut self.any_other, true)
    }

    /// # Errors
    /// When there is nobody else to try: how the last attempt failed.
    pub(super) fn begin(&mut self, endpoint: Option<Drawn>) -> Result<Attempt, OutboundError> {
        let within = match &endpoint {
            None => None,
            Some(drawn) => {
                self.refusers.trying(&drawn.uid, drawn.port);
                Some(self.share_of(drawn)?)
            }
        };
        Ok(Attempt {
            endpoint,
            within,
            began: Instant::now(),
        })
    }

    fn share_of(&mut self, drawn: &Drawn) -> Result<Duration, OutboundError> {
        let before = self.failed.iter().position(|f| f.endpoint == *drawn);
        match before {
            // There is no better one after all: it gets the rest of the time.
            Some(before) if self.failed[before].cut_short => {
                self.failed.remove(before);
                Ok(self.time)
            }
            Some(before) => {
                let last = self.failed.remove(before);
                Err(self.over(last))
            }
            None => Ok(self.time / self.left().max(1)),
        }
    }

    fn left(&self) -> u32 {
        ATTEMPTS.saturating_sub(u32::try_from(self.failed.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn succeeded(&self, attempt: &Attempt) {
        if let Some(drawn) = &attempt.endpoint {
            self.refusers.accepted(&drawn.uid, drawn.port);
        }
    }

    /// # Errors
    /// When it is not to be tried again.
    pub(super) fn failed(
        &mut self,
        attempt: Attempt,
        error: OutboundError,
    ) -> Result<(), OutboundError> {
        let (Some(endpoint), true) = (attempt.endpoint, is_refusal(&error)) else {
            return Err(self.end(error));
        };
        debug!(endpoint = %endpoint.uid, port = endpoint.port, error = chain(&error), "endpoint refused");
        if !(endpoint.passes_on && is_of_the_app(&error)) {
            self.refusers.refused(&endpoint.uid, endpoint.port);
        }
        // Waiting for our own certificate is no fault of the endpoint, and takes nothing from the others.
        let share = attempt.within.unwrap_or(self.time);
        let spent = attempt.began.elapsed().min(share);
        let cut_short = spent == share && share < self.time;
        self.time = self.time.saturating_sub(spent);
        let failed = Failed {
            endpoint,
            error,
            cut_short,
        };
        if self.left() <= 1 || self.time.is_zero() {
            return Err(self.over(failed));
        }
        self.failed.push(failed);
        Ok(())
    }

    /// It ends with `error`, whatever failed before.
    pub(super) fn end(&mut self, error: OutboundError) -> OutboundError {
        if self.failed.is_empty() {
            return error;
        }
        let before = Tried(std::mem::take(&mut self.failed));
        let last = Box::new(error);
        OutboundError::Retried { before, last }
    }

    /// Nobody is left to try after this one.
    fn over(&mut self, last: Failed) -> OutboundError {
        if self.failed.is_empty() {
            return last.error;
        }
        let reason = last.error.reason();
        self.failed.push(last);
        let tried = Tried(std::mem::take(&mut self.failed));
        OutboundError::NobodyAccepted { tried, reason }
    }
}

/// Whether another endpoint might take the connection: this one was not reached, or its app was not.
fn is_refusal(err: &OutboundError) -> bool {
    match err {
        OutboundError::Timeout { .. } => true,
        OutboundError::Connect { source, .. } => !is_ours(source),
        OutboundError::Open(err) | OutboundError::Through { source: err, .. } => match err {
            OpenError::Dial(err) => is_refusal_to_talk(err),
            // The peer's certificate was revoked.
            OpenError::Cut { .. }
            | OpenError::Silent { .. }
            | OpenError::Closing { .. }
            | OpenError::Reset { .. } => true,
            OpenError::Broken { source, .. } => !is_rejection(source),
            OpenError::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            // As long as that takes, there is no time left.
            OpenError::NoAnswer { .. } | OpenError::Request { .. } => false,
        },
        OutboundError::Loopback { .. }
        | OutboundError::Unknown(_)
        | OutboundError::Refused(_)
        | OutboundError::Lookup(_)
        | OutboundError::Lookups { .. }
        | OutboundError::Identity(_)
        // As long as that takes, there is no time left.
        | OutboundError::Resolve(_)
        | OutboundError::Loop { .. }
        | OutboundError::NobodyAccepted { .. }
        | OutboundError::Retried { .. }
        | OutboundError::AppGone(_)
        | OutboundError::Relay(_) => false,
    }
}

fn is_refusal_to_talk(err: &DialError) -> bool {
    match err {
        DialError::Timeout { .. } | DialError::Silent { .. } => true,
        DialError::Connect { source, .. } => !is_ours(source),
        DialError::Tls { source, .. } => match source {
            HandshakeError::Timeout { .. } => true,
            HandshakeError::Failed(source) => !is_rejection(source),
            HandshakeError::TooMany => false,
        },
        DialError::TooMany { .. } | DialError::Cut { .. } => false,
    }
}

/// Whether a connect failed for want of something here.
fn is_ours(source: &io::Error) -> bool {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(errno) => matches!(
            errno,
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::EADDRNOTAVAIL
        ),
        // Its network namespace cannot be entered.
        None => true,
    }
}

/// Whether the next hop itself was reached, and said that there is nobody behind it.
fn is_of_the_app(err: &OutboundError) -> bool {
    matches!(
        err,
        OutboundError::Open(OpenError::Refused { .. }) | OutboundError::Through { .. }
    )
}

/// Random numbers of the thread, and who was found to refuse.
pub(super) struct Chance<'a>(&'a Attempts<'a>);

impl Rng for Chance<'_> {
    fn next_u32(&mut self) -> u32 {
        rand::random()
    }

    fn avoids(&self, uid: &str, port: u16) -> bool {
        let Attempts {
            failed,
            refusers,
            any_other,
            ..
        } = self.0;
        let is_it = |f: &Failed| *f.endpoint.uid == *uid && f.endpoint.port == port;
        failed.iter().any(is_it) || (!any_other && refusers.avoids(uid, port))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use ztunnel_mesh::addr::HboneAddr;
    use ztunnel_mesh::reason::Reason;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(9);

    fn endpoint(uid: &str, passes_on: bool) -> Option<Drawn> {
        Some(Drawn {
            uid: uid.into(),
            port: 80,
            passes_on,
        })
    }

    fn timed_out() -> OutboundError {
        OutboundError::Timeout {
            to: ([10, 0, 0, 1], 80).into(),
            after: Duration::from_secs(3),
        }
    }

    fn answered(status: StatusCode) -> OutboundError {
        let peer = HboneAddr(([10, 0, 0, 2], 15008).into());
        OutboundError::Open(OpenError::Refused { peer, status })
    }

    #[tokio::test(start_paused = true)]
    async fn three_share_the_time_and_each_is_named() {
        let refusers = Refusers::default();
        let mut attempts = Attempts::new(&refusers, LIMIT);
        for name in ["a", "b"] {
            let attempt = attempts.begin(endpoint(name, false)).unwrap();
            assert_eq!(attempt.within, Some(Duration::from_secs(3)));
            advance(Duration::from_secs(4)).await;
            attempts.failed(attempt, timed_out()).unwrap();
            assert!(attempts.chance().avoids(name, 80) && !attempts.chance().avoids("c", 80));
        }
        let attempt = attempts.begin(endpoint("c", false)).unwrap();
        let over = attempts.failed(attempt, answered(StatusCode::SERVICE_UNAVAILABLE));
        let over = over.unwrap_err();
        assert_eq!(over.reason(), Reason::PeerRefused);
        let said = over.to_string();
        for part in ["a port 80: ", "; b port 80: ", "; c port 80: ", "503"] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_one_has_all_the_time_there_is() {
        let refusers = Refusers::default();
        let mut attempts = Attempts::new(&refusers, LIMIT);
        let attempt = attempts.begin(endpoint("a", false)).unwrap();
        advance(Duration::from_secs(3)).await;
        attempts.failed(attempt, timed_out()).unwrap();
        // First those are asked for that others found to refuse.
        let again = endpoint("a", false);
        assert!(attempts.wants_another(again.as_ref()));
        assert!(!attempts.wants_another(again.as_ref()));
        let attempt = attempts.begin(again).unwrap();
        assert_eq!(attempt.within, Some(Duration::from_secs(6)));
        advance(Duration::from_secs(6)).await;
        let over = attempts.failed(attempt, timed_out()).unwrap_err();
        assert_eq!(over.to_string(), timed_out().to_string());
    }

    #[tokio::test(start_paused = true)]
    async fn what_policy_says_is_final_and_one_that_refuses_at_once_is_not_asked_twice() {
        let refusers = Refusers::default();
        let mut attempts = Attempts::new(&refusers, LIMIT);
        let attempt = attempts.begin(endpoint("a", false)).unwrap();
        let denied = attempts.failed(attempt, answered(StatusCode::UNAUTHORIZED));
        assert_eq!(
            chain(&denied.unwrap_err()),
            chain(&answered(StatusCode::UNAUTHORIZED))
        );
        assert!(!refusers.avoids("a", 80));

        let attempt = attempts.begin(endpoint("a", false)).unwrap();
        let refused = answered(StatusCode::SERVICE_UNAVAILABLE);
        attempts.failed(attempt, refused).unwrap();
        assert!(attempts.begin(endpoint("a", false)).is_err());

        let mut attempts = Attempts::new(&refusers, LIMIT);
        let attempt = attempts.begin(endpoint("b", false)).unwrap();
        attempts.failed(attempt, timed_out()).unwrap();
        let attempt = attempts.begin(endpoint("c", false)).unwrap();
        let denied = attempts.failed(attempt, answered(StatusCode::UNAUTHORIZED));
        let said = chain(&denied.unwrap_err());
        assert!(
            said.contains("b port 80: ") && said.contains("401"),
            "{said}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_waypoint_is_not_avoided_for_what_is_behind_it() {
        let refusers = Refusers::default();
        let mut attempts = Attempts::new(&refusers, LIMIT);
        let attempt = attempts.begin(endpoint("w", true)).unwrap();
        let refused = answered(StatusCode::SERVICE_UNAVAILABLE);
        attempts.failed(attempt, refused).unwrap();
        // By this connection only.
        assert!(attempts.chance().avoids("w", 80) && !refusers.avoids("w", 80));
        // What was not drawn has no others.
        let attempt = attempts.begin(None).unwrap();
        assert_eq!(attempt.within, None);
        assert!(attempts.failed(attempt, timed_out()).is_err());
    }
}
