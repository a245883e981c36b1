//! A small HTTP/1.1 server, for probes, scrapes and operators.
//!
//! Anybody who reaches the node may connect, so nobody can hold anything for long: a connection carries one request
//! and has a deadline for it ([`Limits`]), the head of a request has a bound, its body is not read. When
//! [`MAX_CONNECTIONS`] to an address are open, the oldest makes room: those who connect and say nothing lose their
//! places to those who ask.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener as StdTcpListener};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use ztunnel_sys::socket::listen_everywhere;

use super::AdminError;
use crate::task::{Backoff, Shutdown, TaskGroup};

/// The head of a request; its body is not looked at.
pub type Request = http::Request<()>;
/// What is answered.
pub type Response = http::Response<Body>;

/// The body of an answer.
pub enum Body {
    Whole(Full<Bytes>),
    /// Made while it is sent, because it may be large.
    Pieces(Box<dyn Iterator<Item = Bytes> + Send>),
}

#[cfg(test)]
impl Body {
    pub(super) fn text(self) -> String {
        let mut body = self;
        let mut text = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(piece)) =
            hyper::body::Body::poll_frame(Pin::new(&mut body), &mut cx)
        {
            text.extend_from_slice(&piece.unwrap().into_data().unwrap());
        }
        String::from_utf8(text).unwrap()
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(whole: T) -> Self {
        Self::Whole(Full::new(whole.into()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Pieces(pieces) => Poll::Ready(pieces.next().map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// How long a connection may last.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connect to the end of the request's head.
    pub request: Duration,
    /// From the connect to the end of the answer.
    pub answer: Duration,
    /// Whether what was asked before shutdown is answered after it.
    pub finish: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(5),
            answer: Duration::from_secs(5),
            finish: false,
        }
    }
}

/// Connections at a time, to each address that is listened on.
const MAX_CONNECTIONS: usize = 32;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// What a connection may buffer, and so the longest head of a request. The least that hyper accepts.
const MAX_HEAD: usize = 8 * 1024;

/// A port on which requests wait until they are served.
#[derive(Debug)]
pub struct HttpListener(Vec<TcpListener>);

impl HttpListener {
    /// Listens on `port` of every address of the node, for `purpose`.
    ///
    /// # Errors
    /// When the port is taken, or the kernel refuses.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn bind(purpose: &'static str, port: u16) -> Result<Self, AdminError> {
        let listener = listen_everywhere(port, BACKLOG)
            .and_then(|fd| TcpListener::from_std(StdTcpListener::from(fd)));
        listener
            .map(|listener| Self(vec![listener]))
            .map_err(|source| AdminError::Listen {
                purpose,
                port,
                source,
            })
    }

    /// Listens on `port` where only the node itself can connect: 127.0.0.1, and ::1 if there is IPv6.
    ///
    /// # Errors
    /// When the port is taken, or the kernel refuses.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn bind_loopback(purpose: &'static str, port: u16) -> Result<Self, AdminError> {
        loopback(port)
            .map(Self)
            .map_err(|source| AdminError::Listen {
                purpose,
                port,
                source,
            })
    }

    /// The port that is listened on, where the kernel chose it.
    #[cfg(test)]
    pub(super) fn port(&self) -> u16 {
        self.0[0].local_addr().unwrap().port()
    }

    /// Answers requests at once by tasks in `tasks`, until shutdown: then it no longer listens, and no connection
    /// goes on.
    pub fn serve(
        self,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
        shutdown: Shutdown,
        tasks: &TaskGroup,
    ) {
        let answer = move |request| ready(answer(&request));
        self.serve_within(Limits::default(), answer, shutdown, tasks);
    }

    /// Answers requests by tasks in `tasks`, until shutdown: then it no longer listens, and connections go on as
    /// `limits` say.
    pub fn serve_within<F>(
        self,
        limits: Limits,
        answer: impl Fn(Request) -> F + Send + Sync + 'static,
        shutdown: Shutdown,
        tasks: &TaskGroup,
    ) where
        F: Future<Output = Response> + Send + 'static,
    {
        let answer = Arc::new(answer);
        for listener in self.0 {
            let (answer, shutdown, group) = (answer.clone(), shutdown.clone(), tasks.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = shutdown.started() => {}
                    () = accept(&listener, limits, answer, &shutdown, &group) => {}
                }
            });
        }
    }
}

