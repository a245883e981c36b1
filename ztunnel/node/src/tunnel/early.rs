//! What an app says first, to go along with the CONNECT instead of waiting for its answer: a round trip less, and on the
//! other node one packet and one wake-up of the app less.
//!
//! Invariants:
//! - Only to peers that say that they take it, in tunnels that were heard of within [`LATELY`]: what was sent in a tunnel
//!   that turns out to be dead cannot be sent again, since nobody knows what became of it.
//! - It is kept until the peer has accepted. An attempt that says that nothing was done may be followed by another one; any
//!   other failure after something was sent is the end of the connection.
//! - Nothing is waited for: what the app has not said when the CONNECT is made goes the usual way.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::relay;

/// How fresh the last word of a peer has to be.
pub(super) const LATELY: Duration = Duration::from_secs(1);

/// The first words of one connection.
pub struct Early<'a> {
    app: Option<&'a TcpStream>,
    words: RefCell<Bytes>,
    /// They were sent, and not refused.
    out: Cell<bool>,
}

impl<'a> Early<'a> {
    /// Those of `app`.
    #[must_use]
    pub fn of(app: &'a TcpStream) -> Self {
        Self {
            app: Some(app),
            ..Self::none()
        }
    }

    /// The app may say what it likes: nothing goes before the answer.
    #[must_use]
    pub fn none() -> Self {
        Self {
            app: None,
            words: RefCell::default(),
            out: Cell::new(false),
        }
    }

    /// What the app has said by now, if that is not known yet.
    pub(super) fn read(&self) -> Bytes {
        let mut words = self.words.borrow_mut();
        if let (true, Some(app)) = (words.is_empty(), self.app) {
            *words = relay::read_now(app);
        }
        words.clone()
    }

    pub(super) fn sent(&self) {
        self.out.set(true);
    }

    /// The peer has refused, and done nothing with it.
    pub(super) fn refused(&self) {
        self.out.set(false);
    }

    /// Whether something was sent, and nobody knows what became of it unless the peer has accepted.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.out.get()
    }

    /// What was taken from the app.
    #[must_use]
    pub fn into_words(self) -> Bytes {
        self.words.into_inner()
    }
}
