//! Gives back what a thread keeps for the next time, once there has been no next time for a while.
//!
//! Large buffers are kept because whoever moves bytes needs one again in a moment. When nobody has for [`REST`], they are
//! let go; the next one pays for a new one. Whoever uses what is kept pays for a look at a flag.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::time::sleep;

/// So long nothing was used: it takes between once and twice that.
const REST: Duration = Duration::from_millis(250);

thread_local! {
    static USED: Cell<bool> = const { Cell::new(false) };
    /// Waits for the first use after a rest.
    static RESTING: Cell<Option<Waker>> = const { Cell::new(None) };
}

/// Something that the thread keeps was used.
#[inline]
pub(crate) fn note_use() {
    // The thread may be ending.
    if USED.try_with(|used| used.replace(true)) == Ok(false) {
        wake();
    }
}

#[cold]
fn wake() {
    if let Ok(Some(waker)) = RESTING.try_with(Cell::take) {
        waker.wake();
    }
}

/// Calls `give_back` whenever this thread has used nothing for a while. One of them for a thread.
pub async fn give_back_at_rest(give_back: impl Fn()) {
    loop {
        poll_fn(|cx| {
            if USED.get() {
                return Poll::Ready(());
            }
            RESTING.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        while USED.replace(false) {
            sleep(REST).await;
        }
        give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_given_back_when_it_was_not_used_for_a_while() {
        let given = Cell::new(0);
        let mut giving = pin!(give_back_at_rest(|| given.set(given.get() + 1)));
        let began = Instant::now();
        let mut pass = async |time| assert!(timeout(time, giving.as_mut()).await.is_err());
        pass(10 * REST).await;
        assert_eq!(given.get(), 0);
        for _ in 0..10 {
            note_use();
            pass(REST / 2).await;
        }
        assert_eq!(given.get(), 0, "after {:?}", began.elapsed());
        pass(2 * REST).await;
        assert_eq!(given.get(), 1);
        pass(10 * REST).await;
        assert_eq!(given.get(), 1);
        note_use();
        pass(2 * REST).await;
        assert_eq!(given.get(), 2);
    }
}
