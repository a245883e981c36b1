//! How much the peer of a tunnel may send: windows that follow what slow readers hold.
//!
//! The library gives the peer its window back, of the stream and of the tunnel alike, only when an app has taken the
//! bytes. With windows of fixed size, a few apps that do not read use up the tunnel's window, and all others in the
//! tunnel stand still. So the tunnel's window is made larger by what slow readers hold, and, since that is memory, the
//! windows of all streams get smaller the more is held. A stream whose app keeps up holds nothing and is not hurt by a
//! small window as much as it would be by none; an idle one costs nothing at all.
//!
//! Invariants:
//! - What one peer can make us hold in one tunnel is bounded: the tunnel's window and [`BACKLOGS`] times as much.
//! - The streams of a tunnel, all at the smallest window, do not fill the tunnel's window.
//! - A larger window of the tunnel is announced only after the smaller windows of its streams, so a peer that sends as
//!   fast as it may does not get around them.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;

use h2::{FlowControl, RecvStream, StreamId};
use hashbrown::HashMap;

use super::settings::TunnelSettings;

/// What slow readers may hold, in windows of the tunnel.
const BACKLOGS: u32 = 3;

/// One stream may take this part of what is left for slow readers. With an eighth, sixteen that stop at the same time
/// leave a quarter of it to those that come later.
const SHARE: u32 = 8;

/// Not worth announcing.
const SMALL_CHANGE: u32 = 64 * 1024;

/// The streams of one tunnel whose apps have not taken all that was given to them.
#[derive(Clone, Default)]
pub(super) struct Backlog(Rc<RefCell<HashMap<StreamId, FlowControl>>>);

impl Backlog {
    /// Bytes that have come in these streams and have not been taken.
    fn held(&self) -> u32 {
        let streams = self.0.borrow();
        let held: usize = streams.values().map(FlowControl::used_capacity).sum();
        u32::try_from(held).unwrap_or(u32::MAX)
    }
}

/// What has come in one stream, and whether the app takes it.
pub(super) struct Arrivals {
    flow: FlowControl,
    backlog: Backlog,
    /// Given to the app and not taken yet.
    in_hand: usize,
}

impl Arrivals {
    pub(super) fn new(recv: &mut RecvStream, backlog: &Backlog) -> Self {
        Self {
            flow: recv.flow_control().clone(),
            backlog: backlog.clone(),
            in_hand: 0,
        }
    }

    /// Nobody reads this stream yet.
    pub(super) fn hold(&self) {
        let mut streams = self.backlog.0.borrow_mut();
        streams.insert(self.flow.stream_id(), self.flow.clone());
    }

    pub(super) fn unhold(&self) {
        self.backlog.0.borrow_mut().remove(&self.flow.stream_id());
    }

    /// The app gets so much more to take.
    pub(super) fn give(&mut self, len: usize) {
        if self.in_hand == 0 {
            self.hold();
        }
        self.in_hand += len;
    }

