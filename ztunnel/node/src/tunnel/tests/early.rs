//! What an app says before its CONNECT is answered.

use std::future::{pending, poll_fn};

use http::StatusCode;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::oneshot;
use ztunnel_hbone::Refusal;

use super::*;
use crate::relay::Far as _;

/// An app that has said something, and our end of its connection.
async fn app(words: &[u8]) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut app = TcpStream::connect(addr).await.unwrap();
    let (side, _) = listener.accept().await.unwrap();
    app.write_all(words).await.unwrap();
    side.readable().await.unwrap();
    (app, side)
}

async fn open_with(client: &Client, early: &Early<'_>) -> Result<Opened, OpenError> {
    let peer = client.to.peer.0;
    let connect = || {
        client.connects.set(client.connects.get() + 1);
        TcpStream::connect(peer)
    };
    let request = client.request();
    client
        .pool
        .open_within(None, &client.to, &request, early, connect)
        .await
}

/// What has come in a stream until so much is there.
async fn read(stream: &mut Stream, len: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < len {
        let data = poll_fn(|cx| stream.poll_data(cx)).await.unwrap().unwrap();
        stream.release(data.len());
        read.extend_from_slice(&data);
    }
    read
}

/// Tells for each stream whether something had come before it was answered, and what comes first.
async fn listener(credential: Credential) -> (Server, Rc<RefCell<Vec<(bool, Vec<u8>)>>>) {
    let seen = Rc::<RefCell<Vec<_>>>::default();
    let tell = Rc::clone(&seen);
    let serve = move |request: Box<Request>| {
        let tell = Rc::clone(&tell);
        async move {
            let is_early = request.has_data();
            let mut stream = open(request);
            let words = read(&mut stream, 5).await;
            tell.borrow_mut().push((is_early, words));
            pending().await
        }
    };
    let server = Server::start(credential, TunnelSettings::default(), serve).await;
    (server, seen)
}

#[test]
fn words_go_along_in_a_tunnel_that_is_alive() {
    run(async {
        let ca = TestCa::new("one");
        let (server, seen) = listener(ca.credential(DB)).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let mut opened = Vec::new();
        // In a new tunnel nobody knows what the peer takes.
        for (number, is_early) in [false, true, true].into_iter().enumerate() {
            let (_app, side) = app(b"hello").await;
            let early = Early::of(&side);
            let Opened { mut stream, .. } = open_with(&client, &early).await.unwrap();
            assert_eq!(early.is_out(), is_early);
            let words = early.into_words();
            if is_early {
                assert_eq!(words, "hello");
            } else {
                assert!(words.is_empty(), "left with the app");
                stream.send("hello".into()).unwrap();
            }
            until(|| seen.borrow().len() > number).await;
            assert_eq!(seen.borrow()[number], (is_early, b"hello".to_vec()));
            opened.push(stream);
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn an_app_that_has_said_nothing_is_not_waited_for() {
    run(async {
        let ca = TestCa::new("one");
        let (server, _) = listener(ca.credential(DB)).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let _first = client.open().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _app = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (side, _) = listener.accept().await.unwrap();
        let early = Early::of(&side);
        open_with(&client, &early).await.unwrap();
        assert!(!early.is_out() && early.into_words().is_empty());
    });
}

#[test]
fn words_are_kept_for_another_attempt_when_the_peer_refuses() {
    run(async {
        let ca = TestCa::new("one");
        let refuse = |request: Box<Request>| async {
            match request.asked().unwrap().authority {
                Authority::Ip(app) if app.port() == 81 => request.refuse(Refusal::Unavailable),
                _ => {
                    let _open = open(request);
                    pending().await
                }
            }
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), refuse).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let _first = client.open().await.unwrap();
        let (_app, side) = app(b"hello").await;
        let early = Early::of(&side);
        let request = Connect {
            authority: Authority::Ip(SocketAddr::from(([10, 0, 0, 9], 81))),
            ..client.request()
        };
        let connect = || TcpStream::connect(server.addr);
        let refused = client
            .pool
            .open_within(None, &client.to, &request, &early, connect)
            .await;
        let Err(OpenError::Refused { status, .. }) = refused else {
            panic!("not refused");
        };
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!early.is_out());
        let _opened = open_with(&client, &early).await.unwrap();
        assert!(early.is_out());
        assert_eq!(early.into_words(), "hello");
    });
}

#[test]
fn words_that_may_have_arrived_are_not_sent_again() {
    run(async {
        let ca = TestCa::new("one");
        let (tell, asked) = oneshot::channel();
        let tell = RefCell::new(Some(tell));
        let serve = move |request: Box<Request>| {
            let is_early = request.has_data();
            if is_early {
                tell.take().unwrap().send(()).unwrap();
            }
            async move {
                if !is_early {
                    let _open = open(request);
                    pending().await
                }
                // It never answers.
                pending().await
            }
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let _first = client.open().await.unwrap();
        let (_app, side) = app(b"hello").await;
        let early = Early::of(&side);
        let opening = open_with(&client, &early);
        let killed = async {
            asked.await.unwrap();
            server.kill().await;
        };
        let (opened, ()) = tokio::join!(opening, killed);
        let err = opened.map(|_| ()).unwrap_err();
        assert!(matches!(err, OpenError::Broken { .. }), "{err}");
        assert!(early.is_out());
        assert_eq!(client.connects.get(), 1, "no other tunnel was made");
    });
}

#[test]
fn a_peer_that_does_not_say_that_it_takes_early_data_gets_none() {
    run(async {
        let ca = TestCa::new("one");
        let addr = raw_server(&ca, |_| pending()).await;
        let client = Client::new(&ca, addr, DB, TunnelSettings::default());
        let _first = client.open().await.unwrap();
        let (_app, side) = app(b"hello").await;
        let early = Early::of(&side);
        let _second = open_with(&client, &early).await.unwrap();
        assert!(!early.is_out() && early.into_words().is_empty());
    });
}
