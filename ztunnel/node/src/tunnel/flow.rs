//! How much the peer of a tunnel may send: windows that follow what is needed, what slow readers hold, and what the node
//! has to give.
//!
//! The peer gets its window back, of the stream and of the tunnel alike, only when an app has taken the bytes. With windows of fixed size, a few apps that do not read use up the tunnel's window, and all others in the
//! tunnel stand still. So the tunnel's window is made larger by what slow readers hold, and, since that is memory, the
//! windows of all streams get smaller the more is held. A stream whose app keeps up holds nothing and is not hurt by a
//! small window as much as it would be by none; an idle one costs nothing at all.
//!
//! A window that was announced cannot be taken back: it is memory that the peer may claim at any time, if it is used or
//! not. So it begins small, grows as bytes come ([`Pace`]), and every byte of it is in the node's [`Budget`]. When that
//! gives no more, the windows of streams get smaller, and the tunnel's stays as it is.
//!
//! Invariants:
//! - What one peer can make us hold in one tunnel is bounded: the tunnel's window and [`BACKLOGS`] times as much.
//! - It is never more than the tunnel's share of the budget. A share gets smaller only when so much was taken by apps that
//!   the peer cannot fill it any more. Not counted: the frame that is just coming in.
//! - The streams of a tunnel, all at the smallest window, do not fill the tunnel's window. A part of the share is announced
//!   only when all are, so that this holds also where there is nothing left in the budget.
//! - A larger window of the tunnel is announced only after the smaller windows of its streams, so a peer that sends as
//!   fast as it may does not get around them.
//!
//! [`Budget`]: crate::task::Budget

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::mem;
use std::rc::Rc;
use std::task::Waker;

use hashbrown::HashSet;
use ztunnel_hbone::http2::{Connection, StreamKey};

use super::lane::Lane;
use super::pace::Pace;
use super::settings::TunnelSettings;
use crate::task::Share;

/// What slow readers may hold, in windows of the tunnel.
const BACKLOGS: u32 = 3;

/// One stream may take this part of what is left for slow readers. With an eighth, sixteen that stop at the same time
/// leave a quarter of it to those that come later.
const SHARE: u32 = 8;

/// Not worth announcing.
const SMALL_CHANGE: u32 = 64 * 1024;

/// Shares of the budget are multiples of it, so that threads seldom meet there.
const STEP: u64 = 256 * 1024;

/// What the apps of one tunnel's streams have taken, and what they have not.
#[derive(Clone, Default)]
pub(super) struct Backlog(Rc<Streams>);

#[derive(Default)]
struct Streams {
    open: Cell<usize>,
    /// Of those, the ones whose apps do not take what has come.
    slow: RefCell<HashSet<StreamKey>>,
    /// Bytes that were taken, of all streams there ever were.
    released: Cell<u64>,
    /// When the tunnel is gone: for what streams still hold.
    share: RefCell<Option<Share>>,
    /// Who looks after the windows, and has not looked since something large came.
    driver: RefCell<Option<Waker>>,
    /// What the peer may send before the windows have to be looked at again.
    room: Cell<u32>,
}

impl Backlog {
    /// Bytes that have come in slow streams and have not been taken.
    fn held(&self, connection: &impl Windowed) -> u32 {
        let slow = self.0.slow.borrow();
        let held: usize = slow.iter().map(|key| connection.held(*key)).sum();
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// How many streams there are.
    fn open(&self) -> usize {
        self.0.open.get()
    }

    /// An app takes no more of what came in a stream. If that has used up the windows, they have to be adapted: no more
    /// bytes come that would see to that.
    ///
    /// Half of the room is used up only if a stream has its part of that half.
    fn note_stopped(&self, used: usize) {
        let mut driver = self.0.driver.borrow_mut();
        let part = self.0.room.get() as usize / 2 / self.open().max(1);
        if used >= part
            && let Some(driver) = driver.take()
        {
            driver.wake();
        }
    }

    /// Who has looked after the windows just now.
    fn note_driver(&self, driver: &Waker) {
        let mut known = self.0.driver.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(driver)) {
            *known = Some(driver.clone());
        }
    }

    fn note_released(&self, len: usize) {
        let released = &self.0.released;
        released.set(released.get() + len as u64);
    }
}

