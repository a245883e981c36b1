//! Who may ask the CA next, when more want to than may at a time.
//!
//! The most urgent goes first, and among equals who came first. So that a flood of urgent requests cannot keep the
//! others waiting for ever, the most urgent of those whose kind has none in flight goes before them: whatever
//! waits, each kind has at least one of [`MAX_IN_FLIGHT`] requests, and connections have all but two.
//!
//! There is one ticket for each identity at most, so the queue is as long as there are identities.

use std::collections::{BTreeSet, HashMap};

/// Requests to the CA at a time.
pub(super) const MAX_IN_FLIGHT: usize = 8;

/// What a certificate is needed for; the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Priority {
    /// A connection waits for it.
    Connection,
    /// There is none yet that peers accept.
    Prefetch,
    /// The present one is to be replaced before it ends.
    Refresh,
}

impl Priority {
    const ALL: [Self; 3] = [Self::Connection, Self::Prefetch, Self::Refresh];
}

/// A place in the queue, then a request in flight. Later tickets are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ticket(u64);

/// Those who wait and those in flight.
#[derive(Debug, Default)]
pub(super) struct Queue {
    drawn: u64,
    waiting: BTreeSet<(Priority, Ticket)>,
    priorities: HashMap<Ticket, Priority>,
    /// With the priority that each was let go with.
    in_flight: HashMap<Ticket, Priority>,
}

impl Queue {
    /// Takes a place at the end of those who are as urgent.
    pub(super) fn enter(&mut self, priority: Priority) -> Ticket {
        self.drawn += 1;
        let ticket = Ticket(self.drawn);
        self.waiting.insert((priority, ticket));
        self.priorities.insert(ticket, priority);
        ticket
    }

    /// Makes it more or less urgent. Among those as urgent it goes by when it entered. Nothing happens to what is
    /// in flight already, or gone.
    pub(super) fn change(&mut self, ticket: Ticket, priority: Priority) {
        if let Some(present) = self.priorities.get_mut(&ticket) {
            self.waiting.remove(&(*present, ticket));
            *present = priority;
            self.waiting.insert((priority, ticket));
        }
    }

