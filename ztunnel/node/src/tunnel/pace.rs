//! How large a tunnel's window has to be for the bytes that come through it.
//!
//! A sender needs, per round trip, a window of what it sends in that time. Nobody tells the round trip of a whole path,
//! but where it is shorter than [`WITHIN`], a window through which less goes in that time than fits in it is large
//! enough. So a window grows only where it may be in somebody's way, and does so twice as fast as a sender that speeds
//! up carefully.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than any round trip that one would want to fill.
const WITHIN: Duration = Duration::from_secs(1);

/// How long less than half a window may come before it is made smaller.
const LAZY: Duration = Duration::from_secs(8);

pub(super) struct Pace {
    first: u32,
    full: u32,
    window: u32,
    /// When it was last looked whether it should grow, and how much had come by then.
    mark: (Instant, u64),
    /// The same for whether it should shrink.
    rest: (Instant, u64),
}

impl Pace {
    pub(super) fn new(first: u32, full: u32) -> Self {
        let start = (Instant::now(), 0);
        Self {
            first,
            full,
            window: first,
            mark: start,
            rest: start,
        }
    }

    /// The window that does not slow the peer down.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// So much has come, in all.
    pub(super) fn note(&mut self, bytes: u64) {
        let (since, before) = self.mark;
        // Asks for the time only now and then.
        if self.window == self.full || bytes - before < u64::from(self.window / 2) {
            return;
        }
        let now = Instant::now();
        if now - since <= WITHIN {
            self.window = self.window.saturating_mul(2).min(self.full);
        }
        self.mark = (now, bytes);
    }

    /// The same, where there is time to look whether it could be smaller.
    pub(super) fn rest(&mut self, bytes: u64) {
        let (since, before) = self.rest;
        let now = Instant::now();
        if now - since < LAZY {
            return;
        }
        if bytes - before < u64::from(self.window / 2) {
            self.window = (self.window / 2).max(self.first);
            self.mark = (now, bytes);
        }
        self.rest = (now, bytes);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const KIB: u32 = 1024;
    const MIB: u32 = 1024 * KIB;

    #[tokio::test(start_paused = true)]
    async fn a_fast_sender_has_the_full_window_after_as_many_bytes() {
        let mut pace = Pace::new(512 * KIB, 16 * MIB);
        let mut sent = 0;
        while pace.window() < 16 * MIB {
            // A window in each round trip, in pieces.
            let window = u64::from(pace.window());
            for _ in 0..4 {
                sent += window / 4;
                pace.note(sent);
            }
            advance(Duration::from_millis(200)).await;
        }
        assert!(sent <= 16 << 20, "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_sender_keeps_the_first_window() {
        let mut pace = Pace::new(512 * KIB, 16 * MIB);
        for sent in 1..1000_u64 {
            advance(Duration::from_secs(1)).await;
            pace.note(sent * 200 * 1024);
            pace.rest(sent * 200 * 1024);
            assert_eq!(pace.window(), 512 * KIB);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_used_any_more_goes_step_by_step() {
        let mut pace = Pace::new(512 * KIB, 2 * MIB);
        pace.note(1 << 20);
        pace.note(2 << 20);
        assert_eq!(pace.window(), 2 * MIB);
        let mut windows = Vec::new();
        for _ in 0..4 {
            pace.rest(2 << 20);
            advance(Duration::from_secs(10)).await;
            windows.push(pace.window() / KIB);
        }
        assert_eq!(windows, [2048, 2048, 1024, 512]);
        // As long as half a window comes in that time, it stays.
        pace.note(3 << 20);
        pace.note(4 << 20);
        pace.rest(4 << 20);
        assert_eq!(pace.window(), MIB);
    }
}