/// A stream, what has come in it, and whether the app takes it.
pub(super) struct Arrivals {
    backlog: Backlog,
    pub(super) lane: Lane,
    /// Given to the app and not taken yet.
    in_hand: usize,
    slow: bool,
}

impl Arrivals {
    pub(super) fn new(lane: Lane, backlog: &Backlog) -> Self {
        let open = &backlog.0.open;
        open.set(open.get() + 1);
        Self {
            backlog: backlog.clone(),
            lane,
            in_hand: 0,
            slow: false,
        }
    }

    /// Nobody takes what comes.
    pub(super) fn hold(&mut self) {
        if !self.slow {
            self.slow = true;
            self.backlog.0.slow.borrow_mut().insert(self.lane.key());
        }
    }

    pub(super) fn unhold(&mut self) {
        if self.slow {
            self.slow = false;
            self.backlog.0.slow.borrow_mut().remove(&self.lane.key());
        }
    }

    /// The app gets so much more to take.
    pub(super) fn give(&mut self, len: usize) {
        self.in_hand += len;
    }

    /// The app does not take more of it for now.
    pub(super) fn stop(&mut self) {
        if self.slow || self.in_hand == 0 {
            return;
        }
        self.hold();
        self.backlog.note_stopped(self.lane.held());
    }

    /// The app has taken so much: the peer may send as much again.
    pub(super) fn release(&mut self, len: usize) {
        self.lane.release(len);
        self.backlog.note_released(len);
        self.in_hand = self.in_hand.saturating_sub(len);
        if self.in_hand == 0 {
            self.unhold();
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.unhold();
        let open = &self.backlog.0.open;
        open.set(open.get().saturating_sub(1));
        // The rest goes with the stream.
        self.backlog.note_released(self.lane.held());
    }
}

/// Windows, as the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    stream: u32,
    tunnel: u32,
}

/// A connection whose windows can be changed.
pub(super) trait Windowed {
    /// Says whether it could be done: one change at a time, each has to be acknowledged.
    fn resize_streams(&mut self, window: u32) -> bool;
    fn resize_tunnel(&mut self, window: u32);
    /// What has come in a stream and was not taken.
    fn held(&self, key: StreamKey) -> usize;
}

impl Windowed for Connection {
    fn resize_streams(&mut self, window: u32) -> bool {
        self.resize_streams(window)
    }

    fn resize_tunnel(&mut self, window: u32) {
        self.resize(window);
    }

    fn held(&self, key: StreamKey) -> usize {
        self.held(key)
    }
}

/// The windows of one tunnel.
pub(super) struct Windows {
    full: Sizes,
    /// How many streams there may be.
    streams: u32,
    /// What is kept back until all streams have the smallest window.
    spare: u32,
    pace: Pace,
    now: Sizes,
    /// What the peer could make us hold, with what it has been told so far.
    exposed: u64,
    share: Share,
    backlog: Backlog,
    /// Of what the backlog has released, what is accounted for.
    released: u64,
}

impl Windows {
    /// `streams` is how many there may be.
    pub(super) fn new(settings: &TunnelSettings, streams: u32, backlog: Backlog) -> Self {
        let full = Sizes {
            stream: settings.stream_window(),
            tunnel: settings.connection_window(),
        };
        let first = settings.first_window();
        backlog.0.room.set(first);
        Self {
            full,
            streams: streams.max(1),
            spare: first,
            pace: Pace::new(first, full.tunnel),
            now: Sizes {
                tunnel: first,
                ..full
            },
            exposed: first.into(),
            share: settings.memory.share(2 * u64::from(first)),
            released: backlog.0.released.get(),
            backlog,
        }
    }

    /// Adapts the windows to what is held now. To be called whenever the connection has done something.
    pub(super) fn adapt(&mut self, connection: &mut impl Windowed, driver: &Waker) {
        self.account();
        self.backlog.note_driver(driver);
        let is_settled = self.backlog.0.slow.borrow().is_empty() && self.is_settled();
        if !is_settled {
            self.follow(self.backlog.held(connection), connection);
        }
    }

