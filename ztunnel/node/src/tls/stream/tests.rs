use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex, split,
};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::tls::test_ca::TestCa;
use crate::tls::tests::negotiation::Other;
use crate::tls::{self, Context as Node, Options};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";
const SOON: Duration = Duration::from_secs(10);
/// What a pipe holds: not much, so that whoever writes has to wait.
const PIPE: usize = 40 * 1024;

fn configs(options: Options) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let (ca, node) = (TestCa::new("one"), Node::new(options));
    let expected = Arc::new([DB.parse().unwrap()]);
    (
        ca.credential_in(&node, WEB).client_config(expected),
        ca.credential_in(&node, DB).server_config(),
    )
}

fn tls13() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    configs(Options::default())
}

type Rustls = tokio_rustls::TlsStream<DuplexStream>;

/// Our client, and rustls' server.
async fn client_of_rustls(
    (client, server): (Arc<ClientConfig>, Arc<ServerConfig>),
) -> (TlsStream<DuplexStream>, Rustls) {
    let (near, far) = duplex(PIPE);
    let (ours, theirs) = tokio::join!(
        tls::connect(client, near, SOON),
        TlsAcceptor::from(server).accept(far)
    );
    (ours.unwrap().stream, theirs.unwrap().into())
}

/// Our server, and rustls' client.
async fn server_of_rustls(
    (client, server): (Arc<ClientConfig>, Arc<ServerConfig>),
) -> (TlsStream<DuplexStream>, Rustls) {
    let (near, far) = duplex(PIPE);
    let nobody = ServerName::from(Ipv4Addr::UNSPECIFIED);
    let (ours, theirs) = tokio::join!(
        tls::accept(server, near, SOON),
        TlsConnector::from(client).connect(nobody, far)
    );
    (ours.unwrap().stream, theirs.unwrap().into())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Writes pieces of all sizes, flushing some; ends in order.
async fn write_pieces(to: &mut (impl AsyncWrite + Unpin), all: &[u8]) {
    const PIECES: [usize; 8] = [1, 9, 1_000, 16_384, 16_385, 5, 65_536, 300_000];
    let (mut rest, mut pieces) = (all, PIECES.iter().cycle());
    while let (false, Some(&len)) = (rest.is_empty(), pieces.next()) {
        let (piece, after) = rest.split_at(len.min(rest.len()));
        to.write_all(piece).await.unwrap();
        if len % 2 == 0 {
            to.flush().await.unwrap();
        }
        rest = after;
    }
    to.shutdown().await.unwrap();
}

async fn read_all(from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).await.unwrap();
    all
}

async fn check_both_ways<A, B>(near: A, far: B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let all = pattern(1_000_000);
    let (mut near_read, mut near_write) = split(near);
    let (mut far_read, mut far_write) = split(far);
    let ((), (), there, back) = tokio::join!(
        write_pieces(&mut near_write, &all),
        write_pieces(&mut far_write, &all),
        read_all(&mut far_read),
        read_all(&mut near_read),
    );
    assert!(there == all && back == all);
}

#[tokio::test]
async fn what_is_written_arrives_whoever_the_peer_is() {
    let (near, far) = client_of_rustls(tls13()).await;
    check_both_ways(near, far).await;
    let (near, far) = server_of_rustls(tls13()).await;
    check_both_ways(near, far).await;
    let (near, far) = duplex(PIPE);
    let (client, server) = tls13();
    let (near, far) = tokio::join!(
        tls::connect(client, near, SOON),
        tls::accept(server, far, SOON)
    );
    check_both_ways(near.unwrap().stream, far.unwrap().stream).await;
}

