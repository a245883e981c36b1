//! Watches the packets on a link: how many bytes on which TCP port, and whether a marker went by in the clear.
//!
//! A packet socket that sees all interfaces of the namespace; what belongs to other links is left out by the
//! number of the interface. Nothing is stored but counts.
//!
//! Known limit: a marker is looked for in each packet by itself, so one that is split over two segments is
//! missed. Keep markers short and send them in one write.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::error::{Doing, LabError, Result};
use crate::net::Namespace;
use crate::sync::lock;

/// Room for what arrives while the reader is not scheduled.
const RECEIVE_BUFFER: usize = 128 << 20;
/// The largest packet: segments are not split on virtual links.
const LARGEST_PACKET: usize = 512 << 10;
/// How long to go on reading after the end was asked for.
const CATCH_UP: Duration = Duration::from_secs(3);
/// Ports that are counted one by one; more are not expected, and must not fill memory.
const MOST_PORTS: usize = 100_000;

/// A running capture.
pub struct Tap {
    seen: Arc<Mutex<Seen>>,
    done: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// What went by.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// All packets, of any kind.
    pub packets: u64,
    /// Bytes of all packets, Ethernet header included.
    pub bytes: u64,
    /// Bytes of TCP payload, by port, counted for both ports of a packet.
    pub tcp_bytes: BTreeMap<u16, u64>,
    /// Connections opened: TCP SYNs without ACK, by destination.
    pub tcp_opened: BTreeMap<(IpAddr, u16), u64>,
    markers: BTreeMap<String, u64>,
}

impl Seen {
    /// Bytes of TCP payload to and from `port`.
    #[must_use]
    pub fn on_port(&self, port: u16) -> u64 {
        self.tcp_bytes.get(&port).copied().unwrap_or(0)
    }

    /// Connections opened to `port`, whatever the address.
    #[must_use]
    pub fn opened_to(&self, port: u16) -> u64 {
        let to_port = self.tcp_opened.iter().filter(|((_, to), _)| *to == port);
        to_port.map(|(_, count)| count).sum()
    }

    /// Number of packets with the marker in the clear.
    ///
    /// # Panics
    /// When the capture was not told to look for it: then not seeing it would prove nothing.
    #[must_use]
    pub fn marker(&self, marker: &str) -> u64 {
        *self
            .markers
            .get(marker)
            .unwrap_or_else(|| panic!("the capture does not look for `{marker}`"))
    }
}

impl Tap {
    /// Starts to watch interface `link` of `ns`, in both directions. When this returns nothing is missed.
    pub(crate) fn start(ns: &Namespace, link: &str, markers: &[&str]) -> Result<Self> {
        let (fd, index) = ns
            .enter(|| {
                let fd = socket(
                    AddressFamily::Packet,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::EthAll,
                )?;
                setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
                setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
                Ok::<_, nix::Error>((fd, if_nametoindex(link)?))
            })?
            .doing(|| format!("capture on {link} in {}", ns.name()))?;
        let seen = Arc::new(Mutex::new(Seen {
            markers: markers
                .iter()
                .map(|&marker| (marker.to_owned(), 0))
                .collect(),
            ..Seen::default()
        }));
        let done = Arc::new(AtomicBool::new(false));
        let finders: Vec<_> = markers
            .iter()
            .map(|&marker| (marker.to_owned(), Finder::new(marker).into_owned()))
            .collect();
        let (into, ended) = (seen.clone(), done.clone());
        let reader = thread::Builder::new()
            .name(format!("tap-{link}"))
            .spawn(move || {
                read(
                    &fd,
                    usize::try_from(index).unwrap_or(0),
                    &finders,
                    &into,
                    &ended,
                );
            })
            .doing(|| "start the thread of a capture")?;
        Ok(Self {
            seen,
            done,
            reader: Some(reader),
        })
    }

