//! Proves that a pod's traffic leaves through the mesh: makes a connection as an app of it would, and watches the wire.
//!
//! What connects is a process of its own (see `child`) in the pod's network namespace. What is watched is every interface
//! of the pod but loopback, from before the connect until after the end. What the proxy has made of the connection is
//! told by those who serve it.
//!
//! Invariants: one at a time, and bounded in time and memory. An app is sent nothing but what it was asked to be sent, and
//! that only after the connection is known to go through a tunnel.

mod child;
mod proof;
mod records;
mod segment;
mod verdict;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};
use ztunnel_mesh::addr::HBONE_PORT;
use ztunnel_sys::netns::NetNs;

pub use child::{Connect, SUBCOMMAND, run};
pub use proof::{App, Evidence, Failed, Proof, Proxied, Text, Wanted};
pub use records::Records;
pub use wire::{Passed, Tunnel, Wire};

use crate::connections::{Seen, Watch, Watching};
use crate::explain::{ExplainError, Explainer, Explanation, KnownPod, Question, Verdict};
use child::{Child, Told};
use wire::{Look, Tap};

/// Shorter texts are found by chance in what is encrypted.
const SHORTEST_TEXT: usize = 8;
const LONGEST_TEXT: usize = 1024;
/// The longest that a connection may be waited for.
const LONGEST: Duration = Duration::from_secs(60);
/// How long the process that connects may take to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// How long an answer to the text is waited for, and the end of the connection.
const ANSWER: Duration = Duration::from_secs(1);

/// A pod of this node, and where it is.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub uid: String,
    pub known: KnownPod,
    /// None when it is not served.
    pub netns: Option<Arc<NetNs>>,
    /// What is wrong with its capture.
    pub problem: Option<String>,
}

/// Makes proofs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prover {
    explainer: Explainer,
    watch: Watch,
    /// The daemon's.
    cgroup: u64,
    turn: Arc<Semaphore>,
}

/// Why nothing was tried.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error("{name:?} is several enrolled pods: {candidates}; give one of them")]
    Ambiguous { name: String, candidates: String },
    #[error("no enrolled pod of this node is {name:?}: `ztunnel pods` lists them")]
    NoPod { name: String },
    #[error(
        "a text of {bytes} bytes cannot be sent and looked for: give {SHORTEST_TEXT} to {LONGEST_TEXT}, since a shorter \
         one is found by chance in what is encrypted"
    )]
    Text { bytes: usize },
    #[error("{seconds} seconds are not between 1 and {}: give another time", LONGEST.as_secs())]
    Within { seconds: u64 },
    #[error(
        "another proof is being made, and they are made one at a time: try again when it is done"
    )]
    Busy,
    #[error("nobody can connect as an app of the pod would: {problem}")]
    Unable { problem: String },
    #[error("start the process that connects")]
    Process(#[source] io::Error),
    #[error("watch the interfaces of the pod, which takes CAP_NET_RAW")]
    Watch(#[source] io::Error),
}

impl ProveError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Explain(err) => err.code(),
            Self::Ambiguous { .. } => "AMBIGUOUS_POD",
            Self::NoPod { .. } => "NOT_ENROLLED",
            Self::Text { .. } => "INVALID_TEXT",
            Self::Within { .. } => "INVALID_TIME",
            Self::Busy => "BUSY",
            Self::Unable { .. } => "CANNOT_CONNECT_AS_APP",
            Self::Process(_) => "PROCESS_FAILED",
            Self::Watch(_) => "CANNOT_WATCH",
        }
    }
}