    /// What was taken is announced again, but only up to the tunnel's present window.
    fn account(&mut self) {
        let released = self.backlog.0.released.get();
        let rest = self.exposed.saturating_sub(released - self.released);
        self.exposed = rest.max(self.now.tunnel.into());
        self.released = released;
        self.pace.note(released);
    }

    fn follow(&mut self, held: u32, connection: &mut impl Windowed) {
        self.share.grow(self.due(held));
        self.resize(connection, held);
        let room = self.now.tunnel.saturating_sub(held);
        self.backlog.0.room.set(room);
        self.share.shrink(self.due(held));
    }

    /// To be called now and then: a tunnel that is little used gets by with less.
    pub(super) fn rest(&mut self) {
        self.pace.rest(self.backlog.0.released.get());
    }

    /// Nothing is held, and everything is as it should be then.
    fn is_settled(&self) -> bool {
        let right = Sizes {
            tunnel: self.pace.window(),
            ..self.full
        };
        self.now == right && self.share.size() == self.due(0)
    }

    fn resize(&mut self, connection: &mut impl Windowed, held: u32) {
        let right = self.sizes(held);
        // Larger again only with some room to spare, or it would go to and fro.
        let resize = match right.stream.cmp(&self.now.stream) {
            Ordering::Less => true,
            Ordering::Equal => false,
            Ordering::Greater => self.sizes(held.saturating_add(held / 4)).stream > self.now.stream,
        };
        if resize {
            if connection.resize_streams(right.stream) {
                self.now.stream = right.stream;
            } else if right.stream < self.now.stream {
                // The tunnel's window waits, too. The acknowledgment brings us back here.
                return;
            }
        }
        let by = right.tunnel.abs_diff(self.now.tunnel);
        let small = SMALL_CHANGE.min(self.spare);
        // A peer without room is told of the little there is, too: only what it sends next shows what should follow.
        let is_used_up = self.now.tunnel.saturating_sub(held) < small;
        if by >= small || (by > 0 && (held == 0 || is_used_up)) {
            connection.resize_tunnel(right.tunnel);
            self.now.tunnel = right.tunnel;
            self.exposed = self.exposed.max(right.tunnel.into());
        }
    }

    /// What slow readers may hold.
    fn limit(&self) -> u32 {
        self.full.tunnel.saturating_mul(BACKLOGS)
    }

    /// The right window of the tunnel while so much is held, if the budget has it.
    fn wanted(&self, held: u32) -> u32 {
        (self.pace.window())
            .saturating_add(held.min(self.limit()))
            .min(i32::MAX as u32)
    }

    /// The right share of the budget while so much is held.
    fn due(&self, held: u32) -> u64 {
        let wanted = u64::from(self.wanted(held)) + u64::from(self.spare);
        let (due, least) = (wanted.max(self.exposed), 2 * u64::from(self.spare));
        match due <= least {
            true => least,
            false => due.next_multiple_of(STEP),
        }
    }

    /// The right sizes while so much is held, with the share there is.
    fn sizes(&self, held: u32) -> Sizes {
        let wanted = self.wanted(held);
        let granted = u32::try_from(self.share.size()).unwrap_or(u32::MAX);
        let kept_back = granted.saturating_sub(self.spare);
        let is_short = wanted > kept_back;
        let (tunnel, left, base) = match is_short {
            true => (kept_back, kept_back.saturating_sub(held), self.spare),
            false => (
                wanted,
                self.limit().saturating_sub(held),
                self.pace.window(),
            ),
        };
        let smallest = (base / 8 * 7 / self.streams).clamp(1, 64 * 1024);
        // Halved, not fitted: a change has to be told to the peer, so there should be few.
        let mut stream = self.full.stream;
        while stream > left / SHARE && stream > smallest {
            stream = (stream / 2).max(smallest);
        }
        let all_smallest = is_short && stream <= smallest;
        let tunnel = if all_smallest { granted } else { tunnel };
        Sizes {
            stream,
            tunnel: tunnel.min(i32::MAX as u32),
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        if self.backlog.open() > 0 {
            let nothing = self.share.budget().share(0);
            let share = mem::replace(&mut self.share, nothing);
            self.backlog.0.share.replace(Some(share));
        }
    }
}

#[cfg(test)]
mod tests;
