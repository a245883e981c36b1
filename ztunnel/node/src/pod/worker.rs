//! The workers: threads that own connections and tunnels from beginning to end.
//!
//! Each has a runtime of its own. A connection is accepted, decided, tunnelled and closed on one thread; between
//! threads go only the messages that start and drain pods.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tracing::{error, warn};
use ztunnel_mesh::name::{PodName, PodUid};

use crate::capture::ListenerSet;
use crate::identity::Identities;
use crate::inbound::Inbound;
use crate::outbound::{Outbound, Resolver};
use crate::own_pod::OwnPod;
use crate::pod::Listeners;
use crate::state::MeshReader;
use crate::task::{Backoff, PodNet, Shutdown, TaskGroup};
use crate::tunnel::TunnelSettings;

/// Messages that may wait for a worker.
const QUEUE: usize = 256;

/// What is the same for every pod of the node.
#[derive(Clone)]
pub struct NodeContext {
    pub node_name: Arc<str>,
    pub network: Arc<str>,
    pub mesh: MeshReader,
    pub identities: Identities,
    pub resolver: Resolver,
    pub tunnel: Arc<TunnelSettings>,
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
    /// Take what has been accepted, then no more; give connections `deadline` to end. Answers how many were cut.
    Drain {
        uid: PodUid,
        deadline: Duration,
        done: oneshot::Sender<usize>,
    },
    /// The same for every pod.
    Stop {
        deadline: Duration,
        done: oneshot::Sender<()>,
    },
}

/// The worker threads.
#[derive(Clone, Debug)]
pub struct Workers(Arc<[mpsc::Sender<Command>]>);

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
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    LocalSet::new().block_on(&runtime, work(queue, context));
                })?;
            Ok(commands)
        });
        Ok(Self(workers.collect::<io::Result<_>>()?))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Serves a pod. `listeners` has one set for each worker.
    pub async fn start_pod(&self, pod: PodStart, listeners: Listeners) {
        let Listeners { sets, ports } = listeners;
        for (worker, listeners) in self.0.iter().zip(sets) {
            if worker
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

    /// Ends every pod and the workers.
    pub async fn stop(&self, deadline: Duration) {
        self.ask(|done| Command::Stop { deadline, done }).await;
    }

    /// Sends a command to all workers, then collects the answers of those that live.
    async fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut pending = Vec::with_capacity(self.0.len());
        for worker in self.0.iter() {
            let (done, answer) = oneshot::channel();
            if worker.send(command(done)).await.is_ok() {
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
    let drains = TaskGroup::default();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Start {
                pod,
                listeners,
                ports,
            } => {
                let uid = pod.uid.clone();
                match ServedPod::start(pod, listeners, ports, &context) {
                    Ok(served) => drop(pods.insert(uid, Rc::new(served))),
                    Err(err) => {
                        error!(%uid, error = %err, "the pod's listeners cannot be served; its connections fail")
                    }
                }
            }
            Command::Drain {
                uid,
                deadline,
                done,
            } => {
                let pod = pods.remove(&uid);
                drains.spawn_local(async move {
                    let cut = match pod {
                        Some(pod) => pod.drain(deadline).await,
                        None => 0,
                    };
                    // Whoever asked may have given up.
                    let _ = done.send(cut);
                });
            }
            Command::Stop { deadline, done } => {
                for (_, pod) in pods.drain() {
                    drains.spawn_local(async move {
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
    accepting: TaskGroup,
    connections: TaskGroup,
    /// What goes on for as long as there are connections.
    watching: TaskGroup,
}

impl ServedPod {
    fn start(
        pod: PodStart,
        listeners: ListenerSet,
        ports: Arc<[u16]>,
        context: &NodeContext,
    ) -> io::Result<Self> {
        let this = Self {
            shutdown: Shutdown::default(),
            accepting: TaskGroup::default(),
            connections: TaskGroup::default(),
            watching: TaskGroup::default(),
        };
        let listener = |fd: OwnedFd| TcpListener::from_std(std::net::TcpListener::from(fd));
        let (outbound_listener, plaintext_listener, hbone_listener) = (
            listener(listeners.outbound)?,
            listener(listeners.inbound)?,
            listener(listeners.hbone)?,
        );

        let own = Rc::new(OwnPod::new(
            pod.pod,
            Arc::clone(&context.node_name),
            Arc::clone(&context.network),
            context.mesh.clone(),
            context.identities.clone(),
            pod.net,
            ports,
        ));
        let (settings, tasks, shutdown) = (&context.tunnel, &this.connections, &this.shutdown);
        let outbound = Outbound::new(
            Rc::clone(&own),
            context.resolver.clone(),
            settings.clone(),
            tasks.clone(),
            shutdown.clone(),
        );
        let outbound = Rc::new(outbound);
        let inbound = Rc::new(Inbound::new(
            Rc::clone(&own),
            settings.clone(),
            tasks.clone(),
            shutdown.clone(),
        ));
        this.accept(outbound_listener, move |stream| {
            let outbound = Rc::clone(&outbound);
            async move { outbound.serve(stream).await }
        });
        let plaintext = Rc::clone(&inbound);
        this.accept(plaintext_listener, move |stream| {
            let inbound = Rc::clone(&plaintext);
            async move { inbound.serve_plaintext(stream).await }
        });
        let followed = Rc::clone(&inbound);
        this.watching
            .spawn_local(async move { followed.follow_policy().await });
        this.accept(hbone_listener, move |stream| {
            let inbound = Rc::clone(&inbound);
            async move { inbound.serve_hbone(stream).await }
        });
        let shutdown = this.shutdown.clone();
        this.accepting.spawn_local(async move {
            tokio::select! {
                () = shutdown.started() => {}
                () = own.prefetch() => {}
            }
        });
        Ok(this)
    }

    /// Serves what `listener` accepts, until shutdown; then also what waits in its queue.
    fn accept<F>(&self, listener: TcpListener, serve: impl Fn(TcpStream) -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let (shutdown, connections) = (self.shutdown.clone(), self.connections.clone());
        self.accepting.spawn_local(async move {
            let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = shutdown.started() => break,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        backoff.reset();
                        connections.spawn_local(serve(stream));
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
            while let Ok((stream, _)) = listener.accept() {
                let stream = stream
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    connections.spawn_local(serve(stream));
                }
            }
        });
    }

    async fn drain(&self, deadline: Duration) -> usize {
        /// Accept loops end at once.
        const LOOPS: Duration = Duration::from_secs(1);
        self.shutdown.start();
        self.accepting.drain(LOOPS).await;
        let cut = self.connections.drain(deadline).await;
        self.watching.drain(Duration::ZERO).await;
        cut
    }
}
