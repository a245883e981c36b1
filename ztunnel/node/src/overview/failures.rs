//! Connections that failed, as rows: those that are alike in one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use ztunnel_mesh::reason::Reason;

use crate::inspect::ConnectionEnd;
use crate::telemetry::{Ended, chain};

/// So much is shown of what went wrong.
const LONGEST: usize = 400;

/// Connections of one pod with one peer that failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRow {
    /// The last one, in milliseconds since 1970.
    pub at_ms: u64,
    /// How many of them are remembered.
    pub count: usize,
    /// The pod of this node, as `namespace/name`.
    pub pod: String,
    /// `inbound` or `outbound`, seen from that pod.
    pub direction: String,
    pub source: ConnectionEnd,
    pub destination: ConnectionEnd,
    /// Hostname of the service that was asked for.
    pub service: Option<String>,
    pub reason: String,
    /// The particulars of the last one.
    pub error: Option<String>,
}

/// What a reason means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meaning {
    pub cause: String,
    pub next_step: String,
}

/// `failures` has the last one first, and so has the result.
pub(super) fn rows(failures: &[Arc<Ended>]) -> Vec<FailureRow> {
    let mut rows: Vec<FailureRow> = Vec::new();
    for ended in failures {
        let row = FailureRow::new(ended);
        match rows.iter_mut().find(|known| known.is_alike(&row)) {
            Some(known) => known.count += 1,
            None => rows.push(row),
        }
    }
    rows
}

/// What the reasons of these rows mean, by their codes.
pub(super) fn meanings(rows: &[FailureRow]) -> BTreeMap<String, Meaning> {
    let of = |reason: Reason| Meaning {
        cause: reason.cause().to_owned(),
        next_step: reason.next_step().to_owned(),
    };
    let codes = rows.iter().filter_map(|row| row.reason.parse().ok());
    codes
        .map(|reason: Reason| (reason.code().to_owned(), of(reason)))
        .collect()
}

impl FailureRow {
    fn new(ended: &Ended) -> Self {
        let facts = &ended.facts;
        let service = facts.service.as_ref().map(|service| &*service.key.hostname);
        let since = ended.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let error = ended
            .error
            .as_ref()
            .map(|error| short(chain(error.as_ref())));
        let (source, destination) = ConnectionEnd::both(ended);
        Self {
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            count: 1,
            pod: ended.pod.to_string(),
            direction: ended.direction.as_str().to_owned(),
            source,
            destination,
            service: service.or(facts.told_service.as_deref()).map(str::to_owned),
            reason: ended.reason.code().to_owned(),
            error,
        }
    }

    /// But for when it was, and the client's port.
    fn is_alike(&self, other: &Self) -> bool {
        let without_port = |end: &ConnectionEnd| ConnectionEnd {
            address: end.address.map(|address| (address.ip(), 0).into()),
            ..end.clone()
        };
        self.reason == other.reason
            && self.pod == other.pod
            && self.direction == other.direction
            && self.destination == other.destination
            && self.service == other.service
            && without_port(&self.source) == without_port(&other.source)
    }
}

fn short(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

/// Now, as the rows tell time.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
