//! Who shares which tunnel, and what everybody learns when there is none.

use std::future::{pending, poll_fn};

use bytes::Bytes;
use tokio::io::copy_bidirectional;
use ztunnel_hbone::Refusal;
use ztunnel_mesh::reason::Reason;

use super::*;
use crate::relay::{Far as _, FarError};

/// Opens every stream and sends back what comes, until its end.
pub(super) async fn echo(request: Box<Request>) {
    let mut stream = open(request);
    while let Ok(Some(data)) = poll_fn(|cx| stream.poll_data(cx)).await {
        stream.release(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx, data.len())).await;
        assert!(room.unwrap() >= data.len());
        stream.send(data).unwrap();
    }
    stream.finish().unwrap();
}

pub(super) async fn say(stream: &mut Stream, text: &'static str) -> String {
    let room = poll_fn(|cx| stream.poll_capacity(cx, text.len())).await;
    assert_eq!(room.unwrap(), text.len());
    stream.send(Bytes::from_static(text.as_bytes())).unwrap();
    let answer = poll_fn(|cx| stream.poll_data(cx)).await.unwrap().unwrap();
    String::from_utf8(answer.to_vec()).unwrap()
}

fn limited(max_streams: usize) -> TunnelSettings {
    TunnelSettings {
        max_streams,
        ..TunnelSettings::default()
    }
}

/// Short enough to wait for.
fn hasty() -> TunnelSettings {
    TunnelSettings {
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_millis(100),
        idle_release: Duration::from_millis(50),
        handshake_timeout: Duration::from_millis(100),
        answer_timeout: Duration::from_millis(100),
        ..TunnelSettings::default()
    }
}

#[test]
fn many_streams_share_one_tunnel() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let mut opened = client.open_all(99).await;
        for one in &mut opened {
            let one = one.as_mut().unwrap();
            assert_eq!(say(&mut one.stream, "hello").await, "hello");
            assert_eq!(one.tunnel.peer.as_ref().unwrap().to_string(), DB);
            assert_eq!(one.tunnel.tls.version, "TLSv1.3");
        }
        assert_eq!((server.accepted.get(), client.connects.get()), (1, 1));
        assert_eq!(client.pool.len(), 1);
    });
}

#[test]
fn a_full_tunnel_is_followed_by_another_and_never_used_again() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, limited(4));
        let opened = client.open_all(10).await;
        assert!(opened.iter().all(Result::is_ok));
        assert_eq!(server.accepted.get(), 3);
        // The third has two of four streams.
        assert_eq!(client.pool.len(), 1);
        drop(opened);
        until(|| server.ended.borrow().len() == 2).await;
        assert_eq!(client.pool.len(), 1);
        client.open().await.unwrap();
        assert_eq!(server.accepted.get(), 3);
    });
}

#[test]
fn a_peer_that_allows_fewer_streams_gets_fewer() {
    run(async {
        let ca = TestCa::new("one");
        let settings = TunnelSettings {
            served_streams: 3,
            ..TunnelSettings::default()
        };
        let server = Server::start(ca.credential(DB), settings, echo).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        // The first brings the peer's settings.
        let first = client.open().await.unwrap();
        let more = client.open_all(4).await;
        assert!(more.iter().all(Result::is_ok));
        assert_eq!(server.accepted.get(), 2);
        drop(first);
    });
}

#[test]
fn everybody_who_waits_learns_that_the_only_attempt_failed() {
    run(async {
        let ca = TestCa::new("one");
        let nobody = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let client = Client::new(&ca, nobody, DB, TunnelSettings::default());
        for result in client.open_all(50).await {
            let err = result.map(drop).unwrap_err();
            assert_eq!(err.reason(), Reason::PeerUnreachable);
            assert_eq!(err.to_string(), format!("connect to {nobody} failed"));
        }
        assert_eq!(client.connects.get(), 1);
        assert!(client.pool.is_empty());
    });
}

#[test]
fn an_attempt_outlives_the_one_who_began_it() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let first = spawn_local({
            let client = client.clone();
            async move { drop(client.open().await) }
        });
        until(|| client.connects.get() == 1).await;
        first.abort();
        client.open().await.unwrap();
        assert_eq!(client.connects.get(), 1);
    });
}

