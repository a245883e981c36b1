//! Both sides of a connection: outbound and inbound of two pods, with certificates from a CA over the wire. The pods
//! share a network namespace of the test's own; capture is played by listeners on the addresses that apps use.
//! Needs root.

use std::process::Command;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tonic::Status;
use ztunnel_mesh::name::{PodName, PolicyName, ServiceName};
use ztunnel_mesh::service::{Service, Vip};
use ztunnel_mesh::workload::{
    Addresses, GatewayAddress, GatewayDestination, Membership, PortPair, TunnelProtocol,
};
use ztunnel_mesh::{Delta, Mesh, Upsert};
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::socket::Liveness;

use super::*;
use crate::control_plane::test_server::Setup;
use crate::identity::{CaConfig, Identities};
use crate::inbound::{Inbound, InboundSettings, Offer};
use crate::own_pod::OwnNode;
use crate::state::{MeshReader, MeshWriter, mesh_channel};
use crate::task::TaskGroup;
use crate::task::{Pace, PodNet};
use crate::telemetry::written::Written;
use crate::telemetry::{Metrics, Telemetry};
use crate::tls;
use crate::tls::test_ca::{HOUR, Leaf, TestCa};

const SOON: Duration = Duration::from_secs(20);
const NODE: &str = "node-a";
const WEB: [u8; 4] = [10, 9, 0, 1];
const DB: [u8; 4] = [10, 9, 0, 2];
/// The service in front of `DB`: port 80 is 8080 there, port 81 is 8081, where nobody listens.
const VIP: [u8; 4] = [10, 9, 0, 100];

/// A network namespace with the addresses above, gone with the test.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let this = Self(format!("ztunnel-{name}-{}", std::process::id()));
        ip(&["netns", "add", &this.0]);
        ip(&["-n", &this.0, "link", "set", "lo", "up"]);
        for address in ["10.9.0.1/32", "10.9.0.2/32", "10.9.0.3/32", "10.9.0.100/32"] {
            ip(&["-n", &this.0, "address", "add", address, "dev", "lo"]);
        }
        this
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {args:?}; this test needs root");
}

/// The access log.
struct Log(Written);

impl Log {
    /// Waits for as many lines as are expected, and compares what they say, in any order.
    async fn assert(&self, expected: &[&[&str]]) {
        let mut lines = Vec::new();
        while lines.len() < expected.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            lines = self.0.lines();
        }
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
        for fields in expected {
            let told = |line: &String| fields.iter().all(|field| line.contains(field));
            assert!(lines.iter().any(told), "{fields:?} in {lines:#?}");
        }
    }
}

/// Runs a test in a namespace of its own, the way a worker runs connections.
fn run(name: &str, test: impl AsyncFnOnce(Node) + Send) {
    let namespace = Namespace::new(name);
    let netns = Arc::new(NetNs::open(format!("/run/netns/{}", namespace.0).as_ref()).unwrap());
    let inside = Arc::clone(&netns);
    netns
        .run(|| {
            let (log, written) = Written::start();
            let telemetry = Telemetry::new(Metrics::new("test", 100), log);
            let _logging = tracing::subscriber::set_default(tracing_subscriber::registry());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            LocalSet::new().block_on(&runtime, async {
                let node = Node::start(inside, telemetry, Log(written)).await;
                timeout(SOON, test(node)).await.expect("the test hangs");
            });
        })
        .unwrap();
}

struct Node {
    identities: Identities,
    net: PodNet,
    mesh: MeshReader,
    writer: MeshWriter,
    tasks: LocalTasks,
    telemetry: Telemetry,
    resolver: Resolver,
    log: Log,
}

impl Node {
    async fn start(netns: Arc<NetNs>, telemetry: Telemetry, log: Log) -> Self {
        let ca = TestCa::new("control plane");
        let root = TestCa::new("mesh");
        let mut setup = Setup::new(&ca);
        setup.answer = Arc::new(move |request| {
            let fields = &request.metadata.as_ref().unwrap().fields;
            match fields["ImpersonatedIdentity"].kind.as_ref().unwrap() {
                prost_types::value::Kind::StringValue(uri) => {
                    Ok(root.sign(&request.csr, Leaf::uris(&[uri])))
                }
                _ => Err(Status::unauthenticated("nobody")),
            }
        });
        let cfg = CaConfig {
            endpoint: setup.start().await.endpoint,
            secret_ttl: 24 * HOUR,
            tls: tls::Context::default(),
            metrics: Metrics::new("test", 1).ca.clone(),
        };
        let (writer, mesh) = mesh_channel();
        Self {
            identities: Identities::new(cfg, TaskGroup::default(), Shutdown::default()),
            net: PodNet::new(Arc::clone(&netns), netns, Liveness::default()),
            mesh,
            writer,
            tasks: LocalTasks::default(),
            telemetry,
            resolver: Resolver::start(
                ResolverConfig {
                    resolv_conf: "/dev/null".into(),
                    ipv6: true,
                },
                Pace::default(),
                TaskGroup::default(),
                Shutdown::default(),
            ),
            log,
        }
    }

