//! How many handshakes of one pod and thread go on at the same time, and whose ends when there are too many.
//!
//! Invariants: a peer that stalls holds up nobody. There is no queue in which one could wait behind it, and when the
//! bound is reached the oldest gives way, unless even that one is so young that it may just be a busy moment: then the
//! newcomer is turned away.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Bounds the memory that peers can take without having proved anything; each costs some kilobytes.
const MOST: usize = 1024;
/// A peer that means it is through long before this, also when many come at once.
const GRACE: Duration = Duration::from_secs(1);

/// The handshakes that go on now.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    // In the order in which they began.
    running: RefCell<BTreeMap<u64, Running>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    /// Dropped to make it give way.
    _stays: oneshot::Sender<()>,
}

/// The place of one handshake, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    handshakes: &'a Handshakes,
    number: u64,
    stays: oneshot::Receiver<()>,
}

impl Handshakes {
    /// Takes a place, if need be that of a peer which has been at it for too long. None when everybody is new.
    pub(super) fn begin(&self) -> Option<Place<'_>> {
        let mut running = self.running.borrow_mut();
        if running.len() >= MOST {
            let oldest = running.first_entry()?;
            if oldest.get().since.elapsed() < GRACE {
                return None;
            }
            oldest.remove();
        }
        let number = self.next.get();
        self.next.set(number + 1);
        let (_stays, stays) = oneshot::channel();
        let since = Instant::now();
        running.insert(number, Running { since, _stays });
        Some(Place {
            handshakes: self,
            number,
            stays,
        })
    }
}

impl Place<'_> {
    /// Resolves when somebody else has got the place.
    pub(super) async fn lost(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.stays).await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.running.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    #[tokio::test(start_paused = true)]
    async fn the_oldest_gives_way_when_it_had_its_time() {
        let handshakes = Handshakes::default();
        let mut places: Vec<_> = (0..MOST).map(|_| handshakes.begin().unwrap()).collect();
        advance(GRACE / 2).await;
        assert!(handshakes.begin().is_none());
        advance(GRACE / 2).await;
        let newest = handshakes.begin().unwrap();
        places[0].lost().await;
        let second = timeout(Duration::from_secs(60), places[1].lost());
        assert!(second.await.is_err());
        drop((places, newest));
        assert!(handshakes.running.borrow().is_empty());
    }
}
