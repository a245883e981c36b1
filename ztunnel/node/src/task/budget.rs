//! How much of something all parts of the daemon may have together, on whatever threads they are.
//!
//! Invariants:
//! - Everybody gets the least they need, always. Beyond that the limit holds: nothing is granted that would exceed it.
//!   So what is taken is at most the limit, and the least of those who came when it was used up.
//! - Nobody can take all of it: a share grows only as long as it is no larger than what is left for all others.
//! - What a share has comes back with it.
//!
//! Nobody waits here, and nothing is published through these numbers: relaxed atomics, to be touched in large steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A limit and what is taken of it. Clones are the same budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    taken: AtomicU64,
}

impl Budget {
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner {
            limit,
            taken: AtomicU64::new(0),
        }))
    }

    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    #[must_use]
    pub fn taken(&self) -> u64 {
        self.0.taken.load(Relaxed)
    }

    /// A new share of `least`, which it never falls below.
    #[must_use]
    pub fn share(&self, least: u64) -> Share {
        self.0.taken.fetch_add(least, Relaxed);
        Share {
            budget: self.clone(),
            least,
            size: least,
        }
    }
}

/// What one part has of a budget.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    least: u64,
    size: u64,
}

impl Share {
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Makes it so large, or as large as it may be; never smaller.
    pub fn grow(&mut self, size: u64) {
        let Some(wanted) = size.checked_sub(self.size) else {
            return;
        };
        let Inner { limit, taken } = &*self.budget.0;
        let mut granted = 0;
        // It only fails when there is nothing to take, and then nothing was written.
        let _ = taken.fetch_update(Relaxed, Relaxed, |taken| {
            let left = limit.saturating_sub(taken);
            granted = wanted.min(left.saturating_sub(self.size) / 2);
            (granted > 0).then_some(taken + granted)
        });
        self.size += granted;
    }

    /// Makes it no larger than that.
    pub fn shrink(&mut self, size: u64) {
        let back = self.size.saturating_sub(size.max(self.least));
        if back > 0 {
            self.size -= back;
            self.budget.0.taken.fetch_sub(back, Relaxed);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.taken.fetch_sub(self.size, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed sequence that looks random.
    fn draws(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        }
    }

    #[test]
    fn one_share_leaves_as_much_as_it_has() {
        let budget = Budget::new(100);
        let mut share = budget.share(10);
        share.grow(1000);
        assert_eq!((share.size(), budget.taken()), (50, 50));
        let mut second = budget.share(10);
        second.grow(1000);
        assert_eq!((second.size(), budget.taken()), (25, 75));
        share.grow(60);
        assert_eq!(share.size(), 50);
        drop(second);
        assert_eq!(budget.taken(), 50);
    }

    #[test]
    fn the_least_is_always_there() {
        let budget = Budget::new(100);
        let mut shares: Vec<_> = (0..20).map(|_| budget.share(10)).collect();
        assert_eq!(budget.taken(), 200);
        for share in &mut shares {
            share.grow(11);
            share.shrink(0);
            assert_eq!(share.size(), 10);
        }
        shares.truncate(5);
        shares[0].grow(11);
        assert_eq!((shares[0].size(), budget.taken()), (11, 51));
    }

    #[test]
    fn in_any_order_nothing_is_granted_above_the_limit_and_all_comes_back() {
        const LIMIT: u64 = 1000;
        const LEAST: u64 = 10;
        for seed in 0..200 {
            let mut draw = draws(seed);
            let budget = Budget::new(LIMIT);
            let mut shares: Vec<Share> = Vec::new();
            for _ in 0..500 {
                let before = budget.taken();
                let one = draw(shares.len().max(1) as u64) as usize;
                let room = shares.len() < 150;
                match (draw(5), shares.get_mut(one)) {
                    (0, _) if room => shares.push(budget.share(LEAST)),
                    (1, Some(_)) => drop(shares.swap_remove(one)),
                    (2, Some(share)) => share.shrink(draw(2 * LIMIT)),
                    (_, Some(share)) => {
                        share.grow(draw(2 * LIMIT));
                        assert!(budget.taken() <= LIMIT.max(before), "seed {seed}");
                    }
                    (_, None) => {}
                }
                let sizes: u64 = shares.iter().map(Share::size).sum();
                assert_eq!(budget.taken(), sizes, "seed {seed}");
                assert!(shares.iter().all(|share| share.size() >= LEAST));
                assert!(sizes <= LIMIT + shares.len() as u64 * LEAST, "seed {seed}");
            }
            drop(shares);
            assert_eq!(budget.taken(), 0, "seed {seed}");
        }
    }

    #[test]
    fn threads_together_keep_the_limit() {
        const LIMIT: u64 = 100_000;
        let budget = Budget::new(LIMIT);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let budget = &budget;
                scope.spawn(move || {
                    let mut draw = draws(seed);
                    let mut share = budget.share(1);
                    for _ in 0..20_000 {
                        share.grow(draw(LIMIT));
                        assert!(budget.taken() <= LIMIT + 4);
                        share.shrink(draw(LIMIT));
                    }
                });
            }
        });
        assert_eq!(budget.taken(), 0);
    }
}
