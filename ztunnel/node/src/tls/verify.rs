//! Who the peer is: a chain to our roots, and SPIFFE identities instead of host names.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use ztunnel_mesh::name::Identity;

/// How much of a stranger's names goes into a message.
const MAX_NAMES_SHOWN: usize = 4;

/// The peer's certificate is genuine, but not the one of anybody we accept here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongIdentity {
    /// We called somebody else.
    #[error("the server is {found:?}, expected {expected:?}")]
    Server {
        expected: Vec<String>,
        found: Vec<String>,
    },
    /// We are called from elsewhere.
    #[error("the client is {found:?}, expected an identity of trust domain {trust_domain}")]
    Client {
        trust_domain: Arc<str>,
        found: Vec<String>,
    },
}

/// Finds the identity in a verified peer's certificates: the leaf's first URI name that is one.
#[must_use]
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Option<Identity> {
    let leaf = EndEntityCert::try_from(certs.first()?).ok()?;
    identities(&leaf).next()
}

/// What any peer's chain must lead to.
#[derive(Debug)]
pub(super) struct PeerRoots {
    anchors: Vec<TrustAnchor<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerRoots {
    pub(super) const fn new(
        anchors: Vec<TrustAnchor<'static>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            anchors,
            algorithms,
        }
    }

    fn verify<'a>(
        &self,
        leaf: &'a CertificateDer<'a>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<EndEntityCert<'a>, rustls::Error> {
        let leaf = EndEntityCert::try_from(leaf).map_err(certificate_error)?;
        leaf.verify_for_usage(
            self.algorithms.all,
            &self.anchors,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(certificate_error)?;
        Ok(leaf)
    }
}

/// For clients: any name of the server is one of the expected identities.
#[derive(Debug)]
pub(super) struct ExpectedServer {
    roots: Arc<PeerRoots>,
    expected: Arc<[Identity]>,
}

impl ExpectedServer {
    pub(super) const fn new(roots: Arc<PeerRoots>, expected: Arc<[Identity]>) -> Self {
        Self { roots, expected }
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = self
            .roots
            .verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        if identities(&leaf).any(|identity| self.expected.contains(&identity)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(wrong(WrongIdentity::Server {
            expected: shown(self.expected.iter().map(Identity::to_string)),
            found: shown(leaf.valid_uri_names().map(str::to_owned)),
        }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.roots.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.roots.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.roots.algorithms.supported_schemes()
    }
}

/// For servers: any name of the client is an identity of our trust domain.
#[derive(Debug)]
pub(super) struct TrustDomainClient {
    roots: Arc<PeerRoots>,
    trust_domain: Arc<str>,
}

impl TrustDomainClient {
    pub(super) const fn new(roots: Arc<PeerRoots>, trust_domain: Arc<str>) -> Self {
        Self {
            roots,
            trust_domain,
        }
    }
}

impl ClientCertVerifier for TrustDomainClient {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let leaf = self
            .roots
            .verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        if identities(&leaf).any(|identity| identity.trust_domain == self.trust_domain) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(wrong(WrongIdentity::Client {
            trust_domain: self.trust_domain.clone(),
            found: shown(leaf.valid_uri_names().map(str::to_owned)),
        }))
    }

    /// No hints: a peer has one certificate to show.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.roots.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.roots.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.roots.algorithms.supported_schemes()
    }
}

fn identities(leaf: &EndEntityCert<'_>) -> impl Iterator<Item = Identity> {
    leaf.valid_uri_names().filter_map(|uri| uri.parse().ok())
}

fn shown(names: impl Iterator<Item = String>) -> Vec<String> {
    names.take(MAX_NAMES_SHOWN).collect()
}

fn wrong(identity: WrongIdentity) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(identity))).into()
}

/// Says it in rustls' words, which decide the alert that the peer gets. rustls keeps its own such table to itself.
fn certificate_error(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::InvalidCertValidity => CertificateError::Expired,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}
