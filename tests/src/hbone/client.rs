//! One CONNECT at a time, with whatever certificate, protocol, headers and authority a test wants to try.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode};
use rustls::SupportedProtocolVersion;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::tls;
use crate::control_plane::Credential;
use crate::error::{Doing, LabError, Result};
use crate::place::Place;

/// How long an attempt may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How rustls says that the other side refused.
const ALERT: &str = "received fatal alert";
/// What is read of an answer's body.
const BODY_LIMIT: usize = 1 << 20;

/// How to try.
#[derive(Clone, Debug)]
pub struct Client {
    place: Place,
    credential: Option<Credential>,
    alpn: Vec<Vec<u8>>,
    version: &'static SupportedProtocolVersion,
    classic: bool,
    method: Method,
    headers: Vec<(String, String)>,
    payload: Option<Bytes>,
    timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status of the CONNECT.
    pub status: u16,
    /// Headers of the answer.
    pub headers: HeaderMap,
    /// What was read until the end of the stream, if a payload was sent.
    pub body: Vec<u8>,
    /// SPIFFE id in the server's certificate.
    pub server: Option<String>,
    /// TLS version and cipher suite.
    pub tls: String,
}

/// Why nothing came back.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What failed.
    pub stage: Stage,
    /// How, for people.
    pub detail: String,
}

/// How far an attempt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The TCP connection was refused or reset before anything else.
    Tcp,
    /// The handshake failed, or the server sent a TLS alert: with TLS 1.3 a client learns what the server thinks of
    /// its certificate only after its own half of the handshake.
    Tls,
    /// The connection or the stream was reset or ended without an answer.
    Http2,
    /// Nothing happened for too long.
    Timeout,
}

impl Client {
    /// A client in `place` without a certificate, otherwise as a node proxy would do it.
    #[must_use]
    pub fn from(place: &Place) -> Self {
        Self {
            place: place.clone(),
            credential: None,
            alpn: vec![b"h2".to_vec()],
            version: &rustls::version::TLS13,
            classic: false,
            method: Method::CONNECT,
            headers: Vec::new(),
            payload: None,
            timeout: TIMEOUT,
        }
    }

    /// Presents a certificate.
    #[must_use]
    pub fn with(mut self, credential: &Credential) -> Self {
        self.credential = Some(credential.clone());
        self
    }

    /// Offers other application protocols, or none.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        self
    }

    /// Speaks TLS 1.2.
    #[must_use]
    pub fn tls12(mut self) -> Self {
        self.version = &rustls::version::TLS12;
        self
    }

    /// Knows no key exchange but X25519.
    #[must_use]
    pub fn classic(mut self) -> Self {
        self.classic = true;
        self
    }

    /// Uses another method than CONNECT; the authority becomes that of an `https` URI then.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// After a status of 200 sends this, ends its half, and reads to the end.
    #[must_use]
    pub fn payload(mut self, bytes: impl Into<Bytes>) -> Self {
        self.payload = Some(bytes.into());
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects to `to` and asks for a tunnel to `authority`.
    ///
    /// # Errors
    /// When the attempt cannot be made at all. That the server refuses is an answer.
    pub fn connect(&self, to: SocketAddr, authority: &str) -> Result<Result<Answer, Refusal>> {
        let request = self.request(authority)?;
        let config = tls::client(
            self.credential.as_ref(),
            &self.alpn,
            self.version,
            self.classic,
        )?;
        let stream = match self.place.connect(to, self.timeout) {
            Ok(stream) => stream,
            Err(err) => return Ok(Err(Refusal::new(Stage::Tcp, &err))),
        };
        stream
            .set_nonblocking(true)
            .doing(|| "make a socket non-blocking")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .doing(|| "make a runtime for a client")?;
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream).doing(|| "register a socket")?;
            let attempt = self.attempt(stream, TlsConnector::from(Arc::new(config)), to, request);
            Ok(tokio::time::timeout(self.timeout, attempt)
                .await
                .unwrap_or_else(|_| {
                    Err(Refusal {
                        stage: Stage::Timeout,
                        detail: format!("no answer in {:?}", self.timeout),
                    })
                }))
        })
    }

    fn request(&self, authority: &str) -> Result<Request<()>> {
        let uri = if self.method == Method::CONNECT {
            authority.to_owned()
        } else {
            format!("https://{authority}/")
        };
        let mut request = Request::builder().method(self.method.clone()).uri(uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
            .body(())
            .map_err(|err| LabError::because(format!("make a request for `{authority}`"), err))
    }

    async fn attempt(
        &self,
        stream: tokio::net::TcpStream,
        tls: TlsConnector,
        to: SocketAddr,
        request: Request<()>,
    ) -> Result<Answer, Refusal> {
        let name = ServerName::IpAddress(to.ip().into());
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|err| Refusal::new(Stage::Tls, &err))?;
        let (_, session) = stream.get_ref();
        let server = tls::spiffe_id(session.peer_certificates());
        let tls = format!(
            "{:?} {:?}",
            session.protocol_version(),
            session.negotiated_cipher_suite().map(|suite| suite.suite())
        );
        let (requests, connection) = h2::client::handshake(stream)
            .await
            .map_err(|err| Refusal::http2(&err))?;
        // The connection makes progress while the exchange waits; both end here.
        let exchange = async {
            let mut requests = requests.ready().await?;
            let end = self.method != Method::CONNECT;
            let (response, sender) = requests.send_request(request, end)?;
            let response = response.await?;
            let status = response.status();
            let headers = response.headers().clone();
            let mut body = Vec::new();
            if let Some(payload) = self.payload.clone().filter(|_| status == StatusCode::OK) {
                body = send_and_read(sender, payload, response.into_body()).await?;
            }
            Ok::<_, h2::Error>(Answer {
                status: status.as_u16(),
                headers,
                body,
                server,
                tls,
            })
        };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer.map_err(|err| Refusal::http2(&err)),
            ended = connection => match ended {
                Err(err) => Err(Refusal::http2(&err)),
                // Everything that will come is here: the exchange does not wait any more.
                Ok(()) => exchange.await.map_err(|err| Refusal::http2(&err)),
            },
        }
    }
}

async fn send_and_read(
    mut sender: SendStream<Bytes>,
    payload: Bytes,
    mut body: RecvStream,
) -> Result<Vec<u8>, h2::Error> {
    sender.send_data(payload, true)?;
    let mut read = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        read.extend_from_slice(&chunk);
        if read.len() > BODY_LIMIT {
            break;
        }
    }
    Ok(read)
}

impl Refusal {
    fn new(stage: Stage, err: &io::Error) -> Self {
        let detail = err.to_string();
        // What comes out of `h2` has only the text of the error left.
        let is_tls = detail.contains(ALERT)
            || err
                .get_ref()
                .is_some_and(|inner| inner.is::<rustls::Error>());
        Self {
            stage: if is_tls { Stage::Tls } else { stage },
            detail,
        }
    }

    fn http2(err: &h2::Error) -> Self {
        match err.get_io() {
            Some(io) => Self::new(Stage::Http2, io),
            None => {
                let cause = err.source().map(|cause| format!(": {cause}"));
                Self {
                    stage: Stage::Http2,
                    detail: format!("{err}{}", cause.unwrap_or_default()),
                }
            }
        }
    }
}
