//! The cryptography on offer.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{ALL_VERSIONS, SupportedProtocolVersion};

/// What an operator can choose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Agree on keys by the post-quantum hybrid X25519MLKEM768 or not at all.
    pub only_post_quantum: bool,
    /// Speak TLS 1.2 with peers that do not know 1.3. Has no post-quantum key exchange.
    pub tls12: bool,
}

impl Options {
    pub(crate) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        const TLS13_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        if self.tls12 { ALL_VERSIONS } else { TLS13_ONLY }
    }
}

/// AES-GCM only: it is what every peer speaks and what the hardware does fastest. The hybrid key exchange comes
/// first; a peer without it falls back to X25519 within the same round trip.
pub(crate) fn provider(options: Options) -> Arc<CryptoProvider> {
    let mut cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    if options.tls12 {
        cipher_suites.extend([
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ]);
    }
    let mut kx_groups: Vec<&'static dyn SupportedKxGroup> = vec![kx_group::X25519MLKEM768];
    if !options.only_post_quantum {
        kx_groups.extend([kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]);
    }
    Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups,
        ..default_provider()
    })
}
