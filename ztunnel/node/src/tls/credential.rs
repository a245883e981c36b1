//! One identity's certificate and key, ready for handshakes.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;
use ztunnel_mesh::name::Identity;

use super::chain::{Chain, ChainError};
use super::context::Context;
use super::handshake::HandshakeError;
use super::live::RevocationWatch;
use super::trust::Share;
use super::verify::{ExpectedServer, PeerRoots, TrustDomainClient, Usage};

const ALPN: &[u8] = b"h2";

/// A private key in PKCS#8. Does not print and does not stay in memory when it is dropped.
pub struct PrivateKey(Zeroizing<Vec<u8>>);

impl PrivateKey {
    /// Takes the DER encoding.
    #[must_use]
    pub fn from_pkcs8(der: Zeroizing<Vec<u8>>) -> Self {
        Self(der)
    }

    #[cfg(test)]
    pub(super) fn der(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Certificate and key of one identity, and its share in the roots that this node trusts. Never changes: renewal makes
/// another one, and connections keep the one they were made with.
pub struct Credential {
    identity: Identity,
    not_before: SystemTime,
    not_after: SystemTime,
    /// As the CA sent them, for people to look at.
    chain: Box<[CertificateDer<'static>]>,
    ca_roots: Box<[CertificateDer<'static>]>,
    context: Context,
    roots: PeerRoots,
    _share: Share,
    client: ClientConfig,
    server: Arc<ServerConfig>,
}

impl Credential {
    /// Reads a CA's answer to a request for `identity` with `key`: the leaf, intermediates one each, and last the
    /// roots.
    ///
    /// # Errors
    /// When the answer is no such chain, or is for another identity or key.
    pub fn from_chain(
        identity: &Identity,
        key: &PrivateKey,
        cert_chain: &[String],
        context: &Context,
    ) -> Result<Self, ChainError> {
        let chain = Chain::parse(identity, cert_chain)?;
        // Borrowed, so that the only copy is inside the crypto library, which wipes its own.
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.0.as_slice()));
        let key = any_supported_type(&key).map_err(ChainError::Key)?;
        let presented = chain.presented.clone();
        let certified = CertifiedKey::new(chain.presented, key);
        certified.keys_match().map_err(ChainError::Key)?;

        let provider = context.provider();
        let versions = context.options().versions();
        let share = context.trust().add(&identity.trust_domain, chain.anchors);
        let roots = PeerRoots::new(
            Arc::clone(share.current()),
            provider.signature_verification_algorithms,
        );
        let certified = Arc::new(SingleCertAndKey::from(certified));

        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(ChainError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ExpectedServer::new(
                roots.clone(),
                Arc::default(),
            )))
            .with_client_cert_resolver(certified.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        client.resumption = rustls::client::Resumption::disabled();
        // For our own records: see `stream`. They stay in this process.
        client.enable_secret_extraction = true;

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(ChainError::Tls)?
            .with_client_cert_verifier(Arc::new(TrustDomainClient::new(
                roots.clone(),
                identity.trust_domain.clone(),
            )))
            .with_cert_resolver(certified);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.enable_secret_extraction = true;
        // Others put AES-256 first. Both are safe, and ours is the faster one.
        server.ignore_client_order = true;

        Ok(Self {
            identity: identity.clone(),
            not_before: chain.not_before,
            not_after: chain.not_after,
            chain: presented.into(),
            ca_roots: chain.roots.into(),
            context: context.clone(),
            roots,
            _share: share,
            client,
            server: Arc::new(server),
        })
    }

    /// Whose it is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The leaf, then its intermediates.
    #[must_use]
    pub const fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots that came with it.
    #[must_use]
    pub const fn roots(&self) -> &[CertificateDer<'static>] {
        &self.ca_roots
    }

    /// When peers stop accepting it.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The middle of its own validity. The CA dates certificates back, so this is not half of what was asked for.
    #[must_use]
    pub fn refresh_at(&self) -> SystemTime {
        match self.not_after.duration_since(self.not_before) {
            Ok(validity) => self.not_before + validity / 2,
            Err(_) => self.not_after, // Nonsense dates: renew at once.
        }
    }

    /// How to open connections to a peer that has one of the `expected` identities.
    #[must_use]
    pub fn client_config(&self, expected: Arc<[Identity]>) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(ExpectedServer::new(self.roots.clone(), expected)));
        Arc::new(config)
    }

    /// Lets somebody who talks to the server that showed `certs` be told when one of them is revoked.
    ///
    /// # Errors
    /// When that has happened since the handshake, or there are too many sessions to watch.
    pub fn watch_server(
        &self,
        certs: &[CertificateDer<'static>],
    ) -> Result<RevocationWatch, HandshakeError> {
        self.watch(certs, Usage::Server)
    }

    /// As [`Credential::watch_server`], for a client.
    ///
    /// # Errors
    /// As [`Credential::watch_server`].
    pub fn watch_client(
        &self,
        certs: &[CertificateDer<'static>],
    ) -> Result<RevocationWatch, HandshakeError> {
        self.watch(certs, Usage::Client)
    }

    fn watch(
        &self,
        certs: &[CertificateDer<'static>],
        usage: Usage,
    ) -> Result<RevocationWatch, HandshakeError> {
        self.context.watch(certs, &self.roots, usage)
    }

    /// How to accept connections from peers of the same trust domain.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.identity)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