impl Prover {
    /// `cgroup` is the id of the daemon's own, from which nothing is captured.
    #[must_use]
    pub fn new(explainer: Explainer, watch: Watch, cgroup: u64) -> Self {
        Self {
            explainer,
            watch,
            cgroup,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Makes a connection of one of `pods`, and says what was seen of it.
    ///
    /// # Errors
    /// When none could be made as an app of the pod would make it.
    pub async fn prove(&self, pods: Vec<Candidate>, wanted: &Wanted) -> Result<Proof, ProveError> {
        let Ok(_turn) = self.turn.try_acquire() else {
            return Err(ProveError::Busy);
        };
        let within = Duration::from_secs(wanted.within_seconds);
        if within.is_zero() || within > LONGEST {
            let seconds = wanted.within_seconds;
            return Err(ProveError::Within { seconds });
        }
        let text = wanted.text.as_ref().map(|text| format!("{text}\n"));
        if let Some(bytes) = wanted.text.as_ref().map(String::len)
            && !(SHORTEST_TEXT..=LONGEST_TEXT).contains(&bytes)
        {
            return Err(ProveError::Text { bytes });
        }
        let (pod, decision, to) = self.explained(pods, wanted)?;
        let Some(netns) = pod.netns else {
            let pod = pod.known.name.to_string();
            return Err(ExplainError::NotServed { pod }.into());
        };
        let mut attempt = Attempt {
            evidence: Evidence {
                pod: format!("{}/{}", pod.known.name.namespace, pod.known.name.name),
                to,
                capture_problem: pod.problem,
                captured: false,
                decision,
                app: App::default(),
                proxy: None,
                failed: None,
                wire: Wire::default(),
                text: None,
                took_milliseconds: 0,
            },
            text,
        };
        let began = Instant::now();
        let mut child = Child::start(&netns, to, self.cgroup).map_err(ProveError::Process)?;
        let port = match ready(&mut child).await {
            Ok(port) => port,
            Err(err) => {
                child.end().await;
                return Err(err);
            }
        };
        let look = attempt.look(port);
        let tap = spawn_blocking(move || Tap::start(&netns, look)).await;
        let tap = match tap.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
            Ok(tap) => tap,
            Err(err) => {
                child.end().await;
                return Err(ProveError::Watch(err));
            }
        };
        let Some(mut watching) = self.watch.follow(pod.known.name, port) else {
            child.end().await;
            return Err(ProveError::Busy);
        };
        attempt
            .follow(&mut child, &mut watching, began + within)
            .await;
        attempt.end(child, &mut watching).await;
        let wire = spawn_blocking(move || tap.stop()).await;
        let wire = wire.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        attempt.evidence.wire = wire.map_err(ProveError::Watch)?;
        attempt.evidence.took(began.elapsed());
        Ok(verdict::judge(attempt.evidence))
    }

    fn explained(
        &self,
        pods: Vec<Candidate>,
        wanted: &Wanted,
    ) -> Result<(Candidate, Explanation, SocketAddr), ProveError> {
        let question = |from| Question::Outbound {
            from,
            to: wanted.to.clone(),
        };
        let known: Vec<_> = pods.iter().map(|pod| pod.known.clone()).collect();
        let pod = match choose(pods, &wanted.pod) {
            Ok(pod) => pod,
            // Who is elsewhere, or never heard of, is told in the same words as everywhere.
            Err(ProveError::NoPod { name }) if name.contains('/') => {
                self.explainer.explain(&known, &question(name.clone()))?;
                return Err(ProveError::NoPod { name });
            }
            Err(err) => return Err(err),
        };
        let name = format!("{}/{}", pod.known.name.namespace, pod.known.name.name);
        let known = [pod.known.clone()];
        let decision = self.explainer.explain(&known, &question(name))?;
        // It has just been understood.
        let to = decision.to.parse().map_err(|_| ExplainError::Address {
            text: wanted.to.clone(),
        })?;
        Ok((pod, decision, to))
    }
}

/// The pod of that name, preferably one that is served.
fn choose(pods: Vec<Candidate>, wanted: &str) -> Result<Candidate, ProveError> {
    let is_it = |pod: &Candidate| {
        let name = &pod.known.name;
        match wanted.split_once('/') {
            Some((namespace, pod)) => *name.namespace == *namespace && *name.name == *pod,
            None => *name.name == *wanted || pod.uid == wanted,
        }
    };
    let mut found: Vec<_> = pods.into_iter().filter(is_it).collect();
    if found.iter().any(|pod| pod.netns.is_some()) {
        found.retain(|pod| pod.netns.is_some());
    }
    match found.len() {
        0 | 1 => found.pop().ok_or_else(|| ProveError::NoPod {
            name: wanted.to_owned(),
        }),
        _ => {
            let of = |pod: &Candidate| {
                let name = &pod.known.name;
                format!("{}/{} (uid {})", name.namespace, name.name, pod.uid)
            };
            let candidates: Vec<_> = found.iter().take(10).map(of).collect();
            Err(ProveError::Ambiguous {
                name: wanted.to_owned(),
                candidates: candidates.join(", "),
            })
        }
    }
}

async fn ready(child: &mut Child) -> Result<u16, ProveError> {
    match timeout(BEGIN, child.told()).await {
        Ok(Ok(Told::Ready { port })) => Ok(port),
        Ok(Ok(Told::Unable { problem })) => Err(ProveError::Unable { problem }),
        Ok(Ok(other)) => Err(ProveError::Unable {
            problem: format!("the process that connects says {other:?}"),
        }),
        Ok(Err(err)) => Err(ProveError::Process(err)),
        Err(_) => Err(ProveError::Process(io::ErrorKind::TimedOut.into())),
    }
}

/// One connection, and what is known of it so far.
struct Attempt {
    evidence: Evidence,
    text: Option<String>,
}

impl Attempt {
    fn look(&self, port: u16) -> Look {
        let mut tunnel_ports = vec![HBONE_PORT];
        if let Verdict::Go(plan) = &self.evidence.decision.verdict
            && plan.tunnel.is_some()
            && let Some((_, port)) = plan.to.rsplit_once(':')
        {
            tunnel_ports.extend(port.parse::<u16>());
        }
        Look {
            port,
            to: self.evidence.to,
            tunnel_ports,
            text: self.text.clone(),
        }
    }

