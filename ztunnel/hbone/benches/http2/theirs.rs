//! The `h2` crate.

use std::cell::RefCell;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Method, Request, Response, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::Wire;
use crate::{
    BAGGAGE, Client, End, FILL, HEADER_LIST, Head, MAX_FRAME, Pair, SEND_BUFFER, STREAM_WINDOW,
    Server, WINDOW, now,
};

pub(crate) struct Theirs {
    requests: h2::client::SendRequest<Bytes>,
    client: h2::client::Connection<Io, Bytes>,
    server: h2::server::Connection<Io, Bytes>,
}

impl Pair for Theirs {
    type Stream = (SendStream<Bytes>, RecvStream);

    fn connect() -> Self {
        let [to_client, to_server] = <[Rc<RefCell<Wire>>; 2]>::default();
        let (near, far) = (
            Io(Rc::clone(&to_client), Rc::clone(&to_server)),
            Io(to_server, to_client),
        );
        let (mut client, mut server) = (h2::client::Builder::new(), h2::server::Builder::new());
        client
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER as usize)
            .initial_max_send_streams(FILL)
            .enable_push(false);
        server
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER as usize)
            .max_concurrent_streams(FILL as u32);
        let client = pin!(client.handshake(near));
        let (requests, client) = now(|cx| client.poll(cx)).unwrap();
        let server = pin!(server.handshake(far));
        let server = now(|cx| server.poll(cx)).unwrap();
        let mut pair = Self {
            requests,
            client,
            server,
        };
        for end in [Client, Server, Client, Server] {
            pair.turn(end);
        }
        pair
    }

    fn turn(&mut self, end: End) {
        let cx = &mut Context::from_waker(Waker::noop());
        let done = match end {
            Client => Pin::new(&mut self.client).poll(cx),
            Server => self.server.poll_closed(cx),
        };
        assert!(done.is_pending());
    }

    fn open(&mut self, head: &Head) -> [Self::Stream; 2] {
        let secret = |text: &str| {
            let mut value = HeaderValue::from_str(text).unwrap();
            value.set_sensitive(true);
            value
        };
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        let uri = Uri::builder().authority(head.authority.as_str());
        *request.uri_mut() = uri.build().unwrap();
        let headers = request.headers_mut();
        headers.reserve(3);
        headers.insert("baggage", HeaderValue::from_static(BAGGAGE));
        headers.insert("forwarded", secret(&head.forwarded));
        headers.insert("traceparent", secret(&head.trace));
        now(|cx| self.requests.poll_ready(cx)).unwrap();
        let (answer, near) = self.requests.send_request(request, false).unwrap();
        self.turn(Client);
        // Its turn is in it.
        let asked = now(|cx| self.server.poll_accept(cx));
        let (request, mut respond) = asked.unwrap().unwrap();
        assert_eq!(request.headers()["baggage"], BAGGAGE);
        let mut response = Response::new(());
        let headers = response.headers_mut();
        headers.insert("baggage", HeaderValue::from_static(BAGGAGE));
        let far = respond.send_response(response, false).unwrap();
        self.turn(Server);
        self.turn(Client);
        let answer = pin!(answer);
        let answer = now(|cx| answer.poll(cx)).unwrap();
        assert_eq!(answer.status(), 200);
        [(near, answer.into_body()), (far, request.into_body())]
    }

    fn send(&mut self, (send, _): &mut Self::Stream, data: Bytes, is_end: bool) {
        if !data.is_empty() {
            send.reserve_capacity(data.len());
            let room = now(|cx| send.poll_capacity(cx));
            assert_eq!(room.unwrap().unwrap(), data.len());
        }
        send.send_data(data, is_end).unwrap();
    }

    fn take(&mut self, (_, body): &mut Self::Stream) -> Option<Bytes> {
        let mut data = now(|cx| body.poll_data(cx))?.unwrap();
        if data.is_empty() {
            // The frame that ends a stream is handed on too.
            data = now(|cx| body.poll_data(cx))?.unwrap();
        }
        body.flow_control().release_capacity(data.len()).unwrap();
        Some(data)
    }

    fn close(&mut self, stream: Self::Stream) {
        drop(stream);
    }
}

/// What is read from, and what is written to.
struct Io(Rc<RefCell<Wire>>, Rc<RefCell<Wire>>);

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.0.borrow_mut();
        match wire.read(buffer.remaining(), |bytes| buffer.put_slice(bytes)) {
            0 => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(self.1.borrow_mut().write(slices)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
