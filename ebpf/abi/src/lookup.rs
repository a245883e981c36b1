//! Which socket gets a connection that arrives in a pod's namespace.

use crate::{Address, HBONE_PORT, is_loopback};

/// How many of a pod's own addresses the program knows.
pub const MAX_ADDRESSES: usize = 16;
/// How many workers may share the connections of a pod.
pub const MAX_WORKERS: u32 = 64;
/// Slots of the listener map: for every kind of listener one per worker.
pub const LISTENER_SLOTS: u32 = MAX_WORKERS * 3;

/// New connections from outside go straight to the app: the pod is being unenrolled, or its inbound capture
/// is bypassed.
pub const FLAG_BYPASS_INBOUND: u32 = 1;

/// What the program has to know about its pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSettings {
    pub flags: u32,
    /// How many workers have listeners; 0 while there are none.
    pub workers: u32,
    /// The pod's own addresses; unused entries are all zero.
    pub addresses: [Address; MAX_ADDRESSES],
}

const _: () = assert!(size_of::<PodSettings>() == 8 + 16 * MAX_ADDRESSES);

/// The kinds of listener a pod has.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// What the pod's own processes open.
    Outbound = 0,
    /// Plain TCP from outside.
    Inbound = 1,
    /// HBONE from outside.
    Hbone = 2,
}

/// A TCP connection that arrives, as `sk_lookup` sees it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub interface: u32,
    pub local: Address,
    pub local_port: u16,
    pub remote: Address,
    pub remote_port: u16,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the socket that would get it without us.
    Pass,
    /// To the listener in this slot. When none is there it must be dropped: passing it would fail open.
    Assign(u32),
    /// Nowhere.
    Drop,
}

/// Decides. For an address of the pod the kernel reports the interface that owns it, unless the packet was marked
/// and so took the route through `lo`; for a socket bound to an interface it reports that interface.
#[inline(always)]
#[must_use]
pub fn decide(pod: &PodSettings, arrival: &Arrival) -> Verdict {
    const LO: u32 = 1;
    let to_self = is_loopback(&arrival.local) || is_own(pod, &arrival.local);
    let on_lo = arrival.interface == LO;
    let from_self = is_own(pod, &arrival.remote);
    if !to_self && (on_lo || from_self) {
        // By destination, so that all streams to one peer can share a tunnel of one worker.
        let hash = mix(&arrival.local, u32::from(arrival.local_port));
        return slot(pod, Listener::Outbound, hash);
    }
    if on_lo {
        // The app talking to itself, or the daemon's delivery to it.
        return Verdict::Pass;
    }
    let hash = mix(&arrival.remote, u32::from(arrival.remote_port));
    if arrival.local_port == HBONE_PORT {
        return slot(pod, Listener::Hbone, hash);
    }
    // An unmarked self-call is from before enrollment or from the daemon.
    if from_self || pod.flags & FLAG_BYPASS_INBOUND != 0 {
        return Verdict::Pass;
    }
    slot(pod, Listener::Inbound, hash)
}

#[inline(always)]
fn slot(pod: &PodSettings, kind: Listener, hash: u32) -> Verdict {
    if pod.workers == 0 || pod.workers > MAX_WORKERS {
        return Verdict::Drop;
    }
    Verdict::Assign(listener_slot(kind, hash % pod.workers))
}

/// Where the listener of `kind` of a worker stands in the map.
#[inline(always)]
#[must_use]
pub const fn listener_slot(kind: Listener, worker: u32) -> u32 {
    kind as u32 * MAX_WORKERS + worker
}

#[inline(always)]
fn is_own(pod: &PodSettings, address: &Address) -> bool {
    let mut i = 0;
    while i < MAX_ADDRESSES {
        let own = &pod.addresses[i];
        if own[3] == address[3]
            && own[2] == address[2]
            && own[1] == address[1]
            && own[0] == address[0]
        {
            return true;
        }
        i += 1;
    }
    false
}

