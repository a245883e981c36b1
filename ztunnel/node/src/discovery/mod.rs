//! Keeps the mesh up to date: one long-lived stream from the control plane, and a new one whenever it ends.
//!
//! The task does I/O only; `session` knows what to say, `convert` what a resource means, `Mesh::apply` what it
//! changes. A response is applied whole, published once, and answered after that. Nothing is published before
//! policies *and* addresses have come once: workloads without the policies that protect them would be open.
//! While there is no stream, everything known stays known and in use.
//!
//! Every attempt that fails is logged once, and the next waits: from 10 ms doubling to 15 s, with jitter, starting
//! over only after a stream that both brought something and lasted. To take a large response takes a while; the task
//! belongs on a runtime that serves no connections, and its loops take breaths (`task::breath`), since a thread that does
//! may share the core.
//!
//! On demand, the mesh is partial, and what its readers lack is asked for on the same stream; nobody is told anything
//! but by the snapshot that has the answer. What is asked for while there is no stream is remembered for the next one.

pub mod convert;
mod link;
mod node;
mod parts;
mod responses;
pub mod session;
mod table;

use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, info, warn};
use ztunnel_mesh::Mesh;
use ztunnel_mesh::partial::Key;
use ztunnel_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use crate::admin::Pending;
use crate::control_plane::{ControlPlaneError, Endpoint, explain};
use crate::state::MeshWriter;
use crate::task::{Backoff, Shutdown, breath};
use crate::telemetry::XdsMetrics;

pub use link::{Link, LinkStatus};
pub use node::NodeDescription;
use responses::Responses;
pub use session::Subscription;
use session::{AdsSession, Received, Resume};

/// From the call to the first answer: connecting has its own, shorter deadline, and a control plane with much to
/// send starts to answer when it has put it together.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// For a control plane that no longer reads.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A stream that ends earlier counts as a failed attempt, whatever it brought.
const LASTING: Duration = Duration::from_secs(1);
/// Requests on their way out: the first two, and an answer.
const OUTGOING: usize = 4;
/// How often absences are looked through for old ones.
const SWEEP: Duration = Duration::from_secs(1);
/// How many oddities of one response are logged.
const LOGGED: usize = 20;

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    pub endpoint: Endpoint,
    pub node: NodeDescription,
    pub subscription: Subscription,
    pub metrics: XdsMetrics,
    /// Where it is told how things stand.
    pub link: Link,
}

/// Follows the control plane until shutdown. `first_state` is done when a response of each type that is subscribed to
/// as a whole has been taken whole, and stays so.
pub async fn run(cfg: DiscoveryConfig, mesh: MeshWriter, first_state: Pending, shutdown: Shutdown) {
    let DiscoveryConfig {
        endpoint,
        node,
        subscription,
        metrics,
        link,
    } = cfg;
    let address = endpoint.address.to_string();
    let credentials = endpoint.credentials();
    let connect = || Ok((endpoint.channel()?, endpoint.metadata()?));
    link.begin(&address);
    let discovery = Discovery {
        link,
        ..Discovery::new(&node, subscription, mesh, first_state, metrics)
    };
    tokio::select! {
        () = shutdown.started() => {}
        () = discovery.follow(&address, &credentials, connect) => {}
    }
}

/// Why there is no stream any more.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    #[error("open the discovery stream: {code:?}: {}", explain(.0), code = .0.code())]
    Open(Status),
    #[error("the control plane did not answer within {OPEN_DEADLINE:?}")]
    OpenTimeout,
    #[error("the discovery stream failed: {code:?}: {}", explain(.0), code = .0.code())]
    Broken(Status),
    #[error("the control plane ended the discovery stream")]
    Ended,
    #[error("the control plane did not read our answer within {ANSWER_DEADLINE:?}")]
    AnswerTimeout,
}

struct Discovery {
    session: AdsSession,
    mesh: Mesh,
    writer: MeshWriter,
    /// Until it has come.
    first_state: Option<Pending>,
    metrics: XdsMetrics,
    link: Link,
}