#[tokio::test]
async fn the_old_version_and_the_longer_key_do_as_well() {
    let options = Options {
        tls12: true,
        ..Options::default()
    };
    let (ca, node) = (TestCa::new("one"), Node::new(options));
    let longer = Other {
        suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384],
        ..Other::default()
    };
    for other in [
        Other::tls12(cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        Other::tls12(cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        longer,
    ] {
        let expected = Arc::new([DB.parse().unwrap()]);
        let client = ca.credential_in(&node, WEB).client_config(expected);
        let (near, far) = client_of_rustls((client, other.server(&ca))).await;
        check_both_ways(near, far).await;
        let server = ca.credential_in(&node, DB).server_config();
        let (near, far) = server_of_rustls((other.client(&ca), server)).await;
        check_both_ways(near, far).await;
    }
}

#[tokio::test]
async fn small_writes_share_a_record() {
    let (mut near, mut far) = client_of_rustls(tls13()).await;
    for _ in 0..100 {
        near.write_all(b"0123456789").await.unwrap();
    }
    assert_eq!(near.outgoing.sealed, 0);
    near.flush().await.unwrap();
    let mut all = [0; 1000];
    // rustls gives a record at a time.
    assert_eq!(far.read(&mut all).await.unwrap(), 1000);
    assert!(near.outgoing.buffer.is_none());
}

#[tokio::test]
async fn keys_change_when_the_peer_wants_it() {
    let (mut near, far) = client_of_rustls(tls13()).await;
    let Rustls::Server(mut far) = far else {
        panic!("it is a server");
    };
    for round in 0..40u8 {
        far.get_mut().1.refresh_traffic_keys().unwrap();
        far.write_u8(round).await.unwrap();
        far.flush().await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), round);
        near.write_u8(round).await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn a_key_that_is_worn_is_replaced() {
    let (client, server) = tls13();
    let (near, far) = duplex(PIPE);
    let (near, far) = tokio::join!(
        tls::connect(client, near, SOON),
        tls::accept(server, far, SOON)
    );
    let (mut near, mut far) = (near.unwrap().stream, far.unwrap().stream);
    near.session.wear();
    far.session.wear();
    for round in 0..10 {
        near.write_u8(round).await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), round);
        far.write_u8(round).await.unwrap();
        far.flush().await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), round);
    }
    assert!(!near.session.wants_update() && !far.session.wants_update());
}

#[tokio::test]
async fn an_end_in_order_is_told_from_one_that_is_not() {
    let (mut near, mut far) = client_of_rustls(tls13()).await;
    far.write_all(b"last").await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(read_all(&mut near).await, b"last");
    // The other direction goes on.
    near.write_all(b"reply").await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(read_all(&mut far).await, b"reply");

    let (mut near, mut far) = client_of_rustls(tls13()).await;
    far.write_all(b"cut").await.unwrap();
    far.flush().await.unwrap();
    drop(far);
    let mut all = Vec::new();
    let error = near.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(all, b"cut");
}

async fn fails_with(forged: &[u8], expected: Error, alert: AlertDescription) {
    let (mut near, mut far) = client_of_rustls(tls13()).await;
    far.get_mut().0.write_all(forged).await.unwrap();
    let error = near.read_u8().await.unwrap_err();
    let tls = error.get_ref().and_then(|error| error.downcast_ref());
    assert_eq!(tls, Some(&expected));
    // It stays that way.
    near.read_u8().await.unwrap_err();
    near.write_u8(0).await.unwrap_err();
    let told = far.read_u8().await.unwrap_err();
    let told = told.get_ref().and_then(|error| error.downcast_ref());
    assert_eq!(told, Some(&Error::AlertReceived(alert)));
}

#[tokio::test]
async fn records_that_nobody_sealed_end_the_stream() {
    let mut forged = vec![23, 3, 3, 0, 40];
    forged.extend([7; 40]);
    fails_with(&forged, Error::DecryptError, AlertDescription::BadRecordMac).await;
    let empty = [23, 3, 3, 0, 0];
    fails_with(&empty, Error::DecryptError, AlertDescription::BadRecordMac).await;
    let long = [23, 3, 3, 0xff, 0xff];
    let oversized = Error::PeerSentOversizedRecord;
    fails_with(&long, oversized, AlertDescription::RecordOverflow).await;
    // Anybody could send an alert in the clear.
    let plain = [21, 3, 3, 0, 2, 1, 0];
    let unexpected = super::super::record::unexpected(ContentType::ALERT);
    fails_with(&plain, unexpected, AlertDescription::UnexpectedMessage).await;
}

