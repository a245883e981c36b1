//! What comes from the peer.

use std::mem;

use super::connection::{Connection, Side};
use super::error::{StreamError, Violation};
use super::frame::{self, Head, Kind, flag};
use super::head::{BadHead, Field, Fields, Reader, Role};
use super::streams::{Stream, StreamKey};
use crate::ErrorCode;

/// What may wait to be sent that is not data, until a peer that asks more than it listens is cut off.
const WAITING: usize = 256 * 1024;

/// Frames of one head. Nobody needs as many.
const HEAD_FRAMES: u32 = 32;

/// What a peer may need for a head besides its text.
const HEAD_SLACK: u32 = 1024;

/// The longest frame of SETTINGS or GOAWAY. What is known of them is much shorter.
const LONGEST: u32 = 16 * 1024;

/// How far the peer is.
pub(super) struct Receiving {
    pub(super) state: State,
    /// Content of the frame that is coming.
    partial: Vec<u8>,
    /// The head whose frames are coming.
    block: Option<Block>,
    /// SETTINGS come first.
    heard_settings: bool,
    pub(super) empty_frames: u32,
}

#[derive(Clone, Copy)]
pub(super) enum State {
    /// So much of the preface was there.
    Preface(usize),
    /// So much of a frame's head was there.
    Head([u8; frame::HEAD], usize),
    /// Data, with a stream to go to or not.
    Data {
        key: Option<StreamKey>,
        /// With padding, of which the length comes first.
        left: u32,
        padding: u32,
        comes_padding: bool,
        end: bool,
    },
    /// Anything else, to be looked at as a whole.
    Content(Head),
    Skip(u32),
}

pub(super) const NEXT: State = State::Head([0; frame::HEAD], 0);

struct Block {
    id: u32,
    end: bool,
    bytes: Vec<u8>,
    frames: u32,
}

impl Receiving {
    pub(super) fn new(side: Side) -> Self {
        Self {
            state: match side {
                Side::Client => NEXT,
                Side::Server => State::Preface(0),
            },
            partial: Vec::new(),
            block: None,
            heard_settings: false,
            empty_frames: 0,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.state, State::Preface(_))
    }
}

/// Whose a head is.
enum Whose {
    /// A new stream's of the peer.
    New,
    /// The first of a stream of ours.
    Answer(StreamKey),
    /// The last of a stream.
    Trailers(StreamKey),
    /// Of a stream that is over.
    Nobodys,
}