fn loopback(port: u16) -> io::Result<Vec<TcpListener>> {
    let on = |ip: IpAddr, port| {
        let listener = StdTcpListener::bind((ip, port))?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let v4 = on(Ipv4Addr::LOCALHOST.into(), port)?;
    let port = v4.local_addr()?.port();
    match on(Ipv6Addr::LOCALHOST.into(), port) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => Err(err),
        // A namespace without IPv6 has no such sockets, or no such address.
        Err(_) => Ok(vec![v4]),
    }
}

async fn accept<F: Future<Output = Response> + Send + 'static>(
    listener: &TcpListener,
    limits: Limits,
    answer: Arc<impl Fn(Request) -> F + Send + Sync + 'static>,
    shutdown: &Shutdown,
    tasks: &TaskGroup,
) {
    let mut open: VecDeque<CancellationToken> = VecDeque::new();
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors or memory: slow down, never give up.
            Err(err) => {
                warn!(error = %err, "cannot accept an HTTP connection");
                tokio::time::sleep(backoff.delay()).await;
                continue;
            }
        };
        backoff.reset();
        // A connection that has ended has canceled its token itself.
        open.retain(|connection| !connection.is_cancelled());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.cancel();
        }
        let end = CancellationToken::new();
        open.push_back(end.clone());
        let (answer, shutdown) = (answer.clone(), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = connection(stream, limits, answer, shutdown) => end.cancel(),
            }
        });
    }
}