    /// What has been read so far; packets of the last moments may still be waiting.
    #[must_use]
    pub fn so_far(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Reads what is waiting, ends the capture and says what went by.
    ///
    /// # Errors
    /// When the reader broke.
    pub fn stop(mut self) -> Result<Seen> {
        self.finish()?;
        Ok(lock(&self.seen).clone())
    }

    fn finish(&mut self) -> Result<()> {
        self.done.store(true, Ordering::Release);
        match self.reader.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(LabError::new("the reader of a capture panicked")),
            _ => Ok(()),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        drop(self.finish());
    }
}

fn read(
    fd: &OwnedFd,
    index: usize,
    finders: &[(String, Finder<'static>)],
    seen: &Mutex<Seen>,
    done: &AtomicBool,
) {
    let mut buffer = vec![0; LARGEST_PACKET];
    let mut until: Option<Instant> = None;
    loop {
        // Asked before reading: what arrived before the end was asked for is still read, unless the link is so
        // busy that there is always more.
        let last = done.load(Ordering::Acquire);
        if last && Instant::now() > *until.get_or_insert_with(|| Instant::now() + CATCH_UP) {
            return;
        }
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) if from.ifindex() == index => {
                note(&buffer[..length], finders, seen);
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) if !last => {}
            Err(_) => return,
        }
    }
}

fn note(frame: &[u8], finders: &[(String, Finder<'static>)], seen: &Mutex<Seen>) {
    let found: Vec<&str> = finders
        .iter()
        .filter(|(_, finder)| finder.find(frame).is_some())
        .map(|(marker, _)| marker.as_str())
        .collect();
    let segment = Segment::parse(frame);
    let mut seen = lock(seen);
    seen.packets += 1;
    seen.bytes += frame.len() as u64;
    for marker in found {
        if let Some(count) = seen.markers.get_mut(marker) {
            *count += 1;
        }
    }
    let Some(segment) = segment else { return };
    for port in [segment.from, segment.to.1] {
        if seen.tcp_bytes.len() < MOST_PORTS || seen.tcp_bytes.contains_key(&port) {
            *seen.tcp_bytes.entry(port).or_default() += segment.payload;
        }
    }
    if segment.opens && seen.tcp_opened.len() < MOST_PORTS {
        *seen.tcp_opened.entry(segment.to).or_default() += 1;
    }
}

/// What matters of one TCP segment.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    from: u16,
    to: (IpAddr, u16),
    payload: u64,
    opens: bool,
}

impl Segment {
    /// None for anything that is not TCP over IPv4 or IPv6 without extension headers.
    fn parse(frame: &[u8]) -> Option<Self> {
        const TCP: u8 = 6;
        let (ethertype, packet) = (frame.get(12..14)?, frame.get(14..)?);
        let (protocol, to, tcp) = match ethertype {
            [0x08, 0x00] => {
                let header = usize::from(packet.first()? & 0x0f) * 4;
                let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                (*packet.get(9)?, IpAddr::from(to), packet.get(header..)?)
            }
            [0x86, 0xdd] => {
                let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                (*packet.get(6)?, IpAddr::from(to), packet.get(40..)?)
            }
            _ => return None,
        };
        if protocol != TCP {
            return None;
        }
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        let (syn, ack) = (tcp.get(13)? & 0x02 != 0, tcp.get(13)? & 0x10 != 0);
        Some(Self {
            from: port(0)?,
            to: (to, port(2)?),
            payload: tcp.len().saturating_sub(header) as u64,
            opens: syn && !ack,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_taken_apart_and_a_short_frame_is_no_segment() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]); // addresses
        frame.extend([
            0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0,
        ]);
        frame.extend(b"hello");
        let expected = Segment {
            from: 40000,
            to: (IpAddr::from([10, 0, 0, 2]), 8080),
            payload: 5,
            opens: true,
        };
        assert_eq!(Segment::parse(&frame), Some(expected));
        for length in 0..54 {
            let _ = Segment::parse(&frame[..length]);
        }
        assert_eq!(Segment::parse(&frame[..40]), None);
    }
}
