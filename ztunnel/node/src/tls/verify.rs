//! Who the peer is: a chain to our roots, and SPIFFE identities instead of host names.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use ztunnel_mesh::name::Identity;

use super::chain::validity;
use super::revocation::RevocationLists;
use super::trust::Trusted;
use super::verified::{ChainId, Verified};

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

/// What a peer's certificate is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Usage {
    Server,
    Client,
}

impl Usage {
    const fn required(self) -> KeyUsage {
        match self {
            Self::Server => KeyUsage::server_auth(),
            Self::Client => KeyUsage::client_auth(),
        }
    }
}

/// What any peer's chain must lead to: follows the changes of what this node trusts.
#[derive(Clone, Debug)]
pub(super) struct PeerRoots {
    current: Arc<ArcSwap<Trusted>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerRoots {
    pub(super) const fn new(
        current: Arc<ArcSwap<Trusted>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            current,
            algorithms,
        }
    }

    /// What counts at this moment.
    pub(super) fn current(&self) -> Arc<Trusted> {
        self.current.load_full()
    }

    /// Verifies a chain and says whom its leaf names.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<Arc<[Identity]>, rustls::Error> {
        let trusted = self.current.load();
        let id = ChainId::of(usage, leaf, intermediates);
        if let Some(names) = trusted.verified.find(&id, now) {
            return Ok(names);
        }
        self.verify_path(&trusted, &trusted.lists, leaf, intermediates, now, usage)
            .map_err(certificate_error)?;
        let parsed = EndEntityCert::try_from(leaf).map_err(certificate_error)?;
        let names: Arc<[Identity]> = identities(&parsed).collect();
        // Of a chain whose dates only the library can read, nothing is remembered.
        if let Some(until) = first_expiry(leaf, intermediates) {
            let names = Arc::clone(&names);
            let at = now;
            trusted.verified.insert(id, Verified { at, until, names });
        }
        Ok(names)
    }

    /// Verifies a chain to the roots of `trusted` under any revocation lists.
    pub(super) fn verify_path(
        &self,
        trusted: &Trusted,
        lists: &RevocationLists,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), webpki::Error> {
        let leaf = EndEntityCert::try_from(leaf)?;
        lists.judge(|revocation| {
            leaf.verify_for_usage(
                self.algorithms.all,
                &trusted.anchors,
                intermediates,
                now,
                usage.required(),
                revocation,
                None,
            )
            .map(drop)
        })
    }
}

fn first_expiry(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Option<UnixTime> {
    let mut first = None;
    for der in std::iter::once(leaf).chain(intermediates) {
        let (_, not_after) = validity(der).ok()?;
        let not_after = not_after.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let not_after = UnixTime::since_unix_epoch(not_after);
        first = Some(first.map_or(not_after, |first: UnixTime| first.min(not_after)));
    }
    first
}

/// For clients: any name of the server is one of the expected identities.
#[derive(Debug)]
pub(super) struct ExpectedServer {
    roots: PeerRoots,
    expected: Arc<[Identity]>,
}

impl ExpectedServer {
    pub(super) const fn new(roots: PeerRoots, expected: Arc<[Identity]>) -> Self {
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
        let names = self
            .roots
            .verify(end_entity, intermediates, now, Usage::Server)?;
        if names.iter().any(|name| self.expected.contains(name)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(wrong(WrongIdentity::Server {
            expected: shown(self.expected.iter().map(Identity::to_string)),
            found: uri_names(end_entity),
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
    roots: PeerRoots,
    trust_domain: Arc<str>,
}

impl TrustDomainClient {
    pub(super) const fn new(roots: PeerRoots, trust_domain: Arc<str>) -> Self {
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
        let names = self
            .roots
            .verify(end_entity, intermediates, now, Usage::Client)?;
        if names
            .iter()
            .any(|name| name.trust_domain == self.trust_domain)
        {
            return Ok(ClientCertVerified::assertion());
        }
        Err(wrong(WrongIdentity::Client {
            trust_domain: self.trust_domain.clone(),
            found: uri_names(end_entity),
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

/// The names of a stranger, for people.
fn uri_names(leaf: &CertificateDer<'_>) -> Vec<String> {
    EndEntityCert::try_from(leaf).map_or_else(
        |_| Vec::new(),
        |leaf| shown(leaf.valid_uri_names().map(str::to_owned)),
    )
}

fn shown(names: impl Iterator<Item = String>) -> Vec<String> {
    names.take(MAX_NAMES_SHOWN).collect()
}

fn wrong(identity: WrongIdentity) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(identity))).into()
}

/// Says it in rustls' words, which decide the alert that the peer gets. rustls keeps its own such table to itself.
pub(super) fn certificate_error(error: webpki::Error) -> rustls::Error {
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
        E::CertRevoked => CertificateError::Revoked,
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}
