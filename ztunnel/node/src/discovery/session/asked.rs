//! What a partial mesh was asked for: names without an answer yet, and names the control plane does not know.
//!
//! A control plane answers only what is new to it. A name that it counts as asked for, and that no resource of just
//! this name stands for (it is unknown, or an alias of another one, or what came could not be read), is *over*: it has
//! to be taken back before it can be asked for again, and that in an earlier message, because of one message the
//! subscriptions are read first.
//!
//! Invariants: all three lists are bounded. The name of a resource that came is never taken back: updates follow it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use ztunnel_mesh::name::ServiceName;
use ztunnel_mesh::partial::Key;

use crate::task::breath;

/// Names without an answer. Each has a connection that waits, or waited not long ago.
const MOST_WAITING: usize = 1024;
/// Names on record as unknown: addresses outside of the mesh, mostly.
const MOST_ABSENT: usize = 4096;
/// How long the control plane's word that it does not know something is good. It will not say when that changes, and a
/// pod that gets such an address is spoken to in plaintext until then.
pub(super) const ABSENT_FOR: Duration = Duration::from_secs(30);
/// Names that are over go with the next question, or when there are this many.
const MOST_OVER: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Asked {
    waiting: HashMap<String, Waiting>,
    absent: HashMap<String, Absent>,
    over: HashSet<String>,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    /// When it was asked for last.
    since: Instant,
    /// The control plane has been told on this stream.
    told: bool,
}

#[derive(Debug)]
struct Absent {
    key: Key,
    since: Instant,
}

/// One change of what the control plane is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) subscribe: Vec<String>,
    pub(super) unsubscribe: Vec<String>,
}

impl Asked {
    /// Takes note that somebody waits for `key`. Of too many, those are given up that were asked for the longest time
    /// ago.
    pub(super) fn ask(&mut self, key: Key, now: Instant) {
        let name = key.to_string();
        if let Some(waiting) = self.waiting.get_mut(&name) {
            waiting.since = now;
            return;
        }
        if self.waiting.len() >= MOST_WAITING
            && let Some(oldest) = oldest(&self.waiting, |waiting| waiting.since)
        {
            self.end(&oldest);
        }
        let told = false;
        let since = now;
        self.waiting.insert(name, Waiting { key, since, told });
    }

    /// A stream begins. Either all names without an answer are told at once, or one by one later.
    pub(super) fn open(&mut self, told: bool) -> impl Iterator<Item = &String> {
        self.over.clear();
        for waiting in self.waiting.values_mut() {
            waiting.told = told;
        }
        self.waiting.keys().filter(move |_| told)
    }

    /// What to tell the control plane now, in this order.
    pub(super) fn questions(&mut self) -> Vec<Question> {
        let untold = self.waiting.iter_mut().filter(|(_, waiting)| !waiting.told);
        let mut subscribe: Vec<String> = untold
            .map(|(name, waiting)| {
                waiting.told = true;
                name.clone()
            })
            .collect();
        if subscribe.is_empty() && self.over.len() < MOST_OVER {
            return Vec::new();
        }
        subscribe.sort_unstable();
        let asked_again = subscribe.iter().any(|name| self.over.contains(name));
        let mut unsubscribe: Vec<String> = self.over.drain().collect();
        unsubscribe.sort_unstable();
        let mut questions = vec![Question {
            subscribe,
            unsubscribe,
        }];
        if asked_again {
            let subscribe = std::mem::take(&mut questions[0].subscribe);
            questions.push(Question {
                subscribe,
                ..Question::default()
            });
        }
        questions
    }

    /// A resource came. Returns what is answered by that: with it or, for a key that it does not have in spite of
    /// its alias, without.
    pub(super) fn found(&mut self, name: &str, aliases: &[String]) -> Vec<Key> {
        let mut answered = Vec::new();
        for alias in aliases.iter().map(String::as_str).chain([name]) {
            answered.extend(self.absent.remove(alias).map(|absent| absent.key));
            answered.extend(self.end(alias));
        }
        self.over.remove(name);
        answered
    }

