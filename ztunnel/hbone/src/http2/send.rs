//! What goes to the peer: frames about streams and the connection at once, data in turns.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::connection::{Connection, gone};
use super::error::StreamError;
use super::few::Few;
use super::frame::{self, Head, Kind, flag};
use super::head::Field;
use super::streams::{Stream, StreamKey, Streams, note};
use super::window;
use crate::ErrorCode;

/// Room for frames without data that is kept.
const KEPT: usize = 1024;

/// So much of them that was sent is worth moving the rest for.
const MOVED: usize = 16 * 1024;

/// Somebody who waits for room gets so much at a time.
const GRANT: i64 = 64 * 1024;

/// What is to be sent.
#[derive(Default)]
pub(super) struct Sending {
    /// Whole frames without data: they go before data.
    pub(super) control: Vec<u8>,
    /// How much of `control` was sent.
    sent: usize,
    /// The frame with data that is being sent.
    frame: Option<Frame>,
    /// Streams that have something to send and may, in turns. It may have some that have not any more.
    round: VecDeque<StreamKey>,
    /// Streams that wait for the connection's window, first come, first served. The same.
    queue: VecDeque<StreamKey>,
    /// What the streams in the round have, and so what is spoken for of the connection's window.
    committed: i64,
    /// What is kept for streams that were woken for it. Whoever did not have to wait would get it otherwise.
    granted: i64,
}

struct Frame {
    head: [u8; frame::HEAD],
    data: Bytes,
    sent: usize,
}

impl Sending {
    /// How much waits that is not data.
    pub(super) fn waiting(&self) -> usize {
        self.control.len() - self.sent
    }

    pub(super) fn put_window(&mut self, id: u32, by: u32) {
        put_window(&mut self.control, id, by);
    }

    pub(super) fn put_reset(&mut self, id: u32, code: ErrorCode) {
        frame::put(&mut self.control, Kind::Reset, 0, id, &code.0.to_be_bytes());
    }

    pub(super) fn put_ping(&mut self, content: [u8; 8], ack: bool) {
        let flags = if ack { flag::ACK } else { 0 };
        frame::put(&mut self.control, Kind::Ping, flags, 0, &content);
    }

    pub(super) fn put_goaway(&mut self, last: u32, code: ErrorCode) {
        let mut content = [0; 8];
        content[..4].copy_from_slice(&last.to_be_bytes());
        content[4..].copy_from_slice(&code.0.to_be_bytes());
        frame::put(&mut self.control, Kind::GoAway, 0, 0, &content);
    }

    pub(super) fn agree(&mut self) {
        frame::put(&mut self.control, Kind::Settings, flag::ACK, 0, &[]);
    }

    /// Says whether there was any.
    pub(super) fn drop_unsent(&mut self, stream: &mut Stream) -> bool {
        if stream.in_round {
            self.committed -= i64::from(stream.queued);
            stream.in_round = false;
        }
        stream.unsent = Few::default();
        let had = mem::take(&mut stream.queued) > 0;
        self.take_back(stream) || had
    }

    /// What is kept for a stream is for others. Says whether there was any.
    fn take_back(&mut self, stream: &mut Stream) -> bool {
        let granted = mem::take(&mut stream.granted);
        self.granted -= i64::from(granted);
        granted > 0
    }

    /// Streams come and go while the wire or the connection's window stands still: not all of their keys are kept.
    pub(super) fn tidy(&mut self, streams: &Streams) {
        if self.round.len() > 2 * streams.len() + KEPT_TURNS {
            let has_turn = |stream: &Stream| stream.in_round;
            (self.round).retain(|key| streams.get(*key).is_some_and(has_turn));
        }
        if self.queue.len() > 2 * streams.len() + KEPT_TURNS {
            let waits = |stream: &Stream| stream.in_queue;
            (self.queue).retain(|key| streams.get(*key).is_some_and(waits));
            self.queue.shrink_to(KEPT_TURNS);
        }
    }

