use super::*;
use crate::task::Budget;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

fn with_budget(memory: &Budget) -> Windows {
    let settings = TunnelSettings {
        memory: memory.clone(),
        ..TunnelSettings::default()
    };
    Windows::new(&settings, 200, Backlog::default())
}

/// Of a new tunnel.
fn first() -> Windows {
    with_budget(&Budget::new(256 << 20))
}

/// Of a tunnel that has carried much.
fn full() -> Windows {
    let mut windows = first();
    let mut peer = Peer::default();
    while windows.now != windows.full {
        windows.backlog.note_released(MIB as usize);
        peer.pending = false;
        windows.adapt(&mut peer, Waker::noop());
    }
    windows
}

/// The sizes for so much, with whatever the budget has.
fn sizes(windows: &mut Windows, held: u32) -> Sizes {
    windows.share.grow(windows.due(held));
    windows.sizes(held)
}

#[test]
fn a_new_tunnel_begins_small() {
    let mut windows = first();
    let begin = Sizes {
        stream: 4 * MIB,
        tunnel: 512 * KIB,
    };
    assert_eq!((windows.now, sizes(&mut windows, 0)), (begin, begin));
    assert_eq!(windows.share.size(), 1 << 20);
}

#[test]
fn the_more_is_held_the_smaller_the_windows_of_streams() {
    let mut windows = full();
    for (held, stream) in [
        (0, 4 * MIB),
        (16 * MIB, 4 * MIB),
        (17 * MIB, 2 * MIB),
        (40 * MIB, MIB),
        (44 * MIB, 512 * KIB),
        (47 * MIB, 128 * KIB),
        (48 * MIB, 64 * KIB),
        (u32::MAX, 64 * KIB),
    ] {
        let sizes = sizes(&mut windows, held);
        assert_eq!(sizes.stream, stream, "{held}");
        assert_eq!(sizes.tunnel, 16 * MIB + held.min(48 * MIB), "{held}");
    }
}

/// A peer that fills whatever it is given, in streams that nobody reads, and learns of a change only when it has
/// used up all of the tunnel's window. Says how much room is left in the end.
fn fill(windows: &mut Windows, streams: usize) -> (u32, u32) {
    let mut held = vec![0_u32; streams];
    loop {
        let before: u32 = held.iter().sum();
        let sizes = sizes(windows, before);
        assert!(u64::from(sizes.tunnel) <= windows.share.size());
        let mut room = sizes.tunnel.saturating_sub(before);
        for one in &mut held {
            let sent = sizes.stream.saturating_sub(*one).min(room);
            *one += sent;
            room -= sent;
        }
        let after: u32 = held.iter().sum();
        if after == before {
            return (after, room);
        }
    }
}

#[test]
fn no_number_of_stalled_streams_uses_up_the_tunnel() {
    for streams in [1, 5, 8, 16, 50, 100, 199] {
        let (total, free) = fill(&mut full(), streams);
        assert!(total <= 64 * MIB, "{streams}: {total}");
        assert!(free >= 2 * MIB, "{streams} leave {free} of {total}");
        let (total, free) = fill(&mut first(), streams);
        assert!(total <= 64 * MIB, "{streams}: {total}");
        assert!(free >= 64 * KIB, "{streams} leave {free} of {total}");
    }
}

#[test]
fn stalled_streams_of_many_tunnels_leave_room_in_each_when_the_budget_is_used_up() {
    for limit in [0, 8 << 20, 100 << 20] {
        let budget = Budget::new(limit);
        let mut tunnels: Vec<_> = (0..50).map(|_| with_budget(&budget)).collect();
        let mut held = 0;
        for (number, windows) in tunnels.iter_mut().enumerate() {
            let streams = [1, 8, 199][number % 3];
            let (total, free) = fill(windows, streams);
            held += u64::from(total);
            assert!(free >= 64 * KIB, "{streams} leave {free} of {total}");
        }
        assert!(held <= budget.taken());
        assert!(budget.taken() <= limit.max(50 << 20), "{limit}");
        drop(tunnels);
        assert_eq!(budget.taken(), 0);
    }
}

/// The other end of a tunnel, and HTTP/2's account of the window in between.
#[derive(Default)]
struct Peer {
    /// A change has not been acknowledged.
    pending: bool,
    told: Vec<(&'static str, u32)>,
    /// What it may send.
    window: i64,
    /// What it has sent and nobody took.
    held: i64,
    target: i64,
}

impl Peer {
    /// The peer is told when half of the window is there to be had.
    fn update(&mut self) {
        let available = self.target - self.held;
        if available > self.window && available - self.window >= self.window / 2 {
            self.window = available;
        }
    }
}

impl Windowed for Peer {
    fn resize_streams(&mut self, window: u32) -> bool {
        if !self.pending {
            self.told.push(("streams", window));
        }
        !mem::replace(&mut self.pending, true)
    }

