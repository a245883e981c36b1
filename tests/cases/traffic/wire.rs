//! What may be seen on a link.

use lab::Seen;

pub(super) const HBONE_PORT: u16 = 15008;

/// All TCP on the link was that of tunnels, there was some, and no marker could be read.
pub(super) fn assert_only_tunnels(seen: &Seen, marker: &str) {
    assert!(seen.on_port(HBONE_PORT) > 0, "no tunnel: {seen:?}");
    assert!(seen.opened_to(HBONE_PORT) > 0, "no tunnel: {seen:?}");
    // Every segment counts for both its ports.
    let others = seen
        .tcp_bytes
        .iter()
        .filter(|(port, _)| **port != HBONE_PORT);
    let beside: u64 = others.map(|(_, bytes)| bytes).sum();
    assert_eq!(beside, seen.on_port(HBONE_PORT), "beside tunnels: {seen:?}");
    let elsewhere = seen.tcp_opened.keys().find(|(_, port)| *port != HBONE_PORT);
    assert_eq!(elsewhere, None, "beside tunnels: {seen:?}");
    assert_eq!(seen.marker(marker), 0, "in plaintext: {seen:?}");
}

/// What was said could be read, and no tunnel was made.
pub(super) fn assert_plaintext(seen: &Seen, marker: &str) {
    assert!(seen.marker(marker) > 0, "not in plaintext: {seen:?}");
    assert_eq!(seen.opened_to(HBONE_PORT), 0, "a tunnel: {seen:?}");
    assert_eq!(seen.on_port(HBONE_PORT), 0, "a tunnel: {seen:?}");
}
