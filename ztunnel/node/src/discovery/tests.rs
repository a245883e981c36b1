//! The task against a control plane on loopback that the test plays by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use prost::Message as _;
use prost_types::Any;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint as TonicEndpoint, Server};
use tonic::{Request, Response, Streaming};
use ztunnel_proto::envoy::service::discovery::v3::Resource;
use ztunnel_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use ztunnel_proto::istio::workload as wire;
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use super::*;
use crate::admin::Readiness;
use crate::state::{MeshReader, mesh_channel};
use crate::telemetry::Metrics;

const PATIENCE: Duration = Duration::from_secs(10);

type Answers = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// One stream as the control plane sees it.
struct Conversation {
    requests: Streaming<DeltaDiscoveryRequest>,
    answers: Answers,
    token: String,
}

struct Service {
    conversations: mpsc::Sender<Conversation>,
    /// Whether it takes nobody's token.
    refuses: Arc<AtomicBool>,
    /// How many streams it refused because of that.
    refused: watch::Sender<usize>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = request.metadata().get("authorization").unwrap();
        let token = token.to_str().unwrap().to_owned();
        if self.refuses.load(Ordering::Relaxed) {
            self.refused.send_modify(|refused| *refused += 1);
            return Err(Status::unauthenticated("request authenticate failure"));
        }
        let (answers, outgoing) = mpsc::channel(8);
        let conversation = Conversation {
            requests: request.into_inner(),
            answers,
            token,
        };
        self.conversations.send(conversation).await.unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

struct ControlPlane {
    address: SocketAddr,
    conversations: mpsc::Receiver<Conversation>,
    refuses: Arc<AtomicBool>,
    refused: watch::Receiver<usize>,
    server: JoinHandle<()>,
}

impl ControlPlane {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, conversations) = mpsc::channel(8);
        let refuses = Arc::default();
        let (refusing, refused) = watch::channel(0);
        let service = AggregatedDiscoveryServiceServer::new(Service {
            conversations: sender,
            refuses: Arc::clone(&refuses),
            refused: refusing,
        });
        let serve = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        let server = tokio::spawn(async { serve.await.unwrap() });
        Self {
            address,
            conversations,
            refuses,
            refused,
            server,
        }
    }

    async fn conversation(&mut self) -> Conversation {
        let next = timeout(PATIENCE, self.conversations.recv());
        next.await.unwrap().unwrap()
    }

    /// Waits until it has refused so many streams.
    async fn refused(&mut self, count: usize) {
        let enough = self.refused.wait_for(|refused| *refused >= count);
        timeout(PATIENCE, enough).await.unwrap().unwrap();
    }
}

impl Conversation {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = timeout(PATIENCE, self.requests.message());
        next.await.unwrap().unwrap().unwrap()
    }

    /// The next request that is no answer.
    async fn question(&mut self) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await;
            if request.response_nonce.is_empty() {
                return request;
            }
        }
    }

    async fn answer(&self, type_url: &str, nonce: &str, uids: &[&str], removed: &[&str]) {
        let resource = |uid: &&str| {
            let address = wire::Address {
                r#type: Some(wire::address::Type::Workload(wire::Workload {
                    uid: uid.to_string(),
                    ..Default::default()
                })),
            };
            Resource {
                name: uid.to_string(),
                version: "v1".into(),
                resource: Some(Any {
                    value: match *uid {
                        "broken" => vec![],
                        _ => address.encode_to_vec(),
                    },
                    ..Default::default()
                }),
                ..Default::default()
            }
        };
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            resources: uids.iter().map(resource).collect(),
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.answers.send(Ok(response)).await.unwrap();
    }
}

struct Client {
    mesh: MeshReader,
    readiness: Readiness,
    task: JoinHandle<()>,
}

impl Client {
    fn start(address: SocketAddr) -> Self {
        Self::start_after(0, address)
    }

    /// As if the control plane's token could not be read the first `failures` times.
    fn start_after(failures: usize, address: SocketAddr) -> Self {
        Self::subscribe(Subscription::Everything, failures, address)
    }

