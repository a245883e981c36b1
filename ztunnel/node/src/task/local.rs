//! Task groups of one thread: connections and tunnels, of which there are many.
//!
//! What a group costs is paid when a task begins and ends. A task that looks at the group whenever it is polled, as with a
//! [`super::TaskGroup`], takes three locks each time, which was 2 % of what a request costs. A task that has ended leaves
//! nothing behind.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;

/// A set of tasks of the current thread's `LocalSet` that live and end together.
#[derive(Clone, Debug, Default)]
pub struct LocalTasks(Rc<Running>);

#[derive(Debug, Default)]
struct Running {
    /// A slab would be cheaper by some nanoseconds a task, and keep the places of all that were ever there at once.
    tasks: RefCell<BTreeMap<u64, AbortHandle>>,
    next: Cell<u64>,
    none_left: Notify,
}

pin_project! {
    /// A task with its place. As an async block it would have room for the task twice: as what it was given, and as what
    /// it waits for.
    struct Placed<F> {
        #[pin]
        task: F,
        place: Place,
    }
}

impl<F: Future<Output = ()>> Future for Placed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().task.poll(cx)
    }
}

/// Leaves the group when the task's future is dropped, however that comes.
struct Place {
    group: Rc<Running>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tasks = self.group.tasks.borrow_mut();
        tasks.remove(&self.number);
        if tasks.is_empty() {
            self.group.none_left.notify_waiters();
        }
    }
}

impl LocalTasks {
    /// Runs `task` until it ends or the group is cut.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        let place = Place {
            group: Rc::clone(&self.0),
            number,
        };
        let handle = spawn_local(Placed { task, place });
        // When the thread is ending, it may have left already.
        if !handle.is_finished() {
            let handle = handle.abort_handle();
            self.0.tasks.borrow_mut().insert(number, handle);
        }
    }

    /// How many tasks run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.tasks.borrow().len()
    }

    /// Whether no task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.tasks.borrow().is_empty()
    }

    /// Waits for the tasks to end by themselves, and says whether all did by `deadline`.
    pub async fn finish(&self, deadline: Duration) -> bool {
        timeout(deadline, self.ended()).await.is_ok()
    }

    /// Waits for the tasks to end by themselves; whatever still runs after `deadline` is cut. Says how many
    /// tasks that were.
    pub async fn drain(&self, deadline: Duration) -> usize {
        if self.finish(deadline).await {
            return 0;
        }
        let cut = self.len();
        for task in self.0.tasks.borrow().values() {
            task.abort();
        }
        self.ended().await;
        cut
    }

    async fn ended(&self) {
        while !self.is_empty() {
            self.0.none_left.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, ready};

    use tokio::task::{LocalSet, yield_now};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_cuts_what_does_not_end() {
        let work = async {
            let group = LocalTasks::default();
            group.spawn(ready(()));
            group.spawn(pending());
            let inside = group.clone();
            group.spawn(async move { inside.spawn(pending()) });
            assert_eq!(group.drain(Duration::from_secs(5)).await, 2);
            assert!(group.is_empty());
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_by_itself_leaves_nothing() {
        let work = async {
            let (group, ended) = (LocalTasks::default(), Rc::new(Cell::new(0)));
            for _ in 0..100 {
                let ended = Rc::clone(&ended);
                group.spawn(async move {
                    yield_now().await;
                    ended.set(ended.get() + 1);
                });
            }
            assert_eq!(group.len(), 100);
            assert!(group.finish(Duration::from_secs(5)).await);
            assert_eq!((ended.get(), Rc::strong_count(&ended)), (100, 1));
            assert!(group.0.tasks.borrow().is_empty());
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_cut_before_it_began_is_counted_out() {
        let work = async {
            let group = LocalTasks::default();
            group.spawn(pending());
            assert_eq!(group.drain(Duration::ZERO).await, 1);
        };
        LocalSet::new().run_until(work).await;
    }
}
