//! Endpoints that refused a connection a moment ago, so that the next one goes elsewhere if it can.
//!
//! Invariants:
//! - What one port refuses says nothing of the pod's other ports.
//! - A refuser is avoided for [`FIRST`], for twice as long when it refuses again after that, and at most for [`MOST`].
//!   Its first success ends it.
//! - When the time is over one connection tries it, and the others go on avoiding it until that one knows.
//! - Bounded by [`CAPACITY`], and nobody is remembered for longer than `MOST` after they were last avoided.
//!
//! One pod on one worker has them for itself, like its tunnels: no lock, and no pod can make others avoid an endpoint by
//! being refused where they would not be.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{Equivalent, HashMap};
use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(30);
const CAPACITY: usize = 1024;

/// Who refused.
#[derive(Default)]
pub(super) struct Refusers {
    known: RefCell<HashMap<Key, Refuser>>,
    /// When to look for those that can be forgotten.
    tidy: Cell<Option<Instant>>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    uid: Arc<str>,
    port: u16,
}

impl Equivalent<Key> for (&str, u16) {
    fn equivalent(&self, key: &Key) -> bool {
        *self.0 == *key.uid && self.1 == key.port
    }
}

struct Refuser {
    /// How long it is avoided.
    rest: Duration,
    until: Instant,
}

impl Refuser {
    fn again(&mut self, now: Instant) {
        self.rest = (2 * self.rest).min(MOST);
        self.until = now + self.rest;
    }
}

impl Refusers {
    /// Whether another endpoint is better.
    pub(super) fn avoids(&self, uid: &str, port: u16) -> bool {
        let known = self.known.borrow();
        if known.is_empty() {
            return false;
        }
        let refuser = known.get(&(uid, port));
        refuser.is_some_and(|refuser| Instant::now() < refuser.until)
    }

    /// Somebody tries it. If that is because its time is over, it is enough if one does.
    pub(super) fn trying(&self, uid: &str, port: u16) {
        let mut known = self.known.borrow_mut();
        if known.is_empty() {
            return;
        }
        let now = Instant::now();
        if self.tidy.get().is_some_and(|tidy| tidy <= now) {
            known.retain(|_, refuser| now < refuser.until + MOST);
            self.tidy.set((!known.is_empty()).then(|| now + MOST));
        }
        if let Some(refuser) = known.get_mut(&(uid, port))
            && refuser.until <= now
        {
            refuser.again(now);
        }
    }

    pub(super) fn refused(&self, uid: &Arc<str>, port: u16) {
        let mut known = self.known.borrow_mut();
        let now = Instant::now();
        if let Some(refuser) = known.get_mut(&(&**uid, port)) {
            // Many may have been on their way to it: they are told the same thing once.
            if refuser.until <= now {
                refuser.again(now);
            }
            return;
        }
        if known.len() >= CAPACITY {
            known.retain(|_, refuser| now < refuser.until);
        }
        if known.len() >= CAPACITY {
            return;
        }
        if self.tidy.get().is_none() {
            self.tidy.set(Some(now + MOST));
        }
        let key = Key {
            uid: Arc::clone(uid),
            port,
        };
        let refuser = Refuser {
            rest: FIRST,
            until: now + FIRST,
        };
        known.insert(key, refuser);
    }

    pub(super) fn accepted(&self, uid: &str, port: u16) {
        let mut known = self.known.borrow_mut();
        if !known.is_empty() {
            known.remove(&(uid, port));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const A_MOMENT: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn one_port_is_avoided_longer_and_longer_until_it_accepts() {
        let refusers = Refusers::default();
        let db: Arc<str> = "db".into();
        assert!(!refusers.avoids("db", 80));
        refusers.refused(&db, 80);
        // So did others that were on their way.
        refusers.refused(&db, 80);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert!(refusers.avoids("db", 80));
            assert!(!refusers.avoids("db", 81) && !refusers.avoids("web", 80));
            advance(Duration::from_secs(seconds) - A_MOMENT).await;
            assert!(refusers.avoids("db", 80), "{seconds}");
            advance(A_MOMENT).await;
            assert!(!refusers.avoids("db", 80), "{seconds}");
            // One tries it, and then nobody else for a while; that it fails comes as no surprise.
            refusers.trying("db", 80);
            assert!(refusers.avoids("db", 80));
            refusers.refused(&db, 80);
        }
        refusers.accepted("db", 80);
        assert!(!refusers.avoids("db", 80));
        refusers.refused(&db, 80);
        advance(FIRST).await;
        assert!(!refusers.avoids("db", 80));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_many_are_known_and_none_for_ever() {
        let refusers = Refusers::default();
        for number in 0..2 * CAPACITY {
            refusers.refused(&number.to_string().into(), 80);
        }
        assert_eq!(refusers.known.borrow().len(), CAPACITY);
        advance(FIRST).await;
        refusers.refused(&"new".into(), 80);
        assert_eq!(refusers.known.borrow().len(), 1);
        assert!(refusers.avoids("new", 80));
        advance(FIRST + MOST).await;
        refusers.trying("other", 80);
        assert!(refusers.known.borrow().is_empty());
    }
}
