//! One connection: what it consists of, and how streams come and go.

use std::collections::VecDeque;
use std::mem;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::ending::Going;
use super::error::{Lost, StreamError};
use super::head::{Field, Fields};
use super::receive::Receiving;
use super::send::Sending;
use super::settings::{self, Peer, Settings};
use super::streams::{Stream, StreamKey, Streams, note};
use super::{frame, window};
use crate::ErrorCode;
use crate::hpack::{Decoder, Encoder};

/// The largest id there is.
pub(super) const LAST_ID: u32 = u32::MAX >> 1;

/// Streams that this side has reset and the peer may still speak of.
const REMEMBERED: usize = 64;

/// So many streams may be canceled before their answers, and not made good by ones that are answered, until a client has to
/// make another connection. It is a gentle end, since a client whose apps give up is not to blame. One that is told and
/// cancels as many again is.
const CANCELED: u32 = 1000;

/// The size of the table for header compression that peers may use: the protocol's own.
const HEADER_TABLE: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// One end of an HTTP/2 connection.
pub struct Connection {
    pub(super) side: Side,
    pub(super) ours: Settings,
    pub(super) peer: Peer,
    pub(super) streams: Streams,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    /// What the peer may send, and at which size that is held.
    pub(super) incoming: window::Incoming,
    window: u32,
    pub(super) outgoing: window::Outgoing,
    /// The window of each stream that the peer has agreed to, and the one it is to agree to next.
    pub(super) stream_window: u32,
    next_stream_window: Option<u32>,
    /// A server: requests that nobody has taken.
    pub(super) requests: VecDeque<(StreamKey, Fields)>,
    /// The last stream of the peer that was looked at, and the last one it has begun: they differ once this side goes away.
    pub(super) last_heard: u32,
    pub(super) last_begun: u32,
    /// The next stream of this side.
    pub(super) next: u32,
    pub(super) going: Going,
    /// The last stream that the peer looks at, since it goes away.
    pub(super) peer_going: Option<u32>,
    pub(super) lost: Option<Lost>,
    /// Whether a PING waits for its answer.
    pub(super) pinging: bool,
    reset: VecDeque<u32>,
    canceled: u32,
    /// Who waits for the peer to allow another stream.
    openers: Vec<Waker>,
    driver: Option<Waker>,
    awake: bool,
}

impl Connection {
    /// The end that opens streams.
    #[must_use]
    pub fn client(settings: &Settings) -> Self {
        Self::new(Side::Client, settings)
    }

    /// The end that gets requests.
    #[must_use]
    pub fn server(settings: &Settings) -> Self {
        Self::new(Side::Server, settings)
    }

    fn new(side: Side, settings: &Settings) -> Self {
        let ours = settings.clone().fit();
        let mut connection = Self {
            side,
            peer: Peer::new(match side {
                Side::Client => ours.max_streams,
                Side::Server => 0,
            }),
            streams: Streams::default(),
            decoder: Decoder::new(HEADER_TABLE),
            encoder: Encoder::new(),
            receiving: Receiving::new(side),
            sending: Sending::default(),
            incoming: window::Incoming::new(window::INITIAL),
            window: ours.window,
            outgoing: window::Outgoing::new(window::INITIAL),
            stream_window: window::INITIAL,
            next_stream_window: Some(ours.stream_window),
            requests: VecDeque::new(),
            last_heard: 0,
            last_begun: 0,
            next: 1,
            going: Going::No,
            peer_going: None,
            lost: None,
            pinging: false,
            reset: VecDeque::new(),
            canceled: 0,
            openers: Vec::new(),
            driver: None,
            awake: false,
            ours,
        };
        let is_client = side == Side::Client;
        if is_client {
            connection.sending.control.extend_from_slice(frame::PREFACE);
        }
        connection
            .ours
            .put(&mut connection.sending.control, is_client);
        connection.open_window();
        connection
    }

