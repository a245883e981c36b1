pub(super) mod negotiation;
mod revocation;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use ztunnel_mesh::name::Identity;
use ztunnel_mesh::reason::Reason;

use super::test_ca::{HOUR, Leaf, TestCa};
use super::*;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const OTHER_DOMAIN: &str = "spiffe://example.org/ns/shop/sa/web";
const DEADLINE: Duration = Duration::from_secs(10);

/// What each side makes of a handshake and of the first byte from the other.
struct Outcome {
    /// Of a client that got as far.
    kind: Option<rustls::HandshakeKind>,
    client: Result<(Option<Identity>, Negotiated), io::Error>,
    server: Result<(Option<Identity>, Negotiated), HandshakeError>,
}

impl Outcome {
    #[track_caller]
    fn assert_accepted(self, server: &str, client: &str) -> Negotiated {
        let (found, negotiated) = self.client.expect("the client is content");
        assert_eq!(found.unwrap().to_string(), server);
        let (found, _) = self.server.expect("the server is content");
        assert_eq!(found.unwrap().to_string(), client);
        negotiated
    }

    /// The client refuses, and the server is told.
    #[track_caller]
    fn assert_client_refuses(self, reason: Reason, alert: AlertDescription) {
        let error = self.client.expect_err("the client refuses");
        assert_eq!(failure_reason(&error), reason, "{error}");
        let Err(HandshakeError::Failed(error)) = self.server else {
            panic!("the server learns of it");
        };
        assert_alert(&error, alert);
    }

    /// The server refuses, and the client is told.
    #[track_caller]
    fn assert_server_refuses(self, reason: Reason, alert: AlertDescription) {
        let error = self.server.expect_err("the server refuses");
        assert_eq!(error.reason(), reason, "{error:?}");
        assert_alert(&self.client.expect_err("the client learns of it"), alert);
    }
}

#[track_caller]
fn assert_alert(error: &io::Error, alert: AlertDescription) {
    let tls = error.get_ref().and_then(|err| err.downcast_ref());
    assert_eq!(tls, Some(&rustls::Error::AlertReceived(alert)), "{error:?}");
}

async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut kind = None;
    let client = async {
        let mut tls = match connect(client, near, DEADLINE).await {
            Ok(tls) => tls,
            Err(HandshakeError::Failed(error)) => return Err(error),
            Err(error) => panic!("{error}"),
        };
        kind = tls.kind;
        // In TLS 1.3 the client is done before the server has seen its certificate.
        assert_eq!(tls.stream.read_u8().await?, b'!');
        Ok((peer_identity(&tls.peer), tls.negotiated))
    };
    let server = async {
        let mut tls = accept(server, far, DEADLINE).await?;
        tls.stream.write_u8(b'!').await.unwrap();
        tls.stream.flush().await.unwrap();
        Ok((peer_identity(&tls.peer), tls.negotiated))
    };
    let (client, server) = tokio::join!(client, server);
    Outcome {
        kind,
        client,
        server,
    }
}

fn expected(uris: &[&str]) -> Arc<[Identity]> {
    uris.iter().map(|uri| uri.parse().unwrap()).collect()
}

/// A credential out of a certificate with a flaw that our own checks would not let pass.
fn flawed(ca: &TestCa, uri: &str, leaf: Leaf) -> Credential {
    let (key, chain) = ca.issue(leaf);
    Credential::from_chain(&uri.parse().unwrap(), &key, &chain, &Context::default()).unwrap()
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = TestCa::new("one");
    let (web, db) = (ca.credential(WEB), ca.credential(DB));
    let outcome = handshake(web.client_config(expected(&[DB])), db.server_config()).await;
    assert_eq!(
        outcome.assert_accepted(DB, WEB),
        Negotiated {
            version: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            key_exchange: "X25519MLKEM768",
        }
    );
}

#[tokio::test]
async fn any_expected_identity_will_do() {
    let ca = TestCa::new("one");
    let (web, db) = (ca.credential(WEB), ca.credential(DB));
    let client = web.client_config(expected(&[OTHER_DOMAIN, DB]));
    handshake(client, db.server_config())
        .await
        .assert_accepted(DB, WEB);
}