    fn resize_tunnel(&mut self, window: u32) {
        self.told.push(("tunnel", window));
        self.target = window.into();
        self.update();
    }

    fn held(&self, _: StreamKey) -> usize {
        0
    }
}

#[test]
fn a_tunnel_without_slow_readers_is_left_alone() {
    let mut peer = Peer::default();
    first().adapt(&mut peer, Waker::noop());
    full().adapt(&mut peer, Waker::noop());
    assert!(peer.told.is_empty());
}

#[test]
fn what_was_made_larger_becomes_smaller_again() {
    let mut windows = full();
    let mut peer = Peer::default();
    windows.follow(20 * MIB, &mut peer);
    peer.pending = false;
    assert_eq!(peer.told, [("streams", 2 * MIB), ("tunnel", 36 * MIB)]);
    windows.adapt(&mut peer, Waker::noop());
    assert_eq!(peer.told[2..], [("streams", 4 * MIB), ("tunnel", 16 * MIB)]);
    windows.adapt(&mut peer, Waker::noop());
    assert_eq!(peer.told.len(), 4);
}

#[test]
fn memory_comes_back_when_the_peer_cannot_claim_it_any_more() {
    let budget = Budget::new(256 << 20);
    let mut windows = with_budget(&budget);
    let mut peer = Peer::default();
    windows.follow(20 * MIB, &mut peer);
    assert_eq!(budget.taken(), 21 << 20);
    // Until the smaller window is set, what is taken can be sent again.
    windows.backlog.note_released(12 << 20);
    windows.adapt(&mut peer, Waker::noop());
    assert_eq!(budget.taken(), (20 << 20) + (512 << 10));
    windows.backlog.note_released(8 << 20);
    windows.adapt(&mut peer, Waker::noop());
    assert_eq!(budget.taken(), (12 << 20) + (512 << 10));
}

#[test]
fn whatever_happens_the_peer_can_never_claim_more_than_was_reserved() {
    const LIMIT: u64 = 64 << 20;
    for seed in 0..100_u64 {
        let mut state = seed;
        let mut draw = move |below: i64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            i64::try_from((state >> 33) % u64::try_from(below.max(1)).unwrap()).unwrap()
        };
        let budget = Budget::new(LIMIT);
        let mut tunnels: Vec<(Windows, Peer)> = Vec::new();
        for _ in 0..2000 {
            let one = usize::try_from(draw(i64::try_from(tunnels.len()).unwrap())).unwrap();
            let room = tunnels.len() < 30;
            match (draw(8), tunnels.get_mut(one)) {
                (0, _) if room => {
                    let windows = with_budget(&budget);
                    let mut peer = Peer::default();
                    peer.resize_tunnel(windows.now.tunnel);
                    tunnels.push((windows, peer));
                }
                (1, Some(_)) if draw(10) == 0 => drop(tunnels.swap_remove(one)),
                (2 | 3, Some((windows, peer))) => {
                    let taken = draw(peer.held + 1);
                    peer.held -= taken;
                    windows
                        .backlog
                        .note_released(usize::try_from(taken).unwrap());
                    peer.update();
                }
                (4, Some((_, peer))) => peer.pending = false,
                (_, Some((_, peer))) => {
                    let sent = draw(peer.window + 1);
                    peer.window -= sent;
                    peer.held += sent;
                }
                (_, None) => {}
            }
            if let Some((windows, peer)) = tunnels.get_mut(one) {
                // Some of it is only on its way to the apps, and not held by slow ones.
                let slow = peer.held / (1 + draw(3));
                windows.account();
                windows.follow(u32::try_from(slow).unwrap(), peer);
            }
            for (windows, peer) in &tunnels {
                let claim = u64::try_from(peer.window + peer.held).unwrap();
                assert!(claim <= windows.exposed, "seed {seed}: {claim}");
                assert!(windows.exposed <= windows.share.size(), "seed {seed}");
            }
            let least = tunnels.len() as u64 * (1 << 20);
            assert!(budget.taken() <= LIMIT + least, "seed {seed}");
        }
        drop(tunnels);
        assert_eq!(budget.taken(), 0, "seed {seed}");
    }
}
