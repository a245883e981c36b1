//! PING: finds peers that are gone without a word.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::settings::TunnelSettings;

/// What happened on a tunnel that nobody heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// A PING was sent.
    Sent,
    /// The PONG did not come in time.
    Dead,
}

/// The PINGs of one tunnel, polled along with it.
pub(super) struct Keepalive {
    ping: h2::PingPong,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    pub(super) fn new(ping: h2::PingPong, settings: &TunnelSettings) -> Self {
        Self {
            ping,
            timer: Box::pin(sleep(settings.ping_interval)),
            waiting: false,
            interval: settings.ping_interval,
            timeout: settings.ping_timeout,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        if self.waiting {
            match self.ping.poll_pong(cx) {
                Poll::Ready(Ok(_)) => {
                    self.waiting = false;
                    self.restart(self.interval);
                }
                // The tunnel is about to say itself what is wrong with it.
                Poll::Ready(Err(_)) => return Poll::Pending,
                Poll::Pending => {
                    ready!(self.timer.as_mut().poll(cx));
                    return Poll::Ready(Beat::Dead);
                }
            }
        }
        ready!(self.timer.as_mut().poll(cx));
        if self.ping.send_ping(h2::Ping::opaque()).is_err() {
            return Poll::Pending;
        }
        self.waiting = true;
        self.restart(self.timeout);
        Poll::Ready(Beat::Sent)
    }

    fn restart(&mut self, after: Duration) {
        self.timer.as_mut().reset(Instant::now() + after);
    }
}
