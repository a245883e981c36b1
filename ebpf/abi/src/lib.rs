//! What the eBPF programs and the daemon agree on: marks, map layouts, and the decisions themselves as plain
//! functions, so that they are tested on the host and the programs only read a context and act.
//!
//! Invariants: every shared type is `repr(C)`, fixed width, without implicit padding. A change of layout or
//! meaning bumps [`ABI_VERSION`], which is part of the path where maps are pinned.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod connect;
pub mod lookup;
#[cfg(feature = "user")]
mod user;

/// Version of everything in this crate. Maps of another version are never opened.
pub const ABI_VERSION: u32 = 1;

/// Set by the connect hook on an app's socket: policy routing takes its packets round to `lo`, where
/// `sk_lookup` hands them to the outbound listener.
pub const CAPTURE_MARK: u32 = 0x7a74_0001;
/// Set by the daemon on its connections to an app, and carried back by the app's answers.
pub const DELIVERY_MARK: u32 = 0x7a74_0002;
/// Set by the daemon on its outbound listeners, to whose connections it passes. Without a mark of their own those
/// connections would take over the capture mark (`tcp_fwmark_accept`), and answers would reach the app's socket by way
/// of `lo`; one that is bound to another interface never sees them there. What the kernel says back for a socket of the
/// app's that is no more has this mark too (`fwmark_reflect`): policy routing takes it round to `lo`, to the daemon.
pub const ANSWER_MARK: u32 = 0x7a74_0003;

/// The port on which a pod takes HBONE.
pub const HBONE_PORT: u16 = 15008;

/// An IPv6 address, or an IPv4 address mapped to one, as four words in network byte order: the form in which
/// the kernel's contexts show addresses.
pub type Address = [u32; 4];

const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv4 address, in network byte order, as [`Address`].
#[inline(always)]
#[must_use]
pub const fn v4(address: u32) -> Address {
    [0, 0, MAPPED, address]
}

/// 127.0.0.0/8, `::1`, and the unspecified address, which `connect` takes for loopback.
#[inline(always)]
#[must_use]
pub const fn is_loopback(address: &Address) -> bool {
    let [a, b, c, d] = *address;
    if a != 0 || b != 0 {
        return false;
    }
    if c == MAPPED {
        return d == 0 || u32::from_be(d) >> 24 == 127;
    }
    c == 0 && u32::from_be(d) <= 1
}

/// `ip` as [`Address`].
#[must_use]
pub fn address(ip: core::net::IpAddr) -> Address {
    let octets = match ip {
        core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        core::net::IpAddr::V6(v6) => v6.octets(),
    };
    let (words, _) = octets.as_chunks::<4>();
    core::array::from_fn(|i| u32::from_ne_bytes(words[i]))
}

#[cfg(test)]
pub(crate) fn parse(ip: &str) -> Address {
    address(ip.parse().unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognized_in_every_form() {
        for ip in [
            "127.0.0.1",
            "127.9.8.7",
            "::1",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_loopback(&parse(ip)), "{ip}");
        }
        for ip in [
            "10.0.0.1",
            "128.0.0.1",
            "::2",
            "fe80::1",
            "::ffff:10.0.0.1",
            "7f00::1",
        ] {
            assert!(!is_loopback(&parse(ip)), "{ip}");
        }
    }
}