#[tokio::test]
async fn any_name_of_the_server_will_do() {
    let ca = TestCa::new("one");
    let web = ca.credential(WEB);
    let both = flawed(&ca, DB, Leaf::uris(&[DB, "https://db", WEB]));
    let client = web.client_config(expected(&[WEB]));
    handshake(client, both.server_config())
        .await
        .assert_accepted(DB, WEB);
}

#[tokio::test]
async fn intermediates_are_presented_and_followed() {
    let ca = TestCa::new("one");
    let (web, db) = (
        ca.intermediate("west").credential(WEB),
        ca.intermediate("east")
            .intermediate("far east")
            .credential(DB),
    );
    handshake(web.client_config(expected(&[DB])), db.server_config())
        .await
        .assert_accepted(DB, WEB);
}

#[tokio::test]
async fn server_with_another_identity_is_refused() {
    let ca = TestCa::new("one");
    let (web, db) = (ca.credential(WEB), ca.credential(DB));
    for wrong in [&[WEB, OTHER_DOMAIN][..], &[]] {
        handshake(web.client_config(expected(wrong)), db.server_config())
            .await
            .assert_client_refuses(
                Reason::PeerIdentityMismatch,
                AlertDescription::CertificateUnknown,
            );
    }
}

#[tokio::test]
async fn server_of_an_unknown_ca_is_refused() {
    let (web, db) = (
        TestCa::new("one").credential(WEB),
        TestCa::new("two").credential(DB),
    );
    handshake(web.client_config(expected(&[DB])), db.server_config())
        .await
        .assert_client_refuses(Reason::PeerTlsFailed, AlertDescription::UnknownCA);
}

#[tokio::test]
async fn server_with_a_client_certificate_is_refused() {
    let ca = TestCa::new("one");
    let mut leaf = Leaf::uris(&[DB]);
    leaf.usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (web, db) = (ca.credential(WEB), flawed(&ca, DB, leaf));
    handshake(web.client_config(expected(&[DB])), db.server_config())
        .await
        .assert_client_refuses(
            Reason::PeerTlsFailed,
            AlertDescription::UnsupportedCertificate,
        );
}

#[tokio::test]
async fn expired_server_is_refused() {
    let ca = TestCa::new("one");
    let mut leaf = Leaf::uris(&[DB]);
    let now = SystemTime::now();
    leaf.valid = now - 2 * HOUR..now - HOUR;
    let (web, db) = (ca.credential(WEB), flawed(&ca, DB, leaf));
    handshake(web.client_config(expected(&[DB])), db.server_config())
        .await
        .assert_client_refuses(Reason::PeerTlsFailed, AlertDescription::CertificateExpired);
}

/// A client of `ca`'s that trusts everybody `ca` vouches for, and is itself vouched for by another CA.
fn client_of(roots: &TestCa, credential_of: &TestCa, leaf: Leaf) -> Arc<ClientConfig> {
    let (key, mut chain) = credential_of.issue(leaf);
    chain.pop();
    chain.push(roots.root.clone());
    let uri = WEB.parse().unwrap();
    Credential::from_chain(&uri, &key, &chain, &Context::default())
        .unwrap()
        .client_config(expected(&[DB]))
}

#[tokio::test]
async fn client_of_an_unknown_ca_is_refused() {
    let (ca, other) = (TestCa::new("one"), TestCa::new("two"));
    let client = client_of(&ca, &other, Leaf::uris(&[WEB]));
    handshake(client, ca.credential(DB).server_config())
        .await
        .assert_server_refuses(Reason::PeerTlsFailed, AlertDescription::UnknownCA);
}

#[tokio::test]
async fn client_with_a_server_certificate_is_refused() {
    let ca = TestCa::new("one");
    let mut leaf = Leaf::uris(&[WEB]);
    leaf.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    handshake(client_of(&ca, &ca, leaf), ca.credential(DB).server_config())
        .await
        .assert_server_refuses(
            Reason::PeerTlsFailed,
            AlertDescription::UnsupportedCertificate,
        );
}

#[tokio::test]
async fn client_of_another_trust_domain_is_refused() {
    let ca = TestCa::new("one");
    let stranger = ca.credential(OTHER_DOMAIN);
    handshake(
        stranger.client_config(expected(&[DB])),
        ca.credential(DB).server_config(),
    )
    .await
    .assert_server_refuses(
        Reason::PeerIdentityMismatch,
        AlertDescription::CertificateUnknown,
    );
}