#[test]
fn a_cut_attempt_is_told_to_those_who_wait() {
    run(async {
        let ca = TestCa::new("one");
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = mute.local_addr().unwrap();
        let client = Client::new(&ca, addr, DB, TunnelSettings::default());
        let waiting = spawn_local({
            let client = client.clone();
            async move { client.open().await.map(drop).unwrap_err().reason() }
        });
        until(|| client.connects.get() == 1).await;
        client.tasks.drain(Duration::ZERO).await;
        assert_eq!(waiting.await.unwrap(), Reason::Drained);
        assert!(client.pool.is_empty());
    });
}

#[test]
fn a_peer_with_another_identity_is_refused() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, WEB, TunnelSettings::default());
        let err = client.open().await.map(drop).unwrap_err();
        assert_eq!(err.reason(), Reason::PeerIdentityMismatch);
    });
}

#[test]
fn a_client_of_another_ca_is_refused() {
    run(async {
        let (ca, other) = (TestCa::new("one"), TestCa::new("two"));
        // The client trusts the server, but not the other way round.
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let mut client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let (key, mut chain) = other.issue(crate::tls::test_ca::Leaf::uris(&[WEB]));
        *chain.last_mut().unwrap() = ca.root.clone();
        let credential = Credential::from_chain(
            &WEB.parse().unwrap(),
            &key,
            &chain,
            &crate::tls::Context::default(),
        );
        client.to.credential = Arc::new(credential.unwrap());
        for result in client.open_all(5).await {
            let err = result.map(drop).unwrap_err();
            assert_eq!(err.reason(), Reason::PeerTlsFailed, "{err:?}");
        }
        until(|| !server.ended.borrow().is_empty()).await;
        assert_eq!(server.ended.borrow()[0], "PEER_TLS_FAILED");
        assert!(client.pool.is_empty());
        // Nobody tries again and again.
        assert!(client.connects.get() <= 5);
    });
}

#[test]
fn a_refusal_tells_the_status() {
    run(async {
        let ca = TestCa::new("one");
        let refuse = async |request: Box<Request>| {
            let asked = request.asked().unwrap();
            assert_eq!(asked.authority.to_string(), "10.0.0.9:80");
            assert_eq!(asked.service.as_deref(), Some("db.shop.svc"));
            assert_eq!(asked.baggage().namespace, "shop");
            request.refuse(Refusal::Denied);
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), refuse).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        for _ in 0..3 {
            let err = client.open().await.map(drop).unwrap_err();
            assert_eq!(err.reason(), Reason::PeerDenied);
            assert!(err.to_string().contains("401"), "{err}");
        }
        // One stream's failure is no failure of the tunnel.
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn a_peer_that_says_nothing_is_given_up() {
    run(async {
        let ca = TestCa::new("one");
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&ca, mute.local_addr().unwrap(), DB, hasty());
        let err = client.open().await.map(drop).unwrap_err();
        assert_eq!(err.reason(), Reason::PeerTlsFailed);

        let hang = async |request: Box<Request>| {
            let _request = request;
            pending().await
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), hang).await;
        let client = Client::new(&ca, server.addr, DB, hasty());
        let err = client.open().await.map(drop).unwrap_err();
        assert!(matches!(err, OpenError::NoAnswer { .. }), "{err:?}");
    });
}

#[test]
fn a_client_that_says_nothing_is_given_up() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), hasty(), echo).await;
        let _mute = TcpStream::connect(server.addr).await.unwrap();
        until(|| !server.ended.borrow().is_empty()).await;
        assert_eq!(server.ended.borrow()[0], "PEER_TLS_FAILED");
    });
}

#[test]
fn a_broken_tunnel_is_replaced() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let mut client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let mut lost = client.open().await.unwrap().stream;
        assert_eq!(say(&mut lost, "hello").await, "hello");
        server.kill().await;
        let end = poll_fn(|cx| lost.poll_data(cx)).await;
        assert!(matches!(end, Err(FarError::Lost(_))), "{end:?}");
        until(|| client.pool.is_empty()).await;

        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        client.to.peer = HboneAddr(server.addr);
        client.open().await.unwrap();
    });
}