    /// Ends the waiting for what is there, whether or not the answer named it as it was asked for.
    pub(super) fn end_known(&mut self, known: impl Fn(&Key) -> bool) {
        let there = self.waiting.extract_if(|_, waiting| known(&waiting.key));
        let told = there.filter(|(_, waiting)| waiting.told);
        self.over.extend(told.map(|(name, _)| name));
    }

    /// A resource came and could not be read. Whoever waits for it waits in vain, and the next one asks again.
    /// Returns what is not absent after all.
    pub(super) fn rejected(&mut self, name: &str, aliases: &[String]) -> Vec<Key> {
        let mut doubted = Vec::new();
        for alias in aliases.iter().map(String::as_str).chain([name]) {
            self.end(alias);
            doubted.extend(self.absent.remove(alias).map(|absent| absent.key));
        }
        doubted
    }

    /// The control plane does not know `name` or no longer does. Returns what is answered by that.
    pub(super) fn removed(&mut self, name: &str, was_held: bool) -> Option<Key> {
        // Workloads are never asked for by their own name.
        let service = || ServiceName::parse(name).filter(|name| !name.hostname.contains('/'));
        if was_held && service().is_some() {
            self.over.insert(name.to_owned());
        }
        self.end(name)
    }

    /// Puts keys on record that were answered with nothing. Returns those that there is no room for any more.
    pub(super) fn absent(&mut self, keys: &[Key], now: Instant) -> Vec<Key> {
        let mut forgotten = Vec::new();
        for key in keys {
            // When the record is full, all of it is looked through for the oldest.
            breath::long_step();
            let (name, key, since) = (key.to_string(), key.clone(), now);
            self.absent.insert(name, Absent { key, since });
            if self.absent.len() > MOST_ABSENT
                && let Some(oldest) = oldest(&self.absent, |absent| absent.since)
            {
                forgotten.extend(self.absent.remove(&oldest).map(|absent| absent.key));
            }
        }
        forgotten
    }

    /// Takes off the record what has been on it for too long.
    pub(super) fn forget(&mut self, now: Instant) -> Vec<Key> {
        let old = |absent: &Absent| now.duration_since(absent.since) >= ABSENT_FOR;
        let forgotten = self.absent.extract_if(|_, absent| old(absent));
        forgotten.map(|(_, absent)| absent.key).collect()
    }

    /// Nobody needs to wait for `name` any more.
    fn end(&mut self, name: &str) -> Option<Key> {
        let (name, waiting) = self.waiting.remove_entry(name)?;
        if waiting.told {
            self.over.insert(name);
        }
        Some(waiting.key)
    }
}

