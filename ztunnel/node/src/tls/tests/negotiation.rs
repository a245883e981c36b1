//! What is agreed on with peers that offer other things than we do.

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, SupportedCipherSuite, SupportedProtocolVersion};

use super::*;

/// A peer with other cryptography than ours.
pub(in crate::tls) struct Other {
    pub(in crate::tls) suites: Vec<SupportedCipherSuite>,
    pub(in crate::tls) groups: Vec<&'static dyn SupportedKxGroup>,
    pub(in crate::tls) versions: Vec<&'static SupportedProtocolVersion>,
}

impl Default for Other {
    /// What every peer can.
    fn default() -> Self {
        Self {
            suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            groups: vec![kx_group::X25519],
            versions: vec![&TLS13],
        }
    }
}

impl Other {
    pub(in crate::tls) fn tls12(suite: SupportedCipherSuite) -> Self {
        Self {
            suites: vec![suite],
            versions: vec![&TLS12],
            ..Self::default()
        }
    }

    fn groups(groups: &[&'static dyn SupportedKxGroup]) -> Self {
        Self {
            groups: groups.to_vec(),
            ..Self::default()
        }
    }

    fn provider(&self) -> Arc<CryptoProvider> {
        Arc::new(CryptoProvider {
            cipher_suites: self.suites.clone(),
            kx_groups: self.groups.clone(),
            ..default_provider()
        })
    }

    fn roots(&self, ca: &TestCa) -> verify::PeerRoots {
        let trusted = trust::Trusted {
            anchors: vec![ca.anchor()],
            ..trust::Trusted::default()
        };
        verify::PeerRoots::new(
            Arc::new(ArcSwap::from_pointee(trusted)),
            self.provider().signature_verification_algorithms,
        )
    }

    pub(in crate::tls) fn client(&self, ca: &TestCa) -> Arc<ClientConfig> {
        let ours = ca.credential(WEB).client_config(expected(&[DB]));
        let verifier = verify::ExpectedServer::new(self.roots(ca), expected(&[DB]));
        let mut config = ClientConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(ours.client_auth_cert_resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        // It runs on our own streams.
        config.enable_secret_extraction = true;
        Arc::new(config)
    }

    pub(in crate::tls) fn server(&self, ca: &TestCa) -> Arc<ServerConfig> {
        let ours = ca.credential(DB).server_config();
        let verifier = verify::TrustDomainClient::new(self.roots(ca), "cluster.local".into());
        let mut config = ServerConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(ours.cert_resolver.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        // It runs on our own streams.
        config.enable_secret_extraction = true;
        Arc::new(config)
    }
}

fn context(only_post_quantum: bool, tls12: bool) -> Context {
    Context::new(Options {
        only_post_quantum,
        tls12,
    })
}

/// Both our client and our server with such a peer.
async fn both_ways(ca: &TestCa, ours: &Context, other: &Other) -> [Outcome; 2] {
    let (web, db) = (ca.credential_in(ours, WEB), ca.credential_in(ours, DB));
    [
        handshake(web.client_config(expected(&[DB])), other.server(ca)).await,
        handshake(other.client(ca), db.server_config()).await,
    ]
}

#[tokio::test]
async fn server_prefers_aes_128_and_takes_what_others_offer() {
    let ca = TestCa::new("one");
    let (aes_128, aes_256) = (
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    );
    let call = async |suites: Vec<SupportedCipherSuite>| {
        let other = Other {
            suites,
            ..Other::default()
        };
        handshake(other.client(&ca), ca.credential(DB).server_config()).await
    };
    for (offered, chosen) in [
        (vec![aes_256, aes_128], "TLS_AES_128_GCM_SHA256"),
        (vec![aes_256], "TLS_AES_256_GCM_SHA384"),
    ] {
        let negotiated = call(offered).await.assert_accepted(DB, WEB);
        assert_eq!(negotiated.cipher, chosen);
    }
    call(vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256])
        .await
        .assert_server_refuses(Reason::PeerTlsFailed, AlertDescription::HandshakeFailure);
}

#[tokio::test]
async fn tls_1_2_is_opt_in_and_never_preferred() {
    let ca = TestCa::new("one");
    for (suite, name) in [
        (
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        ),
        (
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        ),
    ] {
        let old = Other::tls12(suite);
        for outcome in both_ways(&ca, &context(false, true), &old).await {
            let negotiated = outcome.assert_accepted(DB, WEB);
            assert_eq!((negotiated.version, negotiated.cipher), ("TLSv1.2", name));
        }
        for outcome in both_ways(&ca, &context(false, false), &old).await {
            outcome.client.expect_err("no version in common");
            outcome.server.map(drop).expect_err("no version in common");
        }
    }
    let chacha = Other::tls12(cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
    for outcome in both_ways(&ca, &context(false, true), &chacha).await {
        outcome.client.expect_err("no suite in common");
    }
    let both = Other {
        suites: vec![
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        versions: vec![&TLS12, &TLS13],
        ..Other::default()
    };
    for outcome in both_ways(&ca, &context(false, true), &both).await {
        assert_eq!(outcome.assert_accepted(DB, WEB).version, "TLSv1.3");
    }
}

#[tokio::test]
async fn hybrid_key_exchange_is_preferred_and_costs_others_no_round_trip() {
    let ca = TestCa::new("one");
    let (hybrid, classic) = (kx_group::X25519MLKEM768, kx_group::X25519);
    for (groups, agreed) in [
        (&[classic] as &[&'static dyn SupportedKxGroup], "X25519"),
        (&[hybrid, classic], "X25519MLKEM768"),
        (&[hybrid], "X25519MLKEM768"),
    ] {
        for outcome in both_ways(&ca, &context(false, false), &Other::groups(groups)).await {
            assert_eq!(outcome.kind, Some(HandshakeKind::Full), "{agreed}");
            assert_eq!(outcome.assert_accepted(DB, WEB).key_exchange, agreed);
        }
    }
    // The curves of old peers are there, one round trip later.
    for outcome in both_ways(
        &ca,
        &context(false, false),
        &Other::groups(&[kx_group::SECP256R1]),
    )
    .await
    {
        assert_eq!(outcome.assert_accepted(DB, WEB).key_exchange, "secp256r1");
    }
}

#[tokio::test]
async fn post_quantum_only_refuses_classic_key_exchange() {
    let ca = TestCa::new("one");
    let strict = context(true, false);
    let hybrid = Other::groups(&[kx_group::X25519MLKEM768, kx_group::X25519]);
    for outcome in both_ways(&ca, &strict, &hybrid).await {
        assert_eq!(
            outcome.assert_accepted(DB, WEB).key_exchange,
            "X25519MLKEM768"
        );
    }
    for outcome in both_ways(&ca, &strict, &Other::default()).await {
        outcome.client.expect_err("no group in common");
        outcome.server.map(drop).expect_err("no group in common");
    }
}
