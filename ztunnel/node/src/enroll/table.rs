//! The table of this node's pods and everything that changes it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};
use ztunnel_mesh::name::{PodName, PodUid};
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::socket::Liveness;

use super::EnrollError;
use super::kernel::{Captured, Kernel};
use super::measure::Measured;
use super::record::{Phase, Record, Records, is_unreadable, is_valid_uid};
use crate::admin::{Pending, Readiness};
use crate::capture::{NodeCapture, PodCapture};
use crate::explain::KnownPod;
use crate::pod::{PodStart, Workers};
use crate::prove::Candidate;
use crate::task::{PodNet, TaskGroup};
use crate::telemetry::{PodMetrics, chain};

/// The name that readiness has for it, after that of the part that does it in Istio's.
const TASK: &str = "workload proxy manager";

/// A pod to enroll.
#[derive(Clone, Debug)]
pub struct EnrollRequest {
    pub uid: PodUid,
    pub netns: PathBuf,
    pub pod: PodName,
}

/// How a pod is, measured in the kernel at the time of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// Everything that captures its traffic is in place.
    Captured,
    /// Something is missing; `problem` says what.
    Defective,
    /// Unenrolled; its last connections are ending.
    Leaving,
}

/// One pod of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodStatus {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub netns: PathBuf,
    pub addresses: Vec<IpAddr>,
    pub state: PodState,
    pub problem: Option<String>,
}

pub(super) struct Pod {
    pub(super) record: Record,
    addresses: Vec<IpAddr>,
    pub(super) hold: Hold,
    /// Why the last repair of its capture failed.
    unrepaired: Option<String>,
}

impl Pod {
    fn lost(record: Record, why: &EnrollError) -> Self {
        Self {
            record,
            addresses: Vec::new(),
            hold: Hold::Lost {
                problem: chain(why),
            },
            unrepaired: None,
        }
    }

    fn known(&self) -> KnownPod {
        let (served, listeners) = match &self.hold {
            Hold::Live { ports, .. } => (true, Arc::clone(ports)),
            Hold::Leaving(_) | Hold::Lost { .. } => (false, Arc::default()),
        };
        KnownPod {
            name: self.record.pod(),
            addresses: self.addresses.clone(),
            listeners,
            served,
        }
    }

    pub(super) fn is_served(&self) -> bool {
        matches!(self.hold, Hold::Live { .. })
    }

    /// Somebody has just looked at its capture.
    pub(super) fn measured(&mut self, whole: bool) {
        if let Hold::Live { measured, .. } = &mut self.hold {
            *measured = Some(Measured::now(whole));
        }
    }

    /// Why it is not served although it should be: its connections are refused.
    fn unserved(&self) -> Option<&str> {
        match &self.hold {
            Hold::Live { .. } => self.unrepaired.as_deref(),
            Hold::Lost { problem } if self.record.phase == Phase::Captured => Some(problem),
            // What is left to do there is to clean up.
            Hold::Lost { .. } | Hold::Leaving(_) => None,
        }
    }
}

pub(super) enum Hold {
    /// Captured and served.
    Live {
        netns: Arc<NetNs>,
        capture: Box<PodCapture>,
        /// The ports of the proxy's listeners.
        ports: Arc<[u16]>,
        /// Whether its capture was whole when somebody last looked.
        measured: Option<Measured>,
    },
    /// Being unenrolled; the channel closes when that is done.
    Leaving(watch::Receiver<()>),
    /// Not in the hands of this daemon, because something could not be taken over or removed.
    Lost { problem: String },
}

/// The interface of every source of enrollment.
#[derive(Clone)]
pub struct Enroller(pub(super) Arc<Inner>);

/// The pods, and whether more may come.
#[derive(Default)]
pub(super) struct Table {
    pub(super) pods: BTreeMap<PodUid, Pod>,
    /// Records of pods that are captured, and nobody knows which.
    unreadable: Vec<PathBuf>,
    closed: bool,
    /// As long as there is a pod that should be served and is not.
    unserved: Option<Pending>,
}