    /// Forgets what was sent of `control`. Also when there always is more: a peer may ask as fast as it listens.
    fn forget_sent(&mut self) {
        if self.sent >= self.control.len() {
            self.control.clear();
            self.control.shrink_to(KEPT);
        } else if self.sent >= MOVED && self.sent >= self.control.len() / 2 {
            self.control.drain(..self.sent);
        } else {
            return;
        }
        self.sent = 0;
    }

    /// Gives a stream its turn.
    fn enter(&mut self, key: StreamKey, stream: &mut Stream) {
        if !mem::replace(&mut stream.in_round, true) {
            self.committed += i64::from(stream.queued);
            self.round.push_back(key);
        }
    }
}

pub(super) fn put_window(control: &mut Vec<u8>, id: u32, by: u32) {
    frame::put(control, Kind::WindowUpdate, 0, id, &by.to_be_bytes());
}

impl Connection {
    pub(super) fn put_head(&mut self, id: u32, fields: &[Field<'_>], end: bool) {
        let control = &mut self.sending.control;
        let begin = control.len();
        control.extend_from_slice(&[0; frame::HEAD]);
        self.encoder.begin(control);
        for field in fields {
            let (name, indexing) = (field.name.as_bytes(), field.indexing);
            self.encoder.field(name, field.value, indexing, control);
        }
        let len = control.len() - begin - frame::HEAD;
        let end = if end { flag::END_STREAM } else { 0 };
        let head = Head {
            len: len as u32,
            kind: Kind::Headers,
            flags: end | flag::END_HEADERS,
            stream: id,
        };
        if len > self.peer.max_frame as usize {
            return self.put_long_head(begin, head);
        }
        if let Some(place) = control.get_mut(begin..begin + frame::HEAD) {
            place.copy_from_slice(&head.bytes());
        }
    }

    /// In several frames.
    fn put_long_head(&mut self, begin: usize, head: Head) {
        let block = self.sending.control.split_off(begin);
        let mut pieces = block[frame::HEAD..].chunks(self.peer.max_frame as usize);
        let (mut kind, mut flags) = (Kind::Headers, head.flags & !flag::END_HEADERS);
        while let Some(piece) = pieces.next() {
            if pieces.len() == 0 {
                flags |= flag::END_HEADERS;
            }
            frame::put(&mut self.sending.control, kind, flags, head.stream, piece);
            (kind, flags) = (Kind::Continuation, 0);
        }
    }

    /// How much a stream may be given to send now: between 1 and `wanted`. It has to be given at once.
    ///
    /// # Errors
    /// When it sends nothing any more.
    pub fn poll_capacity(
        &mut self,
        key: StreamKey,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, StreamError>> {
        let stream = self.streams.get(key).ok_or_else(gone)?;
        if let Some(broken) = &stream.broken {
            return Poll::Ready(Err(broken.clone()));
        }
        if stream.ended {
            return Poll::Ready(Err(gone()));
        }
        let own = self.room_of(stream);
        let free = self.free() + i64::from(stream.granted);
        let room = usize::try_from(own.min(free)).unwrap_or(0).min(wanted);
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        let stream = self.streams.get_mut(key).ok_or_else(gone)?;
        note(&mut stream.sender, cx.waker());
        stream.wants_room = true;
        if own > 0 {
            if !mem::replace(&mut stream.in_queue, true) {
                self.sending.queue.push_back(key);
            }
        } else if self.sending.take_back(stream) {
            // It cannot use what it has waited for.
            self.wake_queue();
        }
        Poll::Pending
    }

    /// How much may be sent in a stream at once.
    #[must_use]
    pub fn room(&self, key: StreamKey) -> usize {
        let own = self.streams.get(key).map_or(0, |one| self.room_of(one));
        usize::try_from(own.min(self.free())).unwrap_or(0)
    }

    /// The same as far as it depends on the stream itself.
    fn room_of(&self, stream: &Stream) -> i64 {
        let most = stream.outgoing.left().min(self.ours.send_buffer.into());
        most - i64::from(stream.queued)
    }

    /// Whoever was woken for room has no use for it now.
    pub fn yield_capacity(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.wants_room = false;
            if self.sending.take_back(stream) {
                self.wake_queue();
            }
        }
    }

    /// What is left of the connection's window for whoever comes.
    fn free(&self) -> i64 {
        self.outgoing.left() - self.sending.committed - self.sending.granted
    }

    /// Gives what there is to those who wait for it. Who does not wait any more gets nothing of it.
    pub(super) fn wake_queue(&mut self) {
        loop {
            let grant = self.free().min(GRANT);
            if grant <= 0 {
                return;
            }
            let Some(key) = self.sending.queue.pop_front() else {
                return;
            };
            if let Some(stream) = self.streams.get_mut(key)
                && mem::take(&mut stream.in_queue)
                && stream.wants_room
            {
                let before = i64::from(mem::replace(&mut stream.granted, grant as u32));
                self.sending.granted += grant - before;
                stream.wake_for_room();
            }
        }
    }

    /// Sends `data` in a stream, no more than [`Self::poll_capacity`] allowed just now; `end` says that nothing follows.
    ///
    /// # Errors
    /// When it sends nothing any more.
    pub fn send(&mut self, key: StreamKey, data: Bytes, end: bool) -> Result<(), StreamError> {
        let stream = self.streams.get_mut(key).ok_or_else(gone)?;
        if let Some(broken) = &stream.broken {
            return Err(broken.clone());
        }
        if stream.ended {
            return Err(gone());
        }
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if !data.is_empty() {
            stream.unsent.push(data);
            stream.queued = stream.queued.saturating_add(len);
            if stream.in_round {
                self.sending.committed += i64::from(len);
            }
        }
        stream.ended = end;
        stream.wants_room = false;
        self.sending.take_back(stream);
        if stream.outgoing.left() > 0 || stream.unsent.is_empty() {
            self.sending.enter(key, stream);
            self.wake_driver();
        }
        self.wake_queue();
        Ok(())
    }

    /// The peer may be sent more, in a stream or in all. False if that is too much.
    #[must_use]
    pub(super) fn widen(&mut self, key: Option<StreamKey>, by: i64) -> bool {
        let Some(key) = key else {
            let fits = self.outgoing.resize(by);
            self.wake_queue();
            return fits;
        };
        let Some(stream) = self.streams.get_mut(key) else {
            return true;
        };
        if !stream.outgoing.resize(by) {
            return false;
        }
        if stream.outgoing.left() > 0 {
            if !stream.unsent.is_empty() {
                self.sending.enter(key, stream);
            }
            if stream.outgoing.left() > i64::from(stream.queued) {
                stream.wake_for_room();
            }
        }
        true
    }

    /// Sends all there is by `write`, which says how much it took.
    ///
    /// # Errors
    /// As `write`.
    pub fn poll_transmit(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        loop {
            let sending = &mut self.sending;
            match &mut sending.frame {
                // Before anything else: what was said after it was made may forbid it.
                Some(frame) => {
                    let head = frame.head.get(frame.sent..).unwrap_or_default();
                    let at = frame.sent.saturating_sub(frame::HEAD);
                    let rest = [IoSlice::new(head), IoSlice::new(&frame.data[at..])];
                    frame.sent += some(ready!(write(&rest))?)?;
                    if frame.sent >= frame::HEAD + frame.data.len() {
                        sending.frame = None;
                    }
                }
                None if !sending.control.is_empty() => {
                    let rest = [IoSlice::new(&sending.control[sending.sent..])];
                    sending.sent += some(ready!(write(&rest))?)?;
                    sending.forget_sent();
                }
                None => match self.next_frame() {
                    None => return Poll::Ready(Ok(())),
                    next => self.sending.frame = next,
                },
            }
        }
    }

    /// The next frame of the stream whose turn it is.
    fn next_frame(&mut self) -> Option<Frame> {
        // Each gets one turn at most: those that stay wait for the connection's window.
        for _ in 0..self.sending.round.len() {
            let key = self.sending.round.pop_front()?;
            let Some(stream) = self.streams.get_mut(key) else {
                continue;
            };
            if !stream.in_round {
                continue;
            }
            let data = match stream.unsent.first_mut() {
                None => Bytes::new(),
                Some(_) if stream.outgoing.left() <= 0 => {
                    stream.in_round = false;
                    self.sending.committed -= i64::from(stream.queued);
                    // Its window got smaller: what it cannot send others can.
                    self.wake_queue();
                    continue;
                }
                Some(_) if self.outgoing.left() <= 0 => {
                    self.sending.round.push_back(key);
                    continue;
                }
                Some(first) => {
                    let len = first.len().min(self.peer.max_frame as usize);
                    let len = self.outgoing.fit(stream.outgoing.fit(len));
                    first.split_to(len)
                }
            };
            return Some(self.frame(key, data));
        }
        // Nobody has a turn: those that are left have something else to wait for.
        if self.sending.round.is_empty() {
            self.sending.round.shrink_to(KEPT_TURNS);
        }
        None
    }

    /// A frame of a stream with `data`, which was just taken from what it has.
    fn frame(&mut self, key: StreamKey, data: Bytes) -> Frame {
        let mut head = Head {
            len: data.len() as u32,
            kind: Kind::Data,
            flags: 0,
            stream: key.id,
        };
        let sending = &mut self.sending;
        self.outgoing.send(data.len());
        sending.committed -= data.len() as i64;
        let mut ends = false;
        if let Some(stream) = self.streams.get_mut(key) {
            stream.outgoing.send(data.len());
            stream.queued = stream.queued.saturating_sub(head.len);
            if stream
                .unsent
                .first_mut()
                .is_some_and(|first| first.is_empty())
            {
                stream.unsent.pop();
            }
            if stream.unsent.is_empty() {
                stream.in_round = false;
                ends = stream.ended;
            } else {
                sending.round.push_back(key);
            }
            if i64::from(stream.queued) < i64::from(self.ours.send_buffer)
                && stream.outgoing.left() > i64::from(stream.queued)
            {
                stream.wake_for_room();
            }
        }
        if ends {
            head.flags = flag::END_STREAM;
            self.change(key, |stream| stream.sent_end = true);
            self.forget(key);
        }
        Frame {
            head: head.bytes(),
            data,
            sent: 0,
        }
    }
}

#[cfg(test)]
impl Connection {
    /// What is spoken for is what the streams in the round have, and nothing is kept for streams that are gone.
    pub(super) fn check(&mut self) {
        let granted = self.streams.all().map(|(_, stream)| stream.granted);
        assert_eq!(self.sending.granted, granted.map(i64::from).sum::<i64>());
        let mut committed = 0;
        let streams = self.streams.all();
        let in_round = streams.filter(|(_, stream)| stream.in_round);
        in_round.for_each(|(_, stream)| committed += i64::from(stream.queued));
        assert_eq!(self.sending.committed, committed);
        let most = 2 * self.streams.len() + 4 * KEPT_TURNS;
        assert!(
            self.sending.round.len() <= most,
            "{}",
            self.sending.round.len()
        );
        assert!(
            self.sending.queue.len() <= most,
            "{}",
            self.sending.queue.len()
        );
    }

    /// Nothing is left of any stream.
    pub(super) fn check_is_empty(&mut self) {
        self.check();
        assert_eq!(self.streams.len(), 0);
        assert_eq!(self.streams.active(), 0);
        assert_eq!(self.incoming.held(), 0);
        assert_eq!(self.sending.waiting(), 0);
        assert!(self.sending.frame.is_none() && self.sending.round.is_empty());
        assert!(self.requests.is_empty());
    }

    pub(super) fn shows(&self) -> String {
        format!(
            "free {} committed {} granted {} round {} queue {}",
            self.free(),
            self.sending.committed,
            self.sending.granted,
            self.sending.round.len(),
            self.sending.queue.len()
        )
    }
}

/// Turns that an idle connection keeps room for.
const KEPT_TURNS: usize = 16;

/// A writer that takes nothing takes nothing ever.
fn some(taken: usize) -> io::Result<usize> {
    match taken {
        0 => Err(io::ErrorKind::WriteZero.into()),
        taken => Ok(taken),
    }
}

const _: () = assert!(GRANT < window::LARGEST as i64);
