//! How a connection ends: both sides may go away, either may break off, and the transport may be gone. A PING finds out
//! whether the peer is there, and whether it has heard.

use super::connection::{Connection, LAST_ID, Side};
use super::error::{Lost, StreamError, Violation};
use crate::ErrorCode;

/// A PING of whoever runs the connection, and the one that finds out when a GOAWAY has arrived.
const PING: [u8; 8] = *b"alive?\0\0";
const LAST_PING: [u8; 8] = *b"goaway\0\0";

/// How far this side is with going away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Going {
    No,
    /// The peer is told, and may not have heard it.
    Announced,
    /// Streams of the peer after this one are not looked at.
    After(u32),
}

impl Connection {
    // PING.

    /// Asks the peer whether it is there.
    pub fn ping(&mut self) {
        self.pinging = true;
        self.sending.put_ping(PING, false);
        self.wake_driver();
    }

    /// Whether a PING waits for its answer.
    #[must_use]
    pub fn is_pinging(&self) -> bool {
        self.pinging
    }

    pub(super) fn pong(&mut self, content: [u8; 8]) {
        match content {
            PING => self.pinging = false,
            LAST_PING if self.going == Going::Announced => {
                self.going = Going::After(self.last_heard);
                self.sending
                    .put_goaway(self.last_heard, ErrorCode::NO_ERROR);
            }
            _ => {}
        }
    }

    // The end.

    pub(super) fn is_going(&self) -> bool {
        self.peer_going.is_some() || self.going != Going::No
    }

    /// Whether a new stream of the peer came too late.
    pub(super) fn is_too_late(&self, id: u32) -> bool {
        matches!(self.going, Going::After(last) if id > last)
    }

    /// Takes no more streams; those that are on their way are served: section 6.8.
    pub fn go_away(&mut self) {
        if self.going == Going::No && self.lost.is_none() {
            self.going = Going::Announced;
            self.sending.put_goaway(LAST_ID, ErrorCode::NO_ERROR);
            self.sending.put_ping(LAST_PING, false);
            self.wake_openers();
            self.wake_driver();
        }
    }

    /// Ends when all streams have: whoever opens them opens no more.
    pub fn finish(&mut self) {
        if self.going == Going::No && self.lost.is_none() {
            self.going = Going::After(self.last_heard);
            self.sending
                .put_goaway(self.last_heard, ErrorCode::NO_ERROR);
            self.wake_openers();
            self.wake_driver();
        }
    }

    /// Ends at once, with all streams; the peer is told.
    pub fn abort(&mut self, code: ErrorCode) {
        if self.lost.is_none() {
            self.sending.put_goaway(self.last_heard, code);
            self.lose(Lost::Aborted(code));
        }
    }

    pub(super) fn fail(&mut self, violation: Violation) {
        if self.lost.is_none() {
            self.sending.put_goaway(self.last_heard, violation.code);
            self.lose(Lost::Violation(violation));
        }
    }

    /// The connection is gone, and so are its streams.
    pub fn lose(&mut self, why: Lost) {
        if self.lost.is_some() {
            return;
        }
        self.lost = Some(why.clone());
        let keys: Vec<_> = self.streams.all().map(|(key, _)| key).collect();
        for key in keys {
            self.break_stream(key, StreamError::Lost(why.clone()));
            self.forget(key);
        }
        while self.accept().is_some() {}
        self.wake_openers();
        self.wake_driver();
    }

    /// The peer looks at no stream of ours after `last`.
    pub(super) fn hear_goaway(&mut self, last: u32) {
        let last = self.peer_going.map_or(last, |before| before.min(last));
        self.peer_going = Some(last);
        if self.side == Side::Client {
            let late = self.streams.all().filter(|(key, _)| key.id > last);
            let late: Vec<_> = late.map(|(key, _)| key).collect();
            for key in late {
                self.break_stream(key, StreamError::NotTaken);
                self.forget(key);
            }
        }
        self.wake_openers();
    }

    /// Why it is gone, if it is.
    #[must_use]
    pub fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// Whether nothing happens on it any more, once all that there is to send was sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let is_going = match self.going {
            Going::After(_) => true,
            Going::Announced | Going::No => self.peer_going.is_some(),
        };
        self.lost.is_some() || (is_going && self.streams.active() == 0 && self.requests.is_empty())
    }
}