impl Connection {
    /// Takes what has come, all of it.
    ///
    /// # Errors
    /// When it is nothing that a peer may send. The connection is lost then, and the peer is to be told why by what
    /// there is to transmit.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.lost().is_some() {
            return Ok(());
        }
        let taken = self.take(bytes).and_then(|()| self.check_waiting());
        match taken {
            // What was too little to tell while the peer had more may be all there is once that is used up.
            Ok(()) => self.open_window(),
            Err(violation) => self.fail(violation),
        }
        taken
    }

    fn check_waiting(&self) -> Result<(), Violation> {
        let what = if self.sending.waiting() > WAITING {
            "asks for more than it listens to"
        } else if self.cancels_on() {
            "goes on to cancel what it asks for"
        } else {
            return Ok(());
        };
        Err(Violation::excess(what))
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            bytes = match self.receiving.state {
                State::Preface(at) => self.take_preface(at, bytes)?,
                State::Head(head, at) => self.take_head(head, at, bytes)?,
                State::Data { .. } => self.take_data(bytes)?,
                State::Content(head) => self.take_content(head, bytes)?,
                State::Skip(left) => {
                    let (skipped, rest) = split(bytes, left);
                    self.receiving.state = match left - skipped.len() as u32 {
                        0 => NEXT,
                        left => State::Skip(left),
                    };
                    rest
                }
            };
        }
        Ok(())
    }

    fn take_preface<'a>(&mut self, at: usize, bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        let expected = &frame::PREFACE[at..];
        let (preface, rest) = bytes.split_at(bytes.len().min(expected.len()));
        if !expected.starts_with(preface) {
            return Err(Violation::protocol("does not begin as HTTP/2 does"));
        }
        self.receiving.state = match preface.len() == expected.len() {
            true => NEXT,
            false => State::Preface(at + preface.len()),
        };
        Ok(rest)
    }

    fn take_head<'a>(
        &mut self,
        mut head: [u8; frame::HEAD],
        at: usize,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], Violation> {
        let rest = match bytes.split_first_chunk() {
            Some((whole, rest)) if at == 0 => {
                head = *whole;
                rest
            }
            _ => {
                let (new, rest) = bytes.split_at(bytes.len().min(frame::HEAD - at));
                let now = at + new.len();
                head[at..now].copy_from_slice(new);
                if now < frame::HEAD {
                    self.receiving.state = State::Head(head, now);
                    return Ok(rest);
                }
                rest
            }
        };
        self.receiving.state = NEXT;
        self.begin(Head::parse(head))?;
        Ok(rest)
    }

    fn take_content<'a>(&mut self, head: Head, bytes: &'a [u8]) -> Result<&'a [u8], Violation> {
        let missing = head.len - self.receiving.partial.len() as u32;
        let (content, rest) = split(bytes, missing);
        if (content.len() as u32) < missing {
            self.receiving.partial.extend_from_slice(content);
            return Ok(rest);
        }
        self.receiving.state = NEXT;
        if self.receiving.partial.is_empty() {
            self.hear(head, content)?;
        } else {
            let mut whole = mem::take(&mut self.receiving.partial);
            whole.extend_from_slice(content);
            self.hear(head, &whole)?;
        }
        Ok(rest)
    }

    /// A frame begins.
    fn begin(&mut self, head: Head) -> Result<(), Violation> {
        if head.len > self.ours.max_frame {
            return Err(Violation::size("a frame larger than MAX_FRAME_SIZE"));
        }
        let is_settings = head.kind == Kind::Settings && !head.has(flag::ACK);
        if !mem::replace(&mut self.receiving.heard_settings, true) && !is_settings {
            return Err(Violation::protocol("does not begin with SETTINGS"));
        }
        if let Some(block) = &self.receiving.block
            && (head.kind != Kind::Continuation || head.stream != block.id)
        {
            return Err(Violation::protocol("another frame inside of a head"));
        }
        let of_a_stream = match head.kind {
            Kind::Data | Kind::Headers | Kind::Priority | Kind::Reset | Kind::Continuation => true,
            Kind::Settings | Kind::Ping | Kind::GoAway => false,
            Kind::PushPromise => return Err(Violation::protocol("PUSH_PROMISE is not allowed")),
            Kind::WindowUpdate | Kind::Unknown => head.stream != 0,
        };
        if of_a_stream != (head.stream != 0) {
            return Err(Violation::protocol("a frame with the wrong kind of id"));
        }
        let block = self.ours.max_header_list.saturating_add(HEAD_SLACK);
        let (least, most) = match head.kind {
            Kind::Data => return self.begin_data(head),
            Kind::Unknown => (0, u32::MAX),
            Kind::Headers | Kind::Continuation => (0, block),
            Kind::Priority => (5, 5),
            Kind::Reset | Kind::WindowUpdate => (4, 4),
            Kind::Settings | Kind::PushPromise => (0, if is_settings { LONGEST } else { 0 }),
            Kind::Ping => (8, 8),
            Kind::GoAway => (8, LONGEST),
        };
        if head.len > most && most > least {
            return Err(Violation::excess(
                "a frame that is larger than anybody needs",
            ));
        }
        if head.len < least || head.len > most {
            return Err(Violation::size("a frame of the wrong length"));
        }
        match (head.kind, head.len) {
            (Kind::Unknown | Kind::Priority, 0) => {}
            (Kind::Unknown | Kind::Priority, len) => self.receiving.state = State::Skip(len),
            (_, 0) => self.hear(head, &[])?,
            _ => self.receiving.state = State::Content(head),
        }
        Ok(())
    }

    // Everything else, whole.

    fn hear(&mut self, head: Head, content: &[u8]) -> Result<(), Violation> {
        match head.kind {
            Kind::Headers => {
                if head.has(flag::PADDED) && content.is_empty() {
                    return Err(Violation::size("padding without its length"));
                }
                let Some(mut block) = frame::unpadded(head, content) else {
                    return Err(Violation::protocol("more padding than frame"));
                };
                if head.has(flag::PRIORITY) {
                    let Some(rest) = block.get(5..) else {
                        return Err(Violation::size("HEADERS without their priority"));
                    };
                    block = rest;
                }
                let end = head.has(flag::END_STREAM);
                if head.has(flag::END_HEADERS) {
                    return self.hear_head(head.stream, end, block);
                }
                self.receiving.block = Some(Block {
                    id: head.stream,
                    end,
                    bytes: block.to_vec(),
                    frames: 1,
                });
            }
            Kind::Continuation => return self.hear_more(head, content),
            Kind::Reset => self.hear_reset(head.stream, ErrorCode(number(content)))?,
            Kind::Settings => self.hear_settings(head, content)?,
            Kind::Ping => {
                let content = content.first_chunk().copied().unwrap_or_default();
                match head.has(flag::ACK) {
                    true => self.pong(content),
                    false => self.sending.put_ping(content, true),
                }
            }
            Kind::GoAway => {
                let last = content.first_chunk().copied().map_or(0, frame::u31);
                self.hear_goaway(last);
            }
            Kind::WindowUpdate => self.hear_window(head.stream, content)?,
            Kind::Data | Kind::Priority | Kind::PushPromise | Kind::Unknown => {}
        }
        Ok(())
    }

    fn hear_more(&mut self, head: Head, content: &[u8]) -> Result<(), Violation> {
        let Some(mut block) = self.receiving.block.take() else {
            return Err(Violation::protocol("CONTINUATION of nothing"));
        };
        let most = self.ours.max_header_list.saturating_add(HEAD_SLACK) as usize;
        block.frames += 1;
        if block.bytes.len() + content.len() > most || block.frames > HEAD_FRAMES {
            return Err(Violation::excess("a head without an end"));
        }
        block.bytes.extend_from_slice(content);
        if head.has(flag::END_HEADERS) {
            return self.hear_head(block.id, block.end, &block.bytes);
        }
        self.receiving.block = Some(block);
        Ok(())
    }

    fn hear_head(&mut self, id: u32, end: bool, block: &[u8]) -> Result<(), Violation> {
        let whose = self.whose(id)?;
        let role = match whose {
            Whose::New => Role::Request,
            Whose::Answer(_) => Role::Response,
            Whose::Trailers(_) | Whose::Nobodys => Role::Trailers,
        };
        let mut reader = Reader::new(role, self.ours.max_header_list);
        // Whatever becomes of it: both sides have to have the same table.
        let read = self
            .decoder
            .decode(block, |name, value| reader.field(name, value));
        if read.is_err() {
            let what = "a head that cannot be read";
            return Err(Violation::new(ErrorCode::COMPRESSION_ERROR, what));
        }
        match (whose, reader.end()) {
            (Whose::New, head) => self.hear_request(id, end, head),
            (Whose::Answer(key), Ok(head)) => self.hear_answer(key, end, head),
            (Whose::Trailers(key), Ok(_)) if end => self.end_receiving(key),
            (Whose::Answer(key) | Whose::Trailers(key), _) => {
                self.fail_stream(key, ErrorCode::PROTOCOL_ERROR);
            }
            (Whose::Nobodys, _) => self.is_closed(id),
        }
        Ok(())
    }

    fn whose(&mut self, id: u32) -> Result<Whose, Violation> {
        let is_of_client = id % 2 == 1;
        if let Some(key) = self.streams.find(id)
            && let Some(stream) = self.streams.get_mut(key)
        {
            return Ok(match stream {
                Stream {
                    broken: Some(_), ..
                } => Whose::Nobodys,
                Stream { heard: false, .. } => Whose::Answer(key),
                Stream {
                    received_end: true, ..
                } => {
                    self.fail_stream(key, ErrorCode::STREAM_CLOSED);
                    Whose::Nobodys
                }
                _ => Whose::Trailers(key),
            });
        }
        match self.side {
            Side::Server if is_of_client && id > self.last_heard => Ok(Whose::New),
            _ if is_of_client && !self.is_idle(id) => Ok(Whose::Nobodys),
            _ => Err(Violation::protocol("HEADERS for a stream of nobody")),
        }
    }

    /// Whether neither side has begun this stream.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let is_of_client = id % 2 == 1;
        !is_of_client
            || match self.side {
                Side::Server => id > self.last_begun,
                Side::Client => id >= self.next,
            }
    }

    fn hear_request(&mut self, id: u32, end: bool, head: Result<Fields, BadHead>) {
        self.last_begun = self.last_begun.max(id);
        if self.is_too_late(id) {
            return;
        }
        self.last_heard = id;
        if self.streams.active() >= self.ours.max_streams as usize {
            return self.put_reset(id, ErrorCode::REFUSED_STREAM);
        }
        match head {
            Ok(head) => {
                let mut stream = Stream::new(id, self.stream_window, self.peer.stream_window);
                stream.heard = true;
                stream.received_end = end;
                let key = self.streams.insert(stream);
                self.requests.push_back((key, head));
            }
            Err(BadHead::Malformed) => self.put_reset(id, ErrorCode::PROTOCOL_ERROR),
            Err(BadHead::TooLarge) => {
                // RFC 6585 section 5.
                self.put_head(id, &[Field::usual(":status", b"431")], true);
                if !end {
                    self.put_reset(id, ErrorCode::NO_ERROR);
                }
            }
        }
    }

    fn hear_answer(&mut self, key: StreamKey, end: bool, head: Fields) {
        let is_final = head
            .first(":status")
            .is_some_and(|status| !status.starts_with(b"1"));
        if !is_final && end {
            return self.fail_stream(key, ErrorCode::PROTOCOL_ERROR);
        }
        if !is_final {
            return;
        }
        if let Some(stream) = self.streams.get_mut(key) {
            stream.heard = true;
            stream.answer = Some(Box::new(head));
            stream.wake_receiver();
        }
        if end {
            self.end_receiving(key);
        }
    }

    fn hear_reset(&mut self, id: u32, code: ErrorCode) -> Result<(), Violation> {
        let Some(key) = self.streams.find(id) else {
            return match self.is_idle(id) {
                true => Err(Violation::protocol("RST_STREAM for a stream of nobody")),
                false => Ok(()),
            };
        };
        let is_unanswered = self.streams.get(key).is_some_and(|stream| !stream.spoken);
        self.break_stream(key, StreamError::Reset(code));
        self.forget(key);
        if is_unanswered {
            self.note_canceled();
        }
        Ok(())
    }

    fn hear_settings(&mut self, head: Head, content: &[u8]) -> Result<(), Violation> {
        if head.has(flag::ACK) {
            self.agreed();
            return Ok(());
        }
        let before = self.peer;
        self.peer.hear(content)?;
        for size in [self.peer.smallest_table, self.peer.header_table] {
            self.encoder.set_peer_table(size);
        }
        let by = i64::from(self.peer.stream_window) - i64::from(before.stream_window);
        if by != 0 {
            let keys: Vec<_> = self.streams.all().map(|(key, _)| key).collect();
            for key in keys {
                if !self.widen(Some(key), by) {
                    return Err(Violation::flow_control(
                        "INITIAL_WINDOW_SIZE makes a window too large",
                    ));
                }
            }
        }
        if !before.told || self.peer.max_streams > before.max_streams {
            self.wake_openers();
        }
        self.sending.agree();
        Ok(())
    }

    fn hear_window(&mut self, id: u32, content: &[u8]) -> Result<(), Violation> {
        let by = content.first_chunk().copied().map_or(0, frame::u31);
        if id == 0 {
            if by == 0 {
                return Err(Violation::protocol("WINDOW_UPDATE by nothing"));
            }
            return match self.widen(None, by.into()) {
                true => Ok(()),
                false => Err(Violation::flow_control(
                    "WINDOW_UPDATE beyond the largest window",
                )),
            };
        }
        let Some(key) = self.streams.find(id) else {
            return match self.is_idle(id) {
                true => Err(Violation::protocol("WINDOW_UPDATE for a stream of nobody")),
                false => Ok(()),
            };
        };
        if self
            .streams
            .get(key)
            .is_some_and(|stream| stream.broken.is_some())
        {
            return Ok(());
        }
        if by == 0 {
            self.fail_stream(key, ErrorCode::PROTOCOL_ERROR);
        } else if !self.widen(Some(key), by.into()) {
            self.fail_stream(key, ErrorCode::FLOW_CONTROL_ERROR);
        }
        Ok(())
    }
}

/// The first `len` bytes, or what there is of them, and what follows.
pub(super) fn split(bytes: &[u8], len: u32) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len().min(len as usize))
}

fn number(content: &[u8]) -> u32 {
    content.first_chunk().copied().map_or(0, u32::from_be_bytes)
}
