//! What matters of a packet: the ends of a TCP connection, and what is carried.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const SYN: u8 = 0x02;

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    /// It has the SYN flag.
    pub(super) opens: bool,
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Takes a packet apart, from its network header on. None for anything but TCP in IPv4 or IPv6, for the later
    /// fragments of a packet, and for IPv6 with extension headers.
    pub(super) fn parse(packet: &'a [u8]) -> Option<Self> {
        let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet.first()? & 0x0f) * 4;
                let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x1fff;
                if *packet.get(9)? != TCP || fragment != 0 || header < 20 {
                    return None;
                }
                let address =
                    |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
                let total = usize::from(u16::from_be_bytes(*packet.get(2..)?.first_chunk()?));
                // Short packets are padded on the link; large ones that are not split say 0.
                let end = if total == 0 {
                    packet.len()
                } else {
                    total.min(packet.len())
                };
                (address(12)?, address(16)?, packet.get(header..end)?)
            }
            6 => {
                if *packet.get(6)? != TCP {
                    return None;
                }
                let address =
                    |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
                let length = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
                let end = if length == 0 {
                    packet.len()
                } else {
                    (40 + length).min(packet.len())
                };
                (address(8)?, address(24)?, packet.get(40..end)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: (from, port(0)?).into(),
            to: (to, port(2)?).into(),
            sequence: u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?),
            opens: tcp.get(13)? & SYN != 0,
            payload: tcp.get(header..)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x9c, 0x40, 0x1f, 0x90, 0, 0, 1, 0, 0, 0, 0, 0, 0x50, 0x02];
        bytes.extend([0; 6]);
        bytes.extend(payload);
        bytes
    }

    fn v4(payload: &[u8]) -> Vec<u8> {
        let tcp = tcp(payload);
        let [high, low] = u16::try_from(20 + tcp.len()).unwrap().to_be_bytes();
        let mut bytes = vec![
            0x45, 0, high, low, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        bytes.extend(tcp);
        bytes
    }

    fn v6(payload: &[u8]) -> Vec<u8> {
        let tcp = tcp(payload);
        let [high, low] = u16::try_from(tcp.len()).unwrap().to_be_bytes();
        let mut bytes = vec![0x60, 0, 0, 0, high, low, 6, 64];
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
        bytes.extend(tcp);
        bytes
    }

    #[test]
    fn a_segment_is_taken_apart() {
        let mut padded = v4(b"hello");
        padded.extend([0; 9]);
        for (packet, from, to) in [
            (padded, "10.0.0.1:40000", "10.0.0.2:8080"),
            (
                v6(b"hello"),
                "[fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd]:40000",
                "[fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe]:8080",
            ),
        ] {
            let expected = Segment {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                sequence: 256,
                opens: true,
                payload: b"hello",
            };
            assert_eq!(Segment::parse(&packet), Some(expected));
        }
    }

    #[test]
    fn what_is_too_short_or_something_else_is_no_segment() {
        for packet in [v4(b"hello"), v6(b"hello")] {
            for length in 0..packet.len() {
                if let Some(segment) = Segment::parse(&packet[..length]) {
                    assert!(segment.payload.len() < 5, "{length}");
                }
            }
        }
        let mut udp = v4(b"");
        udp[9] = 17;
        assert_eq!(Segment::parse(&udp), None);
        let mut fragment = v4(b"");
        fragment[7] = 1;
        assert_eq!(Segment::parse(&fragment), None);
    }
}
