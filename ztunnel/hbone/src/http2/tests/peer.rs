//! A peer by hand: what it says, frame by frame, and what it hears, in words.
//!
//! Words are such as `SETTINGS`, `SETTINGS ack`, `HEADERS 1`, `DATA 1 5 end`, `RST 1 CANCEL`, `WINDOW 0 +10`, `PING ack`,
//! `GOAWAY 1 NO_ERROR`, one after the other with `; ` in between.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::super::frame::{self, Head, Kind, flag};
use super::super::*;
use super::settings;
use super::world::Flag;
use crate::ErrorCode;
use crate::hpack::{Decoder, Encoder, Indexing};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const NONE: u8 = 0;
pub(super) const ACK: u8 = flag::ACK;
pub(super) const END: u8 = flag::END_STREAM;
pub(super) const WHOLE: u8 = flag::END_HEADERS;
pub(super) const PADDED: u8 = flag::PADDED;
pub(super) const WITH_PRIORITY: u8 = flag::PRIORITY;

/// Any frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (content.len() as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags, d, e, f, g];
    frame.extend_from_slice(content);
    frame
}

pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        Encoder::new().field(name, value, Indexing::Once, &mut block);
    }
    block
}

pub(super) const CONNECT: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "a:1")];
pub(super) const OK: [(&str, &str); 1] = [(":status", "200")];

pub(super) fn head(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | WHOLE, stream, &block(fields))
}

pub(super) fn connect(stream: u32) -> Vec<u8> {
    head(stream, NONE, &CONNECT)
}

pub(super) fn ok(stream: u32) -> Vec<u8> {
    head(stream, NONE, &OK)
}

pub(super) fn data(stream: u32, flags: u8, len: usize) -> Vec<u8> {
    frame(DATA, flags, stream, &vec![b'x'; len])
}

pub(super) fn reset(stream: u32, code: ErrorCode) -> Vec<u8> {
    frame(RST_STREAM, NONE, stream, &code.0.to_be_bytes())
}

pub(super) fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, NONE, stream, &by.to_be_bytes())
}

pub(super) fn goaway(last: u32, code: ErrorCode) -> Vec<u8> {
    let content = [last.to_be_bytes(), code.0.to_be_bytes()].concat();
    frame(GOAWAY, NONE, 0, &content)
}

pub(super) fn set(settings: &[(u16, u32)]) -> Vec<u8> {
    let one = |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
    let content: Vec<_> = settings.iter().flat_map(one).collect();
    frame(SETTINGS, NONE, 0, &content)
}

pub(super) fn set_ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}

/// What a client begins with.
pub(super) fn greeting() -> Vec<u8> {
    [&frame::PREFACE[..], &set(&[])].concat()
}

/// Which end is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Our {
    /// It has opened the streams 1 and 3.
    Client,
    Server,
}

/// What a peer hears that says this after it has greeted.
pub(super) fn check(our: Our, says: &[Vec<u8>], hears: &str) {
    let says = says.concat();
    for size in [usize::MAX, 1, 7] {
        let mut peer = Peer::greeted(our);
        for piece in says.chunks(size.min(says.len()).max(1)) {
            let _ = peer.conn.receive(piece);
            peer.accept();
        }
        assert_eq!(peer.hears(), hears, "{our:?}, in pieces of {size}");
    }
}

pub(super) struct Peer {
    pub(super) conn: Connection,
    pub(super) streams: Vec<StreamKey>,
    pub(super) flag: Arc<Flag>,
    heard: Vec<u8>,
    decoder: Decoder,
    /// The last head that was heard.
    pub(super) fields: String,
    pub(super) block: Vec<u8>,
    /// The last data that was heard.
    pub(super) data: Vec<u8>,
    /// How much the wire takes.
    pub(super) room: usize,
}

impl Peer {
    pub(super) fn new(conn: Connection) -> Self {
        Self {
            conn,
            streams: Vec::new(),
            flag: Arc::default(),
            heard: Vec::new(),
            decoder: Decoder::new(4096),
            fields: String::new(),
            block: Vec::new(),
            data: Vec::new(),
            room: usize::MAX,
        }
    }

    pub(super) fn greeted(our: Our) -> Self {
        Self::greeted_with(our, &settings())
    }

    pub(super) fn greeted_with(our: Our, settings: &Settings) -> Self {
        let mut peer = match our {
            Our::Client => Self::new(Connection::client(settings)),
            Our::Server => Self::new(Connection::server(settings)),
        };
        let greeting = match our {
            Our::Client => set(&[]),
            Our::Server => greeting(),
        };
        peer.says(&[greeting, set_ack()]);
        if our == Our::Client {
            peer.open();
            peer.open();
        }
        peer.hears();
        peer
    }

