//! One end of an HTTP/2 connection, with a peer that says anything, and with apps that work with their streams meanwhile.
//!
//! What must hold: nothing panics; what is held of all streams is never more than the window promised; what is sent is
//! frames, in an order that the protocol allows: nothing of a stream after its end or reset, nothing between the frames
//! of a head, no more data than the peer's windows allow. And when all streams are closed nothing is held.
//!
//! An input is a byte that chooses the end, and then steps, each a byte with its arguments behind it. Frames have their
//! length in one byte, so that what the fuzzer changes mostly stays a frame; other steps send bytes as they are, let the
//! wire take some bytes, or are of our side.
#![no_main]

use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ztunnel_hbone::ErrorCode;
use ztunnel_hbone::http2::{Connection, Field, Lost, Settings, StreamKey};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Smaller than what the connection may hold, so that both limits are met.
const STREAM_WINDOW: u32 = 20_000;
const WINDOW: u32 = 65_535;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let Some(first) = input.byte() else {
        return;
    };
    let mut world = World::new(first % 2 == 0);
    if first & 2 == 0 {
        world.greet();
    }
    while world.step(&mut input).is_some() {
        world.check();
    }
    world.end();
});

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// As many as the next byte says, or what there is.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?);
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<usize> {
        let (high, low) = (self.byte()?, self.byte()?);
        Some(usize::from(high) << 8 | usize::from(low))
    }
}

struct World {
    is_client: bool,
    conn: Connection,
    streams: Vec<StreamKey>,
    heard: Heard,
}

impl World {
    fn new(is_client: bool) -> Self {
        let settings = Settings {
            stream_window: STREAM_WINDOW,
            window: WINDOW,
            max_frame: 16_384,
            max_header_list: 2000,
            max_streams: 5,
            send_buffer: 30_000,
            early_data: true,
        };
        let conn = match is_client {
            true => Connection::client(&settings),
            false => Connection::server(&settings),
        };
        let heard = Heard {
            expects_preface: is_client,
            ..Heard::default()
        };
        Self {
            is_client,
            conn,
            streams: Vec::new(),
            heard,
        }
    }

