//! Reads the header of the PROXY protocol, version 2, as strictly as its specification allows.
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>

use std::fmt;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8] = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A";

/// One, and what [`Header`] makes of it.
pub(crate) const SAMPLE: &[u8] =
    b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11\x00\x10\xC0\x00\x02\x01\xC0\x00\x02\x02\x00\x01\x00\x02\xE0\x00\x01x";
/// See [`SAMPLE`].
pub(crate) const SAMPLE_SAYS: &str = "192.0.2.1:1 -> 192.0.2.2:2 e0=x";

/// What one says.
pub(crate) struct Header {
    addresses: Option<(SocketAddr, SocketAddr)>,
    /// Type and value, in their order.
    tlvs: Vec<(u8, Vec<u8>)>,
}

/// `<source> -> <destination> <type in hex>=<text>...`.
impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addresses {
            Some((from, to)) => write!(f, "{from} -> {to}")?,
            None => f.write_str("unspecified")?,
        }
        for (kind, value) in &self.tlvs {
            write!(f, " {kind:02x}={}", String::from_utf8_lossy(value))?;
        }
        Ok(())
    }
}

/// Takes exactly the header off the stream.
pub(crate) fn read(stream: &mut impl Read) -> io::Result<Header> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed)?;
    let (signature, rest) = fixed.split_at(SIGNATURE.len());
    let &[version, family, high, low] = rest else {
        return Err(wrong("length"));
    };
    if signature != SIGNATURE || version != 0x21 {
        return Err(wrong("signature, version or command"));
    }
    let mut body = vec![0; u16::from_be_bytes([high, low]).into()];
    stream.read_exact(&mut body)?;
    let mut body = body.as_slice();
    let addresses = match family {
        0x00 => None,
        0x11 => {
            let (from, to): ([u8; 4], [u8; 4]) = (take(&mut body)?, take(&mut body)?);
            Some((Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into()))
        }
        0x21 => {
            let (from, to): ([u8; 16], [u8; 16]) = (take(&mut body)?, take(&mut body)?);
            Some((Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into()))
        }
        _ => return Err(wrong("family")),
    };
    let addresses = match addresses {
        None => None,
        Some((from, to)) => {
            let mut port = || take(&mut body).map(u16::from_be_bytes);
            Some((SocketAddr::new(from, port()?), SocketAddr::new(to, port()?)))
        }
    };
    let mut tlvs = Vec::new();
    while !body.is_empty() {
        let [kind, high, low] = take(&mut body)?;
        let length = u16::from_be_bytes([high, low]).into();
        let (value, rest) = body.split_at_checked(length).ok_or_else(|| wrong("TLV"))?;
        tlvs.push((kind, value.to_vec()));
        body = rest;
    }
    Ok(Header { addresses, tlvs })
}

fn take<const N: usize>(from: &mut &[u8]) -> io::Result<[u8; N]> {
    let (taken, rest) = from.split_first_chunk().ok_or_else(|| wrong("length"))?;
    *from = rest;
    Ok(*taken)
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{what} of a PROXY header"),
    )
}
