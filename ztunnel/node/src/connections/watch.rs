//! Follows one connection of an app from its beginning, for somebody who is about to make it.
//!
//! While nobody watches a connection pays three loads in all.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use ztunnel_mesh::name::PodName;
use ztunnel_mesh::reason::Reason;

use super::list::OpenConnection;
use super::registry::Connection;
use crate::telemetry::{Direction, chain};

/// What may wait to be read: a connection comes once, is connected once and ends once.
const QUEUE: usize = 4;

/// Where whoever watches and those who serve connections meet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whether there is somebody: so that nobody else takes the lock.
    on: AtomicBool,
    watched: Mutex<Option<Watched>>,
}

#[derive(Debug)]
struct Watched {
    pod: PodName,
    port: u16,
    seen: mpsc::Sender<Seen>,
}

/// What became of the connection.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It has come.
    Accepted,
    /// It can carry bytes.
    Connected(Box<OpenConnection>),
    Ended {
        connection: Box<OpenConnection>,
        reason: Reason,
        /// The error that it ended with, and its causes.
        error: Option<String>,
    },
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watching {
    watch: Watch,
    seen: mpsc::Receiver<Seen>,
}

impl Watch {
    /// Watches the connection that an app of `pod` makes from `port`. None: somebody else watches one.
    #[must_use]
    pub fn follow(&self, pod: PodName, port: u16) -> Option<Watching> {
        let mut watched = self.watched();
        if watched.is_some() {
            return None;
        }
        let (send, seen) = mpsc::channel(QUEUE);
        *watched = Some(Watched {
            pod,
            port,
            seen: send,
        });
        self.0.on.store(true, Ordering::Release);
        drop(watched);
        Some(Watching {
            watch: self.clone(),
            seen,
        })
    }

    #[inline]
    pub(super) fn accepted(&self, pod: &PodName, connection: &Connection) {
        if self.0.on.load(Ordering::Acquire) {
            self.tell(pod, connection, |_| Seen::Accepted);
        }
    }

    #[inline]
    pub(super) fn connected(&self, pod: &PodName, connection: &Connection) {
        if self.0.on.load(Ordering::Acquire) {
            self.tell(pod, connection, Seen::Connected);
        }
    }

    #[inline]
    pub(super) fn ended(
        &self,
        pod: &PodName,
        connection: &Connection,
        reason: Reason,
        error: Option<&(dyn Error + Send + Sync + 'static)>,
    ) {
        if self.0.on.load(Ordering::Acquire) {
            self.tell(pod, connection, |connection| Seen::Ended {
                connection,
                reason,
                error: error.map(|error| chain(error)),
            });
        }
    }

    #[cold]
    fn tell(
        &self,
        pod: &PodName,
        connection: &Connection,
        seen: impl FnOnce(Box<OpenConnection>) -> Seen,
    ) {
        let outbound = connection.direction == Direction::Outbound;
        let watched = self.watched();
        let it = watched.as_ref().filter(|watched| {
            outbound && watched.port == connection.src.0.port() && watched.pod == *pod
        });
        if let Some(watched) = it {
            let facts = connection.facts.borrow();
            let age = connection.accepted.elapsed();
            let connection = OpenConnection::new(pod, connection, &facts, age);
            // More than there is room for there is not.
            let _ = watched.seen.try_send(seen(Box::new(connection)));
        }
    }

    fn watched(&self) -> MutexGuard<'_, Option<Watched>> {
        // Every change of it is one assignment.
        self.0
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watching {
    /// What happens next; never, after the end.
    pub async fn next(&mut self) -> Option<Seen> {
        self.seen.recv().await
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watched = self.watch.watched();
        self.watch.0.on.store(false, Ordering::Release);
        *watched = None;
    }
}