async fn connection<F: Future<Output = Response> + Send + 'static>(
    stream: TcpStream,
    limits: Limits,
    answer: Arc<impl Fn(Request) -> F + Send + Sync + 'static>,
    shutdown: Shutdown,
) {
    let service = service_fn(|request: http::Request<Incoming>| {
        let response = answer(request.map(drop));
        async { Ok::<_, Infallible>(response.await) }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request)
        .max_buf_size(MAX_HEAD)
        // Who has asked may close its side before it has the answer.
        .half_close(true)
        .keep_alive(false);
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let served = async {
        tokio::select! {
            served = serving.as_mut() => return served,
            () = shutdown.started() => {}
        }
        if !limits.finish {
            return Ok(());
        }
        // Ends at once where nothing was asked.
        serving.as_mut().graceful_shutdown();
        serving.await
    };
    match timeout(limits.answer, served).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => debug!(error = %err, "HTTP connection failed"),
        Err(_) => debug!("HTTP connection took too long"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Answers every request with its path.
    fn start() -> (SocketAddr, Shutdown, TaskGroup) {
        let listener = HttpListener::bind("a test", 0).unwrap();
        let port = listener.port();
        let (shutdown, tasks) = (Shutdown::default(), TaskGroup::default());
        let echo = |request: &Request| Response::new(request.uri().path().to_owned().into());
        listener.serve(echo, shutdown.clone(), &tasks);
        ((Ipv4Addr::LOCALHOST, port).into(), shutdown, tasks)
    }

    async fn connect(to: SocketAddr) -> TcpStream {
        timeout(PATIENCE, TcpStream::connect(to))
            .await
            .unwrap()
            .unwrap()
    }

    /// Sends it, and reads all there is to read.
    async fn exchange(stream: &mut TcpStream, request: &[u8]) -> String {
        // Whoever sends too much finds out so while it writes.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn check(to: SocketAddr, request: &[u8], expected: &str) {
        let answer = exchange(&mut connect(to).await, request).await;
        assert!(answer.starts_with(expected), "{answer:?}");
    }

    #[tokio::test]
    async fn a_request_gets_its_answer_over_either_family() {
        let (v4, ..) = start();
        let v6 = (Ipv6Addr::LOCALHOST, v4.port()).into();
        for to in [v4, v6] {
            let answer = exchange(
                &mut connect(to).await,
                b"GET /x?y HTTP/1.1\r\nHost: h\r\n\r\n",
            )
            .await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("content-length: 2\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\n/x"), "{answer}");
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_and_harms_nobody() {
        let (to, ..) = start();
        check(to, b"\x16\x03\x01\x00\xff\x01\r\n\r\n", "HTTP/1.1 400 ").await;
        check(to, b"GET / HTTP/1.1\r\nA B\r\n\r\n", "HTTP/1.1 400 ").await;
        check(to, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "").await;
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
        check(to, long.as_bytes(), "HTTP/1.1 4").await;
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
        check(to, many.as_bytes(), "HTTP/1.1 431 ").await;
        // A body of any length is not waited for.
        let body = b"POST /x HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\nabc";
        check(to, body, "HTTP/1.1 200 OK").await;
        // The second of two requests is not looked at.
        let two = exchange(
            &mut connect(to).await,
            b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        )
        .await;
        assert_eq!(two.matches("HTTP/1.1 ").count(), 1, "{two}");
        check(to, b"GET /x HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK").await;
    }

    #[tokio::test]
    async fn those_who_say_nothing_make_room() {
        let (to, ..) = start();
        let mut silent = Vec::new();
        for _ in 0..4 * MAX_CONNECTIONS {
            silent.push(connect(to).await);
        }
        check(to, b"GET /x HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK").await;
        // The first ones are closed already, long before their time is over.
        assert_eq!(exchange(&mut silent[0], b"").await, "");
    }

    #[tokio::test]
    async fn whoever_is_slow_is_cut() {
        let (to, ..) = start();
        let mut slow = connect(to).await;
        slow.write_all(b"GET / HTTP/1.1\r\nA: ").await.unwrap();
        // The server reads it, and waits for more, in real time; the rest of the time passes at once.
        tokio::task::yield_now().await;
        tokio::time::pause();
        let before = tokio::time::Instant::now();
        assert_eq!(exchange(&mut slow, b"").await, "");
        assert!(before.elapsed() <= Limits::default().answer + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn shutdown_closes_the_port_and_the_connections_at_once() {
        let (to, shutdown, tasks) = start();
        let mut open = connect(to).await;
        check(to, b"GET /x HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK").await;
        shutdown.start();
        assert_eq!(tasks.drain(PATIENCE).await, 0);
        assert_eq!(exchange(&mut open, b"").await, "");
        let refused = TcpStream::connect(to).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let (taken, ..) = start();
        let error = HttpListener::bind("readiness probes", taken.port()).unwrap_err();
        let text = crate::telemetry::chain(&error);
        let expected = format!("listen for readiness probes on port {}: ", taken.port());
        assert!(text.starts_with(&expected), "{text}");
        assert!(text.contains("in use"), "{text}");
    }

    #[tokio::test]
    async fn loopback_is_two_addresses_and_no_other() {
        let listener = HttpListener::bind_loopback("a test", 0).unwrap();
        let port = listener.port();
        let addresses: Vec<_> = listener
            .0
            .iter()
            .map(|listener| listener.local_addr().unwrap())
            .collect();
        let v4 = (Ipv4Addr::LOCALHOST, port).into();
        let v6 = (Ipv6Addr::LOCALHOST, port).into();
        assert_eq!(addresses, [v4, v6]);
        let error = HttpListener::bind_loopback("a test", port).unwrap_err();
        let text = crate::telemetry::chain(&error);
        let expected = format!("listen for a test on port {port}: ");
        assert!(text.starts_with(&expected), "{text}");
    }

    #[tokio::test]
    async fn what_was_asked_is_answered_after_shutdown_where_limits_say_so() {
        let listener = HttpListener::bind_loopback("a test", 0).unwrap();
        let to = (Ipv4Addr::LOCALHOST, listener.port()).into();
        let (shutdown, tasks) = (Shutdown::default(), TaskGroup::default());
        let (asked, gate) = (Arc::new(tokio::sync::Notify::new()), shutdown.clone());
        let told = asked.clone();
        let answer = move |_: Request| {
            let (told, gate) = (told.clone(), gate.clone());
            async move {
                told.notify_one();
                gate.started().await;
                tokio::task::yield_now().await;
                Response::new("late".into())
            }
        };
        let limits = Limits {
            finish: true,
            ..Limits::default()
        };
        listener.serve_within(limits, answer, shutdown.clone(), &tasks);
        let mut silent = connect(to).await;
        let mut waiting = connect(to).await;
        waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        timeout(PATIENCE, asked.notified()).await.unwrap();
        shutdown.start();
        assert!(exchange(&mut waiting, b"").await.ends_with("\r\n\r\nlate"));
        assert_eq!(exchange(&mut silent, b"").await, "");
        assert_eq!(tasks.drain(PATIENCE).await, 0);
    }
}
