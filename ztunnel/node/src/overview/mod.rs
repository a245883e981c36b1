//! The node as its page shows it: pods, who talks to whom, certificates, what failed, in one bounded document.
//!
//! Invariants: however many look, it is made once a second at most, and takes the node a small part of its time. Every
//! list has a bound and says what it left out. No secrets: nothing here has any.

mod failures;
mod pods;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::admin::PageSource;
use crate::enroll::{self, Enroller};
use crate::inspect::{CertificateStatus, Inspector, NodeStatus};
use crate::telemetry::{Talk, Telemetry};

pub use failures::{FailureRow, Meaning};
pub use pods::{PodMembership, PodRow};

/// How old what is shown may be. A page asks every two seconds.
const FRESH: Duration = Duration::from_secs(1);
/// It is made again no sooner than after so many times what making it took.
const REST: u32 = 20;

const MOST_PODS: usize = 300;
const MOST_TALKS: usize = 60;
const MOST_CERTIFICATES: usize = 100;
const MOST_FAILURES: usize = 50;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// When it was made, by a clock that begins with the daemon: rates are differences.
    pub up_ms: u64,
    /// When it was made, in milliseconds since 1970.
    pub now_ms: u64,
    pub status: NodeStatus,
    /// Those that need somebody first.
    pub pods: Shown<PodRow>,
    /// Who said most first.
    pub talks: Shown<Talk>,
    /// Of all pairs that talked lately, also of those that are left out.
    pub bytes: Protected,
    /// The worst first, then what ends first.
    pub certificates: Shown<CertificateStatus>,
    /// The last first.
    pub failures: Shown<FailureRow>,
    /// What the reasons of those mean.
    pub reasons: BTreeMap<String, Meaning>,
}

/// The first of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown<T> {
    pub rows: Vec<T>,
    pub left_out: usize,
}

/// Bytes, both ways, by whether they were under mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protected {
    pub mutual_tls: u64,
    pub plain: u64,
}

/// Makes the document, and has the last one at hand. Cheap to clone.
#[derive(Clone)]
pub struct Overviews(Arc<Inner>);

struct Inner {
    inspector: Inspector,
    enroller: Enroller,
    telemetry: Telemetry,
    version: &'static str,
    /// One makes it, the others wait for that.
    turn: Semaphore,
    last: Mutex<Option<Made>>,
    missing: Arc<Mutex<pods::Missing>>,
}

#[derive(Clone)]
struct Made {
    text: Bytes,
    good_until: Instant,
}

impl Overviews {
    #[must_use]
    pub fn new(
        inspector: Inspector,
        enroller: Enroller,
        telemetry: Telemetry,
        version: &'static str,
    ) -> Self {
        Self(Arc::new(Inner {
            inspector,
            enroller,
            telemetry,
            version,
            turn: Semaphore::new(1),
            last: Mutex::default(),
            missing: Arc::default(),
        }))
    }
}

impl PageSource for Overviews {
    fn overview(&self) -> std::pin::Pin<Box<dyn Future<Output = Bytes> + Send + '_>> {
        Box::pin(async {
            // It is never closed.
            let _turn = self.0.turn.acquire().await;
            if let Some(text) = self.0.fresh() {
                return text;
            }
            let began = Instant::now();
            let overview = self.0.make().await;
            // Nothing in it has a key that is no text, so it does not fail.
            let text: Bytes = serde_json::to_vec(&overview).unwrap_or_default().into();
            self.0.remember(text.clone(), began);
            text
        })
    }
}

impl Inner {
    fn fresh(&self) -> Option<Bytes> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let good = last
            .as_ref()
            .filter(|made| Instant::now() < made.good_until);
        good.map(|made| made.text.clone())
    }

    fn remember(&self, text: Bytes, began: Instant) {
        let made = Made {
            text,
            good_until: Instant::now() + FRESH.max(began.elapsed() * REST),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
    }

    async fn make(&self) -> Overview {
        let inspector = &self.inspector;
        let measured = self.enroller.pods().await;
        let glance = enroll::glance(measured.clone());
        let up_ms = inspector.started.elapsed().as_millis();
        let (mesh, node) = (inspector.mesh.load(), Arc::clone(&inspector.node));
        let metrics = Arc::clone(&self.telemetry.metrics);
        let missing = Arc::clone(&self.missing);
        // All workloads of a mesh are looked at, and all pairs: not on a thread that others wait for.
        let looked = spawn_blocking(move || {
            let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
            let pods = pods::rows(measured, &mesh, &node, &mut missing);
            (pods, metrics.traffic.talks())
        });
        let (pods, talks) = looked.await.unwrap_or_default();
        // The workers have better to do than to count what is counted.
        let count = |open: u64| usize::try_from(open).ok();
        let (inbound, outbound) = (count(talks.inbound), count(talks.outbound));
        let mut status = inspector.status_with(self.version, glance, inbound, outbound);
        status.attention.extend(pods::attention(&pods));
        let (mut talks, mut bytes) = (talks.pairs, Protected::default());
        for talk in &talks {
            let of = match talk.mutual_tls {
                true => &mut bytes.mutual_tls,
                false => &mut bytes.plain,
            };
            *of = of.saturating_add(talk.bytes());
        }
        talks.sort_by_cached_key(|talk| std::cmp::Reverse((talk.bytes(), talk.connections)));
        let mut certificates = inspector.identities.list();
        certificates.sort_by_key(|one| (!one.state.is_bad(), one.seconds_left));
        let failures = failures::rows(&self.telemetry.log.failures().list());
        let failures = Shown::first(failures, MOST_FAILURES);
        Overview {
            up_ms: u64::try_from(up_ms).unwrap_or(u64::MAX),
            now_ms: failures::now_ms(),
            status,
            pods: Shown::first(pods, MOST_PODS),
            talks: Shown::first(talks, MOST_TALKS),
            bytes,
            certificates: Shown::first(certificates, MOST_CERTIFICATES),
            reasons: failures::meanings(&failures.rows),
            failures,
        }
    }
}

impl<T> Shown<T> {
    fn first(mut rows: Vec<T>, most: usize) -> Self {
        let left_out = rows.len().saturating_sub(most);
        rows.truncate(most);
        Self { rows, left_out }
    }
}

#[cfg(test)]
mod tests;
