//! The header that stands before the bytes of a connection and says whose it is: PROXY protocol, version 2.
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>
//!
//! Only written, never read. Whatever the client's certificate says fits, or there is no header: one that is cut off
//! would name somebody else.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and not about the sender itself (`LOCAL`) but about somebody whom it stands for (`PROXY`).
const VERSION_AND_COMMAND: u8 = 0x21;
/// Family in the high half, TCP in the low one; zero for addresses that no family can express.
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
/// The first of the types that are free for applications: ambient's "SPIFFE URI of the source".
const SOURCE_IDENTITY: u8 = 0xd0;

/// Who connected where.
#[derive(Clone, Copy, Debug)]
pub struct ProxyHeader<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// SPIFFE URI of the client.
    pub identity: Option<&'a str>,
}

/// An identity that no header has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identity of {length} bytes does not fit in a PROXY header")]
pub struct IdentityTooLong {
    length: usize,
}

impl ProxyHeader<'_> {
    /// The bytes to send.
    ///
    /// # Errors
    /// When the identity does not fit.
    pub fn encode(&self) -> Result<Vec<u8>, IdentityTooLong> {
        let mut body = Vec::with_capacity(64);
        let family = self.addresses(&mut body);
        if let Some(identity) = self.identity {
            let length = identity.len();
            let too_long = |_| IdentityTooLong { length };
            body.push(SOURCE_IDENTITY);
            body.extend(u16::try_from(length).map_err(too_long)?.to_be_bytes());
            body.extend(identity.as_bytes());
        }
        let length = u16::try_from(body.len()).map_err(|_| IdentityTooLong {
            length: self.identity.map_or(0, str::len),
        })?;
        let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + body.len());
        header.extend(SIGNATURE);
        header.extend([VERSION_AND_COMMAND, family]);
        header.extend(length.to_be_bytes());
        header.extend(body);
        Ok(header)
    }

    /// Both addresses and then both ports, where one family has both.
    fn addresses(&self, body: &mut Vec<u8>) -> u8 {
        let family = match (self.from.ip().to_canonical(), self.to.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                body.extend(from.octets());
                body.extend(to.octets());
                TCP_OVER_IPV4
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                body.extend(from.octets());
                body.extend(to.octets());
                TCP_OVER_IPV6
            }
            _ => return UNSPECIFIED,
        };
        body.extend(self.from.port().to_be_bytes());
        body.extend(self.to.port().to_be_bytes());
        family
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signature as the specification prints it, then `rest`.
    fn check(from: &str, to: &str, identity: Option<&str>, rest: &[u8]) {
        let header = ProxyHeader {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            identity,
        };
        let mut expected = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A".to_vec();
        expected.extend(rest);
        assert_eq!(header.encode().unwrap(), expected, "{header:?}");
    }

    #[test]
    fn both_families_are_as_specified() {
        check(
            "10.1.0.7:40000",
            "10.0.0.9:80",
            None,
            &[
                0x21, 0x11, 0, 12, 10, 1, 0, 7, 10, 0, 0, 9, 0x9c, 0x40, 0, 80,
            ],
        );
        let mut v6 = vec![0x21, 0x21, 0, 36];
        v6.extend([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        v6.extend([0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        v6.extend([0x9c, 0x40, 0, 80]);
        check("[fd00:1::7]:40000", "[fd00:2::9]:80", None, &v6);
        check(
            "[::ffff:10.1.0.7]:1",
            "10.0.0.9:2",
            None,
            &[0x21, 0x11, 0, 12, 10, 1, 0, 7, 10, 0, 0, 9, 0, 1, 0, 2],
        );
    }

    #[test]
    fn families_that_do_not_go_together_are_left_out() {
        let unspecified = [0x21, 0, 0, 0];
        check("10.1.0.7:1", "[fd00::9]:2", None, &unspecified);
        check("[fd00::7]:1", "10.0.0.9:2", None, &unspecified);
        check(
            "[fd00::7]:1",
            "10.0.0.9:2",
            Some("ab"),
            &[0x21, 0, 0, 5, 0xd0, 0, 2, b'a', b'b'],
        );
    }

    #[test]
    fn the_identity_follows_the_addresses() {
        check(
            "10.1.0.7:40000",
            "10.0.0.9:80",
            Some("spiffe"),
            &[
                0x21, 0x11, 0, 21, 10, 1, 0, 7, 10, 0, 0, 9, 0x9c, 0x40, 0, 80, 0xd0, 0, 6, b's',
                b'p', b'i', b'f', b'f', b'e',
            ],
        );
    }

    #[test]
    fn an_identity_fits_whole_or_not_at_all() {
        /// What a length of 16 bits leaves beside IPv4 addresses and the TLV's own head.
        const MOST: usize = u16::MAX as usize - 12 - 3;
        for (length, fits) in [
            (2048, true),
            (MOST, true),
            (MOST + 1, false),
            (u16::MAX as usize, false),
            (u16::MAX as usize + 1, false),
            (1 << 20, false),
        ] {
            let identity = "x".repeat(length);
            let header = ProxyHeader {
                from: "10.1.0.7:40000".parse().unwrap(),
                to: "10.0.0.9:80".parse().unwrap(),
                identity: Some(&identity),
            };
            match header.encode() {
                Ok(bytes) => {
                    assert!(fits, "{length}");
                    let said = u16::from_be_bytes([bytes[14], bytes[15]]);
                    assert_eq!(bytes.len(), 16 + usize::from(said));
                    let tlv = u16::from_be_bytes([bytes[29], bytes[30]]);
                    assert_eq!(usize::from(tlv), length);
                }
                Err(err) => assert_eq!((fits, err), (false, IdentityTooLong { length })),
            }
        }
    }
}
