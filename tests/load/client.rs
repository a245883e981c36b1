//! The client: keeps every connection busy, and counts.
//!
//! Every loop ends: measuring by the clock, what follows by [`DRAIN`], opening by [`OPEN`]. What asks at a steady rate
//! is in `steady.rs`, what stops to read in `slow_reader.rs`; both are this client with another loop.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use lab::load::{Load, LoadReport, Said};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::connection::{Connection, State};
use crate::histogram::Histogram;
use crate::slow_reader::SlowReader;

/// How long answers may take after the last request.
const DRAIN: Duration = Duration::from_secs(5);
/// How long opening connections that are to be held may take, and asking on each again.
const OPEN: Duration = Duration::from_secs(50);
/// Connections that are opened at the same time.
const OPENING: usize = 64;
/// More than that is a run that failed, and no reason to go on.
const MOST_ERRORS: u64 = 100;
const READ: usize = 256 << 10;
const EVENTS: usize = 256;
const TICK: u16 = 50;

pub(crate) fn run(load: Load) -> io::Result<()> {
    let mut client = Client::new(load)?;
    let started = Instant::now();
    let begin = started + client.load.warm;
    let end = begin + client.load.measure;
    for slot in 0..client.load.connections {
        client.open(slot);
    }
    client.turn(begin, true);
    client.forget();
    say(&Said::Began)?;
    let began = Instant::now();
    client.turn(end, true);
    client.finish(began)
}

pub(crate) fn hold(load: Load) -> io::Result<()> {
    let mut client = Client::new(load)?;
    let deadline = Instant::now() + OPEN;
    for slot in 0..client.load.connections {
        client.open(slot);
        while client.busy >= OPENING && !client.failed() && Instant::now() < deadline {
            client.step(false);
        }
    }
    client.turn(deadline, false);
    client.expect_all_answered();
    if client.failed() {
        return say(&Said::Done(client.report));
    }
    say(&Said::Began)?;
    io::stdin().read_to_end(&mut Vec::new())?;
    let deadline = Instant::now() + OPEN;
    for slot in 0..client.load.connections {
        client.ask_again(slot, Instant::now());
        while client.busy >= OPENING && Instant::now() < deadline {
            client.step(false);
        }
    }
    client.turn(deadline, false);
    client.expect_all_answered();
    say(&Said::Done(client.report))
}

pub(crate) struct Client {
    pub(crate) load: Load,
    request: Vec<u8>,
    pub(crate) epoll: Epoll,
    pub(crate) connections: Vec<Option<Connection>>,
    /// Connections that wait for something.
    busy: usize,
    buffer: Vec<u8>,
    histogram: Histogram,
    pub(crate) report: LoadReport,
    /// Measuring is over: what comes now counts no more.
    frozen: bool,
    pub(crate) slow: Option<SlowReader>,
}