#[tokio::test]
async fn client_without_certificate_is_refused() {
    let ca = TestCa::new("one");
    let db = ca.credential(DB);
    handshake(anonymous(&ca, &[b"h2"]), db.server_config())
        .await
        .assert_server_refuses(Reason::PeerTlsFailed, AlertDescription::CertificateRequired);
}

/// A client that trusts `ca` by other means than ours and shows no certificate.
fn anonymous(ca: &TestCa, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = (*ca.credential(WEB).client_config(expected(&[DB]))).clone();
    config.client_auth_cert_resolver = Arc::new(Nobody);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn client_that_speaks_no_http2_is_refused() {
    let ca = TestCa::new("one");
    handshake(
        anonymous(&ca, &[b"http/1.1"]),
        ca.credential(DB).server_config(),
    )
    .await
    .assert_server_refuses(
        Reason::PeerTlsFailed,
        AlertDescription::NoApplicationProtocol,
    );
}

#[tokio::test]
async fn client_hello_names_no_server() {
    let ca = TestCa::new("one");
    let config = ca.credential(WEB).client_config(expected(&[DB]));
    let name = ServerName::try_from("db.shop.svc").unwrap();
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let mut acceptor = rustls::server::Acceptor::default();
    acceptor.read_tls(&mut hello.as_slice()).unwrap();
    let accepted = acceptor
        .accept()
        .ok()
        .flatten()
        .expect("a whole client hello");
    assert_eq!(accepted.client_hello().server_name(), None);
}

#[tokio::test]
async fn second_connection_is_a_full_handshake() {
    let ca = TestCa::new("one");
    let client = ca.credential(WEB).client_config(expected(&[DB]));
    let server = ca.credential(DB).server_config();
    let nobody = ServerName::from(std::net::Ipv4Addr::UNSPECIFIED);
    for _ in 0..2 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (client, server) = tokio::join!(
            TlsConnector::from(client.clone()).connect(nobody.clone(), near),
            accept(server.clone(), far, DEADLINE)
        );
        let (mut client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(
            client.get_ref().1.handshake_kind(),
            Some(rustls::HandshakeKind::Full)
        );
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        drop(server);
        let eof: io::Result<_> = client.read_u8().await;
        assert_eq!(eof.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn silent_peer_runs_into_the_deadline() {
    let ca = TestCa::new("one");
    let (near, _far): (DuplexStream, DuplexStream) = tokio::io::duplex(64 * 1024);
    let client = ca.credential(WEB).client_config(expected(&[DB]));
    let error = connect(client, near, DEADLINE).await.map(drop).unwrap_err();
    assert!(matches!(error, HandshakeError::Timeout { after } if after == DEADLINE));
    assert_eq!(error.reason(), Reason::PeerTlsFailed);
}

/// A client that already sends requests when it is refused learns why, instead of being reset.
#[tokio::test]
async fn refused_client_that_is_busy_sending_reads_the_alert() {
    let ca = TestCa::new("one");
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ca.credential(DB).server_config();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        accept(config, stream, DEADLINE).await.map(drop)
    };
    let client = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("nobody").unwrap();
        let mut stream: TlsStream<TcpStream> = TlsConnector::from(anonymous(&ca, &[b"h2"]))
            .connect(name, stream)
            .await
            .unwrap();
        stream.write_all(&[0; 16 * 1024]).await.unwrap();
        stream.get_ref().0.readable().await.unwrap();
        // The alert is there, but not yet read. After a reset this would fail.
        stream.write_all(&[0; 1024]).await.unwrap();
        stream.read_u8().await
    };
    let (refused, read) = tokio::join!(server, client);
    assert!(refused.is_err());
    assert_alert(&read.unwrap_err(), AlertDescription::CertificateRequired);
}

/// Reads what a CA answered for `WEB` and says what is wrong with it.
fn reject(key: &PrivateKey, chain: &[String]) -> String {
    Credential::from_chain(&WEB.parse().unwrap(), key, chain, &Context::default())
        .expect_err("the chain is rejected")
        .to_string()
}

#[test]
fn chains_that_are_rejected() {
    let ca = TestCa::new("one");
    let (key, chain) = ca.issue(Leaf::uris(&[WEB]));
    let [leaf, root] = <[String; 2]>::try_from(chain).unwrap();
    let chain_of = |leaf: Leaf| ca.issue(leaf);

    assert_eq!(
        reject(&key, &[]),
        "the certificate chain has 0 elements; a leaf and, last, the roots are needed"
    );
    assert_eq!(
        reject(&key, std::slice::from_ref(&leaf)),
        "the certificate chain has 1 elements; a leaf and, last, the roots are needed"
    );
    let mut long = vec![leaf.clone(); 9];
    long.push(root.clone());
    assert_eq!(
        reject(&key, &long),
        "the certificate chain has 10 elements; at most 9 are taken"
    );
    assert_eq!(
        reject(&key, &["nothing".to_owned(), root.clone()]),
        "element 0 of the certificate chain is no PEM certificate"
    );
    assert_eq!(
        reject(&key, &[leaf.clone(), "nothing".to_owned()]),
        "the last element of the certificate chain has no usable root certificate"
    );
    let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    assert_eq!(
        reject(&key, &[leaf.clone(), rubbish.clone()]),
        "the last element of the certificate chain has no usable root certificate"
    );
    assert_eq!(
        reject(&key, &[leaf.clone(), root.repeat(257)]),
        "the root bundle has more than 256 certificates"
    );
    assert!(
        reject(&key, &[rubbish, root.clone()]).starts_with("the leaf certificate cannot be read")
    );

    let (other_key, other) = chain_of(Leaf::uris(&[DB]));
    assert_eq!(
        reject(&other_key, &other),
        format!("the leaf certificate is for {DB} instead of {WEB}")
    );
    // Only the first name counts, as in every other implementation.
    let (other_key, other) = chain_of(Leaf::uris(&[DB, WEB]));
    assert_eq!(
        reject(&other_key, &other),
        format!("the leaf certificate is for {DB} instead of {WEB}")
    );
    let (other_key, other) = chain_of(Leaf::uris(&["https://web"]));
    assert_eq!(
        reject(&other_key, &other),
        format!("the leaf certificate for {WEB} carries a name that is no identity")
    );
    let mut nameless = Leaf::uris(&[]);
    nameless.names = vec![SanType::DnsName("web".try_into().unwrap())];
    let (other_key, other) = chain_of(nameless);
    assert_eq!(
        reject(&other_key, &other),
        format!("the leaf certificate for {WEB} has no URI name")
    );
    let (_, same_name) = chain_of(Leaf::uris(&[WEB]));
    assert_eq!(
        reject(&key, &same_name),
        "the leaf certificate does not belong to the requested key"
    );
    let no_key = PrivateKey::from_pkcs8(zeroize::Zeroizing::new(vec![1, 2, 3]));
    assert_eq!(
        reject(&no_key, &[leaf, root]),
        "the leaf certificate does not belong to the requested key"
    );
}

#[tokio::test]
async fn roots_are_those_of_the_node_and_the_trust_domain() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let here = Context::default();
    let web = old.credential_in(&here, WEB);
    // A peer on another node, which was renewed first.
    let bundle = format!("{}{}", old.root, new.root);
    let with_both = |ca: &TestCa, context: &Context, uri: &str| {
        let (key, mut chain) = ca.issue(Leaf::uris(&[uri]));
        *chain.last_mut().unwrap() = bundle.clone();
        Credential::from_chain(&uri.parse().unwrap(), &key, &chain, context).unwrap()
    };
    let db = with_both(&new, &Context::default(), DB);
    let call = || handshake(web.client_config(expected(&[DB])), db.server_config());
    call()
        .await
        .assert_client_refuses(Reason::PeerTlsFailed, AlertDescription::UnknownCA);
    // A neighbor of the client's is renewed: what the CA told it, it told the node.
    let neighbor = with_both(&old, &here, "spiffe://cluster.local/ns/shop/sa/near");
    call().await.assert_accepted(DB, WEB);
    // The other trust domain of the node learns nothing of it.
    let foreign = old.credential_in(&here, OTHER_DOMAIN);
    handshake(foreign.client_config(expected(&[DB])), db.server_config())
        .await
        .assert_client_refuses(Reason::PeerTlsFailed, AlertDescription::UnknownCA);
    drop(neighbor);
    call()
        .await
        .assert_client_refuses(Reason::PeerTlsFailed, AlertDescription::UnknownCA);
}

#[tokio::test]
async fn chain_that_was_verified_is_still_judged_by_who_it_names_and_who_asks() {
    let ca = TestCa::new("one");
    let context = Context::default();
    let (web, db) = (
        ca.credential_in(&context, WEB),
        ca.credential_in(&context, DB),
    );
    for _ in 0..2 {
        handshake(web.client_config(expected(&[DB])), db.server_config())
            .await
            .assert_accepted(DB, WEB);
    }
    handshake(web.client_config(expected(&[WEB])), db.server_config())
        .await
        .assert_client_refuses(
            Reason::PeerIdentityMismatch,
            AlertDescription::CertificateUnknown,
        );
    // What is good for a client is not thereby good for a server.
    let mut leaf = Leaf::uris(&[WEB]);
    leaf.usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (key, chain) = ca.issue(leaf);
    let only_client =
        Credential::from_chain(&WEB.parse().unwrap(), &key, &chain, &context).unwrap();
    handshake(
        only_client.client_config(expected(&[DB])),
        db.server_config(),
    )
    .await
    .assert_accepted(DB, WEB);
    handshake(
        db.client_config(expected(&[WEB])),
        only_client.server_config(),
    )
    .await
    .assert_client_refuses(
        Reason::PeerTlsFailed,
        AlertDescription::UnsupportedCertificate,
    );
}

#[tokio::test]
async fn bundle_of_several_roots_is_taken_whole() {
    let (one, two) = (TestCa::new("one"), TestCa::new("two"));
    // An unusable root among them costs only itself.
    let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let bundle = format!("{}{rubbish}{}", one.root, two.root);
    let credential = |ca: &TestCa, uri: &str| {
        let (key, mut chain) = ca.issue(Leaf::uris(&[uri]));
        *chain.last_mut().unwrap() = bundle.clone();
        Credential::from_chain(&uri.parse().unwrap(), &key, &chain, &Context::default()).unwrap()
    };
    let (web, db) = (credential(&one, WEB), credential(&two, DB));
    handshake(web.client_config(expected(&[DB])), db.server_config())
        .await
        .assert_accepted(DB, WEB);
}

#[test]
fn refresh_is_due_at_half_of_the_own_validity() {
    let ca = TestCa::new("one");
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let refresh = |length: Duration| {
        let mut leaf = Leaf::uris(&[WEB]);
        leaf.valid = start..start + length;
        flawed(&ca, WEB, leaf).refresh_at()
    };
    assert_eq!(refresh(24 * HOUR), start + 12 * HOUR);
}

/// Whatever prints as bytes, in decimal, hexadecimal or base64, would show some of the key.
#[test]
fn nothing_that_holds_a_key_prints_it() {
    use base64::Engine as _;

    let ca = TestCa::new("one");
    let (key, chain) = ca.issue(Leaf::uris(&[WEB]));
    let der = key.der().to_vec();
    // In PKCS#8 of P-256 the secret number has this place, and the public half comes later.
    let secret = &der[36..68];
    let forms = [
        format!("{secret:?}").trim_matches(['[', ']']).to_owned(),
        secret.iter().map(|byte| format!("{byte:02x}")).collect(),
        secret.iter().map(|byte| format!("{byte:02X}")).collect(),
        base64::prelude::BASE64_STANDARD.encode(&der)[48..88].to_owned(),
    ];
    let context = Context::default();
    let credential = Credential::from_chain(&WEB.parse().unwrap(), &key, &chain, &context).unwrap();
    let (client, server) = (
        credential.client_config(expected(&[DB])),
        credential.server_config(),
    );
    let printed = [
        format!("{key:?}"),
        format!("{credential:?}"),
        format!("{client:?} {client:#?}"),
        format!("{server:?} {server:#?}"),
        format!("{context:?}"),
        format!(
            "{:?}",
            Credential::from_chain(&DB.parse().unwrap(), &key, &chain, &context)
        ),
    ];
    // The forms are what a careless holder would print.
    assert!(format!("{der:?}").contains(&forms[0]));
    for printed in printed {
        assert!(!printed.is_empty());
        for form in &forms {
            assert!(!printed.contains(form), "{printed}");
        }
    }
    assert_eq!(format!("{key:?}"), "PrivateKey(..)");
}

#[test]
fn peer_without_certificates_has_no_identity() {
    assert_eq!(peer_identity(&[]), None);
    assert_eq!(peer_identity(&[vec![1, 2, 3].into()]), None);
}
