//! The workers: threads that own connections and tunnels from beginning to end.
//!
//! Each has a runtime of its own. A connection is accepted, decided, tunnelled and closed on one thread; between
//! threads go only the messages that start and drain pods.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tracing::{error, warn};
use ztunnel_mesh::name::{PodName, PodUid};
use ztunnel_sys::heap;

use crate::capture::ListenerSet;
use crate::connections::{Cut, Found, Registry, Wanted, find};
use crate::inbound::{Inbound, InboundSettings, Offer};
use crate::outbound::{Outbound, Resolver};
use crate::own_pod::{OwnNode, OwnPod};
use crate::pod::{DaemonPod, Listeners};
use crate::relay;
use crate::task::{Backoff, LocalTasks, PodNet, Shutdown, give_back_at_rest};
use crate::telemetry::Metrics;
use crate::tls;
use crate::tunnel::TunnelSettings;

/// Messages that may wait for a worker.
const QUEUE: usize = 256;

/// What is the same for every pod of the node.
#[derive(Clone)]
pub struct NodeContext {
    pub node: OwnNode,
    pub resolver: Resolver,
    pub tunnel: Arc<TunnelSettings>,
    pub inbound: InboundSettings,
}

/// A pod to serve.
#[derive(Clone, Debug)]
pub struct PodStart {
    pub uid: PodUid,
    pub pod: PodName,
    pub net: PodNet,
}

enum Command {
    Start {
        pod: PodStart,
        listeners: ListenerSet,
        /// Of all its listeners, those of other workers too.
        ports: Arc<[u16]>,
    },
    /// Serve the daemon's own.
    StartDaemonPod(DaemonPod),
    /// Take what has been accepted, then no more; give connections `deadline` to end. Answers how many were cut.
    Drain {
        uid: PodUid,
        deadline: Duration,
        done: oneshot::Sender<usize>,
    },
    /// Say which connections are open.
    Find {
        wanted: Arc<Wanted>,
        done: oneshot::Sender<Found>,
    },
    /// The same for every pod.
    Stop {
        deadline: Duration,
        done: oneshot::Sender<()>,
    },
}

/// The worker threads.
#[derive(Clone, Debug)]
pub struct Workers(Arc<[Worker]>, Arc<Metrics>);

#[derive(Debug)]
struct Worker {
    commands: mpsc::Sender<Command>,
    runtime: Handle,
}

/// How busy a worker has been since it was started.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    pub busy: Duration,
    /// How often it had nothing to do.
    pub parked: u64,
}

impl Workers {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize, context: &NodeContext) -> io::Result<Self> {
        let workers = (0..count).map(|number| {
            let (commands, queue) = mpsc::channel(QUEUE);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let context = context.clone();
            let handle = runtime.handle().clone();
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    LocalSet::new().block_on(&runtime, work(queue, context));
                })?;
            Ok(Worker {
                commands,
                runtime: handle,
            })
        });
        let metrics = Arc::clone(&context.node.telemetry.metrics);
        Ok(Self(workers.collect::<io::Result<_>>()?, metrics))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Of each worker, how many commands wait for it, and how many may.
    #[must_use]
    pub fn queued(&self) -> Vec<(usize, usize)> {
        let workers = self.0.iter().map(|Worker { commands, .. }| {
            let limit = commands.max_capacity();
            (limit - commands.capacity(), limit)
        });
        workers.collect()
    }

    /// How busy each worker is.
    #[must_use]
    pub fn busy(&self) -> Vec<Busy> {
        let workers = self.0.iter().map(|worker| {
            let metrics = worker.runtime.metrics();
            Busy {
                busy: metrics.worker_total_busy_duration(0),
                parked: metrics.worker_park_count(0),
            }
        });
        workers.collect()
    }

    /// The metrics of the node.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.1
    }

    /// Serves a pod. `listeners` has one set for each worker.
    pub async fn start_pod(&self, pod: PodStart, listeners: Listeners) {
        let Listeners { sets, ports } = listeners;
        for (worker, listeners) in self.0.iter().zip(sets) {
            if worker
                .commands
                .send(Command::Start {
                    pod: pod.clone(),
                    listeners,
                    ports: Arc::clone(&ports),
                })
                .await
                .is_err()
            {
                error!(uid = %pod.uid, "a worker is gone; its share of the pod's connections fails");
            }
        }
    }

    /// Serves the daemon's own pod, until the end. One worker does: all it carries is metrics.
    pub async fn start_daemon_pod(&self, pod: DaemonPod) {
        let Some(worker) = self.0.first() else {
            return;
        };
        if worker
            .commands
            .send(Command::StartDaemonPod(pod))
            .await
            .is_err()
        {
            error!("a worker is gone; the daemon's metrics cannot be read through tunnels");
        }
    }

    /// Ends a pod: says how many connections were still there after `deadline` and were cut.
    pub async fn drain_pod(&self, uid: &PodUid, deadline: Duration) -> usize {
        let drains = self
            .ask(|done| Command::Drain {
                uid: uid.clone(),
                deadline,
                done,
            })
            .await;
        drains.into_iter().sum()
    }

    /// Which connections are open, on all workers.
    pub async fn find(&self, wanted: Wanted) -> Found {
        let wanted = Arc::new(wanted);
        let found = self
            .ask(|done| Command::Find {
                wanted: Arc::clone(&wanted),
                done,
            })
            .await;
        wanted.merge(found)
    }

    /// Ends every pod and the workers.
    pub async fn stop(&self, deadline: Duration) {
        self.ask(|done| Command::Stop { deadline, done }).await;
    }

    /// Sends a command to all workers, then collects the answers of those that live.
    async fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut pending = Vec::with_capacity(self.0.len());
        for worker in self.0.iter() {
            let (done, answer) = oneshot::channel();
            if worker.commands.send(command(done)).await.is_ok() {
                pending.push(answer);
            }
        }
        let mut answers = Vec::with_capacity(pending.len());
        for answer in pending {
            answers.extend(answer.await);
        }
        answers
    }
}