impl Client {
    pub(crate) fn new(load: Load) -> io::Result<Self> {
        let close = if load.reconnect {
            "Connection: close\r\n"
        } else {
            ""
        };
        Ok(Self {
            request: format!("GET /{} HTTP/1.1\r\nHost: load\r\n{close}\r\n", load.body)
                .into_bytes(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            connections: (0..load.connections).map(|_| None).collect(),
            busy: 0,
            buffer: vec![0; READ],
            histogram: Histogram::new(),
            report: LoadReport::default(),
            frozen: false,
            slow: load.stall.map(SlowReader::new),
            load,
        })
    }

    pub(crate) fn open(&mut self, slot: usize) {
        let opened = Connection::open(self.load.to, &self.request).and_then(|connection| {
            let wanted = if connection.state == State::Connecting {
                EpollFlags::EPOLLOUT
            } else {
                EpollFlags::EPOLLIN
            };
            let event = EpollEvent::new(wanted, slot as u64);
            self.epoll.add(connection.socket.as_fd(), event)?;
            Ok(connection)
        });
        match opened {
            Ok(connection) => {
                self.connections[slot] = Some(connection);
                self.busy += 1;
            }
            Err(err) => self.broke(&err),
        }
    }

    /// Works until `until`, or until nothing is on its way any more.
    pub(crate) fn turn(&mut self, until: Instant, go_on: bool) {
        while Instant::now() < until && self.busy > 0 && self.report.errors < MOST_ERRORS {
            self.step(go_on);
        }
    }

    /// Waits for events, a moment at most, and does what they ask for. `go_on`: an answer is followed by a request.
    pub(crate) fn step(&mut self, go_on: bool) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::from(TICK)) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(err) => return self.broke(&err.into()),
        };
        for event in &events[..count] {
            let slot = usize::try_from(event.data()).unwrap_or(usize::MAX);
            self.attend(slot, go_on);
        }
    }

    fn attend(&mut self, slot: usize, go_on: bool) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let done = if connection.state == State::Connecting {
            connection.try_ask(&self.request).and_then(|()| {
                if connection.state == State::Asked {
                    let mut event = EpollEvent::new(EpollFlags::EPOLLIN, slot as u64);
                    self.epoll.modify(connection.socket.as_fd(), &mut event)?;
                }
                Ok(None)
            })
        } else {
            connection
                .read(&mut self.buffer, self.load.reconnect)
                .map(Some)
        };
        match done {
            Ok(None) => {}
            Ok(Some(progress)) => {
                if !self.frozen {
                    self.report.bytes += progress.body;
                }
                if progress.answered {
                    self.answered(slot, go_on);
                }
            }
            Err(err) => {
                self.drop_connection(slot);
                self.broke(&err);
                if go_on {
                    self.open(slot);
                }
            }
        }
    }

    fn answered(&mut self, slot: usize, go_on: bool) {
        let Some(connection) = &self.connections[slot] else {
            return;
        };
        let now = Instant::now();
        if !self.frozen {
            self.histogram.add(now - connection.began);
            self.report.requests += 1;
        }
        self.busy -= 1;
        if self.load.reconnect {
            self.connections[slot] = None;
            if go_on {
                self.open(slot);
            }
        } else if go_on && !self.begin_stall(slot) {
            self.ask_again(slot, now);
        }
    }

    pub(crate) fn ask_again(&mut self, slot: usize, now: Instant) {
        let Some(connection) = &mut self.connections[slot] else {
            return;
        };
        connection.began = now;
        let slow = self.slow.as_ref();
        let request = slow.and_then(|slow| slow.request(slot));
        match connection.try_ask(request.unwrap_or(&self.request)) {
            Ok(()) => self.busy += 1,
            Err(err) => {
                self.connections[slot] = None;
                self.broke(&err);
            }
        }
    }

    fn drop_connection(&mut self, slot: usize) {
        let dropped = self.connections[slot].take();
        // One that waits for nothing was not counted.
        if dropped.is_some_and(|connection| connection.state != State::Idle) {
            self.busy -= 1;
        }
    }

    pub(crate) fn broke(&mut self, err: &io::Error) {
        self.report.errors += 1;
        self.report
            .first_error
            .get_or_insert_with(|| err.to_string());
    }

    pub(crate) fn failed(&self) -> bool {
        self.report.errors > 0
    }

    /// What has been counted was the warm-up. Errors stay.
    pub(crate) fn forget(&mut self) {
        self.histogram = Histogram::new();
        self.report = LoadReport {
            errors: self.report.errors,
            first_error: self.report.first_error.take(),
            ..LoadReport::default()
        };
    }

    /// Ends what began to be measured at `began`, and says what came of it.
    pub(crate) fn finish(mut self, began: Instant) -> io::Result<()> {
        self.report.seconds = began.elapsed().as_secs_f64();
        say(&Said::Measured)?;
        self.freeze();
        self.turn(Instant::now() + DRAIN, false);
        self.expect_all_answered();
        say(&Said::Done(self.report))
    }

    fn freeze(&mut self) {
        self.frozen = true;
        self.report.p50_ms = self.histogram.quantile_ms(0.5);
        self.report.p99_ms = self.histogram.quantile_ms(0.99);
        self.report.p999_ms = self.histogram.quantile_ms(0.999);
        self.report.max_ms = self.histogram.longest_ms();
    }

    fn expect_all_answered(&mut self) {
        let waiting = self.connections.iter().flatten();
        if let Some(connection) = waiting.clone().find(|c| c.state != State::Idle) {
            let text = format!("{} were left {:?}", self.busy, connection.state);
            self.broke(&io::Error::other(text));
        }
    }
}

pub(crate) fn say(what: &Said) -> io::Result<()> {
    let line = serde_json::to_string(what).map_err(io::Error::other)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
