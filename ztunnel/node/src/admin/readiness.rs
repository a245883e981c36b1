//! Whether the daemon is ready, and if not, what it waits for.
//!
//! Whatever has to be done first is registered as a named task and is pending for as long as its [`Pending`] lives.
//! Ready means that nothing is pending.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::info;

use super::http::{Request, Response};
use crate::task::Shutdown;

/// How long it takes until what is still pending is told again; then so often.
const TELL_AGAIN: [Duration; 4] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// What is pending, by name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(watch::Sender<BTreeMap<&'static str, Task>>);

#[derive(Clone, Debug, Default)]
struct Task {
    /// How many have registered it and are not done.
    pending: usize,
    /// Why it is not done yet.
    problem: Option<String>,
}

impl Readiness {
    /// Registers `name`, which is pending until the result is dropped.
    #[must_use]
    pub fn pending(&self, name: &'static str) -> Pending {
        self.0
            .send_modify(|tasks| tasks.entry(name).or_default().pending += 1);
        Pending {
            name,
            readiness: self.clone(),
        }
    }

    /// The names of what is pending, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.0.borrow().keys().copied().collect()
    }

    /// Waits until nothing is pending.
    pub async fn ready(&self) {
        // The sender lives as long as this does.
        drop(self.0.subscribe().wait_for(BTreeMap::is_empty).await);
    }

    /// Answers a probe.
    #[must_use]
    pub fn answer(&self, request: &Request) -> Response {
        if request.uri().path() != "/healthz/ready" {
            return empty(StatusCode::NOT_FOUND);
        }
        if request.method() != Method::GET {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
        let names = self.names();
        if names.is_empty() {
            return Response::new("ready\n".into());
        }
        let body = format!("not ready, pending: {}\n", names.join(", "));
        let mut response = Response::new(body.into());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }

    /// Tells the log what the daemon waits for, in growing intervals, and when it is ready, until shutdown.
    pub async fn tell(self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.started() => {}
            () = self.tell_always() => {}
        }
    }

    async fn tell_always(&self) {
        let mut tasks = self.0.subscribe();
        loop {
            drop(tasks.wait_for(|tasks| !tasks.is_empty()).await);
            let since = Instant::now();
            let mut intervals = TELL_AGAIN.into_iter();
            let mut interval = TELL_AGAIN[0];
            while let Some(pending) = self.told() {
                info!(pending, since = ?since.elapsed(), "daemon is not ready");
                interval = intervals.next().unwrap_or(interval);
                // Either way it is looked at again.
                drop(timeout(interval, self.ready()).await);
            }
            info!(after = ?since.elapsed(), "daemon is ready");
        }
    }

    /// What is pending, and why, in one line; nothing when the daemon is ready.
    fn told(&self) -> Option<String> {
        let tasks = self.0.borrow();
        let task = |(name, task): (&&str, &Task)| match &task.problem {
            Some(problem) => format!("{name} ({problem})"),
            None => (*name).to_owned(),
        };
        let told: Vec<_> = tasks.iter().map(task).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }
}

/// A task that is not done yet. Dropping it is how it becomes so.
#[derive(Debug)]
pub struct Pending {
    name: &'static str,
    readiness: Readiness,
}

impl Pending {
    /// Says why it is not done yet. The last one to say so counts.
    pub fn because(&self, problem: String) {
        self.readiness.0.send_if_modified(|tasks| {
            if let Some(task) = tasks.get_mut(self.name) {
                task.problem = Some(problem);
            }
            // Nobody who waits for a change waits for this.
            false
        });
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|tasks| {
            if let Some(task) = tasks.get_mut(self.name) {
                task.pending -= 1;
                if task.pending == 0 {
                    tasks.remove(self.name);
                }
            }
        });
    }
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