/// Spreads neighboring addresses and ports over the workers (the finalizer of MurmurHash3).
#[inline(always)]
fn mix(address: &Address, port: u32) -> u32 {
    let mut hash = address[0] ^ address[1].rotate_left(8) ^ address[2].rotate_left(16) ^ address[3];
    hash ^= port.rotate_left(13);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    const LO: u32 = 1;
    const ETH0: u32 = 2;

    fn pod(workers: u32, flags: u32) -> PodSettings {
        let mut addresses = [[0; 4]; MAX_ADDRESSES];
        addresses[0] = parse("10.0.0.5");
        addresses[1] = parse("fd00::5");
        PodSettings {
            flags,
            workers,
            addresses,
        }
    }

    fn check(
        pod: &PodSettings,
        interface: u32,
        local: (&str, u16),
        remote: (&str, u16),
        expected: Verdict,
    ) {
        let arrival = Arrival {
            interface,
            local: parse(local.0),
            local_port: local.1,
            remote: parse(remote.0),
            remote_port: remote.1,
        };
        assert_eq!(decide(pod, &arrival), expected, "{local:?} <- {remote:?}");
    }

    const fn to(kind: Listener) -> Verdict {
        Verdict::Assign(listener_slot(kind, 0))
    }

    #[test]
    fn captured_connections_go_to_the_outbound_listener() {
        check(
            &pod(1, 0),
            LO,
            ("10.96.0.1", 80),
            ("10.0.0.5", 40000),
            to(Listener::Outbound),
        );
        check(
            &pod(1, 0),
            LO,
            ("fd00::9", 80),
            ("fd00::5", 40000),
            to(Listener::Outbound),
        );
        check(
            &pod(1, 0),
            LO,
            ("10.0.0.6", 15008),
            ("10.0.0.5", 40000),
            to(Listener::Outbound),
        );
    }

    #[test]
    fn a_socket_bound_to_an_interface_does_not_escape() {
        check(
            &pod(1, 0),
            ETH0,
            ("10.96.0.1", 80),
            ("10.0.0.5", 40000),
            to(Listener::Outbound),
        );
        check(
            &pod(1, 0),
            ETH0,
            ("10.0.0.6", 15008),
            ("10.0.0.5", 40000),
            to(Listener::Outbound),
        );
    }

    #[test]
    fn the_app_reaches_itself() {
        check(
            &pod(1, 0),
            LO,
            ("127.0.0.1", 80),
            ("127.0.0.1", 40000),
            Verdict::Pass,
        );
        check(&pod(1, 0), LO, ("::1", 80), ("::1", 40000), Verdict::Pass);
        check(
            &pod(1, 0),
            LO,
            ("10.0.0.5", 80),
            ("10.0.0.5", 40000),
            Verdict::Pass,
        );
        check(
            &pod(1, 0),
            ETH0,
            ("10.0.0.5", 80),
            ("10.0.0.5", 40000),
            Verdict::Pass,
        );
    }

    #[test]
    fn delivery_reaches_the_app() {
        check(
            &pod(1, 0),
            LO,
            ("10.0.0.5", 80),
            ("10.1.0.7", 20000),
            Verdict::Pass,
        );
    }

    #[test]
    fn traffic_from_outside_is_captured() {
        check(
            &pod(1, 0),
            ETH0,
            ("10.0.0.5", 80),
            ("10.1.0.7", 40000),
            to(Listener::Inbound),
        );
        check(
            &pod(1, 0),
            ETH0,
            ("10.0.0.5", 15008),
            ("10.1.0.7", 40000),
            to(Listener::Hbone),
        );
        check(
            &pod(1, 0),
            ETH0,
            ("10.0.0.5", 15008),
            ("10.0.0.5", 40000),
            to(Listener::Hbone),
        );
    }

    #[test]
    fn bypass_leaves_hbone_captured() {
        let pod = pod(1, FLAG_BYPASS_INBOUND);
        check(
            &pod,
            ETH0,
            ("10.0.0.5", 80),
            ("10.1.0.7", 40000),
            Verdict::Pass,
        );
        check(
            &pod,
            ETH0,
            ("10.0.0.5", 15008),
            ("10.1.0.7", 40000),
            to(Listener::Hbone),
        );
    }

    #[test]
    fn without_workers_nothing_passes_to_the_app() {
        check(
            &pod(0, 0),
            ETH0,
            ("10.0.0.5", 80),
            ("10.1.0.7", 40000),
            Verdict::Drop,
        );
        check(
            &pod(0, 0),
            LO,
            ("10.96.0.1", 80),
            ("10.0.0.5", 40000),
            Verdict::Drop,
        );
    }

    #[test]
    fn connections_spread_over_the_workers_and_streams_to_one_peer_do_not() {
        let pod = pod(2, 0);
        let slot_of = |local: &str, port: u16, client_port: u16| {
            let arrival = Arrival {
                interface: LO,
                local: parse(local),
                local_port: port,
                remote: parse("10.0.0.5"),
                remote_port: client_port,
            };
            decide(&pod, &arrival)
        };
        assert_eq!(slot_of("10.96.0.1", 80, 1), slot_of("10.96.0.1", 80, 2));
        let peers: Vec<_> = (1..=50)
            .map(|n| slot_of(&format!("10.96.0.{n}"), 80, 1))
            .collect();
        let first = peers
            .iter()
            .filter(|slot| **slot == to(Listener::Outbound))
            .count();
        assert!((10..=40).contains(&first), "{first} of 50");
    }
}
