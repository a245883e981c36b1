//! Publishes the mesh: one writer, any number of readers, nobody waits for anybody.
//!
//! A reader takes the snapshot that is current now and keeps it as long as it likes; a publish never changes it. A
//! load is a few atomic operations. Who waits for something to appear is woken by the publish that may have
//! brought it, on whatever thread it runs.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use ztunnel_mesh::Mesh;

/// Publishes snapshots. There is one.
#[derive(Debug)]
pub struct MeshWriter {
    current: Arc<ArcSwap<Mesh>>,
    published: watch::Sender<u64>,
    /// Snapshots that a reader may still look at.
    retired: Vec<Arc<Mesh>>,
}

/// So many old snapshots wait for their readers; a reader that holds an older one frees it itself.
const MAX_RETIRED: usize = 16;

/// Reads the newest snapshot.
#[derive(Clone, Debug)]
pub struct MeshReader {
    current: Arc<ArcSwap<Mesh>>,
    published: watch::Receiver<u64>,
}

/// A writer and its readers, starting with the empty mesh.
#[must_use]
pub fn mesh_channel() -> (MeshWriter, MeshReader) {
    let current = Arc::new(ArcSwap::from_pointee(Mesh::default()));
    let (sender, receiver) = watch::channel(0);
    let writer = MeshWriter {
        current: Arc::clone(&current),
        published: sender,
        retired: Vec::new(),
    };
    let reader = MeshReader {
        current,
        published: receiver,
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
        if self.retired.len() > MAX_RETIRED {
            self.retired.remove(0);
        }
        self.reclaim();
    }

    /// Frees the old snapshots that nobody looks at any more. What the last holder of a large one has to free takes
    /// milliseconds, and that must not be a thread that serves connections. Says whether some are left.
    pub fn reclaim(&mut self) -> bool {
        self.retired.retain(|mesh| Arc::strong_count(mesh) > 1);
        !self.retired.is_empty()
    }

    /// A further reader.
    #[must_use]
    pub fn reader(&self) -> MeshReader {
        MeshReader {
            current: Arc::clone(&self.current),
            published: self.published.subscribe(),
        }
    }
}

impl MeshReader {
    /// The newest snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<Mesh> {
        self.current.load_full()
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use ztunnel_mesh::{Delta, Upsert, Workload};

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
}