#[tokio::test]
async fn an_alert_says_why_the_peer_ends_it() {
    let (mut near, mut far) = client_of_rustls(tls13()).await;
    // The peer finds a record that ours did not seal.
    near.io.write_all(&[23, 3, 3, 0, 40]).await.unwrap();
    near.io.write_all(&[7; 40]).await.unwrap();
    far.read_u8().await.unwrap_err();
    let error = near.read_u8().await.unwrap_err();
    let told = error.get_ref().and_then(|error| error.downcast_ref());
    let alert = Error::AlertReceived(AlertDescription::BadRecordMac);
    assert_eq!(told, Some(&alert));
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_the_writer_wait() {
    let (mut near, far) = client_of_rustls(tls13()).await;
    let mut taken = 0;
    let piece = pattern(100_000);
    let waits = timeout(Duration::from_secs(5), async {
        loop {
            let more = poll_fn(|cx| {
                Poll::Ready(match Pin::new(&mut near).poll_write(cx, &piece) {
                    Poll::Ready(done) => Some(done.unwrap()),
                    Poll::Pending => None,
                })
            });
            match more.await {
                Some(more) => taken += more,
                None => break,
            }
        }
    });
    waits.await.expect("it has to wait");
    assert!(taken <= buffer::SIZE + PIPE, "{taken}");
    let (mut near_write, mut far) = (near, far);
    let rest = async {
        near_write.shutdown().await.unwrap();
    };
    let ((), all) = tokio::join!(rest, read_all(&mut far));
    assert_eq!(all.len(), taken);
}

#[tokio::test]
async fn nothing_on_its_way_needs_no_buffer() {
    let (mut near, mut far) = client_of_rustls(tls13()).await;
    far.write_all(&pattern(50_000)).await.unwrap();
    let written = far.flush();
    let mut all = vec![0; 50_000];
    let (_, read) = tokio::join!(written, near.read_exact(&mut all));
    read.unwrap();
    // The beginning of a record, whose rest does not come.
    far.get_mut()
        .0
        .write_all(&[23, 3, 3, 1, 0, 9, 9])
        .await
        .unwrap();
    let nothing = timeout(Duration::from_millis(10), near.read_u8()).await;
    assert!(nothing.is_err());
    assert!(near.incoming.buffer.is_none() && near.outgoing.buffer.is_none());
    assert_eq!(near.incoming.kept.len(), 7);
}

/// What a peer that has a certificate may say, in any order and of any shape.
#[tokio::test]
async fn no_message_of_a_peer_is_more_than_an_error() {
    const SEED: u64 = 7;
    let (client, server) = tls13();
    let (near, far) = duplex(PIPE);
    let (near, far) = tokio::join!(
        tls::connect(client, near, SOON),
        tls::accept(server, far, SOON)
    );
    let (mut near, mut far) = (near.unwrap().stream, far.unwrap().stream);
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut data, mut refused, mut updates) = (0, 0, 0);
    for _ in 0..50_000 {
        let content = ContentType([20, 21, 22, 22, 22, 23, 24][random.random_range(0..7)]);
        let mut body = vec![0; random.random_range(0..40)];
        random.fill(&mut body[..]);
        if random.random_ratio(3, 4) && body.len() > 4 {
            body[0] = [4, 24, 24, 1, 0][random.random_range(0..5)];
            body[1..3].fill(0);
            body[3] = random.random_range(0..8);
        }
        if random.random_ratio(1, 20) {
            body = vec![24, 0, 0, 1, random.random_range(0..3)];
        }
        let is_update = content == ContentType::HANDSHAKE
            && near.session.begins_a_message()
            && matches!(body[..], [24, 0, 0, 1, 0 | 1]);
        let mut record = vec![0; body.len() + far.session.sealer().overhead()];
        let sealed = far.session.sealer().seal(content, &body, &mut record);
        sealed.unwrap();
        match near.session.receive(&mut record) {
            Ok(Received::Data(inside)) => {
                assert_eq!(record[inside], body);
                data += 1;
            }
            Ok(Received::Nothing) if is_update => {
                far.session.update(&mut [0; 64]).unwrap();
                updates += 1;
            }
            Ok(Received::Nothing | Received::End) => {}
            Err(Error::DecryptError) => panic!("it was sealed with the right key"),
            Err(_) => refused += 1,
        }
    }
    assert!(
        data > 0 && refused > 1_000 && updates > 0,
        "{data} {refused} {updates}"
    );
}
