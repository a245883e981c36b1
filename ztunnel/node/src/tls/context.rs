//! What all credentials of a node have in common: the cryptography on offer, whom to trust, who is looked after.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateDer;

use super::handshake::HandshakeError;
use super::live::{LiveSessions, RevocationWatch};
use super::provider::{Options, provider};
use super::revocation::RevocationLists;
use super::trust::Trust;
use super::verify::{PeerRoots, Usage};

/// One for each node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    options: Options,
    provider: Arc<CryptoProvider>,
    trust: Arc<Trust>,
    /// Where certificates can be revoked.
    live: Option<Arc<LiveSessions>>,
}

impl Context {
    /// A node that trusts nobody yet and knows of no revocation.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            provider: provider(options),
            trust: Arc::default(),
            live: None,
        }
    }

    /// The same for a node that has revocation lists, or will have: see [`super::CrlFile`].
    #[must_use]
    pub fn with_revocation(options: Options) -> Self {
        Self {
            live: Some(Arc::default()),
            ..Self::new(options)
        }
    }

    /// Replaces the revocation lists and ends the live sessions whose peers are in them. Says how many that were.
    /// Verifies as many chains as there are different ones in use: nothing for a thread that has other things to do.
    pub fn set_revocation_lists(&self, lists: RevocationLists) -> usize {
        // In this order: a session that begins in between is judged by the new lists.
        self.trust.set_lists(lists);
        let lists = self.trust.lists();
        self.live
            .as_ref()
            .map_or(0, |live| live.judge_again(&lists))
    }

    pub(super) fn options(&self) -> Options {
        self.options
    }

    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    pub(super) fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    pub(super) fn watch(
        &self,
        certs: &[CertificateDer<'static>],
        roots: &PeerRoots,
        usage: Usage,
    ) -> Result<RevocationWatch, HandshakeError> {
        match &self.live {
            Some(live) => live.watch(certs, roots, usage, || self.trust.lists()),
            None => Ok(RevocationWatch::default()),
        }
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new(Options::default())
    }
}