    fn pod(&self, name: &str) -> Rc<OwnPod> {
        let name = PodName {
            namespace: "shop".into(),
            name: name.into(),
            service_account: name.into(),
        };
        let node = OwnNode {
            watch: crate::connections::Watch::default(),
            name: NODE.into(),
            network: "".into(),
            mesh: self.mesh.clone(),
            identities: self.identities.clone(),
            telemetry: self.telemetry.clone(),
        };
        Rc::new(OwnPod::new(name, node, self.net.clone(), Arc::default()))
    }

    fn publish(&mut self, change: impl FnOnce(&mut Workload)) {
        let mut db = workload("db", DB);
        let membership = Membership {
            service: service_name(),
            ports: Box::default(),
        };
        db.memberships = [Arc::new(membership)].into();
        change(&mut db);
        let mut service = Service::new(service_name());
        service.vips = [Vip::new("".into(), std::net::IpAddr::from(VIP).into())].into();
        let pair = |service, target| PortPair { service, target };
        service.ports = [pair(80, 8080), pair(81, 8081)].into();
        service.subject_alt_names = [workload("db", DB).identity()].into();
        self.writer.publish(Mesh::default().apply(Delta {
            upserts: vec![
                Upsert::Workload(Arc::new(workload("web", WEB))),
                Upsert::Workload(Arc::new(db)),
                Upsert::Service(Arc::new(service)),
            ],
            removals: vec![],
        }));
    }

    /// Serves 15008 of the pod `db`.
    async fn serve_db(&self) -> Shutdown {
        let shutdown = Shutdown::default();
        let inbound = Rc::new(Inbound::new(
            self.pod("db"),
            Offer::Apps,
            InboundSettings::default(),
            Arc::default(),
            self.tasks.clone(),
            shutdown.clone(),
        ));
        let listener = TcpListener::bind(SocketAddr::from((DB, 15008)))
            .await
            .unwrap();
        let tasks = self.tasks.clone();
        spawn_local(async move {
            loop {
                let (tcp, from) = listener.accept().await.unwrap();
                let inbound = Rc::clone(&inbound);
                tasks.spawn(async move { inbound.serve_hbone(tcp, from).await });
            }
        });
        shutdown
    }

    /// The outgoing side of the pod `web`.
    fn web(&self) -> Rc<Outbound> {
        Rc::new(Outbound::new(
            self.pod("web"),
            self.resolver.clone(),
            Arc::default(),
            self.tasks.clone(),
            Shutdown::default(),
        ))
    }

    /// An app of the pod `web` connects to `to`, and is captured.
    async fn connect(&self, to: SocketAddr) -> (TcpStream, JoinHandle<()>) {
        let (app, (captured, _)) = captured(to).await;
        let served = spawn_local(self.web().serve(captured));
        (app, served)
    }
}

fn service_name() -> ServiceName {
    ServiceName {
        namespace: "shop".into(),
        hostname: "db.shop.svc".into(),
    }
}

fn workload(name: &str, ip: [u8; 4]) -> Workload {
    let mut workload = Workload::new(&format!("Kubernetes//Pod/shop/{name}"));
    workload.name = name.into();
    workload.namespace = "shop".into();
    workload.service_account = name.into();
    Arc::make_mut(&mut workload.place).node = NODE.into();
    workload.addresses = Addresses::One(ip.into());
    workload.tunnel = TunnelProtocol::Hbone;
    workload
}

/// A connection to `to`, and what capture makes of it: whose it is, too.
async fn captured(to: SocketAddr) -> (TcpStream, (TcpStream, SocketAddr)) {
    let listener = TcpListener::bind(to).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    if !to.ip().is_loopback() {
        socket.bind((WEB, 0).into()).unwrap();
    }
    let client = socket.connect(to).await.unwrap();
    (client, listener.accept().await.unwrap())
}