    /// Connects, and follows what becomes of it until it is known.
    async fn follow(&mut self, child: &mut Child, watching: &mut Watching, deadline: Instant) {
        if child.connect().await.is_err() {
            return;
        }
        let (mut app_over, mut until) = (false, deadline);
        loop {
            let happened = tokio::select! {
                seen = watching.next() => Happened::Proxy(seen),
                told = child.told(), if !app_over => Happened::App(told),
                () = sleep_until(until) => return,
            };
            match happened {
                Happened::Proxy(Some(seen)) => {
                    until = deadline;
                    if self.seen(seen) {
                        break;
                    }
                }
                Happened::Proxy(None) => return,
                Happened::App(Ok(told)) => {
                    let refused = matches!(told, Told::Refused { .. });
                    app_over = refused || matches!(told, Told::Ended { .. });
                    self.told(told);
                    if self.evidence.app.forbidden {
                        return;
                    }
                    // If it was not captured it is connected with the destination itself, or with nobody, and the proxy
                    // has nothing to tell. What the proxy refuses at once fails like a connect that nobody took.
                    if refused || !self.evidence.captured {
                        until = deadline.min(Instant::now() + ANSWER);
                    }
                }
                Happened::App(Err(_)) => app_over = true,
            }
        }
        let proxy = self.evidence.proxy.as_ref();
        // The proxy may have told that it is connected before the app has.
        if proxy.is_some_and(|proxy| proxy.connected) && self.evidence.app.from.is_none() {
            self.hear(child).await;
        }
        let proxy = self.evidence.proxy.as_ref();
        let tunneled = proxy.is_some_and(|proxy| proxy.connected && proxy.protocol != "TCP");
        if let Some(text) = self.text.clone() {
            let can_send = tunneled && self.evidence.app.from.is_some();
            let sent = can_send && child.send(&text).await.is_ok();
            self.evidence.text = Some(Text {
                bytes: text.len() as u64,
                sent,
            });
            if sent {
                self.hear(child).await;
            }
        }
    }

    /// Waits for what the app says next, in vain where it says nothing.
    async fn hear(&mut self, child: &mut Child) {
        if let Ok(Ok(told)) = timeout(ANSWER, child.told()).await {
            self.told(told);
        }
    }

    async fn end(&mut self, child: Child, watching: &mut Watching) {
        for told in child.end().await {
            self.told(told);
        }
        if !self.evidence.captured || self.evidence.failed.is_some() {
            return;
        }
        // What the proxy has counted in the end.
        while let Ok(Some(seen)) = timeout(ANSWER, watching.next()).await {
            if let Seen::Ended { connection, .. } = seen {
                if let Some(proxy) = &mut self.evidence.proxy {
                    proxy.bytes_sent = connection.sent;
                    proxy.bytes_received = connection.received;
                }
                return;
            }
            self.seen(seen);
        }
    }

    fn told(&mut self, told: Told) {
        let app = &mut self.evidence.app;
        match told {
            Told::Connected { from } => app.from = Some(from),
            Told::Refused { error, forbidden } => {
                (app.refused, app.forbidden) = (Some(error), forbidden);
            }
            Told::Ended { received, reset } => {
                (app.received_bytes, app.reset) = (received, reset);
            }
            Told::Ready { .. } | Told::Unable { .. } | Told::Answered {} => {}
        }
    }

    /// Whether it is known now what becomes of it.
    fn seen(&mut self, seen: Seen) -> bool {
        self.evidence.captured = true;
        match seen {
            Seen::Accepted => return false,
            Seen::Connected(connection) => {
                self.evidence.proxy = Some(Proxied::new(&connection, true));
            }
            Seen::Ended {
                connection,
                reason,
                error,
            } => {
                let connected = self
                    .evidence
                    .proxy
                    .as_ref()
                    .is_some_and(|proxy| proxy.connected);
                self.evidence.proxy = Some(Proxied::new(&connection, connected));
                // What ends well after it was connected has done its part.
                if !connected {
                    self.evidence.failed = Some(Failed {
                        reason: reason.code().to_owned(),
                        error,
                        cause: reason.cause().to_owned(),
                        next_step: reason.next_step().to_owned(),
                    });
                }
            }
        }
        true
    }
}

enum Happened {
    Proxy(Option<Seen>),
    App(io::Result<Told>),
}

#[cfg(test)]
mod tests;
