//! The certificate service: signs for a node what its pods are called, and nothing else.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost_types::value::Kind;
use rcgen::CertificateSigningRequestParams;
use tonic::{Request, Response, Status};
use ztunnel_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use ztunnel_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

use super::Authority;
use super::authority::Validity;
use super::shared::{Shared, lock};

/// What a certificate is good for when the request does not say.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// The longest one that may be asked for.
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// Records that are kept; older ones are forgotten.
const RECORDS: usize = 10_000;

/// The signer and its books.
pub(crate) struct Ca {
    pub(crate) authority: Arc<Authority>,
    /// Roots of earlier and later authorities that shall be trusted, too.
    pub(crate) other_roots: Vec<String>,
    pub(crate) mode: CaMode,
    /// Cuts what is asked for.
    pub(crate) at_most: Option<Validity>,
    pub(crate) issued: Vec<Issued>,
    pub(crate) refused: Vec<Refused>,
}

/// How the certificate service behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CaMode {
    /// Signs what may be signed.
    #[default]
    Sign,
    /// Answers every request with `UNAVAILABLE`.
    Unavailable,
    /// Takes requests and never answers.
    Hang,
    /// Signs, but for this trust domain, whatever was asked for.
    WrongIdentity,
}

/// A certificate that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The SPIFFE id.
    pub identity: String,
    /// The node that asked for it.
    pub node: String,
    /// What the request asked for.
    pub asked_for: Duration,
    /// Until when it is good.
    pub not_after: SystemTime,
    /// Its serial number.
    pub serial: Vec<u8>,
}

/// A request that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The SPIFFE id it asked for.
    pub identity: String,
    /// The node that asked, if the token said.
    pub node: Option<String>,
    /// Why; the client is only told that it was refused.
    pub reason: String,
}

impl Ca {
    pub(crate) fn new(authority: Authority) -> Self {
        Self {
            authority: Arc::new(authority),
            other_roots: Vec::new(),
            mode: CaMode::default(),
            at_most: None,
            issued: Vec::new(),
            refused: Vec::new(),
        }
    }
}

/// The service.
pub(super) struct CaService(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let mode = lock(&self.0.ca).mode;
        match mode {
            CaMode::Sign | CaMode::WrongIdentity => {}
            CaMode::Unavailable => return Err(Status::unavailable("the lab says so")),
            CaMode::Hang => pending().await,
        }
        let node = self.0.authenticate(request.metadata());
        let request = request.into_inner();
        let identity = impersonated(&request).unwrap_or_default();
        let node = node.inspect_err(|_| self.note_refused(&identity, None, "not authenticated"))?;
        self.sign(&node, &identity, mode, &request)
            .map(Response::new)
            .map_err(|reason| {
                self.note_refused(&identity, Some(node), &reason);
                Status::unauthenticated("request impersonation authentication failure")
            })
    }
}

impl CaService {
    fn sign(
        &self,
        node: &str,
        identity: &str,
        mode: CaMode,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, String> {
        self.check_runs_on(node, identity)?;
        let csr = CertificateSigningRequestParams::from_pem(&request.csr)
            .map_err(|err| format!("the CSR is not acceptable: {err}"))?;
        let asked_for = match u64::try_from(request.validity_duration) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => DEFAULT_TTL,
        };
        if asked_for > MAX_TTL {
            return Err(format!("{asked_for:?} is more than {MAX_TTL:?}"));
        }
        let mut ca = lock(&self.0.ca);
        let validity = ca
            .at_most
            .filter(|most| most.lifetime < asked_for)
            .unwrap_or_else(|| Validity::of(asked_for));
        let written = match mode {
            CaMode::WrongIdentity => format!("{identity}-not"),
            _ => identity.to_owned(),
        };
        let leaf = ca
            .authority
            .sign(&written, &csr.public_key, validity)
            .map_err(|err| err.chain())?;
        let roots = ca
            .other_roots
            .iter()
            .cloned()
            .chain([ca.authority.root_pem()]);
        let cert_chain = vec![leaf.pem, ca.authority.intermediate_pem(), roots.collect()];
        if ca.issued.len() >= RECORDS {
            ca.issued.remove(0);
        }
        ca.issued.push(Issued {
            identity: identity.to_owned(),
            node: node.to_owned(),
            asked_for,
            not_after: leaf.not_after,
            serial: leaf.serial,
        });
        drop(ca);
        self.0
            .log(&format!("certificates: signed {identity} for {node}"));
        Ok(IstioCertificateResponse { cert_chain })
    }

    /// A node may only ask for what runs on it.
    fn check_runs_on(&self, node: &str, identity: &str) -> Result<(), String> {
        let rest = identity
            .strip_prefix("spiffe://")
            .ok_or_else(|| format!("`{identity}` is no SPIFFE id"))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let &[_, "ns", namespace, "sa", account] = parts.as_slice() else {
            return Err(format!(
                "`{identity}` has not the form of namespace and service account"
            ));
        };
        let runs = lock(&self.0.mesh).file.workloads.iter().any(|workload| {
            workload.announce
                && workload.node == node
                && workload.namespace == namespace
                && workload.service_account == account
        });
        if runs {
            Ok(())
        } else {
            Err(format!("no pod of {namespace}/{account} on {node}"))
        }
    }

    fn note_refused(&self, identity: &str, node: Option<String>, reason: &str) {
        self.0.log(&format!(
            "certificates: refused {identity} for {node:?}: {reason}"
        ));
        let mut ca = lock(&self.0.ca);
        if ca.refused.len() >= RECORDS {
            ca.refused.remove(0);
        }
        ca.refused.push(Refused {
            identity: identity.to_owned(),
            node,
            reason: reason.to_owned(),
        });
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<String> {
    let fields = &request.metadata.as_ref()?.fields;
    match fields.get("ImpersonatedIdentity")?.kind.as_ref()? {
        Kind::StringValue(identity) => Some(identity.clone()),
        _ => None,
    }
}
