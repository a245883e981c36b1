//! Handshakes with a deadline, what they agreed on, and why they failed.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, CommonState, HandshakeKind, OtherError,
    ProtocolVersion, ServerConfig,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use ztunnel_mesh::reason::Reason;

use super::live::MAX_SESSIONS;
use super::shaking::{Shaking, invalid};
use super::stream::TlsStream;
use super::verify::WrongIdentity;

/// How long a refused client has to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How much of what a refused client still says is thrown away.
const MAX_LINGER_BYTES: u64 = 64 * 1024;

/// Why there is no TLS with the peer.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer does not answer, or too slowly.
    #[error("tls handshake timed out after {after:?}")]
    Timeout { after: Duration },
    /// The peer, or its certificate, is not right.
    #[error("tls handshake failed")]
    Failed(#[source] io::Error),
    /// A guard against keeping an eye on everybody.
    #[error("{MAX_SESSIONS} sessions are watched for revoked certificates already")]
    TooMany,
}

impl HandshakeError {
    /// What failed below or within TLS, if that is known.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Timeout { .. } | Self::TooMany => None,
        }
    }

    /// The reason a connection ends with.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Timeout { .. } => Reason::PeerTlsFailed,
            Self::Failed(error) => failure_reason(error),
            Self::TooMany => Reason::Overloaded,
        }
    }
}

/// Tells a peer with the wrong identity, or with a revoked one, from every other failure of a TLS stream.
#[must_use]
pub fn failure_reason(error: &io::Error) -> Reason {
    match cause(error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))))
            if cause.is::<WrongIdentity>() =>
        {
            Reason::PeerIdentityMismatch
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => Reason::PeerRevoked,
        _ => Reason::PeerTlsFailed,
    }
}

/// Whether the peer does not accept our own certificate. Whom else we ask makes no difference to that.
#[must_use]
pub fn is_rejection(error: &io::Error) -> bool {
    use rustls::AlertDescription as Alert;

    matches!(
        cause(error),
        Some(rustls::Error::AlertReceived(
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
        ))
    )
}

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    // One that all streams of a tunnel tell.
    match inner.downcast_ref::<Arc<io::Error>>() {
        Some(shared) => cause(shared),
        None => inner.downcast_ref(),
    }
}

/// What a handshake has made.
pub struct Established<IO> {
    pub stream: TlsStream<IO>,
    pub negotiated: Negotiated,
    /// The peer's certificates, its own first.
    pub peer: Vec<CertificateDer<'static>>,
    /// Whether it took another round trip.
    pub kind: Option<HandshakeKind>,
}

/// Performs the client's half of a handshake.
///
/// # Errors
/// When the peer is not who it should be, or does not finish in time.
pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    stream: IO,
    deadline: Duration,
) -> Result<Established<IO>, HandshakeError> {
    // rustls wants a name; it is neither sent nor checked.
    let nobody = ServerName::from(Ipv4Addr::UNSPECIFIED);
    let connection = UnbufferedClientConnection::new(config, nobody);
    let connection = connection.map_err(|err| HandshakeError::Failed(invalid(err)))?;
    let mut shaking = Shaking::new(connection, stream);
    timeout(deadline, shaking.run())
        .await
        .map_err(|_| HandshakeError::Timeout { after: deadline })?
        .and_then(|()| shaking.establish())
        .map_err(HandshakeError::Failed)
}

/// Performs the server's half of a handshake. A client that is refused gets a moment to read the alert: closing a
/// socket with unread bytes in it sends a reset, and then the client fails at its next write instead.
///
/// # Errors
/// When the peer shows no good certificate, or does not finish in time.
pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    stream: IO,
    deadline: Duration,
) -> Result<Established<IO>, HandshakeError> {
    let connection = UnbufferedServerConnection::new(config);
    let connection = connection.map_err(|err| HandshakeError::Failed(invalid(err)))?;
    let mut shaking = Shaking::new(connection, stream);
    let done = timeout(deadline, shaking.run())
        .await
        .map_err(|_| HandshakeError::Timeout { after: deadline })?;
    if let Err(error) = done {
        let linger = async {
            shaking.io.shutdown().await?;
            let rest = (&mut shaking.io).take(MAX_LINGER_BYTES);
            tokio::io::copy(&mut { rest }, &mut tokio::io::sink()).await
        };
        // The client may be gone already; it was refused in any case.
        drop(timeout(LINGER, linger).await);
        return Err(HandshakeError::Failed(error));
    }
    shaking.establish().map_err(HandshakeError::Failed)
}

/// What a handshake agreed on, in the names of the standards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    pub version: &'static str,
    pub cipher: &'static str,
    pub key_exchange: &'static str,
}

/// Reads what a finished handshake agreed on.
#[must_use]
pub(super) fn negotiated(conn: &CommonState) -> Negotiated {
    let unknown = "unknown";
    Negotiated {
        version: match conn.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => unknown,
        },
        cipher: match conn.negotiated_cipher_suite().map(|suite| suite.suite()) {
            Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
            Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
            other => other.and_then(|suite| suite.as_str()).unwrap_or(unknown),
        },
        key_exchange: conn
            .negotiated_key_exchange_group()
            .and_then(|group| group.name().as_str())
            .unwrap_or(unknown),
    }
}
