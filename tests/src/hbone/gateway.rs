//! What a network gateway does with a stream: it ends the outer tunnel, looks up where the authority is on its own
//! network, and passes the bytes on as they are. It does not have the keys to what is inside of them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::place::Place;
use crate::sync::lock;

/// How long the way to a pod may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Of what is passed on, so much is kept to be looked at.
const KEPT: usize = 1 << 20;
/// What is read of a pod's answer at once.
const CHUNK: usize = 64 << 10;

/// Where streams go on to, and what was seen of them.
pub(super) struct Gateway {
    place: Place,
    routes: BTreeMap<String, SocketAddr>,
    passed: Arc<Mutex<Passed>>,
}

/// What a gateway has passed on.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// The first bytes of all streams, both directions, as they came.
    pub bytes: Vec<u8>,
    /// Streams that are open.
    pub open: usize,
    /// Streams whose both directions have ended in order.
    pub ended: usize,
    /// Streams that were reset, by whomever.
    pub broken: usize,
}

impl Gateway {
    pub(super) fn new(
        place: &Place,
        routes: BTreeMap<String, SocketAddr>,
        passed: Arc<Mutex<Passed>>,
    ) -> Self {
        Self {
            place: place.clone(),
            routes,
            passed,
        }
    }

    /// Serves one stream to its end.
    pub(super) async fn stream(
        &self,
        request: Request<RecvStream>,
        mut response: SendResponse<Bytes>,
    ) {
        let authority = request.uri().authority().map(|name| name.as_str());
        let known = authority.and_then(|name| self.routes.get(name));
        let opened = match known.filter(|_| request.method() == Method::CONNECT) {
            None => Err(StatusCode::NOT_FOUND),
            Some(to) => self
                .connect(*to)
                .await
                .map_err(|_| StatusCode::SERVICE_UNAVAILABLE),
        };
        let mut head = Response::new(());
        let tcp = match opened {
            Ok(tcp) => tcp,
            Err(status) => {
                *head.status_mut() = status;
                return drop(response.send_response(head, true));
            }
        };
        let Ok(mut back) = response.send_response(head, false) else {
            return;
        };
        lock(&self.passed).open += 1;
        let (from_pod, to_pod) = tcp.into_split();
        let there = self.there(request.into_body(), to_pod);
        let both = tokio::try_join!(there, self.back(from_pod, &mut back));
        let mut passed = lock(&self.passed);
        passed.open -= 1;
        match both {
            Ok(_) => passed.ended += 1,
            Err(_) => {
                passed.broken += 1;
                back.send_reset(Reason::CONNECT_ERROR);
            }
        }
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let place = self.place.clone();
        let tcp = tokio::task::spawn_blocking(move || place.connect(to, CONNECT))
            .await
            .map_err(io::Error::other)??;
        tcp.set_nonblocking(true)?;
        TcpStream::from_std(tcp)
    }

    async fn there(
        &self,
        mut from: RecvStream,
        mut to: tokio::net::tcp::OwnedWriteHalf,
    ) -> io::Result<()> {
        while let Some(chunk) = from.data().await {
            let chunk = chunk.map_err(io::Error::other)?;
            self.keep(&chunk);
            to.write_all(&chunk).await?;
            from.flow_control()
                .release_capacity(chunk.len())
                .map_err(io::Error::other)?;
        }
        to.shutdown().await
    }

    async fn back(
        &self,
        mut from: tokio::net::tcp::OwnedReadHalf,
        to: &mut SendStream<Bytes>,
    ) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = from.read(&mut chunk).await?;
            if length == 0 {
                return to.send_data(Bytes::new(), true).map_err(io::Error::other);
            }
            self.keep(&chunk[..length]);
            let mut rest = Bytes::copy_from_slice(&chunk[..length]);
            while !rest.is_empty() {
                to.reserve_capacity(rest.len());
                let room = std::future::poll_fn(|cx| to.poll_capacity(cx)).await;
                let room = room
                    .ok_or(io::ErrorKind::BrokenPipe)?
                    .map_err(io::Error::other)?;
                let part = rest.split_to(room.min(rest.len()));
                to.send_data(part, false).map_err(io::Error::other)?;
            }
        }
    }

    fn keep(&self, chunk: &[u8]) {
        let kept = &mut lock(&self.passed).bytes;
        let room = KEPT.saturating_sub(kept.len()).min(chunk.len());
        kept.extend_from_slice(&chunk[..room]);
    }
}
