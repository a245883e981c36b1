//! The CA on the wire.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::time::Instant;
use tonic::{Code, Request};
use ztunnel_mesh::name::Identity;
use ztunnel_proto::istio::v1::auth::IstioCertificateRequest;
use ztunnel_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use super::{CaConfig, FetchError};
use crate::control_plane::{self, SharedChannel};
use crate::task::{Pace, Shutdown};
use crate::telemetry::CaMetrics;

const RPC_DEADLINE: Duration = Duration::from_secs(10);
/// Some certificates.
const MAX_ANSWER: usize = 1024 * 1024;

/// What a `Sign` is doing.
pub(super) type Signing<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<String>, FetchError>> + Send + 'a>>;

/// Whoever turns a request into a certificate chain.
pub(super) trait Sign: Send + Sync + fmt::Debug {
    /// Asks for a certificate of `identity` for the key in `csr`. Takes a bounded time.
    fn sign<'a>(&'a self, identity: &'a Identity, csr: String) -> Signing<'a>;
}

/// Istio's certificate service.
#[derive(Debug)]
pub(super) struct CertificateAuthority {
    secret_ttl: Duration,
    metrics: CaMetrics,
    /// Shared by all calls until the roots change or a call gets no answer.
    channel: SharedChannel,
}

impl CertificateAuthority {
    pub(super) fn new(cfg: CaConfig) -> Self {
        Self {
            secret_ttl: cfg.secret_ttl,
            metrics: cfg.metrics,
            channel: SharedChannel::new(cfg.endpoint),
        }
    }

    /// Uses other roots as soon as their file has them.
    pub(super) async fn follow_roots(&self, shutdown: Shutdown) {
        self.channel.follow_roots(Pace::default(), shutdown).await;
    }

    async fn create(&self, identity: &Identity, csr: String) -> Result<Vec<String>, FetchError> {
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.secret_ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonate(identity)),
        });
        *request.metadata_mut() = self
            .channel
            .endpoint()
            .metadata()
            .map_err(FetchError::Call)?;
        let channel = self.channel.get().map_err(FetchError::Call)?;
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let answer =
            match tokio::time::timeout(RPC_DEADLINE, client.create_certificate(request)).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => {
                    if status.code() == Code::Unavailable {
                        self.channel.reconnect();
                    }
                    return Err(FetchError::Refused {
                        code: status.code(),
                        explanation: control_plane::explain(&status),
                    });
                }
                Err(_) => {
                    self.channel.reconnect();
                    return Err(FetchError::Timeout {
                        after: RPC_DEADLINE,
                    });
                }
            };
        Ok(answer.cert_chain)
    }
}

impl Sign for CertificateAuthority {
    fn sign<'a>(&'a self, identity: &'a Identity, csr: String) -> Signing<'a> {
        Box::pin(async move {
            let began = Instant::now();
            let answer = self.create(identity, csr).await;
            let metrics = &self.metrics;
            match &answer {
                Ok(_) => metrics.seconds.observe(began.elapsed().as_secs_f64()),
                Err(err) => metrics.failed(err.reason()),
            }
            answer
        })
    }
}

/// istiod ignores the names in the request: this is what counts.
fn impersonate(identity: &Identity) -> Struct {
    let identity = Value {
        kind: Some(Kind::StringValue(identity.to_string())),
    };
    Struct {
        fields: [("ImpersonatedIdentity".to_owned(), identity)].into(),
    }
}
