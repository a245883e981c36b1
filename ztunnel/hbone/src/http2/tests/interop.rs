//! Against the `h2` crate, each as the client and as the server of the other, in one process.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};
use tokio::task::{LocalSet, spawn_local};

use super::settings;
use crate::ErrorCode;
use crate::http2::{Connection, Field, Lost, Settings, StreamError, StreamKey};

/// Prime, so that frames end anywhere.
const LONG: usize = 300_007;

fn ours() -> Settings {
    Settings {
        max_streams: 50,
        ..settings()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn text(seed: usize, len: usize) -> Bytes {
    (0..len)
        .map(|at| (at * 7 + (at >> 8) + seed) as u8)
        .collect()
}

// Our end.

#[derive(Clone)]
struct End(Rc<RefCell<Connection>>);

struct Stream {
    end: End,
    key: StreamKey,
}

impl End {
    /// Runs it until it is done; `serve` gets what the peer asks for.
    fn run(conn: Connection, mut io: DuplexStream, serve: fn(Stream)) -> Self {
        let end = Self(Rc::new(RefCell::new(conn)));
        let driven = end.clone();
        spawn_local(poll_fn(move |cx| {
            let mut conn = driven.0.borrow_mut();
            conn.set_driver(cx.waker());
            let mut buffer = [0; 16 * 1024];
            loop {
                let mut buffer = ReadBuf::new(&mut buffer);
                match Pin::new(&mut io).poll_read(cx, &mut buffer) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                        conn.receive(buffer.filled()).unwrap();
                    }
                    Poll::Ready(_) => {
                        conn.lose(Lost::Closed);
                        break;
                    }
                }
            }
            while let Some((key, head)) = conn.accept() {
                assert_eq!(head.first(":method"), Some(&b"CONNECT"[..]));
                assert_eq!(head.first("x-same"), Some(&b"the same each time"[..]));
                let end = driven.clone();
                serve(Stream { end, key });
            }
            match conn.poll_transmit(|slices| Pin::new(&mut io).poll_write_vectored(cx, slices)) {
                Poll::Ready(_) if conn.is_done() => Poll::Ready(()),
                _ => Poll::Pending,
            }
        }));
        end
    }

    async fn open(&self, seed: usize) -> Result<Stream, StreamError> {
        poll_fn(|cx| self.0.borrow_mut().poll_open(cx)).await?;
        let authority = format!("10.0.0.{}:80", seed % 7);
        let key = self.0.borrow_mut().open(&[
            Field::usual(":method", b"CONNECT"),
            Field::usual(":authority", authority.as_bytes()),
            Field::usual("x-same", b"the same each time"),
            Field::unique("x-other", seed.to_string().as_bytes()),
        ])?;
        let end = self.clone();
        Ok(Stream { end, key })
    }
}

impl Stream {
    fn conn(&self) -> std::cell::RefMut<'_, Connection> {
        self.end.0.borrow_mut()
    }

    async fn answer(&self) -> Result<(), StreamError> {
        let fields = poll_fn(|cx| self.conn().poll_answer(self.key, cx)).await?;
        assert_eq!(fields.first(":status"), Some(&b"200"[..]));
        Ok(())
    }

    async fn send(&self, mut data: Bytes) -> Result<(), StreamError> {
        while !data.is_empty() {
            let wanted = data.len();
            let room = poll_fn(|cx| self.conn().poll_capacity(self.key, cx, wanted)).await?;
            self.conn().send(self.key, data.split_to(room), false)?;
        }
        Ok(())
    }

    fn end(&self) -> Result<(), StreamError> {
        self.conn().send(self.key, Bytes::new(), true)
    }

    async fn next(&self) -> Result<Option<Bytes>, StreamError> {
        let data = poll_fn(|cx| self.conn().poll_data(self.key, cx)).await?;
        self.conn()
            .release(self.key, data.as_ref().map_or(0, Bytes::len));
        Ok(data)
    }

    fn close(self, code: ErrorCode) {
        self.conn().close_stream(self.key, code);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.conn().close_stream(self.key, ErrorCode::CANCEL);
    }
}

async fn echo_ours(stream: Stream) -> Result<(), StreamError> {
    let head = [
        Field::usual(":status", b"200"),
        Field::usual("x-same", b"again"),
    ];
    stream.conn().answer(stream.key, &head, false)?;
    while let Some(data) = stream.next().await? {
        stream.send(data).await?;
    }
    stream.end()
}

