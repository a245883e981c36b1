//! Task groups: every task belongs to one, and a group can be told to finish, waited for, and cut.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells tasks to finish what they have and take nothing new.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// Resolves once shutdown has started; at once when it already has.
    pub async fn started(&self) {
        self.0.cancelled().await;
    }

    /// Whether shutdown has started.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Starts it, for this handle, its clones and its children.
    pub fn start(&self) {
        self.0.cancel();
    }

    /// A shutdown that also starts when this one does.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}

/// A set of tasks that live and end together. Dropping a task's future is how it is cancelled.
#[derive(Clone, Debug, Default)]
pub struct TaskGroup {
    tracker: TaskTracker,
    cut: CancellationToken,
}

impl TaskGroup {
    /// Runs `task` on the current runtime until it ends or the group is cut.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        self.tracker.spawn(async move {
            cut.run_until_cancelled_owned(task).await;
        });
    }

    /// Like `spawn`, on the runtime of `on`: for a task that several runtimes start, but only one may run.
    pub fn spawn_on(&self, task: impl Future<Output = ()> + Send + 'static, on: &Handle) {
        let cut = self.cut.clone();
        self.tracker.spawn_on(
            async move {
                cut.run_until_cancelled_owned(task).await;
            },
            on,
        );
    }

    /// How many tasks run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits for the tasks to end by themselves, and says whether all did by `deadline`.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok()
    }

    /// Waits for the tasks to end by themselves; whatever still runs after `deadline` is cut. Says how many
    /// tasks that were.
    pub async fn drain(&self, deadline: Duration) -> usize {
        if self.finish(deadline).await {
            return 0;
        }
        let cut = self.tracker.len();
        self.cut.cancel();
        self.tracker.wait().await;
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_cuts_what_does_not_end() {
        let group = TaskGroup::default();
        group.spawn(std::future::ready(()));
        group.spawn(std::future::pending());
        assert_eq!(group.drain(Duration::from_secs(5)).await, 1);
        assert!(group.is_empty());
    }
}