async fn work(mut commands: mpsc::Receiver<Command>, context: NodeContext) {
    let mut pods: HashMap<PodUid, Rc<ServedPod>> = HashMap::new();
    let mut daemon_pod = None;
    // Also of pods that are leaving, for as long as they have connections.
    let mut registries: Vec<Weak<Registry>> = Vec::new();
    let drains = LocalTasks::default();
    let resting = LocalTasks::default();
    resting.spawn(give_back_at_rest(|| {
        tls::give_back();
        relay::give_back();
        heap::give_back_thread_cache();
        heap::give_back_of_c();
    }));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Start {
                pod,
                listeners,
                ports,
            } => {
                let uid = pod.uid.clone();
                match ServedPod::start(pod, listeners, ports, &context) {
                    Ok(served) => {
                        registries.retain(|registry| registry.strong_count() > 0);
                        registries.push(Rc::downgrade(&served.connections));
                        drop(pods.insert(uid, Rc::new(served)));
                    }
                    Err(err) => {
                        error!(%uid, error = %err, "the pod's listeners cannot be served; its connections fail")
                    }
                }
            }
            Command::StartDaemonPod(pod) => match ServedPod::start_daemon(pod, &context) {
                Ok(served) => {
                    registries.push(Rc::downgrade(&served.connections));
                    daemon_pod = Some(Rc::new(served));
                }
                Err(err) => {
                    error!(error = %err, "the daemon's metrics cannot be read through tunnels")
                }
            },
            Command::Drain {
                uid,
                deadline,
                done,
            } => {
                let pod = pods.remove(&uid);
                drains.spawn(async move {
                    let cut = match pod {
                        Some(pod) => pod.drain(deadline).await,
                        None => 0,
                    };
                    // Whoever asked may have given up.
                    let _ = done.send(cut);
                });
            }
            Command::Find { wanted, done } => {
                let registries: Vec<_> = registries.iter().filter_map(Weak::upgrade).collect();
                drains.spawn(async move {
                    let found = find(&registries, &wanted, || done.is_closed()).await;
                    let _ = done.send(found);
                });
            }
            Command::Stop { deadline, done } => {
                let pods = pods.drain().map(|(_, pod)| pod);
                for pod in pods.chain(daemon_pod.take()) {
                    drains.spawn(async move {
                        pod.drain(deadline).await;
                    });
                }
                drains.drain(deadline + Duration::from_secs(1)).await;
                let _ = done.send(());
                return;
            }
        }
    }
}

/// One pod as one worker serves it.
struct ServedPod {
    /// Starting it ends the accept loops and tells tunnels to finish.
    shutdown: Shutdown,
    accepting: LocalTasks,
    /// Serve connections and tunnels.
    serving: LocalTasks,
    connections: Rc<Registry>,
    /// What goes on for as long as there are connections.
    watching: LocalTasks,
}

