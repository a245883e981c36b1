//! Our own HTTP/2.

use std::task::Poll;

use bytes::Bytes;
use ztunnel_hbone::ErrorCode;
use ztunnel_hbone::http2::{Connection, Field, Settings, StreamKey};

use crate::wire::Wire;
use crate::{
    BAGGAGE, Client, End, FILL, HEADER_LIST, Head, MAX_FRAME, Pair, SEND_BUFFER, STREAM_WINDOW,
    Server, WINDOW, now,
};

pub(crate) struct Ours {
    ends: [Connection; 2],
    /// To the client and to the server.
    wires: [Wire; 2],
}

impl Pair for Ours {
    type Stream = (End, StreamKey);

    fn connect() -> Self {
        let settings = Settings {
            stream_window: STREAM_WINDOW,
            window: WINDOW,
            max_frame: MAX_FRAME,
            max_header_list: HEADER_LIST,
            max_streams: FILL as u32,
            send_buffer: SEND_BUFFER,
            early_data: false,
        };
        let mut pair = Self {
            ends: [Connection::client(&settings), Connection::server(&settings)],
            wires: Default::default(),
        };
        for end in [Client, Server, Client, Server] {
            pair.turn(end);
        }
        pair
    }

    fn turn(&mut self, end: End) {
        let conn = &mut self.ends[end as usize];
        let [to_client, to_server] = &mut self.wires;
        let (incoming, outgoing) = match end {
            Client => (to_client, to_server),
            Server => (to_server, to_client),
        };
        while incoming.read(usize::MAX, |bytes| conn.receive(bytes).unwrap()) > 0 {}
        let sent = conn.poll_transmit(|slices| Poll::Ready(Ok(outgoing.write(slices))));
        assert!(matches!(sent, Poll::Ready(Ok(()))));
    }

    fn open(&mut self, head: &Head) -> [Self::Stream; 2] {
        let near = self.ends[0].open(&[
            Field::usual(":method", b"CONNECT"),
            Field::unique(":authority", head.authority.as_bytes()),
            Field::usual("baggage", BAGGAGE.as_bytes()),
            Field::unique("forwarded", head.forwarded.as_bytes()),
            Field::unique("traceparent", head.trace.as_bytes()),
        ]);
        let near = near.unwrap();
        self.turn(Client);
        self.turn(Server);
        let (far, asked) = self.ends[1].accept().unwrap();
        assert_eq!(asked.first("baggage"), Some(BAGGAGE.as_bytes()));
        let head = [
            Field::usual(":status", b"200"),
            Field::usual("baggage", BAGGAGE.as_bytes()),
        ];
        self.ends[1].answer(far, &head, false).unwrap();
        self.turn(Server);
        self.turn(Client);
        let answer = now(|cx| self.ends[0].poll_answer(near, cx)).unwrap();
        assert_eq!(answer.first(":status"), Some(&b"200"[..]));
        [(Client, near), (Server, far)]
    }

    fn send(&mut self, (end, key): &mut Self::Stream, data: Bytes, is_end: bool) {
        let conn = &mut self.ends[*end as usize];
        if !data.is_empty() {
            let room = now(|cx| conn.poll_capacity(*key, cx, data.len()));
            assert_eq!(room.unwrap(), data.len());
        }
        conn.send(*key, data, is_end).unwrap();
    }

    fn take(&mut self, (end, key): &mut Self::Stream) -> Option<Bytes> {
        let conn = &mut self.ends[*end as usize];
        let data = now(|cx| conn.poll_data(*key, cx)).unwrap()?;
        conn.release(*key, data.len());
        Some(data)
    }

    fn close(&mut self, (end, key): Self::Stream) {
        self.ends[end as usize].close_stream(key, ErrorCode::CANCEL);
    }
}