impl Discovery {
    fn new(
        node: &NodeDescription,
        subscription: Subscription,
        writer: MeshWriter,
        first_state: Pending,
        metrics: XdsMetrics,
    ) -> Self {
        Self {
            session: AdsSession::new(node.to_proto(), subscription),
            mesh: match subscription {
                Subscription::Everything => Mesh::default(),
                Subscription::OnDemand => Mesh::partial(),
            },
            writer,
            first_state: Some(first_state),
            metrics,
            link: Link::default(),
        }
    }

    async fn follow(
        mut self,
        address: &str,
        credentials: &str,
        connect: impl Fn() -> Result<(Channel, MetadataMap), ControlPlaneError>,
    ) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut resume = Resume::Tell;
        loop {
            let started = Instant::now();
            let mut responses = 0;
            let error = match connect() {
                Ok(way) => self.stream(way, resume, &mut responses).await,
                Err(error) => error.into(),
            };
            if responses > 0 && started.elapsed() >= LASTING {
                backoff.reset();
            }
            let kind = error.termination();
            self.metrics.terminations.with_label_values(&[kind]).inc();
            resume = error.resume();
            let pause = backoff.delay();
            let text = with_causes(&error);
            self.link.lost(&text);
            if let Some(pending) = &self.first_state {
                pending.because(format!("{address}: {text}"));
            }
            warn!(
                address,
                error = text,
                check = error.is_about_credentials().then_some(credentials),
                responses,
                retry_in = ?pause,
                "discovery stream lost"
            );
            self.collecting(tokio::time::sleep(pause)).await;
        }
    }

    /// Waits for something, and takes note meanwhile of what readers lack.
    async fn collecting<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
        loop {
            tokio::select! {
                done = &mut wait => return done,
                wanted = self.writer.wanted() => self.ask(wanted),
            }
        }
    }

    fn ask(&mut self, wanted: Vec<Key>) {
        let now = Instant::now();
        for key in wanted {
            // It may have come while the question was on its way here.
            if self.mesh.lacks(&key) {
                self.session.ask(key, now);
            }
            breath::step();
        }
    }

    /// One stream from its first request to its end.
    async fn stream(
        &mut self,
        (channel, metadata): (Channel, MetadataMap),
        resume: Resume,
        responses: &mut usize,
    ) -> StreamError {
        let (requests, mut stream) = match self.open(channel, metadata, resume).await {
            Ok(opened) => opened,
            Err(error) => return error,
        };
        self.link.connected();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for question in self.session.questions() {
                debug!(
                    names = ?question.resource_names_subscribe,
                    "asking the control plane"
                );
                if let Some(error) = send(&requests, question).await {
                    return error;
                }
            }
            let received = tokio::select! {
                received = stream.next() => received,
                wanted = self.writer.wanted() => {
                    self.ask(wanted);
                    continue;
                }
                _ = sweep.tick() => {
                    self.forget();
                    self.writer.reclaim();
                    continue;
                }
            };
            let response = match received {
                Ok(Some(response)) => response,
                Ok(None) => return StreamError::Ended,
                Err(status) => return StreamError::Broken(status),
            };
            *responses += 1;
            let answer = self.apply(response);
            if let Some(error) = send(&requests, answer).await {
                return error;
            }
            if self.session.is_synced() && self.first_state.take().is_some() {
                let (workloads, services, policies) = self.mesh.counts();
                info!(
                    workloads,
                    services, policies, "control plane state received"
                );
            }
        }
    }

    async fn open(
        &mut self,
        channel: Channel,
        metadata: MetadataMap,
        resume: Resume,
    ) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Responses), StreamError> {
        let (requests, outgoing) = mpsc::channel(OUTGOING);
        for request in self.session.open(resume) {
            // Cannot fail: there is room for both, and we hold the other end.
            requests.try_send(request).map_err(|_| StreamError::Ended)?;
        }
        let opening = Responses::open(channel, metadata, ReceiverStream::new(outgoing));
        let responses = self
            .collecting(timeout(OPEN_DEADLINE, opening))
            .await
            .map_err(|_| StreamError::OpenTimeout)?
            .map_err(StreamError::Open)?;
        Ok((requests, responses))
    }

    /// Applies a response, publishes the result and says what to answer.
    fn apply(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let type_url = response.type_url.clone();
        // Others are rejected; they share a series, whatever they are called.
        let mut known = [ADDRESS_TYPE, AUTHORIZATION_TYPE].into_iter();
        let url = known.find(|known| *known == type_url).unwrap_or("unknown");
        self.metrics.messages.with_label_values(&[url]).inc();
        let bytes = self.metrics.bytes.with_label_values(&[url]);
        bytes.inc_by(payload(&response));
        self.link.received(&response);
        let Received {
            delta,
            answer,
            rejected,
            warnings,
            answers,
        } = self.session.receive(response);
        self.link.rejected(&rejected);
        debug!(
            type_url,
            upserts = delta.upserts.len(),
            removals = delta.removals.len(),
            rejected = rejected.len(),
            answered = answers.known.len(),
            "discovery response"
        );
        if let (Some(pending), Some((resource, error))) = (&self.first_state, rejected.first()) {
            let count = rejected.len();
            pending.because(format!(
                "{count} resources rejected, such as {resource}: {error}"
            ));
        }
        for (resource, error) in rejected.iter().take(LOGGED) {
            warn!(type_url, resource, %error, "resource rejected");
        }
        for warning in warnings.iter().take(LOGGED) {
            warn!(type_url, warning, "resource not taken literally");
        }
        let unlogged =
            rejected.len().saturating_sub(LOGGED) + warnings.len().saturating_sub(LOGGED);
        if unlogged > 0 {
            warn!(type_url, unlogged, "more oddities in this response");
        }
        breath::free(rejected);
        breath::free(warnings);
        let mesh = self.mesh.apply_in_steps(delta, &mut breath::step);
        let mesh = self.session.record(mesh, &answers, Instant::now());
        // Readers have it too, unless it was never complete.
        std::mem::replace(&mut self.mesh, mesh).free_in_steps(&mut breath::step);
        self.session.tidy();
        self.publish();
        answer
    }

    /// What is absent must be asked for again from time to time. Only while there is a stream: without one nobody
    /// could answer, and what is known stays in use.
    fn forget(&mut self) {
        if let Some(mesh) = self.session.forget(&self.mesh, Instant::now()) {
            self.mesh = mesh;
            self.publish();
        }
    }

    fn publish(&mut self) {
        if self.session.is_complete() {
            self.writer.publish(self.mesh.clone());
        }
    }
}