fn oldest<T>(map: &HashMap<String, T>, since: impl Fn(&T) -> Instant) -> Option<String> {
    let oldest = map.iter().min_by_key(|(_, entry)| since(entry))?;
    Some(oldest.0.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        let bytes = u32::try_from(number).unwrap().to_be_bytes();
        Key::Address {
            network: "".into(),
            ip: bytes.into(),
        }
    }

    fn name(number: usize) -> String {
        key(number).to_string()
    }

    fn question(subscribe: &[usize], unsubscribe: &[usize]) -> Question {
        let names = |numbers: &[usize]| numbers.iter().copied().map(name).collect();
        Question {
            subscribe: names(subscribe),
            unsubscribe: names(unsubscribe),
        }
    }

    #[test]
    fn a_name_is_asked_for_once_however_many_wait() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        asked.ask(key(1), now);
        asked.ask(key(1), now);
        asked.ask(key(2), now);
        assert_eq!(asked.questions(), [question(&[1, 2], &[])]);
        asked.ask(key(1), now);
        assert_eq!(asked.questions(), []);
    }

    #[test]
    fn an_answer_by_an_alias_is_taken_back_before_it_is_asked_for_again() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        asked.ask(key(1), now);
        asked.ask(key(2), now);
        asked.questions();
        assert_eq!(asked.found("uid", &[name(1), name(7)]), [key(1)]);
        assert_eq!(asked.removed(&name(2), false), Some(key(2)));
        // With the next question, and not by itself.
        assert_eq!(asked.questions(), []);
        asked.ask(key(3), now);
        assert_eq!(asked.questions(), [question(&[3], &[1, 2])]);

        asked.end_known(|there| *there == key(3));
        asked.ask(key(3), now);
        asked.ask(key(4), now);
        let both = [question(&[], &[3]), question(&[3, 4], &[])];
        assert_eq!(asked.questions(), both);
        asked.rejected("uid", &[name(4)]);
        asked.ask(key(4), now);
        assert_eq!(
            asked.questions(),
            [question(&[], &[4]), question(&[4], &[])]
        );
    }

    #[test]
    fn the_name_of_a_resource_that_came_is_kept() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let service = Key::Service(ServiceName::new("a", "s"));
        asked.ask(service.clone(), now);
        asked.questions();
        // Not known at first, then it comes after all, and goes.
        asked.removed("a/s", false);
        assert_eq!(asked.found("a/s", &[name(9)]), []);
        asked.ask(key(1), now);
        assert_eq!(asked.questions(), [question(&[1], &[])]);
        assert_eq!(asked.removed("a/s", true), None);
        assert_eq!(asked.removed("c//Pod/a/gone", true), None);
        asked.ask(service, now);
        let [back, again] = &asked.questions()[..] else {
            panic!("it is still counted as asked for");
        };
        assert_eq!(
            (&*back.unsubscribe, &*again.subscribe),
            (&["a/s".to_owned()][..], &["a/s".to_owned()][..])
        );
    }

    #[test]
    fn a_new_stream_is_told_all_that_has_no_answer() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        asked.ask(key(1), now);
        asked.ask(key(2), now);
        asked.questions();
        asked.removed(&name(2), false);
        assert_eq!(asked.open(true).collect::<Vec<_>>(), [&name(1)]);
        // What the last stream had to take back this one has never heard of.
        assert_eq!(asked.questions(), []);
        assert_eq!(asked.open(false).count(), 0);
        assert_eq!(asked.questions(), [question(&[1], &[])]);
    }

    #[test]
    fn absences_are_forgotten_with_age_and_when_the_thing_comes() {
        let (mut asked, start) = (Asked::default(), Instant::now());
        let later = start + Duration::from_secs(1);
        assert!(asked.absent(&[key(1), key(2)], start).is_empty());
        assert!(asked.absent(&[key(3)], later).is_empty());
        assert_eq!(asked.found("uid", &[name(1)]), [key(1)]);
        assert!(
            asked
                .forget(start + ABSENT_FOR - Duration::from_millis(1))
                .is_empty()
        );
        assert_eq!(asked.forget(start + ABSENT_FOR), [key(2)]);
        assert_eq!(asked.forget(later + ABSENT_FOR), [key(3)]);
    }

    #[test]
    fn all_lists_are_bounded_and_the_oldest_goes_first() {
        let (mut asked, start) = (Asked::default(), Instant::now());
        let at = |i: usize| start + Duration::from_millis(i as u64);
        for i in 0..MOST_WAITING {
            asked.ask(key(i), at(i));
        }
        asked.questions();
        // Asked for again, so no longer the oldest.
        asked.ask(key(0), at(MOST_WAITING));
        asked.ask(key(5000), at(MOST_WAITING + 1));
        assert_eq!(asked.waiting.len(), MOST_WAITING);
        assert_eq!(asked.questions(), [question(&[5000], &[1])]);

        for i in 0..MOST_ABSENT {
            assert!(asked.absent(&[key(i)], at(i)).is_empty());
        }
        assert_eq!(asked.absent(&[key(9000)], at(MOST_ABSENT)), [key(0)]);

        for i in 2..2 + MOST_OVER {
            assert!(asked.over.len() < MOST_OVER);
            asked.removed(&name(i), false);
        }
        let [alone] = &asked.questions()[..] else {
            panic!("enough to be told without a question");
        };
        assert_eq!(
            (alone.subscribe.len(), alone.unsubscribe.len()),
            (0, MOST_OVER)
        );
    }
}
