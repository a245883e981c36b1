//! The traffic metrics, one series for each pair that talks.
//!
//! The families of Istio's node proxy have 27 labels. The `prometheus` crate keeps every label of every series as
//! strings of its own, some 3 KiB for each series and family; a pair here is one text of about 1 KiB and a dozen
//! counters, for all families together, and a scrape writes it out as it is.
//!
//! Bounded: at most `limit` pairs. When a new one has no room, those that have been idle are dropped first; then it is
//! counted in one series for all that have none. A pair that has had no connection for [`IDLE`] is dropped when
//! somebody scrapes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus::IntCounter;
use ztunnel_mesh::reason::{Reason, ResponseFlags};

pub use talks::{Talk, TalkEnd, Talks};

use super::Direction;
use super::catalogue::{self, Family};
use super::pair::{Labels, Pair};

mod talks;

/// How long a pair is remembered after its last connection.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// How much of an exposition is made at a time.
const CHUNK: usize = 64 * 1024;
const FLAGS: usize = ResponseFlags::ALL.len();

/// The counters of one pair.
#[derive(Debug)]
pub(super) struct Series {
    labels: Labels,
    opened: AtomicU64,
    /// By the connection's initiator, to the server.
    received: AtomicU64,
    /// Back to the initiator.
    sent: AtomicU64,
    closed: [AtomicU64; FLAGS],
    /// Connections that use it now.
    open: AtomicU32,
    /// Not exposed any more: whoever finds it must look for its successor.
    dropped: AtomicBool,
    /// Seconds since the table began, when it was used last.
    used: AtomicU32,
}

impl Series {
    fn new(labels: Labels, now: u32) -> Arc<Self> {
        Arc::new(Self {
            labels,
            opened: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            closed: Default::default(),
            open: AtomicU32::default(),
            dropped: AtomicBool::default(),
            used: now.into(),
        })
    }

    fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// One connection's part in its series: counted as opened, and as closed when it ends.
#[derive(Debug)]
pub(super) struct Counted {
    series: Arc<Series>,
    direction: Direction,
}

impl Counted {
    /// The app of the pod sent `bytes` more.
    pub(super) fn add_sent(&self, bytes: u64) {
        let counter = match self.direction {
            Direction::Outbound => &self.series.received,
            Direction::InboundHbone | Direction::InboundPlaintext => &self.series.sent,
        };
        Series::count(counter, bytes);
    }

    /// The app of the pod was given `bytes` more.
    pub(super) fn add_received(&self, bytes: u64) {
        let counter = match self.direction {
            Direction::Outbound => &self.series.sent,
            Direction::InboundHbone | Direction::InboundPlaintext => &self.series.received,
        };
        Series::count(counter, bytes);
    }

