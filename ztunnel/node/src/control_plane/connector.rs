//! TCP and TLS to the control plane, as one service for the HTTP/2 client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::{ControlPlaneError, Roots};
use crate::tls;

const TCP_CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const KEEPALIVE_AFTER: Duration = Duration::from_secs(300);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(75);
const KEEPALIVE_PROBES: u32 = 9;

/// Opens connections to one control plane.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: TlsConnector,
    address: Uri,
    name: ServerName<'static>,
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("connect to {address}")]
    Tcp {
        address: Uri,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("tls handshake with {address}")]
    Tls {
        address: Uri,
        source: std::io::Error,
    },
}

impl Connector {
    pub(super) fn new(
        address: Uri,
        name: ServerName<'static>,
        alt_name: Option<ServerName<'static>>,
        roots: &Roots,
        options: tls::Options,
    ) -> Result<Self, ControlPlaneError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false); // TLS goes on top, here.
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(TCP_CONNECT_DEADLINE));
        tcp.set_keepalive(Some(KEEPALIVE_AFTER));
        tcp.set_keepalive_interval(Some(KEEPALIVE_EVERY));
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        Ok(Self {
            tcp,
            tls: TlsConnector::from(Arc::new(client_config(alt_name, roots, options)?)),
            address,
            name,
        })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(())) // HttpConnector is.
    }

    /// The argument is always the same placeholder.
    fn call(&mut self, _: Uri) -> Self::Future {
        let Self {
            mut tcp,
            tls,
            address,
            name,
        } = self.clone();
        Box::pin(async move {
            let stream = tcp
                .call(address.clone())
                .await
                .map_err(|source| ConnectError::Tcp {
                    address: address.clone(),
                    source: source.into(),
                })?;
            let stream = tls
                .connect(name, stream.into_inner())
                .await
                .map_err(|source| ConnectError::Tls { address, source })?;
            Ok(TokioIo::new(stream))
        })
    }
}

fn client_config(
    alt_name: Option<ServerName<'static>>,
    roots: &Roots,
    options: tls::Options,
) -> Result<ClientConfig, ControlPlaneError> {
    let provider = tls::provider(options);
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots.store()?), provider.clone())
            .build()
            .map_err(|err| ControlPlaneError::Tls(rustls::Error::General(err.to_string())))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(options.versions())
        .map_err(ControlPlaneError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(EitherName { verifier, alt_name }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The standard verification, given a second chance under the alternative name.
#[derive(Debug)]
struct EitherName {
    verifier: Arc<WebPkiServerVerifier>,
    alt_name: Option<ServerName<'static>>,
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name: &ServerName<'_>| {
            self.verifier
                .verify_server_cert(end_entity, intermediates, name, ocsp, now)
        };
        let verified = verify(name);
        // The name is checked last: only an otherwise good certificate gets here.
        match (&verified, &self.alt_name) {
            (
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                )),
                Some(alt_name),
            ) => verify(alt_name).or(verified),
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier
            .verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