    /// Whether the client has said that it speaks HTTP/2.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.receiving.has_begun()
    }

    /// To be woken when there is something to send.
    pub fn set_driver(&mut self, waker: &Waker) {
        note(&mut self.driver, waker);
        self.awake = false;
    }

    /// The driver looks at everything now: it need not be woken for what is put in until it says that it is done.
    pub fn attend(&mut self) {
        self.awake = true;
    }

    pub(super) fn wake_driver(&mut self) {
        if !mem::replace(&mut self.awake, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }

    // Windows.

    /// Changes how much may be sent in each stream before it is taken. Says whether that could be told: one change at a
    /// time, each has to be acknowledged.
    pub fn resize_streams(&mut self, window: u32) -> bool {
        let window = window.min(window::LARGEST);
        if self.next_stream_window.is_some() || self.lost.is_some() {
            return false;
        }
        if window != self.stream_window {
            self.next_stream_window = Some(window);
            settings::put_stream_window(&mut self.sending.control, window);
            self.wake_driver();
        }
        true
    }

    /// Changes how much may be sent in all streams together. What was promised is not taken back.
    pub fn resize(&mut self, window: u32) {
        self.window = window.min(window::LARGEST);
        self.open_window();
    }

    /// The peer has agreed to our last settings.
    pub(super) fn agreed(&mut self) {
        let Some(window) = self.next_stream_window.take() else {
            return;
        };
        let by = i64::from(window) - i64::from(self.stream_window);
        self.stream_window = window;
        let control = &mut self.sending.control;
        for (_, stream) in self.streams.all() {
            stream.incoming.resize(by);
            // What was too little to tell in a large window may be all there is in a small one.
            open_stream_window(control, stream, window);
        }
    }

    /// Tells the peer that it may send more, if that is worth it.
    pub(super) fn open_window(&mut self) {
        if self.lost.is_none()
            && let Some(by) = self.incoming.open(self.window)
        {
            self.sending.put_window(0, by);
            self.wake_driver();
        }
    }

    /// How much has come in a stream and was not taken.
    #[must_use]
    pub fn held(&self, key: StreamKey) -> usize {
        let stream = self.streams.get(key);
        stream.map_or(0, |stream| stream.incoming.held() as usize)
    }

    /// So much of a stream was taken: the peer may send as much again.
    pub fn release(&mut self, key: StreamKey, len: usize) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let len = len.min(stream.incoming.held());
        stream.incoming.release(len);
        let is_told = open_stream_window(&mut self.sending.control, stream, self.stream_window);
        if is_told {
            self.wake_driver();
        }
        self.discard(len);
    }

    /// So much of what has come in the connection is nobody's any more.
    pub(super) fn discard(&mut self, len: u32) {
        self.incoming.release(len);
        self.open_window();
    }

    // Streams.

    /// Waits until the peer allows another stream.
    ///
    /// # Errors
    /// When it does not any more.
    pub fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let is_room = self.streams.active() < self.peer.max_streams as usize;
        self.poll_opener(cx, is_room)
    }

    fn poll_opener(&mut self, cx: &mut Context<'_>, may: bool) -> Poll<Result<(), StreamError>> {
        self.may_open()?;
        if may {
            return Poll::Ready(Ok(()));
        }
        // One who gave up is woken for nothing, and who is polled by another task is noted twice: rare.
        if !self.openers.iter().any(|one| one.will_wake(cx.waker())) {
            self.openers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether the peer has said how many streams it allows.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.peer.told
    }

    /// Waits for it.
    ///
    /// # Errors
    /// When it allows none any more.
    pub fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_opener(cx, self.peer.told)
    }

    /// Whether streams can be opened at all.
    ///
    /// # Errors
    /// When the connection is lost, or one of both goes away.
    pub fn may_open(&self) -> Result<(), StreamError> {
        match &self.lost {
            Some(lost) => Err(StreamError::Lost(lost.clone())),
            None if self.is_going() || self.next > LAST_ID => Err(StreamError::NotTaken),
            None => Ok(()),
        }
    }

    /// How many streams the peer lets us have at once, as far as it has said.
    #[must_use]
    pub fn max_streams(&self) -> usize {
        self.peer.max_streams as usize
    }

    /// Whether the server takes data that comes with a CONNECT, before its answer.
    #[must_use]
    pub fn takes_early_data(&self) -> bool {
        self.peer.early_data
    }

    /// Opens a stream with a request.
    ///
    /// # Errors
    /// As [`Self::may_open`].
    pub fn open(&mut self, head: &[Field<'_>]) -> Result<StreamKey, StreamError> {
        self.may_open()?;
        let id = self.next;
        self.next += 2;
        self.put_head(id, head, false);
        let mut stream = Stream::new(id, self.stream_window, self.peer.stream_window);
        stream.spoken = true;
        self.wake_driver();
        Ok(self.streams.insert(stream))
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// When there is none.
    pub fn poll_answer(
        &mut self,
        key: StreamKey,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Box<Fields>, StreamError>> {
        let stream = self.streams.get_mut(key).ok_or_else(gone)?;
        if let Some(answer) = stream.answer.take() {
            return Poll::Ready(Ok(answer));
        }
        if let Some(broken) = &stream.broken {
            return Poll::Ready(Err(broken.clone()));
        }
        note(&mut stream.receiver, cx.waker());
        Poll::Pending
    }

    /// The next request, if there is one now.
    pub fn accept(&mut self) -> Option<(StreamKey, Fields)> {
        loop {
            let (key, head) = self.requests.pop_front()?;
            match self.streams.get(key) {
                Some(stream) if stream.broken.is_none() => return Some((key, head)),
                // It was canceled already.
                _ => self.close_stream(key, ErrorCode::CANCEL),
            }
        }
    }

    /// Answers a request; `end` says that nothing follows.
    ///
    /// # Errors
    /// When nobody waits for it any more.
    pub fn answer(
        &mut self,
        key: StreamKey,
        head: &[Field<'_>],
        end: bool,
    ) -> Result<(), StreamError> {
        let stream = self.streams.get_mut(key).ok_or_else(gone)?;
        if let Some(broken) = &stream.broken {
            return Err(broken.clone());
        }
        stream.spoken = true;
        if end {
            stream.ended = true;
        } else {
            self.canceled = self.canceled.saturating_sub(1);
        }
        self.put_head(key.id, head, end);
        if end {
            self.change(key, |stream| stream.sent_end = true);
        }
        self.wake_driver();
        Ok(())
    }

    /// What came next in a stream; nothing at its end. What came before a stream broke is given before that is told.
    ///
    /// # Errors
    /// When it broke.
    pub fn poll_data(
        &mut self,
        key: StreamKey,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let stream = self.streams.get_mut(key).ok_or_else(gone)?;
        if let Some(data) = stream.arrived.pop() {
            return Poll::Ready(Ok(Some(data)));
        }
        if stream.received_end {
            return Poll::Ready(Ok(None));
        }
        if let Some(broken) = &stream.broken {
            return Poll::Ready(Err(broken.clone()));
        }
        note(&mut stream.receiver, cx.waker());
        Poll::Pending
    }

    /// Whether something has come that nobody has asked for.
    #[must_use]
    pub fn has_data(&self, key: StreamKey) -> bool {
        let stream = self.streams.get(key);
        stream.is_some_and(|stream| !stream.arrived.is_empty())
    }

    /// Whether nothing comes any more, and all that came was given.
    #[must_use]
    pub fn is_at_end(&self, key: StreamKey) -> bool {
        let stream = self.streams.get(key);
        stream.is_none_or(|stream| stream.received_end && stream.arrived.is_empty())
    }

    /// Waits until a stream breaks.
    pub fn poll_broken(&mut self, key: StreamKey, cx: &mut Context<'_>) -> Poll<StreamError> {
        let Some(stream) = self.streams.get_mut(key) else {
            return Poll::Ready(gone());
        };
        if let Some(broken) = &stream.broken {
            return Poll::Ready(broken.clone());
        }
        note(&mut stream.sender, cx.waker());
        Poll::Pending
    }

    /// Nobody wants a stream any more. What it has to send is sent if both sides have said their last word; otherwise
    /// it is reset with `code`.
    pub fn close_stream(&mut self, key: StreamKey, code: ErrorCode) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        stream.owned = false;
        stream.receiver = None;
        stream.sender = None;
        let held = stream.drop_arrived();
        let is_over = stream.is_over();
        let is_orderly = stream.received_end && stream.ended;
        self.discard(held);
        if !is_over && !is_orderly {
            self.put_reset(key.id, code);
            self.break_stream(key, StreamError::Reset(code));
        }
        self.forget(key);
        self.wake_queue();
    }

    /// Ends a stream whose peer has done something wrong.
    pub(super) fn fail_stream(&mut self, key: StreamKey, code: ErrorCode) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let held = stream.drop_arrived();
        let is_unanswered = !stream.spoken;
        self.discard(held);
        self.put_reset(key.id, code);
        self.break_stream(key, StreamError::Reset(code));
        self.forget(key);
        if is_unanswered {
            self.note_canceled();
        }
    }

    /// Notes that a stream broke, and wakes whoever waits for it.
    pub(super) fn break_stream(&mut self, key: StreamKey, why: StreamError) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let unsent = self.sending.drop_unsent(stream);
        self.change(key, |stream| {
            stream.broken.get_or_insert(why);
            stream.wake_receiver();
            stream.wake_sender();
        });
        if unsent {
            self.wake_queue();
        }
    }

    /// Changes a stream, and accounts for it if it is over then.
    pub(super) fn change(&mut self, key: StreamKey, change: impl FnOnce(&mut Stream)) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let was_over = stream.is_over();
        change(stream);
        if stream.is_over() && !was_over {
            self.streams.is_over();
            self.wake_openers();
        }
    }

    /// Lets go of a stream that nobody has and that is over. That it waited for something is forgotten later.
    pub(super) fn forget(&mut self, key: StreamKey) {
        let is_done = |stream: &Stream| !stream.owned && stream.is_over();
        if self.streams.get(key).is_some_and(is_done) {
            self.streams.remove(key);
            self.sending.tidy(&self.streams);
        }
    }

    /// A peer that has given up a stream before it was answered, or has made us do so.
    pub(super) fn note_canceled(&mut self) {
        self.canceled = self.canceled.saturating_add(1);
        if self.canceled > CANCELED {
            self.go_away();
        }
    }

    /// Whether a client that has to go cancels more than it had open then.
    pub(super) fn cancels_on(&self) -> bool {
        self.canceled > (2 * CANCELED).saturating_add(self.ours.max_streams)
    }

    pub(super) fn put_reset(&mut self, id: u32, code: ErrorCode) {
        if self.reset.len() >= REMEMBERED {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
        self.sending.put_reset(id, code);
        self.wake_driver();
    }

    /// Answers a frame for a stream that is over. The peer may not have heard of that if it was this side that reset it.
    pub(super) fn is_closed(&mut self, id: u32) {
        if !self.is_too_late(id) && !self.reset.contains(&id) {
            self.put_reset(id, ErrorCode::STREAM_CLOSED);
        }
    }

    pub(super) fn wake_openers(&mut self) {
        for opener in self.openers.drain(..) {
            opener.wake();
        }
    }
}

/// Tells the peer that it may send more in a stream, if that is worth it and it is to send more at all. Says whether.
fn open_stream_window(control: &mut Vec<u8>, stream: &mut Stream, size: u32) -> bool {
    if stream.received_end || stream.broken.is_some() || !stream.owned {
        return false;
    }
    let by = stream.incoming.open(size);
    if let Some(by) = by {
        super::send::put_window(control, stream.id, by);
    }
    by.is_some()
}

/// A key that is used after the stream was closed.
pub(super) fn gone() -> StreamError {
    StreamError::Lost(Lost::Closed)
}
