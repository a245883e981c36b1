//! The streams of one connection.

use std::task::Waker;

use bytes::Bytes;
use slab::Slab;

use super::error::StreamError;
use super::few::Few;
use super::head::Fields;
use super::window;

/// Places that an empty connection keeps.
const KEPT: usize = 16;

/// A stream, for whoever has it. Good until it is closed by [`super::Connection::close_stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey {
    place: usize,
    /// A place may be another stream's by now.
    pub(super) id: u32,
}

/// What one stream is. There are very many: each byte counts.
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) incoming: window::Incoming,
    pub(super) outgoing: window::Outgoing,
    /// Bytes in `unsent`.
    pub(super) queued: u32,
    /// Room in the connection's window that is kept for it.
    pub(super) granted: u32,
    /// What came and nobody has asked for.
    pub(super) arrived: Arrived,
    pub(super) unsent: Few<Bytes>,
    /// The answer, until it is asked for.
    pub(super) answer: Option<Box<Fields>>,
    /// Who waits for the answer or for data.
    pub(super) receiver: Option<Waker>,
    /// Who waits for room, or for the end.
    pub(super) sender: Option<Waker>,
    pub(super) broken: Option<StreamError>,
    /// Somebody has it.
    pub(super) owned: bool,
    /// A server: the client has its answer. A client: it has asked.
    pub(super) spoken: bool,
    /// The first head from the peer was there.
    pub(super) heard: bool,
    /// The peer has said that it sends no more.
    pub(super) received_end: bool,
    /// There is no more to come after `unsent`.
    pub(super) ended: bool,
    /// The peer knows.
    pub(super) sent_end: bool,
    /// In the round of those that have something to send and may.
    pub(super) in_round: bool,
    /// In the queue of those that wait for the connection's window.
    pub(super) in_queue: bool,
    /// `sender` waits for room, not only for the end.
    pub(super) wants_room: bool,
}

impl Stream {
    pub(super) fn new(id: u32, incoming: u32, outgoing: u32) -> Self {
        Self {
            id,
            incoming: window::Incoming::new(incoming),
            outgoing: window::Outgoing::new(outgoing),
            queued: 0,
            granted: 0,
            arrived: Arrived::default(),
            unsent: Few::default(),
            answer: None,
            receiver: None,
            sender: None,
            broken: None,
            owned: true,
            spoken: false,
            heard: false,
            received_end: false,
            ended: false,
            sent_end: false,
            in_round: false,
            in_queue: false,
            wants_room: false,
        }
    }

    /// Whether both sides have said all they will: section 5.1, closed.
    pub(super) fn is_over(&self) -> bool {
        self.broken.is_some() || (self.received_end && self.sent_end)
    }

    /// Nobody takes what has come. Says how much it was.
    pub(super) fn drop_arrived(&mut self) -> u32 {
        self.arrived = Arrived::default();
        let held = self.incoming.held();
        self.incoming.release(held);
        held
    }

    pub(super) fn wake_receiver(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver.wake();
        }
    }

    pub(super) fn wake_sender(&mut self) {
        self.wants_room = false;
        if let Some(sender) = self.sender.take() {
            sender.wake();
        }
    }

    /// Wakes whoever waits for room.
    pub(super) fn wake_for_room(&mut self) {
        if self.wants_room {
            self.wake_sender();
        }
    }
}

/// Notes who is to be woken. The one that is there already mostly is the same.
pub(super) fn note(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(known) => known.clone_from(waker),
        None => *place = Some(waker.clone()),
    }
}

/// Data in the order it came.
#[derive(Default)]
pub(super) struct Arrived {
    chunks: Few<Vec<u8>>,
}

/// The largest chunk that more than it needs is set aside for. One write to an app is as long.
const CHUNK: usize = 64 * 1024;

