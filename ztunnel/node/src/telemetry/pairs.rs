//! The series that one pod's connections were counted in lately, so that the next connection of the same pair needs no
//! labels.
//!
//! Found by the identity of what the mesh has said (a workload that changes is another value, and gets other labels);
//! what is compared by its address is held, so the address stays its own. Forgotten whole now and then, rather than
//! one by one: to find a pair again costs some microseconds.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ztunnel_mesh::name::Identity;
use ztunnel_mesh::service::Service;

use super::party::{Party, Told};
use super::series::Series;
use super::{Direction, Facts, SeriesTable, Traffic};

const MOST: usize = 512;
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Of one pod on one thread.
#[derive(Debug, Default)]
pub struct KnownPairs {
    known: RefCell<HashMap<Key, Known>>,
    since: Cell<Option<Instant>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    source: PartyKey,
    source_identity: Option<Identity>,
    destination: PartyKey,
    destination_identity: Option<Identity>,
    service: Option<usize>,
    mutual_tls: bool,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum PartyKey {
    Unknown,
    Workload(usize),
    Told(Arc<Told>),
}

#[derive(Debug)]
struct Known {
    series: Arc<Series>,
    _held: (Party, Party, Option<Arc<Service>>),
}

impl KnownPairs {
    /// From now on `traffic` is part of the series of its pair.
    pub fn open(
        &self,
        table: &SeriesTable,
        direction: Direction,
        facts: &Facts,
        traffic: &Traffic,
    ) {
        let pair = facts.pair(direction);
        let key = Key {
            direction,
            source: PartyKey::of(&facts.src),
            source_identity: facts.src_identity.clone(),
            destination: PartyKey::of(&facts.dst),
            destination_identity: facts.dst_identity.clone(),
            service: facts
                .service
                .as_ref()
                .map(|service| Arc::as_ptr(service).addr()),
            mutual_tls: pair.mutual_tls,
        };
        let now = Instant::now();
        let mut known = self.known.borrow_mut();
        let since = self.since.get();
        if since.is_none_or(|since| now - since > FORGET_AFTER) || known.len() >= MOST {
            known.clear();
            self.since.set(Some(now));
        }
        traffic.count_as(|| {
            let before = known.get(&key).map(|known| &known.series);
            let (counted, series) = table.open(&pair, before);
            if before.is_none_or(|before| !Arc::ptr_eq(before, &series)) {
                let _held = (facts.src.clone(), facts.dst.clone(), facts.service.clone());
                known.insert(key, Known { series, _held });
            }
            counted
        });
    }
}

impl PartyKey {
    fn of(party: &Party) -> Self {
        match party {
            Party::Unknown => Self::Unknown,
            Party::Workload(workload) => Self::Workload(Arc::as_ptr(workload).addr()),
            Party::Told(told) => Self::Told(Arc::clone(told)),
        }
    }
}