    pub(super) fn open(&mut self) -> StreamKey {
        let head = [
            Field::usual(":method", b"CONNECT"),
            Field::usual(":authority", b"a:1"),
        ];
        let key = self.conn.open(&head).unwrap();
        self.streams.push(key);
        key
    }

    /// What is wrong with it, if something is.
    pub(super) fn says(&mut self, frames: &[Vec<u8>]) -> Option<Violation> {
        let wrong = self.conn.receive(&frames.concat()).err();
        self.accept();
        wrong
    }

    fn accept(&mut self) {
        while let Some((key, _)) = self.conn.accept() {
            self.streams.push(key);
        }
    }

    pub(super) fn transmit(&mut self) {
        let Self {
            conn, heard, room, ..
        } = self;
        let _ = conn.poll_transmit(|slices| {
            let bytes: Vec<u8> = slices
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            let some = bytes.len().min(*room);
            if some == 0 {
                return Poll::Pending;
            }
            *room -= some;
            heard.extend_from_slice(&bytes[..some]);
            Poll::Ready(Ok(some))
        });
    }

    /// All that is said to it, in words.
    pub(super) fn hears(&mut self) -> String {
        self.transmit();
        let mut words = Vec::new();
        let heard = std::mem::take(&mut self.heard);
        let mut rest = heard.as_slice();
        if let Some(after) = rest.strip_prefix(frame::PREFACE) {
            words.push("PREFACE".to_owned());
            rest = after;
        }
        while let Some((bytes, after)) = rest.split_first_chunk() {
            let head = Head::parse(*bytes);
            let Some((content, after)) = after.split_at_checked(head.len as usize) else {
                break;
            };
            words.push(self.word(head, content));
            rest = after;
        }
        self.heard = rest.to_vec();
        words.join("; ")
    }

    fn word(&mut self, head: Head, content: &[u8]) -> String {
        let number = |at: usize| u32::from_be_bytes(content[at..at + 4].try_into().unwrap());
        let id = head.stream;
        let ack = if head.has(ACK) { " ack" } else { "" };
        let end = if head.has(END) { " end" } else { "" };
        match head.kind {
            Kind::Data => {
                self.data.extend_from_slice(content);
                format!("DATA {id} {}{end}", content.len())
            }
            Kind::Headers | Kind::Continuation if !head.has(WHOLE) => {
                format!("{:?} {id} begins", head.kind)
            }
            Kind::Headers => {
                self.fields.clear();
                self.block = content.to_vec();
                let fields = &mut self.fields;
                let each = |name: &[u8], value: &[u8]| {
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    *fields += &format!("{}={} ", text(name), text(value));
                };
                self.decoder.decode(content, each).unwrap();
                format!("HEADERS {id}{end}")
            }
            Kind::Reset => format!("RST {id} {}", ErrorCode(number(0))),
            Kind::Settings => format!("SETTINGS{ack}"),
            Kind::Ping => format!("PING{ack}"),
            Kind::GoAway => format!("GOAWAY {} {}", number(0), ErrorCode(number(4))),
            Kind::WindowUpdate => format!("WINDOW {id} +{}", number(0)),
            kind => format!("{kind:?} {id}{end}"),
        }
    }

    // What an app does.

    /// Who is woken raises the flag.
    pub(super) fn is_woken(&self) -> bool {
        self.flag.take()
    }

    pub(super) fn waker(&self) -> Waker {
        self.flag.clone().into()
    }

    pub(super) fn reads(&mut self, which: usize) -> Poll<Result<Option<Bytes>, StreamError>> {
        let waker = self.waker();
        self.conn
            .poll_data(self.streams[which], &mut Context::from_waker(&waker))
    }

    /// How much a stream may send.
    pub(super) fn room(&mut self, which: usize) -> Option<usize> {
        let waker = self.waker();
        let cx = &mut Context::from_waker(&waker);
        match self.conn.poll_capacity(self.streams[which], cx, usize::MAX) {
            Poll::Ready(room) => Some(room.unwrap()),
            Poll::Pending => None,
        }
    }

    pub(super) fn sends(&mut self, which: usize, len: usize, end: bool) {
        let data = vec![b'y'; len].into();
        self.conn.send(self.streams[which], data, end).unwrap();
    }

    pub(super) fn answers(&mut self, which: usize, end: bool) {
        let head = [Field::usual(":status", b"200")];
        self.conn.answer(self.streams[which], &head, end).unwrap();
    }

    pub(super) fn closes(&mut self, which: usize) {
        self.conn
            .close_stream(self.streams[which], ErrorCode::CANCEL);
    }
}