// Theirs.

async fn send_theirs(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap()?;
        send.send_data(data.split_to(room), false)?;
    }
    send.reserve_capacity(0);
    Ok(())
}

async fn next_theirs(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let data = body.data().await?;
    if let Ok(data) = &data {
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    Some(data)
}

type Asked = (Request<RecvStream>, h2::server::SendResponse<Bytes>);

async fn echo_theirs((request, mut respond): Asked) -> Result<(), h2::Error> {
    assert_eq!(request.headers()["x-same"], "the same each time");
    let mut body = request.into_body();
    let mut send = respond.send_response(Response::new(()), false)?;
    while let Some(data) = next_theirs(&mut body).await {
        send_theirs(&mut send, data?).await?;
    }
    send.send_data(Bytes::new(), true)
}

fn request(seed: usize) -> Request<()> {
    let authority = format!("10.0.0.{}:80", seed % 7);
    let request = Request::builder().method(Method::CONNECT).uri(authority);
    let request = request.header("x-same", "the same each time");
    request.header("x-other", seed).body(()).unwrap()
}

#[test]
fn our_client_and_their_server_say_the_same() {
    run(async {
        let (near, far) = tokio::io::duplex(10_000);
        let end = End::run(Connection::client(&ours()), near, drop);
        let server = spawn_local(async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(7).initial_window_size(5000);
            builder.max_frame_size(20_000);
            let mut server = builder.handshake(far).await.unwrap();
            while let Some(asked) = server.accept().await {
                spawn_local(async { echo_theirs(asked.unwrap()).await.unwrap() });
            }
        });
        // Until their settings are there, any number may be opened: the first is.
        let first = end.open(0).await.unwrap();
        first.answer().await.unwrap();
        drop(first);
        let asks = (0..40).map(|seed| {
            let end = end.clone();
            spawn_local(async move {
                let stream = end.open(seed).await.unwrap();
                stream.answer().await.unwrap();
                let data = text(seed, seed * LONG / 40);
                let send = async {
                    stream.send(data.clone()).await.unwrap();
                    stream.end().unwrap();
                };
                let receive = async {
                    let mut back = Vec::new();
                    while let Some(some) = stream.next().await.unwrap() {
                        back.extend_from_slice(&some);
                    }
                    assert!(back == data);
                };
                tokio::join!(send, receive);
            })
        });
        for ask in asks.collect::<Vec<_>>() {
            ask.await.unwrap();
        }
        end.0.borrow_mut().finish();
        server.await.unwrap();
        end.0.borrow_mut().check_is_empty();
    });
}

#[test]
fn their_client_and_our_server_say_the_same() {
    run(async {
        let (near, far) = tokio::io::duplex(10_000);
        let serve = |stream| drop(spawn_local(async { echo_ours(stream).await.unwrap() }));
        let end = End::run(Connection::server(&ours()), near, serve);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(5000).max_frame_size(20_000);
        let (client, connection) = builder.handshake::<_, Bytes>(far).await.unwrap();
        let connection = spawn_local(connection);
        let asks = (0..40).map(|seed| {
            let client = client.clone();
            spawn_local(async move {
                let mut client = client.ready().await.unwrap();
                let (answer, mut send) = client.send_request(request(seed), false).unwrap();
                drop(client);
                let mut body = answer.await.unwrap().into_body();
                let data = text(seed, seed * LONG / 40);
                let sent = async {
                    send_theirs(&mut send, data.clone()).await.unwrap();
                    send.send_data(Bytes::new(), true).unwrap();
                };
                let received = async {
                    let mut back = Vec::new();
                    while let Some(some) = next_theirs(&mut body).await {
                        back.extend_from_slice(&some.unwrap());
                    }
                    assert!(back == data);
                };
                tokio::join!(sent, received);
            })
        });
        for ask in asks.collect::<Vec<_>>() {
            ask.await.unwrap();
        }
        drop(client);
        connection.await.unwrap().unwrap();
        tokio::task::yield_now().await;
        end.0.borrow_mut().check_is_empty();
    });
}