impl Table {
    /// Lets readiness know whether every pod is served that should be.
    fn tell(&mut self, readiness: &Readiness) {
        self.unreadable.retain(|path| is_unreadable(path));
        let pods = self.pods.iter();
        let unserved =
            pods.filter_map(|(uid, pod)| Some(format!("pod {uid}: {}", pod.unserved()?)));
        let unreadable = self.unreadable.iter();
        let unreadable = unreadable.map(|path| format!("{} is unreadable", path.display()));
        let mut problems = unserved.chain(unreadable);
        let Some(first) = problems.next() else {
            self.unserved = None;
            return;
        };
        let told = match problems.count() {
            0 => first,
            more => format!("{first}; and {more} more"),
        };
        let pending = self.unserved.get_or_insert_with(|| readiness.pending(TASK));
        pending.because(told);
    }

    /// Lets metrics know how many pods there are, and how they are.
    pub(super) fn count(&self, metrics: &PodMetrics) {
        let [mut captured, mut unmeasured, mut damaged] = [0; 3];
        let [mut leaving, mut lost, mut unserved] = [0; 3];
        for pod in self.pods.values() {
            match &pod.hold {
                Hold::Live { measured, .. } => match measured {
                    None => unmeasured += 1,
                    Some(measured) if measured.whole => captured += 1,
                    Some(_) => damaged += 1,
                },
                Hold::Leaving(_) => leaving += 1,
                Hold::Lost { .. } => {
                    lost += 1;
                    unserved += usize::from(pod.record.phase == Phase::Captured);
                }
            }
        }
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.active.set(count(captured + unmeasured + damaged));
        metrics.pending.set(count(unserved + self.unreadable.len()));
        metrics.in_state("captured", captured);
        metrics.in_state("unmeasured", unmeasured);
        metrics.in_state("defective", damaged + lost);
        metrics.in_state("leaving", leaving);
    }
}

pub(super) struct Inner {
    pub(super) kernel: Arc<Kernel>,
    pub(super) table: Mutex<Table>,
    /// There is a pod that nobody has measured.
    pub(super) unmeasured: Notify,
    workers: Workers,
    /// The namespace of the node itself, where the daemon's threads are.
    host: Arc<NetNs>,
    /// How long connections of a pod may go on after it was unenrolled.
    drain: Duration,
    liveness: Liveness,
    tasks: TaskGroup,
    readiness: Readiness,
}

impl Enroller {
    /// The table, with the pods that an earlier daemon left taken over. Pending in `readiness` while one is not, or
    /// later a pod's capture cannot be repaired.
    ///
    /// # Errors
    /// When the directory of records cannot be used or the node's own namespace cannot be opened.
    pub async fn start(
        node: NodeCapture,
        records: &Path,
        workers: Workers,
        drain: Duration,
        liveness: Liveness,
        tasks: TaskGroup,
        readiness: &Readiness,
    ) -> Result<Self, EnrollError> {
        let _taking_over = readiness.pending(TASK);
        let records = Records::open(records).map_err(EnrollError::Record)?;
        let host = NetNs::current().map_err(|source| EnrollError::Netns {
            path: "/proc/thread-self/ns/net".into(),
            source,
        })?;
        let enroller = Self(Arc::new(Inner {
            kernel: Arc::new(Kernel::new(node, records, workers.count(), liveness)),
            table: Mutex::default(),
            unmeasured: Notify::new(),
            workers,
            host: Arc::new(host),
            drain,
            liveness,
            tasks,
            readiness: readiness.clone(),
        }));
        enroller.take_over().await?;
        enroller.tell().await;
        Ok(enroller)
    }

    /// Captures the pod's traffic. `false`: it was so already.
    ///
    /// # Errors
    /// When the pod cannot be captured as a whole; then nothing about it has changed.
    pub async fn enroll(&self, request: EnrollRequest) -> Result<bool, EnrollError> {
        let this = self.clone();
        self.finish(async move {
            let enrolled = this.enroll_now(request).await;
            this.tell().await;
            enrolled
        })
        .await
    }

