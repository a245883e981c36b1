//! The CA on the wire.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::transport::Channel;
use tonic::{Code, Request};
use ztunnel_mesh::name::Identity;
use ztunnel_proto::istio::v1::auth::IstioCertificateRequest;
use ztunnel_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;

use super::{CaConfig, FetchError};
use crate::control_plane::{self, Roots};

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
    cfg: CaConfig,
    /// Shared by all calls until the roots change or a call gets no answer.
    channel: Mutex<Option<(Roots, Channel)>>,
}

impl CertificateAuthority {
    pub(super) const fn new(cfg: CaConfig) -> Self {
        Self {
            cfg,
            channel: Mutex::new(None),
        }
    }

    fn channel(&self) -> Result<Channel, FetchError> {
        let endpoint = &self.cfg.endpoint;
        // Reading a small file before a call that takes milliseconds replaces watching it.
        let roots = endpoint.roots.read().map_err(FetchError::Call)?;
        let mut shared = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((with, channel)) = &*shared
            && *with == roots
        {
            return Ok(channel.clone());
        }
        let channel = endpoint.channel_with(&roots).map_err(FetchError::Call)?;
        *shared = Some((roots, channel.clone()));
        Ok(channel)
    }

    /// The connection may be dead without anybody having noticed: HTTP/2 pings are slower than our deadline.
    fn reconnect(&self) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn create(&self, identity: &Identity, csr: String) -> Result<Vec<String>, FetchError> {
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.cfg.secret_ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonate(identity)),
        });
        *request.metadata_mut() = self.cfg.endpoint.metadata().map_err(FetchError::Call)?;
        let mut client = IstioCertificateServiceClient::new(self.channel()?)
            .max_decoding_message_size(MAX_ANSWER);
        let answer =
            match tokio::time::timeout(RPC_DEADLINE, client.create_certificate(request)).await {
                Ok(Ok(answer)) => answer.into_inner(),
                Ok(Err(status)) => {
                    if status.code() == Code::Unavailable {
                        self.reconnect();
                    }
                    return Err(FetchError::Refused {
                        code: status.code(),
                        explanation: control_plane::explain(&status),
                    });
                }
                Err(_) => {
                    self.reconnect();
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
        Box::pin(self.create(identity, csr))
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
