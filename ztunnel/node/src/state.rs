//! Publishes the mesh: one writer, any number of readers, nobody waits for anybody.
//!
//! A reader takes the snapshot that is current now and keeps it as long as it likes; a publish never changes it. A
//! load is a few atomic operations. Who waits for something to appear is woken by the publish that may have
//! brought it, on whatever thread it runs.
//!
//! A mesh may be partial. Then readers tell the writer what they lack, through a queue of a bounded length, and wait
//! for the snapshot that has it, or has it on record as absent. How many ask for the same does not matter: the writer
//! asks once, and all are woken by the same publish.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use ztunnel_mesh::Mesh;
use ztunnel_mesh::partial::Key;

use crate::task::breath;

/// How long a connection waits for the control plane to say whether it knows something.
pub const LOOKUP_WAIT: Duration = Duration::from_secs(5);
/// Questions that wait for the writer. It is never away for long, whatever the control plane does.
const QUEUE: usize = 1024;
/// How many the writer takes at once.
const BATCH: usize = 256;

/// Publishes snapshots. There is one.
#[derive(Debug)]
pub struct MeshWriter {
    current: Arc<ArcSwap<Mesh>>,
    published: watch::Sender<u64>,
    /// Snapshots that a reader may still look at.
    retired: Vec<Arc<Mesh>>,
    wanted: mpsc::Receiver<Key>,
    wanting: mpsc::Sender<Key>,
}

/// So many old snapshots wait for their readers; a reader that holds an older one frees it itself.
const MAX_RETIRED: usize = 16;

/// Reads the newest snapshot.
#[derive(Clone, Debug)]
pub struct MeshReader {
    current: Arc<ArcSwap<Mesh>>,
    published: watch::Receiver<u64>,
    wanting: mpsc::Sender<Key>,
}

/// The control plane did not say in time whether it knows something.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the control plane did not say within {LOOKUP_WAIT:?} whether it knows {key}")]
pub struct LookupTimeout {
    key: Key,
}

/// A writer and its readers, starting with the empty mesh.
#[must_use]
pub fn mesh_channel() -> (MeshWriter, MeshReader) {
    let current = Arc::new(ArcSwap::from_pointee(Mesh::default()));
    let (sender, receiver) = watch::channel(0);
    let (wanting, wanted) = mpsc::channel(QUEUE);
    let writer = MeshWriter {
        current: Arc::clone(&current),
        published: sender,
        retired: Vec::new(),
        wanted,
        wanting: wanting.clone(),
    };
    let reader = MeshReader {
        current,
        published: receiver,
        wanting,
    };
    (writer, reader)
}

impl MeshWriter {
    /// Makes `mesh` what readers see from now on.
    pub fn publish(&mut self, mesh: Mesh) {
        let old = self.current.swap(Arc::new(mesh));
        // After the swap: whoever this wakes must find the new snapshot.
        self.published.send_modify(|count| *count += 1);
        self.retired.push(old);
        self.reclaim();
        if self.retired.len() > MAX_RETIRED {
            self.retired.remove(0);
        }
    }

    /// Frees the old snapshots that nobody looks at any more. What the last holder of a large one has to free takes
    /// milliseconds, and that must not be a thread that serves connections, nor at one go. Says whether some are left.
    pub fn reclaim(&mut self) -> bool {
        let unused = |mesh: &mut Arc<Mesh>| Arc::strong_count(mesh) == 1;
        let unused = self.retired.extract_if(.., unused);
        for mesh in unused.filter_map(Arc::into_inner) {
            mesh.free_in_steps(&mut breath::step);
        }
        !self.retired.is_empty()
    }

    /// A further reader.
    #[must_use]
    pub fn reader(&self) -> MeshReader {
        MeshReader {
            current: Arc::clone(&self.current),
            published: self.published.subscribe(),
            wanting: self.wanting.clone(),
        }
    }

    /// Waits until readers lack something, and says what: some of it more than once. Loses nothing when dropped.
    pub async fn wanted(&mut self) -> Vec<Key> {
        let mut keys = Vec::new();
        // Never ends, since the writer has a sender itself.
        self.wanted.recv_many(&mut keys, BATCH).await;
        keys
    }
}

