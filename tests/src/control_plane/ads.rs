//! The discovery service: carries requests and snapshots to sessions, and their responses to clients.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use ztunnel_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::session::{Answer, Session};
use super::shared::{Shared, lock};
use super::snapshot::TYPES;

/// Responses that may wait for a slow client.
const QUEUE: usize = 16;

/// The service.
pub(super) struct Ads(pub(super) Arc<Shared>);

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.0.silence().await;
        let node = self.0.authenticate(request.metadata())?;
        let (responses, stream) = mpsc::channel(QUEUE);
        let id = lock(&self.0.sessions).open(&node);
        self.0.log(&format!("discovery: {node} connected"));
        let open = OpenStream {
            shared: self.0.clone(),
            node,
            id,
        };
        // Owned by the server's runtime, which ends all of them when the server stops.
        tokio::spawn(async move {
            let ended = open.serve(request.into_inner(), &responses).await;
            if let Err(status) = ended {
                open.shared
                    .log(&format!("discovery: refused {}: {status}", open.node));
                drop(responses.send(Err(status)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// A connected client; no longer counted as one when this is dropped.
struct OpenStream {
    shared: Arc<Shared>,
    node: String,
    id: u64,
}

impl OpenStream {
    async fn serve(
        &self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: &Responses,
    ) -> Result<(), Status> {
        let mut snapshots = self.shared.snapshots.subscribe();
        let mut session = Session::default();
        let end = self.shared.end_of_stream();
        tokio::pin!(end);
        loop {
            let outgoing = tokio::select! {
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return Ok(()) };
                    let now = snapshots.borrow().clone();
                    let reaction = session.request(request, &now)?;
                    if let Some((kind, rejected)) = reaction.answer {
                        self.note(kind, rejected);
                    }
                    self.note_lookups(&reaction.lookups);
                    Vec::from_iter(reaction.response)
                }
                changed = snapshots.changed() => {
                    if changed.is_err() { return Ok(()) }
                    let now = snapshots.borrow_and_update().clone();
                    session.snapshot(&now)
                }
                () = &mut end => return Ok(()),
            };
            if let Some(open) = lock(&self.shared.sessions).open.get_mut(&self.id) {
                open.synced = session.synced();
            }
            for response in outgoing {
                if responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn note_lookups(&self, names: &[String]) {
        if !names.is_empty() {
            let node = &self.node;
            self.shared
                .log(&format!("discovery: {node} asks for {}", names.join(" ")));
            lock(&self.shared.sessions).note_lookups(node, names);
        }
    }

    fn note(&self, kind: usize, rejected: Option<String>) {
        if let Some(why) = &rejected {
            self.shared.log(&format!(
                "discovery: {} rejected {}: {why}",
                self.node, TYPES[kind]
            ));
        }
        lock(&self.shared.sessions).note(Answer {
            node: self.node.clone(),
            type_url: TYPES[kind].to_owned(),
            rejected,
        });
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        lock(&self.shared.sessions).open.remove(&self.id);
        self.shared
            .log(&format!("discovery: {} disconnected", self.node));
    }
}
