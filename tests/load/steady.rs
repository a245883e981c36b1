//! Asks once in so long, whether or not the last answer has come: what one request waits for, the next one sees too.
//!
//! When a connection has no answer yet the next one is asked on, so that a path that stands still for a while is seen
//! by requests of any moment of that while, and by all of its length but at most the time between two requests.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use lab::load::{Load, Said};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::client::{Client, say};
use crate::connection::State;

/// No connection has this number, so that the client leaves it alone.
const TIMER: u64 = u64::MAX;

pub(crate) fn run(load: Load, every: Duration) -> io::Result<()> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    timer.set(
        Expiration::Interval(TimeSpec::from_duration(every)),
        TimerSetTimeFlags::empty(),
    )?;
    let mut client = Client::new(load)?;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, TIMER);
    client.epoll.add(timer.as_fd(), event)?;
    let begin = Instant::now() + client.load.warm;
    for slot in 0..client.load.connections {
        client.open(slot);
    }
    let mut steady = Steady { timer, next: 0 };
    steady.turn(&mut client, begin);
    client.forget();
    say(&Said::Began)?;
    let began = Instant::now();
    let end = began + client.load.measure;
    steady.turn(&mut client, end);
    client.finish(began)
}

struct Steady {
    timer: TimerFd,
    /// The connection whose turn it is.
    next: usize,
}

impl Steady {
    fn turn(&mut self, client: &mut Client, until: Instant) {
        while Instant::now() < until && !client.failed() {
            client.step(false);
            // However many times it went off: what was not asked in time is not asked all at once.
            if self.timer.wait().is_ok() {
                self.ask(client);
            }
        }
    }

    fn ask(&mut self, client: &mut Client) {
        let count = client.connections.len();
        let idle = (0..count)
            .map(|step| (self.next + step) % count)
            .find(|slot| matches!(&client.connections[*slot], Some(c) if c.state == State::Idle));
        if let Some(slot) = idle {
            self.next = slot + 1;
            client.ask_again(slot, Instant::now());
        }
    }
}
