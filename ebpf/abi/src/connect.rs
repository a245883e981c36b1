//! What the connect hooks do with a connection that a process opens.

use crate::{Address, is_loopback};

/// How many real interfaces of a pod are known to the hook.
pub const MAX_INTERFACES: usize = 8;

/// New connections are marked for capture.
pub const STATE_CAPTURE: u32 = 1;
/// New connections are refused: capture of this pod is known to be incomplete.
pub const STATE_REFUSE: u32 = 2;

/// One enrolled pod, found by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    pub state: u32,
    /// The interfaces that have a capture route. A socket bound to any other would leave uncaptured.
    pub interfaces: [u32; MAX_INTERFACES],
}

const _: () = assert!(size_of::<PodEntry>() == 36);

/// What to do with one connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Leave it alone.
    Pass,
    /// Mark it for capture.
    Capture,
    /// Fail it with `EPERM`: it would leave uncaptured.
    Refuse,
}

/// Decides for a TCP connect of a process that is not the daemon, from the namespace of `pod`, to `to`, on a socket
/// bound to the interface `bound_to` (0: none).
#[inline(always)]
#[must_use]
pub fn decide(pod: &PodEntry, to: &Address, bound_to: u32) -> Connect {
    if is_loopback(to) {
        return Connect::Pass;
    }
    if pod.state != STATE_CAPTURE {
        return Connect::Refuse;
    }
    /// The loopback interface has index 1 in every namespace.
    const LO: u32 = 1;
    if bound_to <= LO {
        return Connect::Capture;
    }
    let mut i = 0;
    while i < MAX_INTERFACES {
        if pod.interfaces[i] == bound_to {
            return Connect::Capture;
        }
        i += 1;
    }
    Connect::Refuse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn check(state: u32, to: &str, bound_to: u32, expected: Connect) {
        let pod = PodEntry {
            state,
            interfaces: [2, 3, 0, 0, 0, 0, 0, 0],
        };
        assert_eq!(
            decide(&pod, &parse(to), bound_to),
            expected,
            "{state} {to} {bound_to}"
        );
    }

    #[test]
    fn every_destination_but_loopback_is_captured() {
        check(STATE_CAPTURE, "10.0.0.9", 0, Connect::Capture);
        check(STATE_CAPTURE, "fd00::9", 0, Connect::Capture);
        check(STATE_CAPTURE, "127.0.0.1", 0, Connect::Pass);
        check(STATE_CAPTURE, "::1", 0, Connect::Pass);
    }

    #[test]
    fn a_socket_bound_to_an_interface_without_capture_is_refused() {
        check(STATE_CAPTURE, "10.0.0.9", 3, Connect::Capture);
        check(STATE_CAPTURE, "10.0.0.9", 4, Connect::Refuse);
    }

    #[test]
    fn incomplete_capture_refuses_all_but_loopback() {
        check(STATE_REFUSE, "10.0.0.9", 0, Connect::Refuse);
        check(STATE_REFUSE, "127.0.0.1", 0, Connect::Pass);
        check(0, "10.0.0.9", 0, Connect::Refuse);
    }
}
