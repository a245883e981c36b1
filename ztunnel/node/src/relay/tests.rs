//! TCP with TCP over loopback. Streams of a tunnel are relayed in the tests of the tunnel room.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use super::test_bulk::{LEN, exchange};
use super::*;
use crate::telemetry::Traffic;

const SOON: Duration = Duration::from_secs(10);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// An app and a far end with a relay between them.
struct Relayed {
    app: TcpStream,
    far: TcpStream,
    end: JoinHandle<(Result<(), RelayError>, u64, u64)>,
}

async fn relayed() -> Relayed {
    let (app, app_side) = pair().await;
    let (far, far_side) = pair().await;
    let end = spawn_local(async move {
        let traffic = Traffic::default();
        let (mut app, mut far) = (ResetOnDrop::new(app_side), ResetOnDrop::new(far_side));
        let end = join_tcp(&mut app, &mut far, &traffic).await;
        (end, traffic.sent(), traffic.received())
    });
    Relayed { app, far, end }
}

fn check<F: Future<Output = ()>>(test: impl FnOnce(Relayed) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        timeout(SOON, async { test(relayed().await).await })
            .await
            .expect("the test hangs");
    });
}

async fn read_to_end(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    tcp.read_to_end(&mut data).await.map(|_| data)
}

fn is_reset<T>(result: &io::Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|err| err.kind() == io::ErrorKind::ConnectionReset)
}

#[test]
fn each_direction_ends_on_its_own() {
    check(|mut r| async move {
        r.app.write_all(b"question").await.unwrap();
        r.app.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut r.far).await.unwrap(), b"question");
        r.far.write_all(b"answer").await.unwrap();
        r.far.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut r.app).await.unwrap(), b"answer");
        let (end, sent, received) = r.end.await.unwrap();
        assert!(end.is_ok());
        assert_eq!((sent, received), (8, 6));
    });
}

#[test]
fn the_far_end_may_finish_first() {
    check(|mut r| async move {
        r.far.write_all(b"hello").await.unwrap();
        r.far.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut r.app).await.unwrap(), b"hello");
        r.app.write_all(b"late").await.unwrap();
        drop(r.app);
        assert_eq!(read_to_end(&mut r.far).await.unwrap(), b"late");
        assert!(r.end.await.unwrap().0.is_ok());
    });
}

#[test]
fn a_reset_of_the_app_reaches_the_far_end() {
    check(|mut r| async move {
        r.app.set_zero_linger().unwrap();
        drop(r.app);
        assert!(is_reset(&read_to_end(&mut r.far).await));
        assert!(matches!(r.end.await.unwrap().0, Err(RelayError::App(_))));
    });
}

#[test]
fn a_reset_of_the_far_end_reaches_the_app() {
    check(|mut r| async move {
        r.far.set_zero_linger().unwrap();
        drop(r.far);
        assert!(is_reset(&read_to_end(&mut r.app).await));
        assert!(matches!(r.end.await.unwrap().0, Err(RelayError::Far(_))));
    });
}

#[test]
fn a_reset_after_half_close_is_noticed_while_nothing_moves() {
    check(|mut r| async move {
        r.app.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut r.far).await.unwrap(), b"");
        r.app.set_zero_linger().unwrap();
        drop(r.app);
        assert!(matches!(r.end.await.unwrap().0, Err(RelayError::App(_))));
    });
}

#[test]
fn a_cut_relay_resets_both_sides() {
    check(|mut r| async move {
        tokio::task::yield_now().await;
        r.end.abort();
        assert!(is_reset(&read_to_end(&mut r.app).await));
        assert!(is_reset(&read_to_end(&mut r.far).await));
    });
}

#[test]
fn mebibytes_pass_unharmed_both_ways_at_once() {
    check(|r| async move {
        exchange(r.app, r.far).await;
        let (end, sent, received) = r.end.await.unwrap();
        assert!(end.is_ok());
        assert_eq!((sent, received), (LEN as u64, LEN as u64));
    });
}
