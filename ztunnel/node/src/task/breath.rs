//! Lets others have the processor while a thread computes for long.
//!
//! A full push of the control plane is hundreds of milliseconds of computing. Under a kernel that does not preempt,
//! whoever computes keeps the processor until the kernel's clock ticks, at 250 Hz up to 4 ms, and connections whose worker
//! shares the core wait for that long. So what takes long is done in steps, and after [`SHORTEST`] the thread asks whether
//! somebody else wants to run.
//!
//! Measured on one core (6.18, 250 Hz): a thread that sleeps for a millisecond at a time, beside one that computes, woke
//! late by 3.2 ms (p99) and 4.0 ms at worst; beside one that yields every 0.2 ms, by 0.22 ms and 0.26 ms. A look at the
//! clock takes 23 ns, a yield 0.5 µs when nobody waits. To take a push of 50,000 workloads and to free the snapshot before
//! it, half a second in all, then had no stretch above 0.35 ms.
//!
//! The price: who yields gives up its turn, and beside one thread that never sleeps the work would get an eighth of the
//! core instead of half. So who was kept waiting for long computes longer in turn, up to [`LONGEST`]: it gets a quarter,
//! and nobody who sleeps now and then waits longer than 0.43 ms. A small push ends before the first yield.
//!
//! Invariants: only what follows the control plane takes breaths, not what serves connections. Nobody else may need a
//! lock that is held across a step in a hurry: the thread may be away for as long as others want to run.

use std::cell::Cell;
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// So long a thread computes without a break, and a few steps more: as short as nobody notices, unless others have just
/// had the processor for long.
const SHORTEST: Duration = Duration::from_micros(200);
const LONGEST: Duration = Duration::from_micros(700);
/// So many short steps are taken without a look at the clock: it would cost more than some of them. The longest, one
/// workload into all indexes, takes 5 µs.
const UNWATCHED: u32 = 8;

thread_local! {
    static STEPS: Cell<u32> = const { Cell::new(0) };
    /// When the thread took its last breath.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    /// How long it computes until the next one.
    static STRETCH: Cell<Duration> = const { Cell::new(SHORTEST) };
}

/// A short step is done: one of a few microseconds at most.
#[inline]
pub fn step() {
    let steps = STEPS.get() + 1;
    if steps < UNWATCHED {
        STEPS.set(steps);
    } else {
        long_step();
    }
}

/// A step is done that is worth a look at the clock: one of ten microseconds or more.
pub fn long_step() {
    STEPS.set(0);
    #[cfg(test)]
    looks::LOOKS.set(looks::LOOKS.get() + 1);
    let now = Instant::now();
    let since = SINCE.get().unwrap_or(now);
    if now.duration_since(since) < STRETCH.get() {
        // A first step begins to count.
        SINCE.set(Some(since));
        return;
    }
    yield_now();
    let back = Instant::now();
    STRETCH.set((back.duration_since(now) / 2).clamp(SHORTEST, LONGEST));
    SINCE.set(Some(back));
}

/// Frees a list that may be long.
pub fn free<T>(items: impl IntoIterator<Item = T>) {
    items.into_iter().for_each(|item| {
        drop(item);
        step();
    });
}

/// For tests of what is done in steps: the clock lies where many tests share a core, so they count looks at it.
#[cfg(test)]
pub(crate) mod looks {
    use super::*;

    thread_local! {
        pub(super) static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    /// How often this thread looks at the clock in `work`.
    pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (usize, T) {
        let before = so_far();
        let done = work();
        (so_far() - before, done)
    }

    /// How often this thread has looked at the clock.
    pub(crate) fn so_far() -> usize {
        LOOKS.get()
    }

    /// How often it does in so many short steps, at least.
    pub(crate) fn in_steps(steps: usize) -> usize {
        steps / UNWATCHED as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breath_is_taken_after_a_while_and_not_before() {
        let last = || SINCE.get().unwrap();
        long_step();
        let began = last();
        let mut steps = 0_u64;
        while last() == began {
            step();
            steps += 1;
            // A thread that was not let run for so long takes one, too.
            if last() != began {
                assert!(last() - began >= SHORTEST);
            }
        }
        assert_eq!(steps % u64::from(UNWATCHED), 0);
        assert_eq!(STEPS.get(), 0);
    }

    #[test]
    fn the_clock_is_looked_at_now_and_then() {
        let (looks, ()) = looks::during(|| free(vec![(); 10 * UNWATCHED as usize]));
        assert_eq!(looks, 10);
    }
}
