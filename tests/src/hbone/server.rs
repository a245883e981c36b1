//! A server on 15008 that is no node proxy: it presents any certificate and notes who asked for what. It answers by
//! itself, or does what a waypoint or a network gateway does.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use nix::sys::socket::{Shutdown, shutdown};
use rustls::SupportedProtocolVersion;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::forward::Forward;
use super::gateway::{Gateway, Passed};
use super::tls;
use crate::control_plane::Credential;
use crate::error::{Doing, LabError, Result};
use crate::place::Place;
use crate::sync::lock;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long to wait for something expected.
const EXPECTED: Duration = Duration::from_secs(10);

/// A running server: each stream is answered with its status and, if that is 200, echoed; or forwarded.
pub struct Server {
    listener: TcpListener,
    seen: Arc<Mutex<Seen>>,
    passed: Arc<Mutex<Passed>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What becomes of a stream.
#[derive(Clone)]
enum Task {
    Answer(StatusCode),
    Forward(Arc<Forward>),
    PassOn(Arc<Gateway>),
}

#[derive(Default)]
struct Seen {
    tcp: usize,
    handshakes: usize,
    connects: Vec<Connect>,
}

/// A CONNECT that came.
#[derive(Clone, Debug)]
pub struct Connect {
    /// Its authority.
    pub authority: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// SPIFFE id in the client's certificate.
    pub client: Option<String>,
    /// Address of the client.
    pub from: SocketAddr,
}

impl Server {
    /// Starts one in `place`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(
        place: &Place,
        on: SocketAddr,
        credential: &Credential,
        status: u16,
    ) -> Result<Self> {
        Self::start_with(
            place,
            on,
            credential,
            Task::Answer(status_code(status)?),
            &rustls::version::TLS13,
        )
    }

    /// As [`start`](Self::start), for a server that speaks TLS 1.2.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_tls12(
        place: &Place,
        on: SocketAddr,
        credential: &Credential,
        status: u16,
    ) -> Result<Self> {
        Self::start_with(
            place,
            on,
            credential,
            Task::Answer(status_code(status)?),
            &rustls::version::TLS12,
        )
    }

    /// Starts a waypoint: a stream for one of the authorities in `routes` ends here, and its bytes go on by HBONE,
    /// with the same certificate, to the pod at the address. Any other authority is answered with 404.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_waypoint(
        place: &Place,
        on: SocketAddr,
        credential: &Credential,
        routes: BTreeMap<String, SocketAddr>,
    ) -> Result<Self> {
        let forward = Forward::new(place, credential, routes)?;
        let task = Task::Forward(Arc::new(forward));
        Self::start_with(place, on, credential, task, &rustls::version::TLS13)
    }

    /// Starts a network gateway: a stream for one of the authorities in `routes` ends here, and its bytes go on to the
    /// address, as they are. Any other authority is answered with 404.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_gateway(
        place: &Place,
        on: SocketAddr,
        credential: &Credential,
        routes: BTreeMap<String, SocketAddr>,
    ) -> Result<Self> {
        let passed = Arc::<Mutex<Passed>>::default();
        let task = Task::PassOn(Arc::new(Gateway::new(place, routes, passed.clone())));
        let mut server = Self::start_with(place, on, credential, task, &rustls::version::TLS13)?;
        server.passed = passed;
        Ok(server)
    }

    fn start_with(
        place: &Place,
        on: SocketAddr,
        credential: &Credential,
        task: Task,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Self> {
        let tls = TlsAcceptor::from(Arc::new(tls::server(credential, version)?));
        let listener = place
            .listen(on)
            .doing(|| format!("listen on {on} in {}", place.name()))?;
        listener
            .set_nonblocking(true)
            .doing(|| "make a listener non-blocking")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .doing(|| "make a runtime for a server")?;
        let kept = listener.try_clone().doing(|| "copy a listener")?;
        let (stop, stopped) = oneshot::channel();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = seen.clone();
        let thread = std::thread::Builder::new()
            .name("hbone-server".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, tls, task, noted) => {}
                        _ = stopped => {}
                    }
                });
            })
            .doing(|| "start the thread of a server")?;
        Ok(Self {
            listener: kept,
            seen,
            passed: Arc::default(),
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// TCP connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.seen).tcp
    }

    /// TLS handshakes that both sides agreed to finish, as far as the server can tell, so far.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        lock(&self.seen).handshakes
    }

    /// Streams so far.
    #[must_use]
    pub fn connects(&self) -> Vec<Connect> {
        lock(&self.seen).connects.clone()
    }

    /// What a gateway has passed on so far.
    #[must_use]
    pub fn passed(&self) -> Passed {
        lock(&self.passed).clone()
    }

    /// The stream number `number`, counted from zero.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn connect(&self, number: usize) -> Result<Connect> {
        let deadline = Instant::now() + EXPECTED;
        loop {
            if let Some(connect) = lock(&self.seen).connects.get(number) {
                return Ok(connect.clone());
            }
            if Instant::now() > deadline {
                return Err(LabError::new(format!(
                    "no stream number {number} in {EXPECTED:?}"
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        // To close it is not enough: a program that is being started at this moment has a copy.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

fn status_code(status: u16) -> Result<StatusCode> {
    StatusCode::from_u16(status).doing(|| format!("answer with {status}"))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, task: Task, seen: Arc<Mutex<Seen>>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, from)) = listener.accept().await {
        lock(&seen).tcp += 1;
        // Owned by the runtime, which ends with the server.
        tokio::spawn(connection(
            stream,
            from,
            tls.clone(),
            task.clone(),
            seen.clone(),
        ));
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    from: SocketAddr,
    tls: TlsAcceptor,
    task: Task,
    seen: Arc<Mutex<Seen>>,
) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else {
        return;
    };
    lock(&seen).handshakes += 1;
    let client = tls::spiffe_id(stream.get_ref().1.peer_certificates());
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, response))) = connection.accept().await {
        let authority = request.uri().authority();
        lock(&seen).connects.push(Connect {
            authority: authority.map_or_else(String::new, |name| name.as_str().to_owned()),
            headers: request.headers().clone(),
            client: client.clone(),
            from,
        });
        match &task {
            Task::Answer(status) => drop(tokio::spawn(answer(request, response, *status))),
            Task::Forward(forward) => {
                let forward = forward.clone();
                tokio::spawn(async move { forward.stream(request, response).await });
            }
            Task::PassOn(gateway) => {
                let gateway = gateway.clone();
                tokio::spawn(async move { gateway.stream(request, response).await });
            }
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut response: SendResponse<Bytes>,
    status: StatusCode,
) {
    let mut head = Response::new(());
    *head.status_mut() = status;
    let end = status != StatusCode::OK;
    if let Ok(mut sender) = response.send_response(head, end)
        && !end
    {
        drop(pass_on(request.into_body(), &mut sender).await);
    }
}

/// Sends on what comes, until it ends. Small exchanges only: it leaves the pace to the buffers of `h2`.
pub(super) async fn pass_on(
    mut from: RecvStream,
    to: &mut SendStream<Bytes>,
) -> Result<(), h2::Error> {
    while let Some(chunk) = from.data().await {
        let chunk = chunk?;
        from.flow_control().release_capacity(chunk.len())?;
        to.send_data(chunk, false)?;
    }
    to.send_data(Bytes::new(), true)
}
