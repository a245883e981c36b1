//! Looks from time to time whether the kernel still has all that captures each pod.
//!
//! Invariants: nothing is repaired here: who enrolls the pod again decides that, and gets to know what was wrong. One pod
//! at a time, on a thread for what blocks, without the table's lock. What looks damaged is looked at again with the
//! lock, since it may just have been on its way in or out.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};
use ztunnel_mesh::name::PodUid;
use ztunnel_sys::netns::NetNs;

use super::table::{Enroller, Hold, Pod, Table};
use crate::task::Shutdown;

/// How old a measurement may become.
const EVERY: Duration = Duration::from_secs(30);

/// How the capture of a pod was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    at: Instant,
    pub(super) whole: bool,
}

impl Measured {
    pub(super) fn now(whole: bool) -> Self {
        let at = Instant::now();
        Self { at, whole }
    }
}

/// The pod to look at next.
struct Next {
    uid: PodUid,
    netns: Arc<NetNs>,
    /// None: at once.
    due: Option<Instant>,
}

impl Enroller {
    /// Measures the capture of every pod, again and again until shutdown.
    pub async fn measure(self, shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.started() => {}
            () = self.measuring() => {}
        }
    }

    async fn measuring(&self) {
        loop {
            let (next, pods) = {
                let table = self.0.table.lock().await;
                (next(&table), table.pods.len())
            };
            match next {
                Some(Next {
                    uid,
                    netns,
                    due: None,
                }) => self.measure_pod(&uid, netns).await,
                Some(Next {
                    uid,
                    netns,
                    due: Some(due),
                }) if due <= Instant::now() => {
                    self.measure_pod(&uid, netns).await;
                    // They were enrolled together, perhaps; the next time they are not all due at once.
                    sleep(EVERY / 2 / u32::try_from(pods.max(1)).unwrap_or(u32::MAX)).await;
                }
                later => {
                    let due = later.and_then(|next| next.due);
                    tokio::select! {
                        () = sleep_until(due.unwrap_or_else(|| Instant::now() + EVERY)) => {}
                        () = self.0.unmeasured.notified() => {}
                    }
                }
            }
        }
    }

    async fn measure_pod(&self, uid: &PodUid, netns: Arc<NetNs>) {
        let mut defect = self.look(&netns).await;
        let mut table = self.0.table.lock().await;
        let Some(pod) = table.pods.get_mut(uid).filter(|pod| is_in(pod, &netns)) else {
            return;
        };
        if defect.is_some() {
            defect = self.look(&netns).await;
        }
        let was_whole =
            !matches!(pod.hold, Hold::Live { measured: Some(before), .. } if !before.whole);
        match defect {
            Some(defect) if was_whole => {
                let pod = pod.record.pod();
                warn!(%uid, %pod, defect, "capture of a pod is damaged; enroll it again, which repairs it");
            }
            None if !was_whole => {
                info!(%uid, pod = %pod.record.pod(), "capture of a pod is whole again");
            }
            Some(_) | None => {}
        }
        pod.measured(defect.is_none());
        table.count(self.metrics());
    }

    async fn look(&self, netns: &Arc<NetNs>) -> Option<&'static str> {
        let (kernel, netns) = (Arc::clone(&self.0.kernel), Arc::clone(netns));
        let looked = spawn_blocking(move || kernel.defect(&netns)).await;
        looked.unwrap_or(Some("it cannot be looked at"))
    }
}

fn is_in(pod: &Pod, wanted: &Arc<NetNs>) -> bool {
    matches!(&pod.hold, Hold::Live { netns, .. } if Arc::ptr_eq(netns, wanted))
}

/// Whoever was never looked at, else who was not for longest.
fn next(table: &Table) -> Option<Next> {
    let live = table.pods.iter().filter_map(|(uid, pod)| match &pod.hold {
        Hold::Live {
            netns, measured, ..
        } => Some((uid, netns, measured.map(|measured| measured.at + EVERY))),
        Hold::Leaving(_) | Hold::Lost { .. } => None,
    });
    let (uid, netns, due) = live.min_by_key(|(_, _, due)| *due)?;
    Some(Next {
        uid: uid.clone(),
        netns: Arc::clone(netns),
        due,
    })
}