/// How many bytes the contents of a response have.
fn payload(response: &DeltaDiscoveryResponse) -> u64 {
    let of_one = |resource: &Resource| {
        breath::step();
        let payload = resource.resource.as_ref();
        payload.map_or(0, |payload| payload.value.len() as u64)
    };
    response.resources.iter().map(of_one).sum()
}

/// Sends a request. When the stream no longer takes any, its end will say why.
async fn send(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    request: DeltaDiscoveryRequest,
) -> Option<StreamError> {
    let sent = timeout(ANSWER_DEADLINE, requests.send(request)).await;
    sent.is_err().then_some(StreamError::AnswerTimeout)
}

impl StreamError {
    /// Whether the control plane answered, and that it does not know us or does not want us.
    fn is_about_credentials(&self) -> bool {
        match self {
            Self::Open(status) | Self::Broken(status) => matches!(
                status.code(),
                Code::Unauthenticated | Code::PermissionDenied
            ),
            Self::ControlPlane(_) | Self::OpenTimeout | Self::Ended | Self::AnswerTimeout => false,
        }
    }

    /// What dashboards of Istio's ztunnel call it.
    fn termination(&self) -> &'static str {
        match self {
            Self::ControlPlane(_) | Self::Open(_) | Self::OpenTimeout => "ConnectionError",
            Self::Broken(_) | Self::AnswerTimeout => "Error",
            Self::Ended => "Complete",
        }
    }

    /// How to start the next stream: the list of what we have may be too long for the control plane's limit.
    fn resume(&self) -> Resume {
        match self {
            Self::Open(status) | Self::Broken(status)
                if status.code() == Code::ResourceExhausted =>
            {
                Resume::StartOver
            }
            Self::Open(_)
            | Self::Broken(_)
            | Self::ControlPlane(_)
            | Self::OpenTimeout
            | Self::Ended
            | Self::AnswerTimeout => Resume::Tell,
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
