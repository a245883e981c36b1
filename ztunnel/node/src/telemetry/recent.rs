//! The connections that failed last, for those who look at a node.
//!
//! Kept as they ended, and made into text only for whoever asks. So many of each reason: a flood of one hides no other.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ztunnel_mesh::reason::Reason;

use super::access::Ended;

/// Kept of each reason.
const KEPT: usize = 16;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecentFailures(Arc<Mutex<Vec<VecDeque<Arc<Ended>>>>>);

impl RecentFailures {
    /// Keeps it, if it failed.
    pub(crate) fn keep(&self, ended: Box<Ended>) {
        if ended.reason.is_success() {
            return;
        }
        let reason = ended.reason as usize;
        let ended = Arc::from(ended);
        let mut kept = self.kept();
        let Some(row) = kept.get_mut(reason) else {
            return;
        };
        let oldest = (row.len() == KEPT).then(|| row.pop_front());
        row.push_back(ended);
        drop(kept);
        // Nobody waits while it is freed.
        drop(oldest);
    }

    /// All of them, the last first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Ended>> {
        let mut all: Vec<_> = self.kept().iter().flatten().cloned().collect();
        all.sort_by_key(|ended| std::cmp::Reverse(ended.at));
        all
    }

    fn kept(&self) -> MutexGuard<'_, Vec<VecDeque<Arc<Ended>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for RecentFailures {
    fn default() -> Self {
        let rows = Reason::ALL.iter().map(|_| VecDeque::new());
        Self(Arc::new(Mutex::new(rows.collect())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use ztunnel_mesh::addr::ClientAddr;
    use ztunnel_mesh::name::PodName;

    use super::*;
    use crate::telemetry::{Direction, Facts, Log};

    fn ended(reason: Reason, second: u64) -> Box<Ended> {
        Box::new(Ended {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
            direction: Direction::Outbound,
            pod: PodName {
                namespace: "shop".into(),
                name: "web".into(),
                service_account: "web".into(),
            },
            client: ClientAddr(([10, 0, 0, 1], 40_000).into()),
            facts: Facts::default(),
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::ZERO,
            opened: false,
            reason,
            error: None,
        })
    }

    #[test]
    fn a_flood_of_one_reason_hides_no_other() {
        let recent = RecentFailures::default();
        recent.keep(ended(Reason::PolicyDenied, 1));
        for second in 2..2_000 {
            recent.keep(ended(Reason::Reset, second));
            recent.keep(ended(Reason::Complete, second));
        }
        let all = recent.list();
        assert_eq!(all.len(), KEPT + 1);
        assert_eq!(
            (all[0].reason, all[KEPT].reason),
            (Reason::Reset, Reason::PolicyDenied)
        );
        assert!(all.is_sorted_by_key(|ended| std::cmp::Reverse(ended.at)));
    }

    #[test]
    fn what_the_log_drops_is_kept_all_the_same() {
        // Nobody reads this log.
        let log = Log::unread();
        log.connection(ended(Reason::NoSuchPort, 2));
        assert_eq!((log.dropped(), log.failures().list().len()), (1, 1));
    }
}