impl MeshReader {
    /// The newest snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<Mesh> {
        self.current.load_full()
    }

    /// How many questions wait for the writer, and how many may.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        let limit = self.wanting.max_capacity();
        (limit - self.wanting.capacity(), limit)
    }

    /// Waits for the next snapshot after the last one waited for; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        self.published.changed().await.is_ok()
    }

    /// Waits until `f` finds what it looks for in a snapshot; nothing when `deadline` passes first or when the
    /// writer is gone. The present snapshot is looked at even when the deadline is zero.
    pub async fn wait_for<T>(
        &self,
        deadline: Duration,
        mut f: impl FnMut(&Mesh) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + deadline;
        let mut published = self.published.clone();
        loop {
            // Before the look: a publish during the look must wake us.
            published.mark_unchanged();
            if let Some(found) = f(&self.load()) {
                return Some(found);
            }
            timeout_at(deadline, published.changed()).await.ok()?.ok()?;
        }
    }

    /// Has `key` asked for, and waits until a snapshot does not lack it any more.
    ///
    /// # Errors
    /// When that is not so at `deadline`, which should be [`LOOKUP_WAIT`] from the first question of a connection.
    pub async fn look_up(&self, key: Key, deadline: Instant) -> Result<(), LookupTimeout> {
        let answered = async {
            self.wanting.send(key.clone()).await.ok()?;
            let left = deadline.saturating_duration_since(Instant::now());
            self.wait_for(left, |mesh| (!mesh.lacks(&key)).then_some(()))
                .await
        };
        match timeout_at(deadline, answered).await {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => Err(LookupTimeout { key }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ztunnel_mesh::{Delta, Upsert, Workload};

    fn key(ip: &str) -> Key {
        Key::Address {
            network: "".into(),
            ip: ip.parse().unwrap(),
        }
    }

    fn with(uid: &str) -> Mesh {
        Mesh::default().apply(Delta {
            upserts: vec![Upsert::Workload(Arc::new(Workload::new(uid)))],
            removals: vec![],
        })
    }

    #[test]
    fn a_snapshot_in_hand_does_not_change() {
        let (mut writer, reader) = mesh_channel();
        let before = reader.load();
        writer.publish(with("a"));
        assert!(before.workload("a").is_none());
        assert!(reader.load().workload("a").is_some());
        assert!(writer.reader().load().workload("a").is_some());
    }

    #[test]
    fn old_snapshots_are_freed_by_the_writer() {
        let (mut writer, reader) = mesh_channel();
        writer.publish(with("a"));
        let workload = Arc::downgrade(reader.load().workload("a").unwrap());

        let in_use = reader.load();
        writer.publish(with("b"));
        assert!(writer.reclaim());
        drop(in_use);
        assert!(workload.upgrade().is_some());
        assert!(!writer.reclaim());
        assert!(workload.upgrade().is_none());

        let held: Vec<_> = (0..2 * MAX_RETIRED)
            .map(|_| {
                writer.publish(with("c"));
                reader.load()
            })
            .collect();
        assert_eq!(writer.retired.len(), MAX_RETIRED);
        drop(held);
        assert!(!writer.reclaim());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_publish_that_brings_it() {
        let (mut writer, reader) = mesh_channel();
        let waiting = tokio::spawn(async move {
            let find = |mesh: &Mesh| mesh.workload("b").cloned();
            reader.wait_for(Duration::from_secs(5), find).await
        });
        let start = Instant::now();
        for uid in ["a", "b"] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            writer.publish(with(uid));
        }
        assert!(waiting.await.unwrap().is_some());
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_at_the_deadline_and_with_the_writer() {
        let (writer, reader) = mesh_channel();
        let start = Instant::now();
        let nothing = |_: &Mesh| None::<()>;
        let wait = reader.wait_for(Duration::from_secs(5), nothing);
        assert!(wait.await.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(5));

        drop(writer);
        let wait = reader.wait_for(Duration::from_secs(5), nothing);
        assert!(wait.await.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        let anything = |_: &Mesh| Some(());
        assert!(reader.wait_for(Duration::ZERO, anything).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_ends_with_the_answer_to_it() {
        let (mut writer, reader) = mesh_channel();
        writer.publish(Mesh::partial());
        let deadline = Instant::now() + LOOKUP_WAIT;
        let asking = ["10.0.0.1", "10.0.0.1", "10.0.0.2"].map(|ip| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.look_up(key(ip), deadline).await })
        });
        let mut wanted = Vec::new();
        while wanted.len() < 3 {
            wanted.extend(writer.wanted().await);
        }
        let answered = key("10.0.0.1");
        assert_eq!(wanted.iter().filter(|key| **key == answered).count(), 2);
        writer.publish(Mesh::partial().with_absences([&answered], []));
        let [first, second, third] = asking;
        assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
        assert_eq!(Instant::now() + LOOKUP_WAIT, deadline);
        let timeout = third.await.unwrap().unwrap_err();
        assert!(
            timeout.to_string().ends_with("knows /10.0.0.2"),
            "{timeout}"
        );
        assert_eq!(Instant::now(), deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_does_not_listen_holds_nobody_up_for_longer() {
        let (mut writer, reader) = mesh_channel();
        writer.publish(Mesh::partial());
        let deadline = Instant::now() + LOOKUP_WAIT;
        let asking: Vec<_> = (0..QUEUE + 10)
            .map(|_| {
                let reader = reader.clone();
                tokio::spawn(async move { reader.look_up(key("10.0.0.1"), deadline).await })
            })
            .collect();
        for waiting in asking {
            assert!(waiting.await.unwrap().is_err());
        }
        assert_eq!(Instant::now(), deadline);
    }
}
