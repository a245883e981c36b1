//! An app, a tunnel, an app: what one does is what the other sees.

use std::future::poll_fn;

use h2::Reason as Code;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::task::yield_now;

use super::*;
use crate::relay::test_bulk::{LEN, exchange};
use crate::relay::{self, Far as _, FarError, RelayError, ResetOnDrop};
use crate::telemetry::Traffic;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (client, listener.accept().await.unwrap().0)
}

type End = (Result<(), RelayError>, u64, u64);

fn relay(app: TcpStream, stream: Stream) -> JoinHandle<End> {
    let mut app = ResetOnDrop::new(app);
    spawn_local(async move {
        let traffic = Traffic::default();
        let end = relay::join(&mut app.split(), stream, &traffic).await;
        if end.is_ok() {
            app.close();
        }
        (end, traffic.sent(), traffic.received())
    })
}

/// Two apps with the whole way between them.
struct Way {
    near: TcpStream,
    far: TcpStream,
    near_end: JoinHandle<End>,
    far_end: JoinHandle<End>,
    client: Client,
    server: Server,
}

async fn way() -> Way {
    let ca = TestCa::new("one");
    let (far, far_side) = pair().await;
    let far_end = Rc::new(RefCell::new(None));
    let slot = RefCell::new(Some(far_side));
    let serve = {
        let far_end = Rc::clone(&far_end);
        move |request| {
            let app = slot.borrow_mut().take().unwrap();
            far_end.replace(Some(relay(app, open(request))));
            async {}
        }
    };
    let server = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
    let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
    let (near, near_side) = pair().await;
    let stream = client.open().await.unwrap().stream;
    let near_end = relay(near_side, stream);
    let far_end = far_end.borrow_mut().take().unwrap();
    Way {
        near,
        far,
        near_end,
        far_end,
        client,
        server,
    }
}

async fn read_to_end(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    tcp.read_to_end(&mut data).await.map(|_| data)
}

async fn assert_reset(tcp: &mut TcpStream) {
    let end = read_to_end(tcp).await;
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn each_direction_ends_on_its_own() {
    run(async {
        let mut w = way().await;
        w.near.write_all(b"question").await.unwrap();
        w.near.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut w.far).await.unwrap(), b"question");
        w.far.write_all(b"answer").await.unwrap();
        w.far.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut w.near).await.unwrap(), b"answer");
        assert!(matches!(w.near_end.await.unwrap(), (Ok(()), 8, 6)));
        assert!(matches!(w.far_end.await.unwrap(), (Ok(()), 6, 8)));
    });
}

#[test]
fn the_server_may_speak_and_finish_first() {
    run(async {
        let mut w = way().await;
        w.far.write_all(b"hello").await.unwrap();
        w.far.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut w.near).await.unwrap(), b"hello");
        w.near.write_all(b"late").await.unwrap();
        drop(w.near);
        assert_eq!(read_to_end(&mut w.far).await.unwrap(), b"late");
        assert!(w.near_end.await.unwrap().0.is_ok());
        assert!(w.far_end.await.unwrap().0.is_ok());
    });
}

#[test]
fn a_reset_of_the_client_reaches_the_server() {
    run(async {
        let mut w = way().await;
        w.near.set_zero_linger().unwrap();
        drop(w.near);
        assert_reset(&mut w.far).await;
        assert!(matches!(
            w.near_end.await.unwrap().0,
            Err(RelayError::App(_))
        ));
        assert!(matches!(
            w.far_end.await.unwrap().0,
            Err(RelayError::Far(_))
        ));
        // The tunnel is as good as before.
        assert_eq!(w.client.pool.len(), 1);
    });
}

#[test]
fn a_reset_of_the_server_reaches_the_client() {
    run(async {
        let mut w = way().await;
        // Also when the client has nothing more to say.
        w.near.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut w.far).await.unwrap(), b"");
        w.far.set_zero_linger().unwrap();
        drop(w.far);
        assert_reset(&mut w.near).await;
        assert!(matches!(
            w.far_end.await.unwrap().0,
            Err(RelayError::App(_))
        ));
    });
}

#[test]
fn a_reset_arrives_while_the_other_side_does_not_read() {
    run(async {
        let mut w = way().await;
        let chunk = vec![7; 1 << 16];
        while timeout(Duration::from_millis(200), w.near.write_all(&chunk))
            .await
            .is_ok()
        {}
        w.near.set_zero_linger().unwrap();
        drop(w.near);
        assert!(w.near_end.await.unwrap().0.is_err());
        assert!(w.far_end.await.unwrap().0.is_err());
        assert_reset(&mut w.far).await;
    });
}

#[test]
fn a_cut_on_one_node_is_a_reset_on_the_other() {
    run(async {
        let mut w = way().await;
        w.near_end.abort();
        assert_reset(&mut w.near).await;
        assert_reset(&mut w.far).await;
    });
}

#[test]
fn a_lost_tunnel_is_a_reset_on_both_sides() {
    run(async {
        let mut w = way().await;
        w.server.kill().await;
        assert_reset(&mut w.near).await;
        assert_reset(&mut w.far).await;
        assert!(w.near_end.await.unwrap().0.is_err());
    });
}

