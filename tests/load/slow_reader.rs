//! One connection stops to read: what do the others have meanwhile?
//!
//! Measured in one run and on the same connections: all are read, then one is not, then all are again. That one asks
//! for an answer that no buffers on its way can hold and reads nothing of it, so everything on its way fills up and
//! stands still; when it is read again, all of that answer has to come, or the run has failed. In everything else it is
//! as the others are: one with less room, say, would cost more to read than they do, and to leave it would be a gain.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use lab::load::{Load, Said, Stall, Stalled};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::client::{Client, say};

/// The connection that stops to read.
const SLOW: usize = 0;
/// More than any kernel keeps for who does not read.
const LOOK: usize = 16 << 20;
/// How often it is looked whether everything on the way is full.
const LOOKS: u32 = 6;

pub(crate) fn run(load: Load, stall: Stall) -> io::Result<()> {
    let mut client = Client::new(load)?;
    let begin = Instant::now() + client.load.warm;
    for slot in 0..client.load.connections {
        client.open(slot);
    }
    client.turn(begin, true);
    client.forget();
    say(&Said::Began)?;
    let began = Instant::now();
    let half = client.load.measure / 2;
    let mut all = client.phase(half);
    client.stalling(true);
    let mut look = vec![0; LOOK];
    let waiting = client.fill(stall.settle, &mut look)?;
    let others = client.phase(half * 2);
    let waited = client.waiting(&mut look)?.unwrap_or_default();
    client.resume()?;
    client.turn(Instant::now() + stall.settle, true);
    let again = client.phase(half);
    all.bytes += again.bytes;
    all.seconds += again.seconds;
    client.report.stalled = Some(Stalled {
        all: all.rate(),
        others: others.rate(),
        waiting,
        waited,
    });
    client.finish(began)
}

/// The connection that stops to read, as the client has to know it.
pub(crate) struct SlowReader {
    /// Asks for the long answer.
    request: Vec<u8>,
    reading: Reading,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// As all others.
    Yes,
    /// Its next request is the one whose answer is not read.
    NoMore,
    No,
}

struct Phase {
    bytes: u64,
    seconds: f64,
}

impl Phase {
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

impl SlowReader {
    pub(crate) fn new(stall: Stall) -> Self {
        Self {
            request: format!("GET /{} HTTP/1.1\r\nHost: load\r\n\r\n", stall.body).into_bytes(),
            reading: Reading::Yes,
        }
    }

    /// What this connection asks for, if not what all do.
    pub(crate) fn request(&self, slot: usize) -> Option<&[u8]> {
        (slot == SLOW && self.reading == Reading::No).then_some(&self.request)
    }
}

impl Client {
    fn phase(&mut self, lasts: Duration) -> Phase {
        let (before, began) = (self.report.bytes, Instant::now());
        self.turn(began + lasts, true);
        Phase {
            bytes: self.report.bytes - before,
            seconds: began.elapsed().as_secs_f64(),
        }
    }

    fn stalling(&mut self, from_now_on: bool) {
        if let Some(slow) = &mut self.slow {
            slow.reading = match from_now_on {
                true => Reading::NoMore,
                false => Reading::Yes,
            };
        }
    }

    /// A connection has its answer. If it is the one that shall stop to read it does, and asks for what it will not
    /// read.
    pub(crate) fn begin_stall(&mut self, slot: usize) -> bool {
        match &mut self.slow {
            Some(slow) if slot == SLOW && slow.reading == Reading::NoMore => {
                slow.reading = Reading::No;
            }
            _ => return false,
        }
        if let Err(err) = self.watch_slow(EpollFlags::empty()) {
            self.broke(&err);
        }
        self.ask_again(slot, Instant::now());
        true
    }

    fn resume(&mut self) -> io::Result<()> {
        self.stalling(false);
        self.watch_slow(EpollFlags::EPOLLIN)
    }

    fn watch_slow(&mut self, wanted: EpollFlags) -> io::Result<()> {
        if let Some(connection) = &self.connections[SLOW] {
            let mut event = EpollEvent::new(wanted, SLOW as u64);
            self.epoll.modify(connection.socket.as_fd(), &mut event)?;
        }
        Ok(())
    }

    /// Goes on until no more comes for the one that is not read, and says how much has.
    fn fill(&mut self, settle: Duration, look: &mut [u8]) -> io::Result<u64> {
        let mut before = None;
        for _ in 0..LOOKS {
            self.turn(Instant::now() + settle, true);
            let waiting = self.waiting(look)?;
            if let Some(waiting) = waiting
                && before == Some(waiting)
            {
                return Ok(waiting);
            }
            before = waiting;
        }
        Err(io::Error::other(format!(
            "more and more came for the connection that is not read: {before:?} bytes"
        )))
    }

    /// Bytes that wait for the one that is not read. None while it still is.
    fn waiting(&mut self, look: &mut [u8]) -> io::Result<Option<u64>> {
        let left = matches!(&self.slow, Some(slow) if slow.reading == Reading::No);
        let Some(connection) = self.connections[SLOW].as_ref().filter(|_| left) else {
            return Ok(None);
        };
        match connection.socket.peek(look) {
            Ok(waiting) => Ok(Some(waiting as u64)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(Some(0)),
            Err(err) => Err(err),
        }
    }
}
