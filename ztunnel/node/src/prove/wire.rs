//! Watches what leaves a pod and comes to it, on every interface but loopback.
//!
//! Bounded: nothing is kept but counts, of so many tunnels. A text is looked for in each packet by itself, so one that is
//! split over two packets is missed; it is sent in one piece, and is short.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};
use ztunnel_sys::interface::LO;
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::packet::{Packet, Packets};

use super::records::{Records, Stream};
use super::segment::Segment;

/// Room for what passes while the reader has no CPU.
const BUFFER: usize = 32 << 20;
/// How often the reader sees whether it is over.
const PATIENCE: Duration = Duration::from_millis(10);
/// How long it goes on reading what was there at the end.
const CATCH_UP: Duration = Duration::from_millis(500);
/// Directions of connections to tunnel ports that are followed.
const MOST_STREAMS: usize = 4096;

/// What to look for.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// The port that the connection is made from, and where to.
    pub(super) port: u16,
    pub(super) to: SocketAddr,
    /// The ports that tunnels may go to.
    pub(super) tunnel_ports: Vec<u16>,
    pub(super) text: Option<String>,
}

/// What passed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// All packets, of whatever kind and whosever.
    pub packets: u64,
    /// Packets that nobody had time to look at.
    pub missed: u64,
    /// Packets of the connection itself: there should be none.
    pub in_the_clear: u64,
    /// Packets of other connections of the pod with the destination, outside of any tunnel.
    pub others_to_destination: u64,
    /// Packets in which the text was seen, and the first of them.
    pub text_seen: u64,
    pub text_seen_in: Option<String>,
    /// Packets between the pod and tunnel ports, by the address there.
    pub tunnels: Vec<Tunnel>,
    /// Packets of tunnels that were too many to be followed.
    pub not_followed: u64,
}

/// What passed between the pod and a tunnel port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    pub peer: SocketAddr,
    /// Whether a connection was opened while it was watched.
    pub opened: bool,
    pub out: Passed,
    #[serde(rename = "in")]
    pub back: Passed,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    pub packets: u64,
    /// Of TCP payload.
    pub bytes: u64,
    #[serde(flatten)]
    pub records: Records,
}

/// A watch that goes on.
#[derive(Debug)]
pub(super) struct Tap {
    over: Arc<AtomicBool>,
    reader: Option<JoinHandle<io::Result<Wire>>>,
}

impl Tap {
    /// Blocking. When this returns nothing is missed.
    pub(super) fn start(netns: &NetNs, look: Look) -> io::Result<Self> {
        let packets = netns.run(|| Packets::open(BUFFER, PATIENCE))??;
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let reader = thread::Builder::new()
            .name("wire".into())
            .spawn(move || read(packets, Seen::new(look), &ended))?;
        Ok(Self {
            over,
            reader: Some(reader),
        })
    }

    /// Blocking. Reads what has passed until now, and no more.
    pub(super) fn stop(mut self) -> io::Result<Wire> {
        self.over.store(true, Ordering::Release);
        match self.reader.take().map(JoinHandle::join) {
            Some(Ok(wire)) => wire,
            _ => Err(io::Error::other("the reader of packets is gone")),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

fn read(mut packets: Packets, mut seen: Seen, over: &AtomicBool) -> io::Result<Wire> {
    let mut until: Option<Instant> = None;
    loop {
        // Asked before reading: what passed before is still read, unless there is always more.
        let last = over.load(Ordering::Acquire);
        if last && Instant::now() > *until.get_or_insert_with(|| Instant::now() + CATCH_UP) {
            break;
        }
        match packets.receive()? {
            Some(packet) if packet.interface != LO => seen.packet(packet),
            Some(_) => {}
            None if last => break,
            None => {}
        }
    }
    seen.wire.missed = packets.missed()?.into();
    Ok(seen.done())
}

struct Seen {
    look: Look,
    finder: Option<Finder<'static>>,
    wire: Wire,
    /// By the ends in the pod and there.
    streams: BTreeMap<(SocketAddr, SocketAddr), Ways>,
}

#[derive(Default)]
struct Ways {
    opened: bool,
    out: (Passed, Stream),
    back: (Passed, Stream),
}

impl Seen {
    fn new(look: Look) -> Self {
        Self {
            finder: look
                .text
                .as_ref()
                .map(|text| Finder::new(text).into_owned()),
            look,
            wire: Wire::default(),
            streams: BTreeMap::new(),
        }
    }

    fn packet(&mut self, packet: Packet<'_>) {
        self.wire.packets += 1;
        let segment = Segment::parse(packet.bytes);
        let found = self
            .finder
            .as_ref()
            .and_then(|finder| finder.find(packet.bytes));
        if found.is_some() {
            self.wire.text_seen += 1;
            let at = || match &segment {
                Some(segment) => format!("{} to {}", segment.from, segment.to),
                None => "a packet that is not TCP".to_owned(),
            };
            self.wire.text_seen_in.get_or_insert_with(at);
        }
        let Some(segment) = segment else { return };
        let (here, there) = match packet.outgoing {
            true => (segment.from, segment.to),
            false => (segment.to, segment.from),
        };
        if there == self.look.to {
            match here.port() == self.look.port {
                true => self.wire.in_the_clear += 1,
                false if !self.is_tunnel(there) => self.wire.others_to_destination += 1,
                false => {}
            }
        }
        if self.is_tunnel(there) {
            self.tunnel(here, there, packet.outgoing, &segment);
        }
    }

    fn is_tunnel(&self, there: SocketAddr) -> bool {
        self.look.tunnel_ports.contains(&there.port())
    }

    fn tunnel(
        &mut self,
        here: SocketAddr,
        there: SocketAddr,
        outgoing: bool,
        segment: &Segment<'_>,
    ) {
        let full = self.streams.len() >= MOST_STREAMS;
        let ways = match self.streams.entry((here, there)) {
            Entry::Occupied(ways) => ways.into_mut(),
            Entry::Vacant(_) if full => return self.wire.not_followed += 1,
            Entry::Vacant(new) => new.insert(Ways::default()),
        };
        ways.opened |= segment.opens;
        let (passed, stream) = match outgoing {
            true => &mut ways.out,
            false => &mut ways.back,
        };
        passed.packets += 1;
        passed.bytes += segment.payload.len() as u64;
        stream.segment(segment.sequence, segment.opens, segment.payload);
    }

    fn done(mut self) -> Wire {
        let mut by_peer: BTreeMap<SocketAddr, Tunnel> = BTreeMap::new();
        for ((_, peer), ways) in self.streams {
            let tunnel = by_peer.entry(peer).or_insert(Tunnel {
                peer,
                opened: false,
                out: Passed::default(),
                back: Passed::default(),
            });
            tunnel.opened |= ways.opened;
            for (sum, (passed, stream)) in
                [(&mut tunnel.out, ways.out), (&mut tunnel.back, ways.back)]
            {
                sum.packets += passed.packets;
                sum.bytes += passed.bytes;
                sum.records.add(stream.seen);
            }
        }
        self.wire.tunnels = by_peer.into_values().collect();
        self.wire
    }
}

#[cfg(test)]
mod tests;