#[test]
fn a_tunnel_that_breaks_under_a_connect_is_replaced_once() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        // A forwarder that is cut while the client does not look.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let forwards = Rc::<RefCell<Vec<JoinHandle<()>>>>::default();
        let (to, started) = (server.addr, Rc::clone(&forwards));
        let forwarder = spawn_local(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect(to).await.unwrap();
                let forward = spawn_local(async move {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
                started.borrow_mut().push(forward);
            }
        });
        let client = Client::new(&ca, addr, DB, TunnelSettings::default());
        drop(client.open().await.unwrap());
        forwards.borrow()[0].abort();
        client.open().await.unwrap();
        assert_eq!(client.connects.get(), 2);
        forwarder.abort();
    });
}

#[test]
fn a_peer_that_vanishes_is_noticed() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let to = server.addr;
        let (vanish, mut vanished) = tokio::sync::oneshot::channel::<()>();
        spawn_local(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                _ = copy_bidirectional(&mut near, &mut far) => {}
                _ = &mut vanished => {}
            }
            pending::<()>().await
        });
        let client = Client::new(&ca, addr, DB, hasty());
        let mut stream = client.open().await.unwrap().stream;
        assert_eq!(say(&mut stream, "hello").await, "hello");
        // Alive as long as PINGs are answered.
        sleep(Duration::from_millis(200)).await;
        assert_eq!(say(&mut stream, "hello").await, "hello");
        vanish.send(()).unwrap();
        let end = poll_fn(|cx| stream.poll_data(cx)).await;
        assert!(
            matches!(&end, Err(FarError::Lost(err)) if broken_pipe(err)),
            "{end:?}"
        );
        assert!(client.pool.is_empty());
    });
}

#[test]
fn an_idle_tunnel_is_let_go_and_a_busy_one_is_not() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, hasty());
        let stream = client.open().await.unwrap().stream;
        sleep(Duration::from_millis(200)).await;
        assert_eq!(client.pool.len(), 1);
        drop(stream);
        until(|| client.pool.is_empty()).await;
        until(|| !server.ended.borrow().is_empty()).await;
        assert_eq!(*server.ended.borrow(), ["closed"]);
        assert_eq!(client.tasks.drain(SOON).await, 0);
    });
}

#[test]
fn a_draining_server_finishes_its_streams_and_takes_no_more() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let mut stream = client.open().await.unwrap().stream;
        server.shutdown.start();
        sleep(Duration::from_millis(50)).await;
        assert_eq!(say(&mut stream, "still there?").await, "still there?");
        let _ = client.open().await;
        assert!(client.connects.get() > 1, "the old tunnel was used");
        stream.finish().unwrap();
        assert!(poll_fn(|cx| stream.poll_data(cx)).await.unwrap().is_none());
        drop(stream);
        assert_eq!(server.tasks.drain(SOON).await, 0);
    });
}

#[test]
fn a_draining_client_ends_tunnels_with_their_last_stream() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let mut stream = client.open().await.unwrap().stream;
        client.shutdown.start();
        until(|| client.pool.is_empty()).await;
        assert_eq!(say(&mut stream, "still there?").await, "still there?");
        // Connections accepted before the drain are still served.
        let late = client.open().await.unwrap();
        drop((stream, late));
        assert_eq!(client.tasks.drain(SOON).await, 0);
    });
}

#[test]
fn the_pool_is_bounded() {
    run(async {
        let ca = TestCa::new("one");
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), echo).await;
        let settings = TunnelSettings {
            max_tunnels: 1,
            ..TunnelSettings::default()
        };
        let client = Client::new(&ca, server.addr, DB, settings);
        let stream = client.open().await.unwrap();
        let mut other = client.clone();
        other.to.expected = Arc::new([DB.parse().unwrap(), WEB.parse().unwrap()]);
        let err = other.open().await.map(drop).unwrap_err();
        assert_eq!(err.reason(), Reason::Overloaded);
        // A tunnel without streams makes room.
        drop(stream);
        other.open().await.unwrap();
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn a_burst_finds_room_at_a_peer_that_allows_few_streams() {
    run(async {
        let ca = TestCa::new("one");
        let few = TunnelSettings {
            served_streams: 10,
            ..TunnelSettings::default()
        };
        let serve = |request| async {
            let _open = open(request);
            pending().await
        };
        let server = Server::start(ca.credential(DB), few, serve).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let opened = client.open_all(60).await;
        assert!(opened.iter().all(Result::is_ok));
        assert_eq!(server.accepted.get(), 6);
    });
}
