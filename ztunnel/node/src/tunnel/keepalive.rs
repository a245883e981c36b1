//! PING: finds peers that are gone without a word.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};
use ztunnel_hbone::http2::Connection;

use super::settings::TunnelSettings;

/// What happened on a tunnel that nobody heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// A PING was sent.
    Sent,
    /// The PONG should have been there by now.
    Late,
    /// The PONG did not come in time.
    Dead,
}

/// The PINGs of one tunnel, polled along with it.
pub(super) struct Keepalive {
    timer: Pin<Box<Sleep>>,
    state: State,
    interval: Duration,
    doubt_after: Duration,
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Resting,
    /// For the PONG.
    Waiting,
    /// It is late.
    Doubting,
}

impl Keepalive {
    pub(super) fn new(settings: &TunnelSettings) -> Self {
        Self {
            timer: Box::pin(sleep(settings.ping_interval)),
            state: State::Resting,
            interval: settings.ping_interval,
            doubt_after: settings.doubt_after.min(settings.ping_timeout),
            timeout: settings.ping_timeout,
        }
    }

    /// Does not wait for the next PING: there is a reason to ask now.
    pub(super) fn hurry(&mut self) {
        if self.state == State::Resting {
            self.restart(Duration::ZERO);
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>, connection: &mut Connection) -> Poll<Beat> {
        if self.state != State::Resting {
            if connection.is_pinging() {
                ready!(self.timer.as_mut().poll(cx));
                if self.state == State::Doubting {
                    return Poll::Ready(Beat::Dead);
                }
                self.state = State::Doubting;
                self.restart(self.timeout.saturating_sub(self.doubt_after));
                return Poll::Ready(Beat::Late);
            }
            self.state = State::Resting;
            self.restart(self.interval);
        }
        ready!(self.timer.as_mut().poll(cx));
        connection.ping();
        self.state = State::Waiting;
        self.restart(self.doubt_after);
        Poll::Ready(Beat::Sent)
    }

    fn restart(&mut self, after: Duration) {
        self.timer.as_mut().reset(Instant::now() + after);
    }
}