    /// Most of what there is to find comes after this.
    fn greet(&mut self) {
        if !self.is_client {
            self.receive(PREFACE);
        }
        self.receive(&frame(4, 0, 0, &[]));
        self.receive(&frame(4, 1, 0, &[]));
        if self.is_client {
            self.open();
            self.open();
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let told = self.conn.receive(bytes);
        assert!(told.is_ok() || self.conn.lost().is_some());
        while !self.is_client
            && let Some((key, head)) = self.conn.accept()
        {
            assert!(head.first(":method").is_some());
            self.streams.push(key);
        }
    }

    fn open(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(())) = self.conn.poll_open(&mut cx) {
            let head = [
                Field::usual(":method", b"CONNECT"),
                Field::unique(":authority", b"10.0.0.1:80"),
            ];
            if let Ok(key) = self.conn.open(&head) {
                self.streams.push(key);
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let step = input.byte()?;
        let mut cx = Context::from_waker(Waker::noop());
        // A stream that some steps are for, if there is one.
        let which = usize::from(step >> 5);
        let key = self.streams.get(which).copied();
        match (step & 0x1f, key) {
            (0..=9, _) => {
                let (flags, stream) = (input.byte()?, input.byte()?);
                let content = input.bytes()?;
                self.receive(&frame(step & 0x1f, flags, stream.into(), content));
            }
            // Long ones of data, whose content says nothing.
            (10, _) => {
                let (flags, stream) = (input.byte()?, input.byte()?);
                let len = input.number()?.min(16_384);
                let bytes = frame(0, flags, stream.into(), &vec![7; len]);
                let (begin, rest) = bytes.split_at(bytes.len() / 2);
                self.receive(begin);
                self.check();
                self.receive(rest);
            }
            (11, _) => self.receive(input.bytes()?),
            (12, _) => {
                let bytes = input.bytes()?;
                bytes.chunks(1).for_each(|one| self.receive(one));
            }
            (13, _) => self.heard.transmit(&mut self.conn, input.number()?),
            (14, _) => self.heard.transmit(&mut self.conn, usize::MAX),
            (15, _) if self.is_client => self.open(),
            (16, Some(key)) if !self.is_client => {
                let status: &[u8] = if which == 4 { b"503" } else { b"200" };
                let head = [Field::usual(":status", status)];
                // Once: who answers has to know whether it did.
                if self.heard.answered.insert(key) {
                    let _ = self.conn.answer(key, &head, which == 4);
                }
            }
            (17 | 18, Some(key)) if self.is_client || self.heard.answered.contains(&key) => {
                let wanted = input.number()? + 1;
                if let Poll::Ready(Ok(room)) = self.conn.poll_capacity(key, &mut cx, wanted) {
                    assert!(room > 0 && room <= wanted);
                    let _ = self.conn.send(key, vec![9; room].into(), step & 1 == 0);
                }
            }
            (19, Some(key)) if self.is_client || self.heard.answered.contains(&key) => {
                let _ = self.conn.send(key, Bytes::new(), true);
            }
            (20, Some(key)) => {
                let _ = self.conn.poll_data(key, &mut cx).map_ok(|data| {
                    assert!(data.is_none_or(|data| !data.is_empty()));
                });
            }
            (21, Some(key)) => self.conn.release(key, input.number()?),
            (22, Some(key)) => {
                self.streams.remove(which);
                self.conn.close_stream(key, ErrorCode::CANCEL);
            }
            (23, Some(key)) => {
                let _ = self.conn.poll_answer(key, &mut cx);
                let _ = self.conn.poll_broken(key, &mut cx);
                self.conn.yield_capacity(key);
            }
            (24, _) => drop(
                self.conn
                    .resize_streams(input.number()? as u32 % STREAM_WINDOW),
            ),
            (25, _) => self.conn.resize(input.number()? as u32),
            (26, _) => self.conn.ping(),
            (27, _) => self.conn.go_away(),
            (28, _) => self.conn.finish(),
            (29, _) => self.conn.abort(ErrorCode::NO_ERROR),
            (30, _) => self.conn.lose(Lost::Closed),
            _ => {}
        }
        Some(())
    }

    /// What is held is within the window.
    fn check(&self) {
        let held: usize = self.streams.iter().map(|key| self.conn.held(*key)).sum();
        assert!(held <= WINDOW as usize, "{held} bytes are held");
    }

    /// Everybody goes.
    fn end(mut self) {
        for key in std::mem::take(&mut self.streams) {
            self.conn.close_stream(key, ErrorCode::CANCEL);
            assert_eq!(self.conn.held(key), 0);
        }
        self.heard.transmit(&mut self.conn, usize::MAX);
        if self.conn.lost().is_some() {
            assert!(self.conn.is_done());
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (content.len() as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [&[a, b, c, kind, flags, d, e, f, g], content].concat()
}

/// What the peer was sent.
#[derive(Default)]
struct Heard {
    expects_preface: bool,
    bytes: Vec<u8>,
    /// Streams that nothing more may be sent in.
    over: HashMap<u32, bool>,
    /// The stream of which a head has begun.
    head: Option<u32>,
    answered: HashSet<StreamKey>,
}

impl Heard {
    fn transmit(&mut self, conn: &mut Connection, mut room: usize) {
        let _ = conn.poll_transmit(|slices| {
            if room == 0 {
                return Poll::Pending;
            }
            let mut taken = 0;
            for slice in slices {
                let some = slice.len().min(room);
                self.bytes.extend_from_slice(&slice[..some]);
                room -= some;
                taken += some;
            }
            assert!(taken > 0, "nothing to write");
            Poll::Ready(Ok(taken))
        });
        let bytes = std::mem::take(&mut self.bytes);
        let mut rest = bytes.as_slice();
        if self.expects_preface && rest.len() >= PREFACE.len() {
            rest = rest
                .strip_prefix(PREFACE)
                .expect("a client says what it is");
            self.expects_preface = false;
        }
        while !self.expects_preface
            && let Some((head, after)) = rest.split_first_chunk::<9>()
        {
            let [a, b, c, kind, flags, id @ ..] = *head;
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some((content, after)) = after.split_at_checked(len) else {
                break;
            };
            self.hear(kind, flags, u32::from_be_bytes(id), content);
            rest = after;
        }
        self.bytes = rest.to_vec();
    }

    fn hear(&mut self, kind: u8, flags: u8, id: u32, content: &[u8]) {
        assert!(self.head.is_none() || (kind == 9 && self.head == Some(id)));
        let (end, whole) = (flags & 1 != 0, flags & 4 != 0);
        let len = content.len();
        match kind {
            0 | 1 => {
                assert_ne!(id, 0);
                // Only a reset may follow an end, and nothing a reset.
                assert!(!self.over.contains_key(&id), "{kind} after the end of {id}");
                if end {
                    self.over.insert(id, false);
                }
                self.head = (kind == 1 && !whole).then_some(id);
            }
            3 => {
                assert!(id != 0 && len == 4);
                self.over.insert(id, true);
            }
            4 => assert!(id == 0 && len % 6 == 0),
            6 => assert!(id == 0 && len == 8),
            7 => assert!(id == 0 && len == 8),
            8 => {
                let by = content.try_into().map(u32::from_be_bytes);
                assert!(by.is_ok_and(|by| by != 0 && by <= i32::MAX as u32));
                assert_ne!(self.over.get(&id), Some(&true), "a window of {id}");
            }
            9 => self.head = (!whole).then_some(id),
            _ => panic!("a frame of kind {kind}"),
        }
    }
}
