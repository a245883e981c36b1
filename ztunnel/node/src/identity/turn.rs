//! Waiting for one's turn to ask the CA.

use std::time::SystemTime;

use tokio::sync::oneshot;
use ztunnel_mesh::name::Identity;

use super::queue::{Priority, Ticket};
use super::{Known, Shared, Table};

/// A place in the queue, and once it has come the right to have a request in flight. Dropping it gives back either.
pub(super) struct Turn<'a> {
    shared: &'a Shared,
    ticket: Ticket,
}

impl<'a> Turn<'a> {
    /// Waits for the turn of `identity`.
    pub(super) async fn come(shared: &'a Shared, identity: &Identity) -> Self {
        let (turn, come) = {
            let mut table = shared.table();
            let (come, comes) = oneshot::channel();
            let Table {
                known,
                queue,
                turns,
            } = &mut *table;
            let entry = known.get_mut(identity);
            let ticket = queue.enter(entry.as_deref().map_or(Priority::Refresh, Known::priority));
            turns.insert(ticket, come);
            if let Some(entry) = entry {
                entry.ticket = Some(ticket);
            }
            table.let_go();
            (Self { shared, ticket }, comes)
        };
        // It is told, or it is given back, and then nobody waits here any more.
        drop(come.await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.turns.remove(&self.ticket);
        table.queue.leave(self.ticket);
        table.let_go();
    }
}

impl Known {
    /// What its certificate is needed for now.
    pub(super) fn priority(&self) -> Priority {
        if self.waiting > 0 {
            Priority::Connection
        } else if self.latest.borrow().credential(SystemTime::now()).is_none() {
            Priority::Prefetch
        } else {
            Priority::Refresh
        }
    }
}

impl Table {
    /// Takes note that the [`Known::priority`] of `identity` may have changed.
    pub(super) fn tell(&mut self, identity: &Identity) {
        let entry = self.known.get(identity);
        if let Some((ticket, priority)) =
            entry.and_then(|entry| Some((entry.ticket?, entry.priority())))
        {
            // Nothing happens when it is the ticket of an earlier request.
            self.queue.change(ticket, priority);
        }
    }

    /// Tells everybody whose turn has come.
    fn let_go(&mut self) {
        while let Some(ticket) = self.queue.next() {
            if let Some(turn) = self.turns.remove(&ticket) {
                // Whoever no longer waits is about to drop its turn, and with it the place.
                let _ = turn.send(());
            }
        }
    }
}
