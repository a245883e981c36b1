//! Time limits of waits that are nearly always over long before.
//!
//! A timer of the runtime that is nearer than its next one wakes the thread's own reactor by a write to an eventfd, and
//! takes a lock when it begins and when it ends: 2.3 µs for each new connection. Here a wait notes when it would be over,
//! and one task looks at all waits of the thread now and then, as long as there are some. So a limit is reached up to
//! [`LOOK`] late.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use slab::Slab;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

const LOOK: Duration = Duration::from_millis(50);

/// It took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late;

/// Gives `wait` up when it takes longer than `most`. To be polled in a `LocalSet` only.
pub fn limit<F: Future>(most: Duration, wait: F) -> Limit<F> {
    Limit {
        wait,
        most,
        noted: None,
    }
}

pin_project! {
    /// A wait with a limit.
    pub struct Limit<F> {
        #[pin]
        wait: F,
        most: Duration,
        noted: Option<Noted>,
    }
}

impl<F: Future> Future for Limit<F> {
    type Output = Result<F::Output, Late>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.wait.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        match this.noted {
            Some(noted) if noted.is_late(cx.waker()) => return Poll::Ready(Err(Late)),
            Some(_) => {}
            None => *this.noted = Some(Noted::new(*this.most, cx.waker())),
        }
        Poll::Pending
    }
}

thread_local! {
    static WAITS: RefCell<Waits> = RefCell::default();
}

#[derive(Default)]
struct Waits {
    waits: Slab<Wait>,
    /// Somebody looks at them.
    watched: bool,
}

struct Wait {
    over: Instant,
    late: bool,
    waker: Waker,
}

/// A wait that is among those of the thread.
struct Noted(usize);

impl Noted {
    fn new(most: Duration, waker: &Waker) -> Self {
        let wait = Wait {
            over: Instant::now() + most,
            late: false,
            waker: waker.clone(),
        };
        let (number, watched) = WAITS.with_borrow_mut(|all| {
            let number = all.waits.insert(wait);
            (number, std::mem::replace(&mut all.watched, true))
        });
        if !watched {
            spawn_local(watch(Watched));
        }
        Self(number)
    }

    fn is_late(&self, waker: &Waker) -> bool {
        WAITS.with_borrow_mut(|all| {
            let wait = &mut all.waits[self.0];
            wait.waker.clone_from(waker);
            wait.late
        })
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        // With the thread all of them go.
        let _ = WAITS.try_with(|all| all.borrow_mut().waits.try_remove(self.0));
    }
}

/// Ends when there has been nothing to look at.
async fn watch(_watched: Watched) {
    loop {
        sleep(LOOK).await;
        let mut late = Vec::new();
        let none = WAITS.with_borrow_mut(|all| {
            let now = Instant::now();
            for (_, wait) in &mut all.waits {
                if wait.over <= now && !wait.late {
                    wait.late = true;
                    late.push(wait.waker.clone());
                }
            }
            all.waits.is_empty()
        });
        // Nothing is borrowed any more: what is woken may be dropped at once.
        late.into_iter().for_each(Waker::wake);
        if none {
            return;
        }
    }
}

/// However the task ends, the next wait gets another one.
struct Watched;

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = WAITS.try_with(|all| {
            let mut all = all.borrow_mut();
            all.watched = false;
            // Of many that were there at once, the places are not kept.
            all.waits.shrink_to_fit();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::task::{LocalSet, yield_now};
    use tokio::time::sleep;

    use super::*;

    fn waits() -> (usize, bool) {
        WAITS.with_borrow(|all| (all.waits.len(), all.watched))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_is_given_up_and_nothing_else() {
        let work = async {
            let began = Instant::now();
            let short = limit(Duration::from_millis(500), pending::<()>());
            let in_time = limit(
                Duration::from_millis(500),
                sleep(Duration::from_millis(400)),
            );
            let long = limit(Duration::from_secs(10), sleep(Duration::from_secs(9)));
            let (short, in_time, long) =
                tokio::join!(async { (short.await, began.elapsed()) }, in_time, long);
            assert_eq!((in_time, long), (Ok(()), Ok(())));
            assert_eq!(short.0, Err(Late));
            assert!(short.1 >= Duration::from_millis(500), "{:?}", short.1);
            assert!(
                short.1 <= Duration::from_millis(500) + 2 * LOOK,
                "{:?}",
                short.1
            );
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_when_nobody_waits() {
        let work = async {
            assert_eq!(limit(LOOK, ready(7)).await, Ok(7));
            assert_eq!(waits(), (0, false));
            assert_eq!(limit(LOOK, yield_now()).await, Ok(()));
            assert_eq!(waits(), (0, true));
            sleep(3 * LOOK).await;
            assert_eq!(waits(), (0, false));
            // And again.
            assert_eq!(limit(LOOK, pending::<()>()).await, Err(Late));
        };
        LocalSet::new().run_until(work).await;
        // The task went with its set.
        assert_eq!(waits(), (0, false));
    }
}