    fn subscribe(subscription: Subscription, failures: usize, address: SocketAddr) -> Self {
        let attempts = AtomicUsize::new(0);
        let (writer, mesh) = mesh_channel();
        let readiness = Readiness::default();
        let node = NodeDescription::default();
        let first_state = readiness.pending("state manager");
        let metrics = Metrics::new("test", 1).xds.clone();
        let discovery = Discovery::new(&node, subscription, writer, first_state, metrics);
        let connect = move || {
            if attempts.fetch_add(1, Ordering::Relaxed) < failures {
                let origin = "a test".into();
                return Err(ControlPlaneError::EmptyToken { origin });
            }
            let endpoint = TonicEndpoint::from_shared(format!("http://{address}")).unwrap();
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", "Bearer x".parse().unwrap());
            Ok((endpoint.connect_lazy(), metadata))
        };
        let task = tokio::spawn(async move { discovery.follow("test", "", connect).await });
        Self {
            mesh,
            readiness,
            task,
        }
    }

    async fn sees(&self, uid: &str) -> bool {
        let find = |mesh: &Mesh| mesh.workload(uid).map(drop);
        self.mesh.wait_for(PATIENCE, find).await.is_some()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tokio::test]
async fn responses_are_applied_then_acked_and_survive_a_reconnect() {
    let mut control_plane = ControlPlane::start().await;
    let client = Client::start(control_plane.address);
    let mut stream = control_plane.conversation().await;
    assert_eq!(stream.token, "Bearer x");
    assert_eq!(stream.request().await.type_url, ADDRESS_TYPE);
    assert_eq!(stream.request().await.type_url, AUTHORIZATION_TYPE);

    stream.answer(ADDRESS_TYPE, "1", &["a", "b"], &[]).await;
    assert_eq!(stream.request().await.response_nonce, "1");
    // Without policies the addresses are not acted on.
    assert!(client.mesh.load().workload("a").is_none());
    assert_eq!(client.readiness.names(), ["state manager"]);

    stream.answer(AUTHORIZATION_TYPE, "2", &[], &[]).await;
    assert_eq!(stream.request().await.response_nonce, "2");
    assert!(client.mesh.load().workload("a").is_some());
    timeout(PATIENCE, client.readiness.ready()).await.unwrap();

    let bad = ["c", "broken"];
    stream.answer(ADDRESS_TYPE, "3", &bad, &["b"]).await;
    let nack = stream.request().await;
    assert_eq!(nack.response_nonce, "3");
    assert!(nack.error_detail.unwrap().message.starts_with("broken: "));
    let mesh = client.mesh.load();
    let there = ["a", "b", "c"].map(|uid| mesh.workload(uid).is_some());
    assert_eq!(there, [true, false, true]);

    drop(stream);
    let mut stream = control_plane.conversation().await;
    let versions = stream.request().await.initial_resource_versions;
    let mut held: Vec<_> = versions.keys().map(String::as_str).collect();
    held.sort_unstable();
    assert_eq!(held, ["a", "c"]);
    assert!(client.mesh.load().workload("a").is_some());
    assert_eq!(client.readiness.names(), [""; 0]);
}

#[tokio::test]
async fn a_list_that_is_too_long_is_left_out_next_time() {
    let mut control_plane = ControlPlane::start().await;
    let client = Client::start(control_plane.address);
    let mut stream = control_plane.conversation().await;
    stream.answer(AUTHORIZATION_TYPE, "1", &[], &[]).await;
    stream.answer(ADDRESS_TYPE, "2", &["a", "b"], &[]).await;
    assert!(client.sees("b").await);
    let too_long = Err(Status::resource_exhausted(
        "received message larger than max",
    ));
    stream.answers.send(too_long).await.unwrap();

    stream = control_plane.conversation().await;
    assert!(stream.request().await.initial_resource_versions.is_empty());
    stream.answer(ADDRESS_TYPE, "1", &["b", "c"], &[]).await;
    assert!(client.sees("c").await);
    assert!(client.mesh.load().workload("a").is_none());
}

#[tokio::test]
async fn a_response_of_too_many_parts_is_not_even_decoded() {
    let mut control_plane = ControlPlane::start().await;
    let client = Client::start(control_plane.address);
    let mut stream = control_plane.conversation().await;
    stream.answer(AUTHORIZATION_TYPE, "1", &[], &[]).await;
    stream.answer(ADDRESS_TYPE, "2", &["a"], &[]).await;
    assert!(client.sees("a").await);
    let removed = [vec![""; parts::MAX_PARTS], vec!["a"]].concat();
    stream.answer(ADDRESS_TYPE, "3", &[], &removed).await;

    stream = control_plane.conversation().await;
    let held = stream.request().await.initial_resource_versions;
    assert!(held.contains_key("a"));
    assert!(client.sees("a").await);
}

#[tokio::test]
async fn attempts_that_cannot_even_start_slow_down_and_go_on() {
    let mut control_plane = ControlPlane::start().await;
    let start = Instant::now();
    let client = Client::start_after(5, control_plane.address);
    let stream = control_plane.conversation().await;
    // 10, 20, 40, 80 and 160 ms, each a fifth shorter at most.
    assert!(start.elapsed() >= Duration::from_millis(248));
    stream.answer(AUTHORIZATION_TYPE, "1", &[], &[]).await;
    stream.answer(ADDRESS_TYPE, "2", &["a"], &[]).await;
    assert!(client.sees("a").await);
}

#[tokio::test]
async fn a_control_plane_that_hangs_up_at_once_is_not_hammered() {
    let mut control_plane = ControlPlane::start().await;
    let _client = Client::start(control_plane.address);
    let start = Instant::now();
    for _ in 0..6 {
        let stream = control_plane.conversation().await;
        stream.answer(ADDRESS_TYPE, "1", &[], &[]).await;
    }
    // 10, 20, 40, 80 and 160 ms, each a fifth shorter at most.
    assert!(start.elapsed() >= Duration::from_millis(248));
}

#[tokio::test]
async fn a_refused_token_is_shown_less_and_less_often() {
    let mut control_plane = ControlPlane::start().await;
    control_plane.refuses.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let client = Client::start(control_plane.address);
    control_plane.refused(6).await;
    // 10, 20, 40, 80 and 160 ms, each a fifth shorter at most.
    assert!(start.elapsed() >= Duration::from_millis(248));
    // And is taken as soon as it is good.
    control_plane.refuses.store(false, Ordering::Relaxed);
    let stream = control_plane.conversation().await;
    stream.answer(AUTHORIZATION_TYPE, "1", &[], &[]).await;
    stream.answer(ADDRESS_TYPE, "2", &["a"], &[]).await;
    assert!(client.sees("a").await);
}

fn address(ip: [u8; 4]) -> Key {
    Key::Address {
        network: "".into(),
        ip: ip.into(),
    }
}

#[tokio::test]
async fn what_readers_lack_is_asked_for_and_they_are_told() {
    let mut control_plane = ControlPlane::start().await;
    let client = Client::subscribe(Subscription::OnDemand, 0, control_plane.address);
    let mut stream = control_plane.conversation().await;
    stream.answer(AUTHORIZATION_TYPE, "1", &[], &[]).await;
    timeout(PATIENCE, client.readiness.ready()).await.unwrap();
    assert_eq!(stream.request().await.resource_names_subscribe, ["*"]);
    assert_eq!(stream.request().await.type_url, AUTHORIZATION_TYPE);

    let mesh = client.mesh.clone();
    let look_up = |ip| {
        let mesh = mesh.clone();
        tokio::spawn(async move { mesh.look_up(address(ip), Instant::now() + PATIENCE).await })
    };
    let waiting = look_up([192, 0, 2, 1]);
    assert_eq!(
        stream.question().await.resource_names_subscribe,
        ["/192.0.2.1"]
    );
    stream.answer(ADDRESS_TYPE, "2", &[], &["/192.0.2.1"]).await;
    waiting.await.unwrap().unwrap();

    // The next one has no answer when the stream ends, and is told when the next one begins.
    let waiting = look_up([192, 0, 2, 2]);
    assert_eq!(
        stream.question().await.resource_names_subscribe,
        ["/192.0.2.2"]
    );
    control_plane.refuses.store(true, Ordering::Relaxed);
    drop(stream);
    // So is one that is asked for while there is no stream.
    control_plane.refused(1).await;
    let third = look_up([192, 0, 2, 3]);
    control_plane.refuses.store(false, Ordering::Relaxed);
    let mut stream = control_plane.conversation().await;
    let mut told = stream.request().await.initial_resource_versions;
    assert_eq!(told.remove("/192.0.2.2").as_deref(), Some(""));
    if told.remove("/192.0.2.3").is_none() {
        // Or right after that.
        let question = stream.question().await;
        let question = match question.type_url == AUTHORIZATION_TYPE {
            true => stream.question().await,
            false => question,
        };
        assert_eq!(question.resource_names_subscribe, ["/192.0.2.3"]);
    }
    let both = ["/192.0.2.2", "/192.0.2.3"];
    stream.answer(ADDRESS_TYPE, "1", &[], &both).await;
    waiting.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
}
