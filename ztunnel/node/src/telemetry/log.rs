//! The log: everything that is told goes through one bounded queue to one thread, which writes it to standard output.
//!
//! Invariants: nobody waits for a reader of the log. What finds the queue full is dropped and counted, and the log says
//! so once there is room again. What was told before the end is written before the end, unless nobody reads.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SendError, Sender, SyncSender, channel, sync_channel,
};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::Level;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use ztunnel_sys::heap;

use super::access::Ended;
use super::event::EventLines;
use super::line::{Json, Line, Plain};
use super::recent::RecentFailures;

/// Lines that may wait to be written.
const QUEUE: usize = 8 * 1024;
/// How much is written at once.
const WRITE: usize = 64 * 1024;
/// Longest filter that is made at run time: each event that nobody has looked at before is compared with all of it.
const MAX_FILTER: usize = 4 * 1024;
/// How long lines are collected before the next are written, when they come close together. Whoever tells one meanwhile
/// wakes nobody, which would cost more than everything else about it: 5 µs of the data path for each connection.
const COLLECT: Duration = Duration::from_millis(2);
/// How long the buffer for them, and what the thread has freed, is kept without any.
const KEPT: Duration = Duration::from_millis(250);
/// How long the end waits for what is still in the queue.
const LAST_LINES: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Plain,
    Json,
}

pub(super) enum Item {
    Connection(Box<Ended>),
    Line(Vec<u8>),
    /// Write out what came before, and say so.
    Flush(SyncSender<()>),
}

/// Where lines go.
#[derive(Clone, Debug)]
pub struct Log {
    /// Bounded by `counts`: a queue with a bound of its own has room for all of it from the first time that it was used.
    queue: Sender<Item>,
    failures: RecentFailures,
    counts: Arc<Counts>,
}

/// Of the queue.
#[derive(Debug, Default)]
pub(super) struct Counts {
    dropped: AtomicU64,
    /// What was put, or is just about to be, and was not written yet.
    waiting: AtomicUsize,
}

impl Log {
    /// The log, and what will come out of it.
    pub(super) fn new() -> (Self, Receiver<Item>) {
        let (queue, items) = channel();
        let log = Self {
            queue,
            counts: Arc::default(),
            failures: RecentFailures::default(),
        };
        (log, items)
    }

    /// A log that nobody reads.
    #[must_use]
    pub fn unread() -> Self {
        Self::new().0
    }

    /// Tells about a connection that has ended.
    pub fn connection(&self, ended: Box<Ended>) {
        self.put(Item::Connection(ended));
    }

    pub(super) fn put(&self, item: Item) {
        if let Err(item) = self.try_put(item) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            if let Item::Connection(ended) = item {
                self.failures.keep(ended);
            }
        }
    }

    /// Gives back what there is no room or nobody for.
    fn try_put(&self, item: Item) -> Result<(), Item> {
        let waiting = &self.counts.waiting;
        if waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(item);
        }
        self.queue.send(item).map_err(|SendError(item)| {
            waiting.fetch_sub(1, Ordering::Relaxed);
            item
        })
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// The connections that failed last, whether or not the log tells about them.
    #[must_use]
    pub fn failures(&self) -> &RecentFailures {
        &self.failures
    }

    /// How many lines were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// How many lines wait to be written, and how many may.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        let waiting = self.counts.waiting.load(Ordering::Relaxed);
        (waiting.min(QUEUE), QUEUE)
    }

    /// Waits until what was told so far is written, or for long enough.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.try_put(Item::Flush(done)).is_ok() {
            // In vain when nobody reads.
            let _ = written.recv_timeout(LAST_LINES);
        }
    }
}

/// Says what is logged from now on.
#[derive(Clone, Debug)]
pub struct LogLevels {
    filter: reload::Handle<EnvFilter, Registry>,
    /// What the start asked for.
    startup: Arc<str>,
    now: Arc<std::sync::Mutex<String>>,
}

/// Directives that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum BadLevels {
    #[error("{0:?} is no level; levels are off, error, warn, info, debug and trace")]
    NoLevel(String),
    #[error("{directives:?} is no filter")]
    NoFilter {
        directives: String,
        source: ParseError,
    },
    #[error("the filter would be longer than {MAX_FILTER} bytes; reset it first")]
    TooLong,
    #[error("the log is gone")]
    Gone,
}

/// Parses `level` or `target=level`, separated by commas. A bare word that is no level would be taken for a target at
/// level trace: a misspelled level, and far too much log.
///
/// # Errors
/// When it is something else.
pub fn directives(text: &str) -> Result<EnvFilter, BadLevels> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for part in text.split(',') {
        let word = part
            .rsplit_once('=')
            .map_or(part, |(_, level)| level)
            .trim();
        if !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) {
            return Err(BadLevels::NoLevel(word.into()));
        }
    }
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| BadLevels::NoFilter {
            directives: text.into(),
            source,
        })
}

