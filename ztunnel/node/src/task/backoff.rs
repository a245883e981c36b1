//! How long to wait after a failure: doubling, capped, with jitter, so that a thousand nodes do not come back
//! in the same millisecond.

use std::time::Duration;

use rand::Rng as _;

/// The delays of one thing that is tried again and again.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first` and doubles up to `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self {
            first,
            cap,
            next: first,
        }
    }

    /// The delay before the next try: the present step, give or take a fifth.
    pub fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = self.cap.min(step * 2);
        step.mul_f64(rand::rng().random_range(0.8..=1.2))
    }

    /// Forgets past failures.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(40));
        for expected in [10, 20, 40, 40] {
            let delay = backoff.delay().as_secs_f64() * 1000.0;
            assert!(
                (delay / f64::from(expected) - 1.0).abs() <= 0.21,
                "{delay} for {expected}"
            );
        }
        backoff.reset();
        assert!(backoff.delay() < Duration::from_millis(13));
    }
}
