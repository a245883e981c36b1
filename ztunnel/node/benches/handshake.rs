//! What does one mutual TLS handshake between two nodes cost each side, and how much of it is spared when the peer's
//! chain was verified before?
//!
//! Both sides run on this thread and exchange their bytes in memory, so the time of one side is the time of its calls
//! and of nothing else. P-256 throughout: leaf, intermediate and root, as istiod issues them.
//!
//! ```text
//! cargo bench -p ztunnel-node --bench handshake
//! ```
//! Targets: 160 µs per side, better 125. Clocks lie on shared machines: medians, with the tenth and the ninetieth
//! percentile; cases take turns, so that a bad moment hits all of them.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tikv_jemallocator::Jemalloc;
use ztunnel_mesh::name::Identity;
use ztunnel_node::tls::{Context, Credential, PrivateKey, RevocationLists, peer_identity};

#[path = "../src/tls/test_ca.rs"]
#[expect(dead_code, reason = "made for the unit tests, which use all of it")]
mod test_ca;

use test_ca::{Leaf, TestCa};

/// That of the daemon.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const WARM_UP: usize = 50;
const ROUNDS: usize = 1000;

fn main() {
    let ca = TestCa::new("root").intermediate("intermediate");
    let expected: Arc<[Identity]> = Arc::new([DB.parse().unwrap()]);

    let nodes = [Context::default(), Context::default()];
    let (web, db) = (
        ca.credential_in(&nodes[0], WEB),
        ca.credential_in(&nodes[1], DB),
    );
    let list = ca.revoke(&[]);
    // The same roots and lists once more make another generation of trust, in which nothing is verified yet.
    let forget = |list: &[u8]| {
        for node in &nodes {
            node.set_revocation_lists(RevocationLists::parse(list).unwrap());
        }
    };
    let ours = || handshake(web.client_config(Arc::clone(&expected)), db.server_config());
    let (classic_client, classic_server) = classic(&ca);

    let mut cases = [
        "X25519MLKEM768, chain known",
        "X25519MLKEM768, chain new",
        "X25519MLKEM768, chain known, revocation list",
        "X25519MLKEM768, chain new, revocation list",
        "X25519, chain known",
    ]
    .map(|name| (name, Vec::new()));
    for round in 0..WARM_UP + ROUNDS {
        forget(&[]);
        let new = ours();
        let known = ours();
        // Twice: the first time makes them known.
        let [_, classic] = [(); 2].map(|()| {
            let to = handshake(
                web.client_config(Arc::clone(&expected)),
                classic_server.clone(),
            );
            let from = handshake(classic_client.clone(), db.server_config());
            [to[0], from[1]]
        });
        forget(&list);
        let new_with_list = ours();
        let known_with_list = ours();
        if round >= WARM_UP {
            let took = [known, new, known_with_list, new_with_list, classic];
            for ((_, samples), took) in cases.iter_mut().zip(took) {
                samples.push(took);
            }
        }
    }
    println!("µs of CPU per handshake: median (10 %, 90 %)");
    println!("{:<48}{:<24}server", "", "client");
    for (name, samples) in cases {
        let side = |side: usize| quantiles(samples.iter().map(|sample| sample[side]));
        println!("{name:<48}{:<24}{}", side(0), side(1));
    }

    println!("\nns per call, of which a new tunnel makes one: median (10 %, 90 %)");
    per_call("client configuration", || {
        web.client_config(Arc::clone(&expected))
    });
    per_call("server configuration", || db.server_config());
    let leaf = shown(&ca);
    per_call("identity of the peer", || peer_identity(&leaf));
}

/// The time that client and server take.
fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> [Duration; 2] {
    let name = ServerName::try_from("nobody").unwrap();
    let mut took = [Duration::ZERO; 2];
    let mut timed = |side: usize, work: &mut dyn FnMut()| {
        let before = Instant::now();
        work();
        took[side] += before.elapsed();
    };
    let mut client_side = None;
    timed(0, &mut || {
        client_side = Some(ClientConnection::new(client.clone(), name.clone()).unwrap());
    });
    let mut server_side = None;
    timed(1, &mut || {
        server_side = Some(ServerConnection::new(server.clone()).unwrap());
    });
    let mut sides: [Connection; 2] = [client_side.unwrap().into(), server_side.unwrap().into()];
    let mut wire = Vec::with_capacity(16 * 1024);
    while sides
        .iter()
        .any(|side| side.is_handshaking() || side.wants_write())
    {
        for from in 0..2 {
            wire.clear();
            timed(from, &mut || {
                while sides[from].wants_write() {
                    sides[from].write_tls(&mut wire).unwrap();
                }
            });
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                timed(1 - from, &mut || {
                    sides[1 - from].read_tls(&mut rest).unwrap();
                    sides[1 - from].process_new_packets().unwrap();
                });
            }
        }
    }
    took
}

/// Peers that know X25519 only: with each, our side is measured.
fn classic(ca: &TestCa) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let provider = Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::X25519],
        ..default_provider()
    });
    let own = |uri: &str| {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let mut chain = ca.sign(&csr.pem().unwrap(), Leaf::uris(&[uri]));
        chain.pop();
        let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (chain.iter().map(der).collect(), PrivateKeyDer::from(key))
    };
    let (certs, key) = own(WEB);
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider.clone())))
        .with_client_auth_cert(certs, key)
        .unwrap();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let (certs, key) = own(DB);
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.root.as_bytes()).unwrap())
        .unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(certs, key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    (Arc::new(client), Arc::new(server))
}

/// Verifies nothing: its side is not measured, and the name of the server is of no interest.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn shown(ca: &TestCa) -> Vec<CertificateDer<'static>> {
    let (_, chain) = ca.issue(Leaf::uris(&[WEB]));
    vec![CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap()]
}

fn per_call<T>(name: &str, mut call: impl FnMut() -> T) {
    const CALLS: u32 = 1000;
    let samples = (0..100).map(|_| {
        let before = Instant::now();
        for _ in 0..CALLS {
            black_box(call());
        }
        // Nanoseconds, shown by the same function as microseconds.
        before.elapsed() * 1000 / CALLS
    });
    println!("{name:<48}{}", quantiles(samples));
}

fn quantiles(samples: impl Iterator<Item = Duration>) -> String {
    let mut samples: Vec<_> = samples.collect();
    samples.sort();
    let at = |share: usize| samples[samples.len() * share / 100].as_nanos() as f64 / 1000.0;
    format!("{:.1} ({:.1}, {:.1})", at(50), at(10), at(90))
}