/// An app that answers every connection once, in capitals, when its client is done.
async fn app() -> JoinHandle<SocketAddr> {
    let listener = TcpListener::bind(SocketAddr::from((DB, 8080)))
        .await
        .unwrap();
    spawn_local(async move {
        let (mut tcp, client) = listener.accept().await.unwrap();
        let mut question = String::new();
        tcp.read_to_string(&mut question).await.unwrap();
        let answer = question.to_uppercase();
        tcp.write_all(answer.as_bytes()).await.unwrap();
        client
    })
}

async fn ask(app: &mut TcpStream) -> io::Result<String> {
    app.write_all(b"hello").await?;
    app.shutdown().await?;
    let mut answer = String::new();
    app.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn assert_reset(app: &mut TcpStream) {
    let end = app.read_u8().await;
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_service_is_reached_through_the_tunnel() {
    run("tunnel", async |mut node: Node| {
        // The control plane tells about the pods a moment after their first connection.
        node.serve_db().await;
        let served_by = app().await;
        let (mut app, served) = node.connect((VIP, 80).into()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        node.publish(|_| {});
        assert_eq!(ask(&mut app).await.unwrap(), "HELLO");
        served.await.unwrap();
        served_by.await.unwrap();
        let both = [
            "src.identity=\"spiffe://cluster.local/ns/shop/sa/web\"",
            "dst.identity=\"spiffe://cluster.local/ns/shop/sa/db\"",
            "dst.service=\"db.shop.svc\"",
            "dst.addr=10.9.0.2:15008",
            "tls.cipher=\"TLS_AES_128_GCM_SHA256\"",
            "tls.key_exchange=\"X25519MLKEM768\"",
            "reason=\"COMPLETE\"",
            "bytes_sent=5 bytes_recv=5",
        ];
        let outbound = [
            "direction=\"outbound\"",
            "src.addr=10.9.0.1:",
            "dst.orig_addr=10.9.0.100:80",
        ];
        let inbound = ["direction=\"inbound\"", "dst.orig_addr=10.9.0.2:8080"];
        node.log
            .assert(&[
                &[&both[..], &outbound[..]].concat(),
                &[&both[..], &inbound[..]].concat(),
            ])
            .await;
    });
}

#[test]
fn an_app_that_refuses_is_seen_as_a_reset() {
    run("refuse", async |mut node: Node| {
        node.publish(|_| {});
        node.serve_db().await;
        let (mut app, _) = node.connect((VIP, 81).into()).await;
        assert_reset(&mut app).await;
        node.log
            .assert(&[
                &["\"outbound\"", "reason=\"PEER_REFUSED\"", "503"],
                &["\"inbound\"", "reason=\"APP_UNREACHABLE\"", "10.9.0.2:8081"],
            ])
            .await;
    });
}

#[test]
fn what_policy_does_not_allow_is_seen_as_a_reset() {
    run("deny", async |mut node: Node| {
        // A policy that has not arrived may be one that denies.
        node.publish(|db| {
            db.policies = [PolicyName {
                namespace: "shop".into(),
                name: "strict".into(),
            }]
            .into();
        });
        node.serve_db().await;
        let (mut web, _) = node.connect((VIP, 80).into()).await;
        assert_reset(&mut web).await;
        let (mut outside, (accepted, from)) = captured((DB, 8080).into()).await;
        let inbound = Inbound::new(
            node.pod("db"),
            Offer::Apps,
            InboundSettings::default(),
            Arc::default(),
            node.tasks.clone(),
            Shutdown::default(),
        );
        inbound.serve_plaintext(accepted, from).await;
        assert_reset(&mut outside).await;
        node.log
            .assert(&[
                &["\"outbound\"", "reason=\"PEER_DENIED\"", "401"],
                &["\"inbound\"", "reason=\"POLICY_MISSING\"", "shop/strict"],
                &["protocol=\"TCP\"", "reason=\"POLICY_MISSING\""],
            ])
            .await;
    });
}

#[test]
fn a_peer_without_its_tunnel_is_seen_as_a_reset() {
    run("absent", async |mut node: Node| {
        node.publish(|_| {});
        let (mut app, _) = node.connect((VIP, 80).into()).await;
        assert_reset(&mut app).await;
        node.log
            .assert(&[&["reason=\"PEER_UNREACHABLE\"", "Connection refused"]])
            .await;
    });
}

#[test]
fn what_has_no_way_is_seen_as_a_reset() {
    run("nowhere", async |mut node: Node| {
        node.publish(|db| {
            db.addresses = Addresses::Other(Box::default());
            db.hostname = "db.example".into();
        });
        let (mut app, _) = node.connect((VIP, 80).into()).await;
        assert_reset(&mut app).await;
        node.publish(|db| {
            db.network = "far".into();
            db.network_gateway = Some(Arc::new(GatewayAddress {
                destination: GatewayDestination::Address {
                    network: "".into(),
                    ip: WEB.into(),
                },
                hbone_port: 15008,
            }));
        });
        let (mut app, _) = node.connect((VIP, 80).into()).await;
        assert_reset(&mut app).await;
        node.log
            .assert(&[
                &[
                    "reason=\"NAME_UNRESOLVED\"",
                    "db.example cannot be resolved",
                ],
                &["reason=\"PEER_UNREACHABLE\"", "10.9.0.1:15008"],
            ])
            .await;
    });
}

#[test]
fn loopback_and_the_pod_itself_are_refused() {
    run("loop", async |mut node: Node| {
        node.publish(|_| {});
        for to in [([127, 0, 0, 1], 7000), (VIP, 7000), ([10, 9, 0, 3], 7000)] {
            let (mut app, (captured, _)) = captured(to.into()).await;
            // Somebody does listen there.
            let _listener = TcpListener::bind(SocketAddr::from(to)).await.unwrap();
            node.web().serve(captured).await;
            assert_reset(&mut app).await;
        }
        node.log
            .assert(&[
                &["dst.orig_addr=127.0.0.1:7000", "reason=\"LOOP\""],
                &["dst.orig_addr=10.9.0.100:7000", "reason=\"NO_SUCH_PORT\""],
                &[
                    "dst.orig_addr=10.9.0.3:7000",
                    "reason=\"LOOP\"",
                    "the pod itself",
                ],
            ])
            .await;
    });
}

#[test]
fn plaintext_reaches_the_app_from_the_address_of_the_client() {
    run("plain", async |mut node: Node| {
        node.publish(|_| {});
        let (mut outside, (accepted, from)) = captured((DB, 8080).into()).await;
        let served_by = app().await;
        let inbound = Inbound::new(
            node.pod("db"),
            Offer::Apps,
            InboundSettings::default(),
            Arc::default(),
            node.tasks.clone(),
            Shutdown::default(),
        );
        let (answer, ()) = tokio::join!(ask(&mut outside), inbound.serve_plaintext(accepted, from));
        assert_eq!(answer.unwrap(), "HELLO");
        assert_eq!(served_by.await.unwrap().ip(), std::net::IpAddr::from(WEB));
        let told = [
            "protocol=\"TCP\"",
            "reason=\"COMPLETE\"",
            "dst.orig_addr=10.9.0.2:8080",
        ];
        node.log.assert(&[&told]).await;
    });
}

#[test]
fn a_draining_pod_finishes_its_streams() {
    run("drain", async |mut node: Node| {
        node.publish(|_| {});
        let shutdown = node.serve_db().await;
        let listener = TcpListener::bind(SocketAddr::from((DB, 8080)))
            .await
            .unwrap();
        let (mut app, _) = node.connect((VIP, 80).into()).await;
        let (mut far, _) = listener.accept().await.unwrap();
        shutdown.start();
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.write_all(b"hello").await.unwrap();
        app.shutdown().await.unwrap();
        let mut question = String::new();
        far.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "hello");
        far.write_all(b"HELLO").await.unwrap();
        drop(far);
        let mut answer = String::new();
        app.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "HELLO");
    });
}

#[test]
fn a_cut_pod_resets_its_connections() {
    run("cut", async |mut node: Node| {
        node.publish(|_| {});
        node.serve_db().await;
        let listener = TcpListener::bind(SocketAddr::from((DB, 8080)))
            .await
            .unwrap();
        let (mut app, _) = node.connect((VIP, 80).into()).await;
        app.write_all(b"hello").await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        far.read_exact(&mut [0; 5]).await.unwrap();
        node.tasks.drain(Duration::ZERO).await;
        assert_reset(&mut app).await;
        assert_reset(&mut far).await;
        node.log
            .assert(&[
                &["\"outbound\"", "bytes_sent=5"],
                &["\"inbound\"", "bytes_recv=5"],
            ])
            .await;
    });
}

/// What a connection takes for as long as it lasts.
#[test]
fn a_connection_takes_little_memory() {
    fn size<F: Future>(_: impl FnOnce(Rc<Outbound>, TcpStream) -> F) -> usize {
        size_of::<F>()
    }
    // With the 120 bytes that a task has besides, this just fits what the allocator gives for 512.
    let bytes = size(Outbound::serve);
    assert!(bytes <= 392, "{bytes}");
}