    /// Stops capturing the pod's traffic, waits for its connections up to the drain time, removes every trace.
    /// `false`: there was no such pod.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub async fn unenroll(&self, uid: PodUid) -> Result<bool, EnrollError> {
        let this = self.clone();
        self.finish(async move {
            let unenrolled = this.unenroll_now(uid).await;
            this.tell().await;
            unenrolled
        })
        .await
    }

    /// Every pod, as the kernel has it now.
    pub async fn pods(&self) -> Vec<PodStatus> {
        let mut table = self.0.table.lock().await;
        let pods = table.pods.values_mut();
        let pods = pods.map(|pod| self.status(pod)).collect();
        table.count(self.metrics());
        pods
    }

    /// Every pod, as the table has it: nothing is measured.
    pub async fn known(&self) -> Vec<KnownPod> {
        let table = self.0.table.lock().await;
        table.pods.values().map(Pod::known).collect()
    }

    /// Every pod, with what is wrong with its capture, for somebody who wants to connect as one of them.
    pub async fn candidates(&self) -> Vec<Candidate> {
        let mut table = self.0.table.lock().await;
        let candidate = |pod: &mut Pod| Candidate {
            uid: pod.record.uid.clone(),
            known: pod.known(),
            netns: match &pod.hold {
                Hold::Live { netns, .. } => Some(Arc::clone(netns)),
                Hold::Leaving(_) | Hold::Lost { .. } => None,
            },
            problem: self.status(pod).problem,
        };
        table.pods.values_mut().map(candidate).collect()
    }

    /// Unenrolls every pod and detaches from the node: nothing of the daemon is left in the kernel.
    ///
    /// # Errors
    /// When something cannot be removed; the rest is removed all the same.
    pub async fn remove_everything(&self) -> Result<(), EnrollError> {
        let uids: Vec<_> = {
            let mut table = self.0.table.lock().await;
            table.closed = true;
            table.pods.keys().cloned().collect()
        };
        let leaving: Vec<_> = uids
            .into_iter()
            .map(|uid| {
                let this = self.clone();
                tokio::spawn(async move { this.unenroll(uid).await })
            })
            .collect();
        let mut outcome = Ok(());
        for pod in leaving {
            if let Err(err) = pod.await.unwrap_or(Err(EnrollError::Stopping)) {
                outcome = Err(err);
            }
        }
        let kernel = Arc::clone(&self.0.kernel);
        blocking(move || kernel.remove()).await.and(outcome)
    }

    /// Ends the daemon's part: no new connections, `deadline` for the old ones. What captures stays, so that the
    /// pods' connections fail until the next daemon has taken over; with no pod enrolled nothing stays.
    pub async fn stop(&self, deadline: Duration) {
        self.0.workers.stop(deadline).await;
        // With the lock: no request is under way, and none that comes later finds hooks that are about to go.
        let mut table = self.0.table.lock().await;
        table.closed = true;
        let nothing_enrolled = table.pods.is_empty() && self.0.kernel.records().are_none();
        if nothing_enrolled && let Err(err) = self.0.kernel.remove() {
            warn!(error = %err, "pinned programs could not be removed");
        }
    }

    async fn tell(&self) {
        let mut table = self.0.table.lock().await;
        table.tell(&self.0.readiness);
        table.count(self.metrics());
    }

    pub(super) fn metrics(&self) -> &PodMetrics {
        &self.0.workers.metrics().pods
    }

    /// Runs `request` to its end even when the caller goes away.
    async fn finish<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, EnrollError>> + Send + 'static,
    ) -> Result<T, EnrollError> {
        let (reply, done) = tokio::sync::oneshot::channel();
        self.0
            .tasks
            .spawn(async move { drop(reply.send(request.await)) });
        done.await.unwrap_or(Err(EnrollError::Stopping))
    }

    async fn enroll_now(&self, request: EnrollRequest) -> Result<bool, EnrollError> {
        if !is_valid_uid(&request.uid.0) {
            return Err(EnrollError::InvalidUid {
                uid: request.uid.to_string(),
            });
        }
        let path = request.netns.clone();
        let netns = spawn_blocking(move || NetNs::open(&path))
            .await
            .map_err(|_| EnrollError::Stopping)?
            .map_err(|source| EnrollError::Netns {
                path: request.netns.clone(),
                source,
            })?;
        if netns.cookie() == self.0.host.cookie() {
            return Err(EnrollError::HostNetwork {
                path: request.netns,
            });
        }
        let mut table = self.0.table.lock().await;
        if table.closed {
            return Err(EnrollError::Stopping);
        }
        let pods = &mut table.pods;
        if let Some(other) = pods
            .values()
            .find(|pod| pod.record.cookie == netns.cookie() && pod.record.uid() != request.uid)
        {
            return Err(EnrollError::NetnsTaken {
                path: request.netns,
                uid: other.record.uid.clone(),
            });
        }
        if let Some(pod) = pods.get_mut(&request.uid) {
            let same = pod.record.cookie == netns.cookie() && pod.record.pod() == request.pod;
            match &pod.hold {
                Hold::Leaving(_) => {
                    return Err(EnrollError::Leaving {
                        uid: request.uid.to_string(),
                    });
                }
                Hold::Live { netns, capture, .. } if same => {
                    let repaired = self.0.kernel.repair(netns, capture, &pod.record);
                    pod.unrepaired = repaired.as_ref().err().map(|err| chain(err));
                    pod.measured(repaired.is_ok());
                    return repaired;
                }
                // Still refused since it could not be taken over. As then, and not from the start: that would open
                // it for a moment.
                Hold::Lost { .. } if same && pod.record.phase == Phase::Captured => {
                    let record = Record {
                        netns: request.netns,
                        ..pod.record.clone()
                    };
                    self.capture(pods, netns, record).await?;
                    info!(uid = %request.uid, pod = %request.pod, "pod taken over after all");
                    return Ok(true);
                }
                // The same uid in another namespace: a new sandbox of the pod. The old one is dead.
                Hold::Live { .. } | Hold::Lost { .. } => {
                    self.replace(pods, &request.uid).await?;
                }
            }
        }
        let record = Record {
            uid: request.uid.to_string(),
            phase: Phase::Enrolling,
            namespace: request.pod.namespace.to_string(),
            name: request.pod.name.to_string(),
            service_account: request.pod.service_account.to_string(),
            netns: request.netns,
            cookie: netns.cookie(),
            sysctls: BTreeMap::new(),
        };
        self.capture(pods, netns, record).await?;
        info!(uid = %request.uid, pod = %request.pod, "pod enrolled");
        Ok(true)
    }

    async fn replace(
        &self,
        pods: &mut BTreeMap<PodUid, Pod>,
        uid: &PodUid,
    ) -> Result<(), EnrollError> {
        let Some(pod) = pods.remove(uid) else {
            return Ok(());
        };
        self.0.workers.drain_pod(uid, Duration::ZERO).await;
        if pod.is_served() {
            self.metrics().stopped.inc();
        }
        self.release(pod).await
    }

    async fn capture(
        &self,
        pods: &mut BTreeMap<PodUid, Pod>,
        netns: NetNs,
        record: Record,
    ) -> Result<(), EnrollError> {
        let netns = Arc::new(netns);
        let (kernel, inside) = (Arc::clone(&self.0.kernel), Arc::clone(&netns));
        let Captured {
            capture,
            listeners,
            addresses,
            record,
        } = blocking(move || kernel.capture(&inside, record)).await?;
        let net = PodNet::new(
            Arc::clone(&netns),
            Arc::clone(&self.0.host),
            self.0.liveness,
        );
        let start = PodStart {
            uid: record.uid(),
            pod: record.pod(),
            net,
        };
        let ports = Arc::clone(&listeners.ports);
        self.0.workers.start_pod(start, listeners).await;
        self.metrics().started.inc();
        let hold = Hold::Live {
            netns,
            capture: Box::new(capture),
            ports,
            measured: None,
        };
        self.0.unmeasured.notify_one();
        pods.insert(
            record.uid(),
            Pod {
                record,
                addresses,
                hold,
                unrepaired: None,
            },
        );
        Ok(())
    }

    async fn unenroll_now(&self, uid: PodUid) -> Result<bool, EnrollError> {
        let (done, leaving) = watch::channel(());
        let pod = {
            let mut table = self.0.table.lock().await;
            let Some(pod) = table.pods.get_mut(&uid) else {
                return Ok(false);
            };
            if let Hold::Leaving(other) = &pod.hold {
                let mut other = other.clone();
                drop(table);
                // Nothing is sent: this is the end of the channel, and of the other request.
                while other.changed().await.is_ok() {}
                return Ok(false);
            }
            if let Hold::Live { capture, .. } = &mut pod.hold {
                self.0.kernel.bypass(&mut pod.record, capture)?;
            }
            let hold = std::mem::replace(&mut pod.hold, Hold::Leaving(leaving));
            let pod = Pod {
                record: pod.record.clone(),
                addresses: Vec::new(),
                hold,
                unrepaired: None,
            };
            table.count(self.metrics());
            pod
        };
        let record = pod.record.clone();
        // Without the lock: others come and go while the last connections of this one end.
        let cut = self.0.workers.drain_pod(&uid, self.0.drain).await;
        if pod.is_served() {
            self.metrics().stopped.inc();
        }
        let released = self.release(pod).await;
        let mut table = self.0.table.lock().await;
        table.pods.remove(&uid);
        match &released {
            Ok(()) => info!(%uid, cut_connections = cut, "pod unenrolled"),
            Err(err) => {
                error!(%uid, error = %err, "traces of an unenrolled pod could not be removed");
                let lost = Pod::lost(record, err);
                table.pods.insert(uid, lost);
            }
        }
        drop(done);
        released.map(|()| true)
    }

    /// Removes all traces of a pod that no worker serves any more.
    async fn release(&self, pod: Pod) -> Result<(), EnrollError> {
        let kernel = Arc::clone(&self.0.kernel);
        blocking(move || {
            let netns = match &pod.hold {
                Hold::Live { netns, .. } => Some(Arc::clone(netns)),
                Hold::Leaving(_) | Hold::Lost { .. } => reopen(&pod.record).ok().map(Arc::new),
            };
            kernel.release(netns.as_deref(), &pod.record)
        })
        .await
    }

    /// Takes over what an earlier daemon captured, and undoes what it had begun.
    async fn take_over(&self) -> Result<(), EnrollError> {
        let (records, unreadable) = self.0.kernel.records().all().map_err(EnrollError::Record)?;
        let mut table = self.0.table.lock().await;
        for (path, err) in unreadable {
            error!(path = %path.display(), error = %err, "record of an enrolled pod is unreadable; its pod stays refused");
            table.unreadable.push(path);
        }
        let pods = &mut table.pods;
        for record in records {
            let uid = record.uid();
            let netns = reopen(&record);
            let outcome = match (record.phase, netns) {
                (Phase::Captured, Ok(netns)) => self.capture(pods, netns, record.clone()).await,
                (Phase::Captured, Err(source)) => Err(EnrollError::Netns {
                    path: record.netns.clone(),
                    source,
                }),
                (Phase::Enrolling | Phase::Leaving, netns) => {
                    let (kernel, record) = (Arc::clone(&self.0.kernel), record.clone());
                    blocking(move || kernel.release(netns.ok().as_ref(), &record)).await
                }
            };
            match (record.phase, outcome) {
                (Phase::Captured, Ok(())) => info!(%uid, "pod taken over"),
                (Phase::Enrolling | Phase::Leaving, Ok(())) => {
                    info!(%uid, "what an earlier daemon had not finished is undone");
                }
                (phase, Err(err)) => {
                    error!(%uid, ?phase, error = %chain(&err), "pod could not be taken over; enroll it again or unenroll it");
                    pods.insert(uid, Pod::lost(record, &err));
                }
            }
        }
        self.0.kernel.forget_other_versions();
        Ok(())
    }

    fn status(&self, pod: &mut Pod) -> PodStatus {
        let (state, problem) = match &pod.hold {
            Hold::Leaving(_) => (PodState::Leaving, None),
            Hold::Lost { problem } => (PodState::Defective, Some(problem.clone())),
            Hold::Live { netns, .. } => match self.0.kernel.defect(netns) {
                None => (PodState::Captured, None),
                Some(defect) => (PodState::Defective, Some(defect.to_owned())),
            },
        };
        pod.measured(state == PodState::Captured);
        PodStatus {
            uid: pod.record.uid.clone(),
            namespace: pod.record.namespace.clone(),
            name: pod.record.name.clone(),
            service_account: pod.record.service_account.clone(),
            netns: pod.record.netns.clone(),
            addresses: pod.addresses.clone(),
            state,
            problem,
        }
    }
}

/// Opens the namespace of a record, if its path still leads to the same one.
fn reopen(record: &Record) -> std::io::Result<NetNs> {
    let netns = NetNs::open(&record.netns)?;
    if netns.cookie() == record.cookie {
        return Ok(netns);
    }
    Err(std::io::Error::other(
        "the path leads to another network namespace now",
    ))
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, EnrollError> + Send + 'static,
) -> Result<T, EnrollError> {
    spawn_blocking(job)
        .await
        .unwrap_or(Err(EnrollError::Stopping))
}
