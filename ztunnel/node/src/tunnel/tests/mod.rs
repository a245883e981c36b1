//! Client and server over real TCP, TLS and HTTP/2 on loopback, on one thread.

mod counted;
mod dead;
mod early;
mod inside;
mod pool;
mod relayed;
mod revoked;
mod slow;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use ztunnel_hbone::{Authority, Baggage, Connect, Traceparent};
use ztunnel_mesh::addr::HboneAddr;
use ztunnel_mesh::name::Identity;

use super::*;
use crate::task::{LocalTasks, Shutdown};
use crate::telemetry::{Metrics, PoolMetrics};
use crate::tls::Credential;
use crate::tls::test_ca::TestCa;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const SOON: Duration = Duration::from_secs(20);

/// Runs a test the way a worker runs connections: one thread, one `LocalSet`.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(SOON, test).await.expect("the test hangs");
    });
}

/// Waits for something that other tasks bring about.
async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(1)).await;
    }
}

/// A server at the end of tunnels.
struct Server {
    addr: SocketAddr,
    /// TCP connections so far.
    accepted: Rc<Cell<usize>>,
    /// How tunnels ended.
    ended: Rc<RefCell<Vec<String>>>,
    shutdown: Shutdown,
    tasks: LocalTasks,
    listening: JoinHandle<()>,
}

impl Server {
    /// Gives every request to `serve`.
    async fn start<F: Future<Output = ()> + 'static>(
        credential: Credential,
        settings: TunnelSettings,
        serve: impl Fn(Box<Request>) -> F + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (accepted, ended) = (
            Rc::<Cell<usize>>::default(),
            Rc::<RefCell<Vec<_>>>::default(),
        );
        let (shutdown, tasks, serve) = (Shutdown::default(), LocalTasks::default(), Rc::new(serve));
        let listening = spawn_local({
            let (accepted, ended) = (Rc::clone(&accepted), Rc::clone(&ended));
            let (shutdown, tasks) = (shutdown.clone(), tasks.clone());
            let (credential, settings) = (Rc::new(credential), Rc::new(settings));
            async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    accepted.set(accepted.get() + 1);
                    let (serve, ended) = (Rc::clone(&serve), Rc::clone(&ended));
                    let (shutdown, streams) = (shutdown.clone(), tasks.clone());
                    let (credential, settings) = (Rc::clone(&credential), Rc::clone(&settings));
                    tasks.spawn(async move {
                        let end = match accept(tcp, &credential, &settings).await {
                            Ok(incoming) => {
                                let serve = |request| streams.spawn(serve(request));
                                match incoming.run(&shutdown, serve).await {
                                    Ok(()) => "closed".to_owned(),
                                    Err(err) => err.to_string(),
                                }
                            }
                            Err(err) => format!("{}", err.reason()),
                        };
                        ended.borrow_mut().push(end);
                    });
                }
            }
        });
        Self {
            addr,
            accepted,
            ended,
            shutdown,
            tasks,
            listening,
        }
    }

    /// Ends it as a killed process would.
    async fn kill(&self) {
        self.listening.abort();
        self.tasks.drain(Duration::ZERO).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// A server that is not ours, for one tunnel: accepts every stream, and does with it what `serve` does.
async fn raw_server<F: Future<Output = ()> + 'static>(
    ca: &TestCa,
    serve: impl Fn(h2::SendStream<bytes::Bytes>) -> F + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tls = ca.credential(DB).server_config();
    spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = crate::tls::accept(tls, tcp, SOON).await.unwrap();
        let mut connection = h2::server::handshake(tls.stream).await.unwrap();
        let mut requests = Vec::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let send = respond.send_response(http::Response::new(()), false);
            spawn_local(serve(send.unwrap()));
            requests.push(request);
        }
    });
    addr
}

/// A pool and whom it talks to.
#[derive(Clone)]
struct Client {
    pool: Pool,
    metrics: Arc<PoolMetrics>,
    to: Destination,
    /// The app.
    from: SocketAddr,
    /// Calls of connect so far.
    connects: Rc<Cell<usize>>,
    tasks: LocalTasks,
    shutdown: Shutdown,
}

impl Client {
    fn new(ca: &TestCa, peer: SocketAddr, expected: &str, settings: TunnelSettings) -> Self {
        let (tasks, shutdown) = (LocalTasks::default(), Shutdown::default());
        let metrics = Arc::clone(&Metrics::new("test", 1).pool);
        Self {
            pool: Pool::new(
                Arc::new(settings),
                tasks.clone(),
                shutdown.clone(),
                Arc::clone(&metrics),
            ),
            metrics,
            to: Destination {
                peer: HboneAddr(peer),
                credential: Arc::new(ca.credential(WEB)),
                expected: Arc::new([expected.parse::<Identity>().unwrap()]),
            },
            from: SocketAddr::from(([10, 0, 0, 1], 4000)),
            connects: Rc::default(),
            tasks,
            shutdown,
        }
    }

    fn request(&self) -> Connect<'static> {
        Connect {
            authority: Authority::Ip(SocketAddr::from(([10, 0, 0, 9], 80))),
            baggage: Baggage {
                namespace: "shop",
                ..Baggage::default()
            },
            from: self.from,
            service: Some("db.shop.svc"),
            network: None,
            trace: Traceparent::new(1, 2),
        }
    }

    async fn open(&self) -> Result<Opened, OpenError> {
        let peer = self.to.peer.0;
        self.open_over(move || TcpStream::connect(peer)).await
    }

    /// To another app of the peer.
    async fn open_to(&self, app: SocketAddr) -> Result<Opened, OpenError> {
        let request = Connect {
            authority: Authority::Ip(app),
            ..self.request()
        };
        let peer = self.to.peer.0;
        let connect = move || TcpStream::connect(peer);
        self.pool.open(&self.to, &request, connect).await
    }

    /// With TCP connections of `connect`.
    async fn open_over<F>(&self, connect: impl Fn() -> F) -> Result<Opened, OpenError>
    where
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        let connect = || {
            self.connects.set(self.connects.get() + 1);
            connect()
        };
        self.pool.open(&self.to, &self.request(), connect).await
    }

    /// So many at once.
    async fn open_all(&self, count: usize) -> Vec<Result<Opened, OpenError>> {
        let opening: Vec<_> = (0..count)
            .map(|_| {
                let client = self.clone();
                spawn_local(async move { client.open().await })
            })
            .collect();
        let mut opened = Vec::new();
        for one in opening {
            opened.push(one.await.unwrap());
        }
        opened
    }
}

fn open(request: Box<Request>) -> Stream {
    request.open(Some(&Baggage::default())).unwrap()
}

fn broken_pipe(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::TimedOut
    )
}