impl Arrived {
    /// Takes a piece of a frame of which `rest` is still to come.
    ///
    /// What is set aside for more is never more than three times what is there: a peer cannot make us hold much by many
    /// small frames, or by the beginnings of large ones.
    pub(super) fn push(&mut self, piece: &[u8], rest: usize) {
        let mut wanted = piece.len();
        if let Some(last) = self.chunks.last_mut() {
            if last.capacity() - last.len() >= piece.len() {
                return last.extend_from_slice(piece);
            }
            wanted = wanted.max(last.len().saturating_mul(2).min(CHUNK));
        }
        let whole = piece.len().saturating_mul(4).min(CHUNK);
        let whole = whole.min(piece.len().saturating_add(rest));
        let mut chunk = Vec::with_capacity(wanted.max(whole));
        chunk.extend_from_slice(piece);
        self.chunks.push(chunk);
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        self.chunks.pop().map(Bytes::from)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

/// All streams that somebody has, or that have something to send.
#[derive(Default)]
pub(super) struct Streams {
    slab: Slab<Stream>,
    /// By id. They begin in this order.
    places: Vec<(u32, usize)>,
    /// Those that are not over.
    active: usize,
}

impl Streams {
    pub(super) fn insert(&mut self, stream: Stream) -> StreamKey {
        let id = stream.id;
        let place = self.slab.insert(stream);
        let at = self.places.partition_point(|(one, _)| *one < id);
        self.places.insert(at, (id, place));
        self.active += 1;
        StreamKey { place, id }
    }

    pub(super) fn find(&self, id: u32) -> Option<StreamKey> {
        let at = self.places.binary_search_by_key(&id, |(one, _)| *one);
        let (_, place) = self.places.get(at.ok()?)?;
        Some(StreamKey { place: *place, id })
    }

    pub(super) fn get(&self, key: StreamKey) -> Option<&Stream> {
        self.slab.get(key.place).filter(|one| one.id == key.id)
    }

    pub(super) fn get_mut(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.slab.get_mut(key.place).filter(|one| one.id == key.id)
    }

    /// To be called when a stream is over, once.
    pub(super) fn is_over(&mut self) {
        self.active = self.active.saturating_sub(1);
    }

    pub(super) fn remove(&mut self, key: StreamKey) -> Option<Stream> {
        self.get(key)?;
        if let Ok(at) = self.places.binary_search_by_key(&key.id, |(one, _)| *one) {
            self.places.remove(at);
        }
        let stream = self.slab.try_remove(key.place);
        if self.slab.is_empty() && self.slab.capacity() > KEPT {
            self.slab = Slab::new();
            self.places = Vec::new();
        }
        stream
    }

    /// How many are not over.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn all(&mut self) -> impl Iterator<Item = (StreamKey, &mut Stream)> {
        self.slab.iter_mut().map(|(place, stream)| {
            let id = stream.id;
            (StreamKey { place, id }, stream)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_given_in_order_whatever_pieces_it_came_in() {
        let text: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
        for piece in [1, 7, 1000, 16_375, 70_000] {
            let mut arrived = Arrived::default();
            let (mut left, mut given) = (text.as_slice(), Vec::new());
            while !left.is_empty() {
                let (piece, rest) = left.split_at(piece.min(left.len()));
                arrived.push(piece, rest.len());
                left = rest;
                if left.len() % 3 == 0 {
                    given.extend_from_slice(&arrived.pop().unwrap());
                }
            }
            while let Some(chunk) = arrived.pop() {
                given.extend_from_slice(&chunk);
            }
            assert!(given == text, "{piece}");
        }
    }

    #[test]
    fn small_pieces_do_not_cost_much_more_than_they_are() {
        let mut arrived = Arrived::default();
        for _ in 0..100_000 {
            arrived.push(&[1], 60_000);
        }
        let held: usize = arrived
            .chunks
            .iter()
            .map(|chunk| chunk.capacity() + 24)
            .sum();
        assert!(held < 300_000, "{held}");
        let mut arrived = Arrived::default();
        arrived.push(&[1; 100], 1 << 20);
        assert!(arrived.chunks.last_mut().unwrap().capacity() <= 400);
    }

    #[test]
    fn a_place_is_no_others() {
        let mut streams = Streams::default();
        let first = streams.insert(Stream::new(1, 0, 0));
        let second = streams.insert(Stream::new(3, 0, 0));
        assert_eq!(streams.find(3), Some(second));
        streams.remove(first).unwrap();
        let third = streams.insert(Stream::new(5, 0, 0));
        assert_eq!(third.place, first.place);
        assert!(streams.get(first).is_none());
        assert!(streams.remove(first).is_none());
        assert_eq!(streams.find(1), None);
        assert_eq!(streams.find(5), Some(third));
    }

    /// The next byte costs memory for each stream of the node.
    #[test]
    fn a_stream_is_small() {
        assert!(size_of::<Stream>() <= 208, "{}", size_of::<Stream>());
    }
}