impl ServedPod {
    fn start(
        pod: PodStart,
        listeners: ListenerSet,
        ports: Arc<[u16]>,
        context: &NodeContext,
    ) -> io::Result<Self> {
        let listener = |fd: OwnedFd| TcpListener::from_std(std::net::TcpListener::from(fd));
        let (outbound_listener, plaintext_listener, hbone_listener) = (
            listener(listeners.outbound)?,
            listener(listeners.inbound)?,
            listener(listeners.hbone)?,
        );

        let own = Rc::new(OwnPod::new(pod.pod, context.node.clone(), pod.net, ports));
        let this = Self::of(&own);
        let (settings, tasks, shutdown) = (&context.tunnel, &this.serving, &this.shutdown);
        let outbound = Outbound::new(
            Rc::clone(&own),
            context.resolver.clone(),
            settings.clone(),
            tasks.clone(),
            shutdown.clone(),
        );
        let outbound = Rc::new(outbound);
        let inbound = this.inbound(&own, Offer::Apps, context);
        this.accept(outbound_listener, move |stream, _| {
            Rc::clone(&outbound).serve(stream)
        });
        let plaintext = Rc::clone(&inbound);
        this.accept(plaintext_listener, move |stream, from| {
            let inbound = Rc::clone(&plaintext);
            async move { inbound.serve_plaintext(stream, from).await }
        });
        this.serve_tunnels(hbone_listener, inbound);
        this.prefetch(own);
        Ok(this)
    }

    fn start_daemon(pod: DaemonPod, context: &NodeContext) -> io::Result<Self> {
        let listener = TcpListener::from_std(std::net::TcpListener::from(pod.listener))?;
        let own = Rc::new(OwnPod::new(
            pod.pod,
            context.node.clone(),
            pod.net,
            pod.ports,
        ));
        let this = Self::of(&own);
        let inbound = this.inbound(&own, Offer::OwnPort(pod.stats_port), context);
        this.serve_tunnels(listener, inbound);
        this.prefetch(own);
        Ok(this)
    }

    fn of(pod: &OwnPod) -> Self {
        Self {
            shutdown: Shutdown::default(),
            accepting: LocalTasks::default(),
            serving: LocalTasks::default(),
            connections: Rc::clone(&pod.connections),
            watching: LocalTasks::default(),
        }
    }

    fn inbound(&self, own: &Rc<OwnPod>, offer: Offer, context: &NodeContext) -> Rc<Inbound> {
        Rc::new(Inbound::new(
            Rc::clone(own),
            offer,
            context.inbound,
            Arc::clone(&context.tunnel),
            self.serving.clone(),
            self.shutdown.clone(),
        ))
    }

    /// Serves the tunnel port, and watches whom policy denies meanwhile.
    fn serve_tunnels(&self, listener: TcpListener, inbound: Rc<Inbound>) {
        let followed = Rc::clone(&inbound);
        self.watching
            .spawn(async move { followed.follow_policy().await });
        self.accept(listener, move |stream, from| {
            let inbound = Rc::clone(&inbound);
            async move { inbound.serve_hbone(stream, from).await }
        });
    }

    /// Has the certificate fetched before it is needed.
    fn prefetch(&self, own: Rc<OwnPod>) {
        let shutdown = self.shutdown.clone();
        self.accepting.spawn(async move {
            tokio::select! {
                () = shutdown.started() => {}
                () = own.prefetch() => {}
            }
        });
    }

    /// Serves what `listener` accepts, until shutdown; then also what waits in its queue.
    fn accept<F>(&self, listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr) -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let (shutdown, serving) = (self.shutdown.clone(), self.serving.clone());
        self.accepting.spawn(async move {
            let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
            let mut stopping = pin!(shutdown.started());
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = &mut stopping => break,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, from)) => {
                        backoff.reset();
                        serving.spawn(serve(stream, from));
                    }
                    // Out of descriptors or memory: slow down, never spin, never give up.
                    Err(err) => {
                        warn!(error = %err, "cannot accept a captured connection");
                        tokio::time::sleep(backoff.delay()).await;
                    }
                }
            }
            // Closing a listener resets what is in its queue.
            let Ok(listener) = listener.into_std() else {
                return;
            };
            while let Ok((stream, from)) = listener.accept() {
                let stream = stream
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    serving.spawn(serve(stream, from));
                }
            }
        });
    }

    /// Says how many connections were still open after `deadline` and were cut.
    async fn drain(&self, deadline: Duration) -> usize {
        /// Accept loops end at once.
        const LOOPS: Duration = Duration::from_secs(1);
        /// For tunnels to tell their peers that streams were cut.
        const FAREWELL: Duration = Duration::from_millis(200);
        self.shutdown.start();
        self.accepting.drain(LOOPS).await;
        let cut = if self.serving.finish(deadline).await {
            0
        } else {
            self.connections.cut_all(Cut::Drained).await
        };
        self.serving.drain(FAREWELL).await;
        self.watching.drain(Duration::ZERO).await;
        cut
    }
}