impl LogLevels {
    /// What filters by `levels`, and what changes that.
    pub(crate) fn new(
        levels: &str,
    ) -> Result<(reload::Layer<EnvFilter, Registry>, Self), BadLevels> {
        let filter = directives(levels)?;
        let now = filter.to_string();
        let (filter, handle) = reload::Layer::new(filter);
        let levels = Self {
            filter: handle,
            startup: levels.into(),
            now: Arc::new(now.into()),
        };
        Ok((filter, levels))
    }

    /// What is logged now.
    #[must_use]
    pub fn now(&self) -> String {
        self.lock().clone()
    }

    /// Follows these on top of what is followed now; later ones win.
    ///
    /// # Errors
    /// When they are none.
    pub fn add(&self, text: &str) -> Result<(), BadLevels> {
        let now = format!("{},{text}", self.now());
        directives(text)?;
        self.follow(now)
    }

    /// Goes back to what the start asked for.
    ///
    /// # Errors
    /// When there is no log any more.
    pub fn reset(&self) -> Result<(), BadLevels> {
        self.follow(self.startup.to_string())
    }

    /// Follows these on top of what the start asked for.
    ///
    /// # Errors
    /// When they are none.
    pub fn reset_to(&self, text: &str) -> Result<(), BadLevels> {
        directives(text)?;
        self.follow(format!("{},{text}", self.startup))
    }

    fn follow(&self, text: String) -> Result<(), BadLevels> {
        let filter = directives(&text)?;
        // As the filter itself puts it: without what is overruled, so it does not grow for ever.
        let text = filter.to_string();
        if text.len() > MAX_FILTER {
            return Err(BadLevels::TooLong);
        }
        self.filter.reload(filter).map_err(|_| BadLevels::Gone)?;
        *self.lock() = text;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.now
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Starts the log of this process.
///
/// # Errors
/// When `levels` is no filter, or there is a log already, or its thread cannot be started.
pub fn start_log(levels: &str, format: LogFormat) -> io::Result<(Log, LogLevels)> {
    let (filter, levels) = LogLevels::new(levels).map_err(io::Error::other)?;
    let (log, items) = Log::new();
    let (counts, failures) = (Arc::clone(&log.counts), log.failures.clone());
    thread::Builder::new().name("log".into()).spawn(move || {
        write_all(&items, io::stdout(), format, &counts, &failures);
    })?;
    let lines = EventLines::new(log.clone(), format);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(io::Error::other)?;
    Ok((log, levels))
}

/// Whether such connections are told about.
#[must_use]
pub(super) fn tells(level: Level) -> bool {
    match level {
        Level::ERROR => tracing::enabled!(target: "access", Level::ERROR),
        Level::WARN => tracing::enabled!(target: "access", Level::WARN),
        _ => tracing::enabled!(target: "access", Level::INFO),
    }
}

/// Writes items until there can be no more, and keeps the failures among them.
pub(super) fn write_all(
    items: &Receiver<Item>,
    mut to: impl Write,
    format: LogFormat,
    counts: &Counts,
    failures: &RecentFailures,
) {
    let (mut text, mut told) = (Vec::new(), 0);
    let mut written: Option<Instant> = None;
    while let Some(first) = next(items, &mut text) {
        let began = Instant::now();
        let mut waiting = Vec::new();
        let (mut next, mut taken) = (Some(first), 0);
        while let Some(item) = next {
            taken += 1;
            match item {
                Item::Connection(ended) => {
                    write_line(&mut text, format, |line| ended.write(line));
                    failures.keep(ended);
                }
                Item::Line(line) => text.extend_from_slice(&line),
                Item::Flush(done) => waiting.push(done),
            }
            next = (text.len() < WRITE)
                .then(|| items.try_recv().ok())
                .flatten();
        }
        counts.waiting.fetch_sub(taken, Ordering::Relaxed);
        let lost = counts.dropped.load(Ordering::Relaxed);
        if lost > told {
            let lines = lost - told;
            write_line(&mut text, format, |line| {
                let at = SystemTime::now();
                line.begin(
                    at,
                    Level::WARN,
                    "log",
                    "log lines were dropped, nobody took them in time",
                );
                line.number("lines", lines);
                line.end();
            });
            told = lost;
        }
        // Nobody to tell about it.
        let _ = to.write_all(&text).and_then(|()| to.flush());
        text.clear();
        for done in waiting {
            // Whoever asked may have given up.
            let _ = done.try_send(());
        }
        if written.is_some_and(|written| began - written < COLLECT) {
            thread::sleep(COLLECT);
        }
        written = Some(Instant::now());
    }
}

/// The first item of many, perhaps. `text` is kept for what comes soon.
fn next(items: &Receiver<Item>, text: &mut Vec<u8>) -> Option<Item> {
    match items.recv_timeout(KEPT) {
        Ok(item) => Some(item),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => {
            *text = Vec::new();
            heap::give_back_thread_cache();
            items.recv().ok()
        }
    }
}

fn write_line(text: &mut Vec<u8>, format: LogFormat, write: impl Fn(&mut dyn Line)) {
    match format {
        LogFormat::Plain => write(&mut Plain::new(text)),
        LogFormat::Json => write(&mut Json::new(text)),
    }
}