    /// The app has taken so much: the peer may send as much again.
    pub(super) fn release(&mut self, len: usize) {
        // It fails only for more than was received.
        let _ = self.flow.release_capacity(len);
        self.in_hand = self.in_hand.saturating_sub(len);
        if self.in_hand == 0 {
            self.unhold();
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.unhold();
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
}

/// The windows of one tunnel.
pub(super) struct Windows {
    full: Sizes,
    smallest_stream: u32,
    now: Sizes,
    backlog: Backlog,
}

impl Windows {
    /// `streams` is how many there may be.
    pub(super) fn new(settings: &TunnelSettings, streams: u32, backlog: Backlog) -> Self {
        let full = Sizes {
            stream: settings.stream_window(),
            tunnel: settings.connection_window(),
        };
        Self {
            full,
            smallest_stream: (full.tunnel / streams.max(1)).clamp(1, 64 * 1024),
            now: full,
            backlog,
        }
    }

    /// Adapts the windows to what is held now. Says whether the connection has something to send because of that. To
    /// be called whenever the connection has done something.
    pub(super) fn adapt(&mut self, connection: &mut impl Windowed) -> bool {
        if self.now == self.full && self.backlog.0.borrow().is_empty() {
            return false;
        }
        let held = self.backlog.held();
        let right = self.sizes(held);
        let mut changed = false;
        // Larger again only with some room to spare, or it would go to and fro.
        let resize = match right.stream.cmp(&self.now.stream) {
            Ordering::Less => true,
            Ordering::Equal => false,
            Ordering::Greater => self.sizes(held.saturating_add(held / 4)).stream > self.now.stream,
        };
        if resize {
            if connection.resize_streams(right.stream) {
                self.now.stream = right.stream;
                changed = true;
            } else if right.stream < self.now.stream {
                // The tunnel's window waits, too. The acknowledgment brings us back here.
                return false;
            }
        }
        let changes = right.tunnel.abs_diff(self.now.tunnel) >= SMALL_CHANGE;
        if changes || (right.tunnel == self.full.tunnel && right.tunnel != self.now.tunnel) {
            connection.resize_tunnel(right.tunnel);
            self.now.tunnel = right.tunnel;
            changed = true;
        }
        changed
    }

    /// The right sizes while so much is held.
    fn sizes(&self, held: u32) -> Sizes {
        let limit = self.full.tunnel.saturating_mul(BACKLOGS);
        let share = limit.saturating_sub(held) / SHARE;
        // Halved, not fitted: a change has to be told to the peer, so there should be few.
        let mut stream = self.full.stream;
        while stream > share && stream > self.smallest_stream {
            stream = (stream / 2).max(self.smallest_stream);
        }
        Sizes {
            stream,
            tunnel: (self.full.tunnel)
                .saturating_add(held.min(limit))
                .min(i32::MAX as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u32 = 1024;
    const MIB: u32 = 1024 * KIB;

    fn windows() -> Windows {
        Windows::new(&TunnelSettings::default(), 200, Backlog::default())
    }

    #[test]
    fn nothing_held_means_full_windows() {
        let windows = windows();
        assert_eq!(windows.sizes(0), windows.full);
        assert_eq!(windows.full.stream, 4 * MIB);
    }

    #[test]
    fn the_more_is_held_the_smaller_the_windows_of_streams() {
        let windows = windows();
        for (held, stream) in [
            (16 * MIB, 4 * MIB),
            (17 * MIB, 2 * MIB),
            (40 * MIB, MIB),
            (44 * MIB, 512 * KIB),
            (47 * MIB, 128 * KIB),
            (48 * MIB, 64 * KIB),
            (u32::MAX, 64 * KIB),
        ] {
            let sizes = windows.sizes(held);
            assert_eq!(sizes.stream, stream, "{held}");
            assert_eq!(sizes.tunnel, 16 * MIB + held.min(48 * MIB), "{held}");
        }
    }

    /// A peer that fills whatever it is given, in streams that nobody reads, and learns of a change only when it has
    /// used up all of the tunnel's window.
    #[test]
    fn no_number_of_stalled_streams_uses_up_the_tunnel() {
        let windows = windows();
        for streams in [1, 5, 8, 16, 50, 100, 199] {
            let mut held = vec![0_u32; streams];
            loop {
                let before: u32 = held.iter().sum();
                let sizes = windows.sizes(before);
                let mut room = sizes.tunnel.saturating_sub(before);
                for one in &mut held {
                    let sent = sizes.stream.saturating_sub(*one).min(room);
                    *one += sent;
                    room -= sent;
                }
                let after: u32 = held.iter().sum();
                assert!(after <= 64 * MIB, "{streams}: {after}");
                if after == before {
                    break;
                }
            }
            let total: u32 = held.iter().sum();
            let free = windows.sizes(total).tunnel.saturating_sub(total);
            assert!(free >= 3 * MIB, "{streams} leave {free} of {total}");
        }
    }

    #[derive(Default)]
    struct Peer {
        /// A change has not been acknowledged.
        pending: bool,
        told: Vec<(&'static str, u32)>,
    }

    impl Windowed for Peer {
        fn resize_streams(&mut self, window: u32) -> bool {
            if !self.pending {
                self.told.push(("streams", window));
            }
            !std::mem::replace(&mut self.pending, true)
        }

        fn resize_tunnel(&mut self, window: u32) {
            self.told.push(("tunnel", window));
        }
    }

    #[test]
    fn a_tunnel_without_slow_readers_is_left_alone() {
        let mut peer = Peer::default();
        assert!(!windows().adapt(&mut peer));
        assert!(peer.told.is_empty());
    }

    #[test]
    fn what_was_made_larger_becomes_smaller_again() {
        let mut windows = windows();
        let mut peer = Peer::default();
        windows.now = windows.sizes(20 * MIB);
        assert!(windows.adapt(&mut peer));
        assert_eq!(peer.told, [("streams", 4 * MIB), ("tunnel", 16 * MIB)]);
        assert!(!windows.adapt(&mut peer));
    }
}
