//! A control plane for tests: the certificate service over real TLS on loopback.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::{ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use ztunnel_proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use ztunnel_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::{Endpoint, RootSource};
use crate::task::TaskGroup;
use crate::tls;
use crate::tls::test_ca::TestCa;

type Answer = dyn Fn(&IstioCertificateRequest) -> Result<Vec<String>, Status> + Send + Sync;

/// One call as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) metadata: MetadataMap,
    pub(crate) request: IstioCertificateRequest,
}

/// Runs until its tasks are cut, which is when the test's runtime ends.
pub(crate) struct TestServer {
    pub(crate) endpoint: Endpoint,
    pub(crate) calls: Arc<Mutex<Vec<Call>>>,
    /// The server names that clients asked for.
    pub(crate) asked_for: Arc<Mutex<Vec<Option<String>>>>,
}

/// How the server is.
pub(crate) struct Setup<'a> {
    pub(crate) ca: &'a TestCa,
    pub(crate) names: &'a [&'a str],
    pub(crate) versions: &'a [&'static SupportedProtocolVersion],
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) delay: Duration,
    pub(crate) answer: Arc<Answer>,
}

impl<'a> Setup<'a> {
    /// A server as it should be, which has nothing to say.
    pub(crate) fn new(ca: &'a TestCa) -> Self {
        Self {
            ca,
            names: &["127.0.0.1", "localhost"],
            versions: rustls::ALL_VERSIONS,
            provider: tls::provider(tls::Options {
                tls12: true,
                ..tls::Options::default()
            }),
            delay: Duration::ZERO,
            answer: Arc::new(|_| Ok(Vec::new())),
        }
    }

    pub(crate) async fn start(self) -> TestServer {
        let (cert, key) = self.ca.host(self.names);
        let mut config = ServerConfig::builder_with_provider(self.provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];

        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::default();
        let asked_for = Arc::default();
        let service = IstioCertificateServiceServer::new(Service {
            calls: Arc::clone(&calls),
            delay: self.delay,
            answer: self.answer,
        });
        let incoming = accept(listener, Arc::new(config), Arc::clone(&asked_for));
        TaskGroup::default().spawn(async move {
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        TestServer {
            endpoint: endpoint(address, &self.ca.root),
            calls,
            asked_for,
        }
    }
}

fn endpoint(address: SocketAddr, root: &str) -> Endpoint {
    Endpoint {
        address: format!("https://{address}").parse().unwrap(),
        roots: RootSource::Pem(root.to_owned()),
        alt_hostname: None,
        token: None,
        cluster_id: "Kubernetes".to_owned(),
        headers: Vec::new(),
        tls: tls::Options::default(),
    }
}

fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    asked_for: Arc<Mutex<Vec<Option<String>>>>,
) -> ReceiverStream<Result<TlsStream<TcpStream>, std::io::Error>> {
    let (accepted, incoming) = mpsc::channel(1);
    TaskGroup::default().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let accepting = TlsAcceptor::from(config.clone()).accept(stream);
            // Clients that hang up are part of the tests.
            if let Ok(Ok(stream)) = timeout(Duration::from_secs(5), accepting).await {
                let name = stream.get_ref().1.server_name().map(str::to_owned);
                asked_for.lock().unwrap().push(name);
                if accepted.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
        }
    });
    ReceiverStream::new(incoming)
}

struct Service {
    calls: Arc<Mutex<Vec<Call>>>,
    delay: Duration,
    answer: Arc<Answer>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.calls.lock().unwrap().push(Call {
            metadata,
            request: request.clone(),
        });
        tokio::time::sleep(self.delay).await;
        let cert_chain = (self.answer)(&request)?;
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
