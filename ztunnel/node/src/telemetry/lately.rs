//! What connections ended with lately: the counters of now, less those of some minutes ago.
//!
//! Connections pay nothing for it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use ztunnel_mesh::reason::Reason;

use super::Metrics;
use crate::task::Shutdown;

const EVERY: Duration = Duration::from_secs(60);
/// How many samples are kept.
const KEPT: usize = 10;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lately(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Arc<Metrics>,
    /// The oldest first.
    samples: Mutex<VecDeque<Sample>>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    ended: Vec<u64>,
}

impl Lately {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let lately = Self(Arc::new(Inner {
            metrics,
            samples: Mutex::default(),
        }));
        lately.sample();
        lately
    }

    /// Takes samples until shutdown.
    pub async fn follow(self, shutdown: Shutdown) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        loop {
            tokio::select! {
                () = shutdown.started() => return,
                _ = tick.tick() => self.sample(),
            }
        }
    }

    /// The connections that did not end well, by reason, the most frequent first; and since when.
    #[must_use]
    pub fn failures(&self) -> (Duration, Vec<(Reason, u64)>) {
        let now = self.0.metrics.ended_by_reason();
        let samples = self.samples();
        let Some(oldest) = samples.front() else {
            return (Duration::ZERO, Vec::new());
        };
        let counts = Reason::ALL.iter().zip(now.iter().zip(&oldest.ended));
        let mut failures: Vec<_> = counts
            .map(|(reason, (now, then))| (*reason, now.saturating_sub(*then)))
            .filter(|(reason, count)| *count > 0 && !reason.is_success())
            .collect();
        failures.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.code()));
        (oldest.at.elapsed(), failures)
    }

    fn sample(&self) {
        let (at, ended) = (Instant::now(), self.0.metrics.ended_by_reason());
        let mut samples = self.samples();
        if samples.len() == KEPT {
            samples.pop_front();
        }
        samples.push_back(Sample { at, ended });
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.0
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Direction, MOST_PAIRS};

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_told_for_some_minutes() {
        let metrics = Metrics::new("1", MOST_PAIRS);
        let (lately, shutdown) = (Lately::new(Arc::clone(&metrics)), Shutdown::default());
        let following = tokio::spawn(lately.clone().follow(shutdown.clone()));
        let end = |reason| metrics.ended(Direction::Outbound, reason, 0);
        end(Reason::Complete);
        assert_eq!(lately.failures().1, []);
        end(Reason::NoSuchPort);
        end(Reason::PolicyDenied);
        metrics.ended(Direction::InboundHbone, Reason::PolicyDenied, 0);
        let expected = [(Reason::PolicyDenied, 2), (Reason::NoSuchPort, 1)];
        assert_eq!(lately.failures().1, expected);
        tokio::time::sleep(Duration::from_secs(9 * 60 - 1)).await;
        assert_eq!(lately.failures().1, expected);
        tokio::time::sleep(Duration::from_secs(62)).await;
        let (since, failures) = lately.failures();
        assert_eq!(failures, []);
        assert!((9..=10).contains(&(since.as_secs() / 60)), "{since:?}");
        shutdown.start();
        following.await.unwrap();
    }
}