    /// Ends the wait or the request in flight.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        if let Some(priority) = self.priorities.remove(&ticket) {
            self.waiting.remove(&(priority, ticket));
        }
        self.in_flight.remove(&ticket);
    }

    /// Lets the next one go, if there is one and it may.
    pub(super) fn next(&mut self) -> Option<Ticket> {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let passed_over = Priority::ALL
            .into_iter()
            .filter(|priority| !self.in_flight.values().any(|flying| flying == priority))
            .find_map(|priority| self.first(priority));
        let (priority, ticket) = passed_over.or_else(|| self.waiting.first().copied())?;
        self.waiting.remove(&(priority, ticket));
        self.priorities.remove(&ticket);
        self.in_flight.insert(ticket, priority);
        Some(ticket)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn first(&self, priority: Priority) -> Option<(Priority, Ticket)> {
        let of_this = (priority, Ticket(0))..=(priority, Ticket(u64::MAX));
        self.waiting.range(of_this).next().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Priority::{Connection, Prefetch, Refresh};
    use super::*;

    /// Enters that many of each, in this order.
    fn enter(queue: &mut Queue, kinds: &[(Priority, usize)]) -> Vec<Vec<Ticket>> {
        kinds
            .iter()
            .map(|&(priority, count)| (0..count).map(|_| queue.enter(priority)).collect())
            .collect()
    }

    fn drain(queue: &mut Queue) -> Vec<Ticket> {
        std::iter::from_fn(|| queue.next()).collect()
    }

    /// All the room is taken, each kind has its share. Gives those of connections.
    fn busy(queue: &mut Queue) -> Vec<Ticket> {
        let kinds = [(Refresh, 1), (Prefetch, 1), (Connection, MAX_IN_FLIGHT - 2)];
        let entered = enter(queue, &kinds);
        assert_eq!(drain(queue).len(), MAX_IN_FLIGHT);
        entered.into_iter().next_back().unwrap()
    }

    #[test]
    fn no_more_than_the_limit_are_in_flight() {
        let mut queue = Queue::default();
        enter(&mut queue, &[(Connection, 30)]);
        let mut flying = drain(&mut queue);
        let mut served = flying.len();
        assert_eq!(served, MAX_IN_FLIGHT);
        while let Some(ticket) = flying.pop() {
            queue.leave(ticket);
            let next = drain(&mut queue);
            assert!(next.len() <= 1);
            served += next.len();
            flying.extend(next);
        }
        assert_eq!(served, 30);
        assert!(queue.waiting.is_empty() && queue.priorities.is_empty());
    }

    #[test]
    fn a_connection_goes_before_a_prefetch_and_that_before_a_refresh() {
        let mut queue = Queue::default();
        let flying = busy(&mut queue);
        let entered = enter(&mut queue, &[(Refresh, 2), (Prefetch, 2), (Connection, 2)]);
        let mut order = Vec::new();
        for ticket in flying {
            queue.leave(ticket);
            order.extend(queue.next());
        }
        let expected: Vec<_> = entered.into_iter().rev().flatten().collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn a_prefetch_that_a_connection_comes_to_need_moves_up() {
        let mut queue = Queue::default();
        let flying = busy(&mut queue);
        let entered = enter(&mut queue, &[(Prefetch, 3), (Connection, 1)]);
        queue.change(entered[0][2], Connection);
        queue.leave(flying[0]);
        // It has waited longer than the connection that came after it.
        assert_eq!(queue.next(), Some(entered[0][2]));
        // And down again, when the connection has given up.
        queue.change(entered[0][1], Connection);
        queue.change(entered[0][1], Prefetch);
        for (done, expected) in [(flying[1], entered[1][0]), (flying[2], entered[0][0])] {
            queue.leave(done);
            assert_eq!(queue.next(), Some(expected));
        }
    }

    #[test]
    fn a_change_comes_too_late_for_what_is_in_flight_or_gone() {
        let mut queue = Queue::default();
        let entered = enter(&mut queue, &[(Prefetch, 2)]);
        let [flying, gone] = entered[0][..] else {
            panic!("two were entered");
        };
        assert_eq!(queue.next(), Some(flying));
        queue.leave(gone);
        queue.change(flying, Connection);
        queue.change(gone, Connection);
        assert_eq!(queue.next(), None);
        queue.leave(flying);
        assert!(queue.in_flight.is_empty());
    }

    #[test]
    fn no_flood_keeps_another_kind_from_going() {
        for (flood, rare) in [
            (Connection, Refresh),
            (Connection, Prefetch),
            (Prefetch, Refresh),
        ] {
            let mut queue = Queue::default();
            enter(&mut queue, &[(flood, 50), (rare, 20)]);
            let mut flying = drain(&mut queue);
            let mut rare_served = 0;
            for _ in 0..40 {
                let of_rare = |ticket: &Ticket| queue.in_flight[ticket] == rare;
                assert_eq!(flying.iter().copied().filter(|t| of_rare(t)).count(), 1);
                let oldest = flying.remove(0);
                rare_served += usize::from(queue.in_flight[&oldest] == rare);
                queue.leave(oldest);
                queue.enter(flood); // It goes on for ever.
                flying.extend(drain(&mut queue));
            }
            assert_eq!(rare_served, 40 / MAX_IN_FLIGHT, "{rare:?} beside {flood:?}");
        }
    }

    #[test]
    fn a_kind_alone_may_have_all_the_room() {
        let mut queue = Queue::default();
        enter(&mut queue, &[(Refresh, 20)]);
        assert_eq!(drain(&mut queue).len(), MAX_IN_FLIGHT);
    }
}