#[test]
fn our_client_and_their_server_reset() {
    run(async {
        let (near, far) = tokio::io::duplex(10_000);
        let end = End::run(Connection::client(&ours()), near, drop);
        let server = spawn_local(async move {
            let mut server = h2::server::handshake(far).await.unwrap();
            let mut count = 0;
            while let Some(asked) = server.accept().await {
                count += 1;
                let (request, mut respond) = asked.unwrap();
                match count {
                    1 => respond.send_reset(Reason::REFUSED_STREAM),
                    _ => {
                        let send = respond.send_response(Response::new(()), false);
                        let mut send: SendStream<Bytes> = send.unwrap();
                        let mut body = request.into_body();
                        spawn_local(async move {
                            let data = body.data().await.unwrap().unwrap();
                            assert!(!data.is_empty());
                            match count {
                                2 => send.send_reset(Reason::CONNECT_ERROR),
                                // It hears of a reset, and goes on to send until then.
                                _ => loop {
                                    if let Err(err) = send_theirs(&mut send, text(0, LONG)).await {
                                        assert_eq!(err.reason(), Some(Reason::ENHANCE_YOUR_CALM));
                                        break;
                                    }
                                },
                            }
                        });
                    }
                }
            }
        });
        let refused = end.open(0).await.unwrap();
        let code = refused.answer().await.unwrap_err();
        assert!(matches!(
            code,
            StreamError::Reset(ErrorCode::REFUSED_STREAM)
        ));
        let broken = end.open(1).await.unwrap();
        broken.answer().await.unwrap();
        let code = broken.send(text(0, LONG)).await.unwrap_err();
        assert!(matches!(code, StreamError::Reset(ErrorCode::CONNECT_ERROR)));
        // What is sent for those that are closed takes no room from others.
        for seed in 0..20 {
            let stream = end.open(seed).await.unwrap();
            stream.answer().await.unwrap();
            stream.send(text(0, 10)).await.unwrap();
            stream.next().await.unwrap().unwrap();
            stream.close(ErrorCode::ENHANCE_YOUR_CALM);
        }
        drop((refused, broken));
        end.0.borrow_mut().finish();
        server.await.unwrap();
        end.0.borrow_mut().check_is_empty();
    });
}

#[test]
fn a_server_of_theirs_goes_away() {
    run(async {
        let (near, far) = tokio::io::duplex(10_000);
        let end = End::run(Connection::client(&ours()), near, drop);
        let server = spawn_local(async move {
            let mut server = h2::server::handshake(far).await.unwrap();
            while let Some(asked) = server.accept().await {
                spawn_local(async { echo_theirs(asked.unwrap()).await.unwrap() });
                server.graceful_shutdown();
            }
        });
        let stream = end.open(0).await.unwrap();
        stream.answer().await.unwrap();
        while end.0.borrow().may_open().is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(end.open(1).await, Err(StreamError::NotTaken)));
        stream.send(text(0, 5000)).await.unwrap();
        stream.end().unwrap();
        let mut count = 0;
        while let Some(data) = stream.next().await.unwrap() {
            count += data.len();
        }
        assert_eq!(count, 5000);
        server.await.unwrap();
        assert!(end.0.borrow().is_done());
    });
}

#[test]
fn a_server_of_ours_goes_away() {
    run(async {
        let (near, far) = tokio::io::duplex(10_000);
        let serve = |stream| drop(spawn_local(async { echo_ours(stream).await.unwrap() }));
        let end = End::run(Connection::server(&ours()), near, serve);
        let (mut client, connection) = h2::client::handshake(far).await.unwrap();
        let connection = spawn_local(connection);
        let (answer, mut send) = client.send_request(request(0), false).unwrap();
        let mut body = answer.await.unwrap().into_body();
        end.0.borrow_mut().go_away();
        // Until it hears of that, streams are taken.
        let mut taken = Vec::new();
        while let Ok(ready) = client.clone().ready().await {
            client = ready;
            match client.send_request(request(1), true) {
                Ok((answer, _)) => taken.push(answer),
                Err(_) => break,
            }
            tokio::task::yield_now().await;
        }
        send_theirs(&mut send, text(0, 5000)).await.unwrap();
        send.send_data(Bytes::new(), true).unwrap();
        let mut count = 0;
        while let Some(data) = next_theirs(&mut body).await {
            count += data.unwrap().len();
        }
        assert_eq!(count, 5000);
        // Those that it still had to send when it answered the PING came too late, and it knows that.
        for answer in taken {
            if let Err(err) = answer.await {
                assert!(err.is_go_away() && err.reason() == Some(Reason::NO_ERROR));
            }
        }
        connection.await.unwrap().unwrap();
        assert!(end.0.borrow().is_done());
    });
}