    /// The connection has ended; to be called once.
    pub(super) fn close(&self, reason: Reason, now: u32) {
        Series::count(&self.series.closed[reason.response_flags() as usize], 1);
        self.series.used.store(now, Ordering::Relaxed);
        self.series.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// All pairs.
#[derive(Debug)]
pub struct SeriesTable {
    began: Instant,
    limit: usize,
    pairs: Mutex<Pairs>,
    overflowed: IntCounter,
}

#[derive(Debug, Default)]
struct Pairs {
    by_labels: HashMap<Box<str>, Arc<Series>>,
    overflow: HashMap<(Direction, bool), Arc<Series>>,
}

impl SeriesTable {
    pub(super) fn new(limit: usize, overflowed: IntCounter) -> Self {
        Self {
            began: Instant::now(),
            limit,
            pairs: Mutex::default(),
            overflowed,
        }
    }

    pub(super) fn now(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// A connection is opened. `known` is where the series of such a pair was found before.
    pub(super) fn open(
        &self,
        pair: &Pair<'_>,
        known: Option<&Arc<Series>>,
    ) -> (Counted, Arc<Series>) {
        let series = known
            .filter(|series| Self::hold(series))
            .map_or_else(|| self.find(pair), Arc::clone);
        Series::count(&series.opened, 1);
        let counted = Counted {
            series: Arc::clone(&series),
            direction: pair.direction,
        };
        (counted, series)
    }

    /// Says whether it can be used: once that is so, it is not dropped before the connection is closed.
    fn hold(series: &Series) -> bool {
        // In the opposite order of `drop_idle`: one of the two sees the other.
        series.open.fetch_add(1, Ordering::SeqCst);
        let usable = !series.dropped.load(Ordering::SeqCst);
        if !usable {
            series.open.fetch_sub(1, Ordering::SeqCst);
        }
        usable
    }

    fn find(&self, pair: &Pair<'_>) -> Arc<Series> {
        let (labels, now) = (Labels::of(pair), self.now());
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = pairs.by_labels.get(labels.as_str())
            && Self::hold(series)
        {
            return Arc::clone(series);
        }
        if pairs.by_labels.len() >= self.limit {
            self.drop_idle(&mut pairs);
        }
        let series = if pairs.by_labels.len() >= self.limit {
            self.overflowed.inc();
            let kind = (pair.direction, pair.mutual_tls);
            let overflow = pairs.overflow.entry(kind);
            let labels = || Labels::of_overflow(kind.0, kind.1);
            Arc::clone(overflow.or_insert_with(|| Series::new(labels(), now)))
        } else {
            let key = labels.as_str().into();
            let series = Series::new(labels, now);
            pairs.by_labels.insert(key, Arc::clone(&series));
            series
        };
        series.open.fetch_add(1, Ordering::SeqCst);
        series
    }

    fn drop_idle(&self, pairs: &mut Pairs) {
        let now = self.now();
        pairs.by_labels.retain(|_, series| {
            let idle = now.saturating_sub(series.used.load(Ordering::Relaxed));
            if u64::from(idle) < IDLE.as_secs() {
                return true;
            }
            series.dropped.store(true, Ordering::SeqCst);
            let open = series.open.load(Ordering::SeqCst) > 0;
            if open {
                series.dropped.store(false, Ordering::SeqCst);
            }
            open
        });
    }

    /// How many pairs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.by_labels.len()
    }

    /// How many there may be.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether nobody has talked yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The families as text, piece by piece.
    pub(super) fn expose(&self) -> impl Iterator<Item = Bytes> + Send + use<> {
        let all: Vec<Arc<Series>> = {
            let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
            self.drop_idle(&mut pairs);
            let Pairs {
                by_labels,
                overflow,
            } = &*pairs;
            by_labels
                .values()
                .chain(overflow.values())
                .cloned()
                .collect()
        };
        let (mut family, mut next, mut headed) = (0, 0, false);
        std::iter::from_fn(move || {
            let mut text = String::new();
            while text.len() < CHUNK {
                let described = FAMILIES.get(family)?;
                if let Some(series) = all.get(next) {
                    let before = text.len();
                    described.write(series, &mut text);
                    // A family without a series has no head either.
                    if !headed && text.len() > before {
                        text.insert_str(before, &described.head());
                        headed = true;
                    }
                    next += 1;
                } else {
                    (family, next, headed) = (family + 1, 0, false);
                    if family == FAMILIES.len() {
                        break;
                    }
                }
            }
            (!text.is_empty()).then(|| text.into())
        })
    }
}

struct Exposed {
    family: &'static Family,
    value: Value,
}

enum Value {
    Total(fn(&Series) -> &AtomicU64),
    /// By flags: all of them, or only those that mean a failure.
    ByFlags {
        failures: bool,
    },
}

const FAMILIES: &[Exposed] = &[
    Exposed {
        family: catalogue::TCP_OPENED,
        value: Value::Total(|series| &series.opened),
    },
    Exposed {
        family: catalogue::TCP_CLOSED,
        value: Value::ByFlags { failures: false },
    },
    Exposed {
        family: catalogue::TCP_RECEIVED,
        value: Value::Total(|series| &series.received),
    },
    Exposed {
        family: catalogue::TCP_SENT,
        value: Value::Total(|series| &series.sent),
    },
    Exposed {
        family: catalogue::TCP_FAILED,
        value: Value::ByFlags { failures: true },
    },
];

impl Exposed {
    fn head(&self) -> String {
        let Family {
            name, kind, help, ..
        } = self.family;
        let kind = kind.as_str();
        format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")
    }

    fn write(&self, series: &Series, text: &mut String) {
        let mut line = |flags: ResponseFlags, value: u64| {
            let (before, after) = series.labels.parts();
            let (name, flags) = (self.family.name, flags.as_str());
            let _ = writeln!(
                text,
                "{name}{{{before}response_flags=\"{flags}\",{after}}} {value}"
            );
        };
        match self.value {
            Value::Total(value) => {
                line(
                    ResponseFlags::Unflagged,
                    value(series).load(Ordering::Relaxed),
                );
            }
            Value::ByFlags { failures } => {
                for &flags in ResponseFlags::ALL {
                    let value = series.closed[flags as usize].load(Ordering::Relaxed);
                    if value > 0 && !(failures && flags == ResponseFlags::Unflagged) {
                        line(flags, value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