#[test]
fn mebibytes_pass_unharmed_both_ways_at_once() {
    run(async {
        let w = way().await;
        exchange(w.near, w.far).await;
        let (end, sent, received) = w.near_end.await.unwrap();
        assert!(end.is_ok());
        assert_eq!((sent, received), (LEN as u64, LEN as u64));
    });
}

#[test]
fn what_waits_for_a_slow_reader_is_bounded() {
    run(async {
        let mut w = way().await;
        let chunk = vec![7; 1 << 16];
        let mut written = 0usize;
        while let Ok(done) = timeout(Duration::from_millis(300), w.near.write(&chunk)).await {
            written += done.unwrap();
        }
        // The window of the stream and its send buffer, and what the kernel keeps on three hops, both ends each.
        let settings = TunnelSettings::default();
        let ours = settings.stream_window as usize + settings.send_buffer;
        assert!(written < ours + (48 << 20), "{written}");
        // Nothing of it is lost.
        w.near.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut w.far).await.unwrap().len(), written);
    });
}

#[test]
fn an_idle_connection_leaves_the_window_to_others() {
    run(async {
        let ca = TestCa::new("one");
        // A peer whose tunnel has room for a single small window.
        let small = TunnelSettings {
            stream_window: 65_535,
            connection_window: 65_535,
            ..TunnelSettings::default()
        };
        let sums = Rc::new(Cell::new(0));
        let counted = Rc::clone(&sums);
        let serve = move |request| {
            let (mut stream, counted) = (open(request), Rc::clone(&counted));
            async move {
                while let Ok(Some(data)) = poll_fn(|cx| stream.poll_data(cx)).await {
                    stream.release(data.len());
                    counted.set(counted.get() + data.len());
                }
                let _ = stream.finish();
            }
        };
        let server = Server::start(ca.credential(DB), small, serve).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let mut idle = Vec::new();
        for _ in 0..5 {
            let (mut app, side) = pair().await;
            let end = relay(side, client.open().await.unwrap().stream);
            app.write_all(b"hi").await.unwrap();
            idle.push((app, end));
        }
        until(|| sums.get() == 10).await;
        let (mut app, side) = pair().await;
        let end = relay(side, client.open().await.unwrap().stream);
        app.write_all(&vec![1; 1 << 20]).await.unwrap();
        app.shutdown().await.unwrap();
        assert!(matches!(end.await.unwrap(), (Ok(()), 1_048_576, 0)));
        assert_eq!(server.accepted.get(), 1);
    });
}

/// An app says something, then does `end`, all of it before it is relayed. Says whether its end came together with data,
/// and how the stream ended.
async fn said_before(end: impl FnOnce(TcpStream)) -> (bool, Result<(), FarError>) {
    let ca = TestCa::new("one");
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Cell::new(Some(tell));
    let serve = move |request| {
        let (mut stream, tell) = (open(request), tell.take().unwrap());
        async move {
            let mut together = false;
            let end = loop {
                match poll_fn(|cx| stream.poll_data(cx)).await {
                    Ok(Some(_)) => together = stream.is_at_end(),
                    Ok(None) => break Ok(()),
                    Err(err) => break Err(err),
                }
            };
            assert!(tell.send((together, end)).is_ok());
        }
    };
    let server = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
    let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
    let stream = client.open().await.unwrap().stream;
    let (mut app, side) = pair().await;
    app.write_all(b"bye").await.unwrap();
    end(app);
    while !side
        .ready(Interest::READABLE)
        .await
        .unwrap()
        .is_read_closed()
    {
        yield_now().await;
    }
    let _relayed = relay(side, stream);
    told.await.unwrap()
}

#[test]
fn an_end_that_follows_its_data_goes_with_it() {
    run(async {
        assert!(matches!(said_before(drop).await, (true, Ok(()))));
    });
}

#[test]
fn a_reset_that_follows_data_is_no_end() {
    run(async {
        let reset = |app: TcpStream| app.set_zero_linger().unwrap();
        let end = said_before(reset).await;
        assert!(matches!(end, (false, Err(FarError::Reset(_)))), "{end:?}");
    });
}

#[test]
fn no_error_and_cancel_are_ends_and_everything_else_is_a_reset() {
    for (code, is_end) in [
        (Code::NO_ERROR, true),
        (Code::CANCEL, true),
        (Code::CONNECT_ERROR, false),
        (Code::INTERNAL_ERROR, false),
    ] {
        run(async move {
            let ca = TestCa::new("one");
            let addr = raw_server(&ca, move |mut send| async move {
                send.send_data(bytes::Bytes::from_static(b"data"), false)
                    .unwrap();
                sleep(Duration::from_millis(50)).await;
                send.send_reset(code);
            })
            .await;
            let client = Client::new(&ca, addr, DB, TunnelSettings::default());
            let (mut app, side) = pair().await;
            let end = relay(side, client.open().await.unwrap().stream);
            let mut data = [0; 4];
            app.read_exact(&mut data).await.unwrap();
            assert_eq!(&data, b"data");
            if is_end {
                assert_eq!(read_to_end(&mut app).await.unwrap(), b"");
                assert!(end.await.unwrap().0.is_ok(), "{code}");
            } else {
                assert_reset(&mut app).await;
                assert!(end.await.unwrap().0.is_err(), "{code}");
            }
        });
    }
}
