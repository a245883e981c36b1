//! The outgoing tunnels of one pod on one thread.
//!
//! Invariants:
//! - Tunnels are never shared between two source identities, two sets of expected identities or two source addresses.
//! - At most one attempt to connect per key runs at a time, in a task of its own, so that whoever started it may go
//!   away; everybody who waits for it learns how it ended.
//! - Nobody waits in a queue of timeouts. Once a peer was found dead, connections wait for it no longer than
//!   `patience`, while one attempt after another is made as long as somebody wants to reach it. A tunnel whose peer
//!   fell silent gets no new streams, and nobody waits for an answer from it.
//! - A tunnel that was full, broken, silent or going away never comes back into the pool; its streams go on without it.
//! - Bounded: keys and tunnels by `max_tunnels`, tunnels of one key by `tunnels_per_peer`. Nothing stays for ever:
//!   tunnels go by `idle_release`, dead peers by `dead_for`.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use ztunnel_hbone::Connect;
use ztunnel_mesh::addr::HboneAddr;
use ztunnel_mesh::name::Identity;

use super::client::{DialError, NoSlot, Slot, Tunnel, dial};
use super::early::Early;
use super::inside;
use super::open::{OpenError, Opened, Opening, failure};
use super::settings::TunnelSettings;
use super::stream::Stream;
use crate::task::{LocalTasks, Shutdown, limit};
use crate::telemetry::{Counting, PoolMetrics, Retired};
use crate::tls::Credential;

/// A peer, and as whom to talk to whom there.
#[derive(Clone, Debug)]
pub struct Destination {
    pub peer: HboneAddr,
    pub credential: Arc<Credential>,
    /// The peer must prove one of these.
    pub expected: Arc<[Identity]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Identity,
    /// Peers match policies against it, and waypoints show it to servers.
    client: IpAddr,
    expected: Arc<[Identity]>,
    peer: HboneAddr,
}

type Outcome = Result<Rc<Tunnel>, Arc<DialError>>;

type Dialing = watch::Receiver<Option<Outcome>>;

/// What there is for one key.
#[derive(Default)]
struct Entry {
    /// Those that take new streams.
    tunnels: Vec<Rc<Tunnel>>,
    /// Somebody connects.
    dialing: Option<Dialing>,
    /// How the peer was found dead. Until it is reached, or nobody wants to for a while.
    dead: Option<Arc<DialError>>,
}

enum Place {
    Slot(Slot),
    /// Perhaps, once the peer has said how many streams it allows.
    Soon(Rc<Tunnel>),
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.dialing.is_none() && self.dead.is_none()
    }

    /// How much of the pool's bound it takes.
    fn size(&self) -> usize {
        let dialing = usize::from(self.dialing.is_some());
        (self.tunnels.len() + dialing).max(1)
    }

    /// A place in the best tunnel that has one. With a `crowded` one only if there is to be no other.
    fn place(&mut self, crowded: bool) -> Option<Place> {
        loop {
            self.tunnels.retain(|tunnel| !tunnel.is_retired());
            let calm = self.tunnels.iter().find(|tunnel| !tunnel.is_congested());
            let crowded = || {
                let least = self.tunnels.iter().min_by_key(|tunnel| tunnel.streams());
                least.filter(|_| crowded)
            };
            let tunnel = Rc::clone(calm.or_else(crowded)?);
            match tunnel.slot() {
                Ok(slot) => return Some(Place::Slot(slot)),
                Err(NoSlot::TooSoon) => return Some(Place::Soon(tunnel)),
                // It is retired now.
                Err(NoSlot::Full | NoSlot::Broken(_)) => {}
            }
        }
    }
}

/// The outgoing tunnels of one pod on one thread. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    entries: RefCell<HashMap<Key, Entry>>,
    settings: Arc<TunnelSettings>,
    tasks: LocalTasks,
    shutdown: Shutdown,
    metrics: Arc<PoolMetrics>,
}

/// Where a slot came from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The tunnel has been there for a while: it may be dead without anybody knowing.
    Reused,
    /// It was made just now.
    Fresh,
}

impl Pool {
    /// An empty pool; its tunnels are run by tasks in `tasks`, and let go on `shutdown` when their streams end.
    #[must_use]
    pub fn new(
        settings: Arc<TunnelSettings>,
        tasks: LocalTasks,
        shutdown: Shutdown,
        metrics: Arc<PoolMetrics>,
    ) -> Self {
        Self(Rc::new(Inner {
            entries: RefCell::default(),
            settings,
            tasks,
            shutdown,
            metrics,
        }))
    }

    /// Opens a stream in a tunnel to `to`; makes the tunnel with a TCP connection of `connect` when needed.
    ///
    /// # Errors
    /// When there is no tunnel, or the peer does not accept.
    pub async fn open<F>(
        &self,
        to: &Destination,
        request: &Connect<'_>,
        connect: impl Fn() -> F,
    ) -> Result<Opened, OpenError>
    where
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        let early = Early::none();
        self.open_within(None, to, request, &early, connect).await
    }

    /// The same, but there has to be a tunnel `within` a time: whoever asks has others to try. What the app says `early` may
    /// go along.
    ///
    /// # Errors
    /// When there is no tunnel, or the peer does not accept.
    pub async fn open_within<F>(
        &self,
        within: Option<Duration>,
        to: &Destination,
        request: &Connect<'_>,
        early: &Early<'_>,
        connect: impl Fn() -> F,
    ) -> Result<Opened, OpenError>
    where
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        let by = within.map(|within| Instant::now() + within);
        let (slot, origin) = self.slot(by, to, request, &connect).await?;
        let opening = Opening {
            settings: &self.0.settings,
            peer: to.peer,
            request,
            early,
        };
        let opened = opening.connect(slot).await;
        if let Err(OpenError::Silent { peer, after }) = opened {
            let silent = DialError::Silent { peer, after };
            self.0.take_for_dead(&Self::key(to, request), silent);
        }
        let is_undone = match &opened {
            // The peer did not look at it.
            Err(OpenError::Closing { .. }) => true,
            // The tunnel was dead already, or is now: the peer may have taken the CONNECT, but nothing was sent after it.
            Err(OpenError::Broken { .. }) => origin == Origin::Reused && !early.is_out(),
            Err(OpenError::Silent { .. }) => !early.is_out(),
            _ => false,
        };
        if !is_undone {
            return opened;
        }
        let (slot, _) = self.slot(by, to, request, &connect).await?;
        opening.connect(slot).await
    }

    /// Opens a stream in a tunnel of its own, made inside of `outer`. The peer is the one that `outer` goes to; the
    /// identities are those of whoever is at the far end of the inner tunnel.
    ///
    /// # Errors
    /// When there is no such tunnel, or its far end does not accept.
    pub async fn open_inside(
        &self,
        outer: Stream,
        to: &Destination,
        request: &Connect<'_>,
    ) -> Result<Opened, OpenError> {
        let Inner {
            settings,
            tasks,
            shutdown,
            metrics,
            ..
        } = &*self.0;
        let slot = inside::dial(outer, to, settings, tasks, shutdown, metrics).await?;
        let opening = Opening {
            settings,
            peer: to.peer,
            request,
            early: &Early::none(),
        };
        opening.connect(slot).await
    }

    /// A place in a tunnel: of one that is there, of one that somebody is making, or of a new one.
    async fn slot<F>(
        &self,
        by: Option<Instant>,
        to: &Destination,
        request: &Connect<'_>,
        connect: &impl Fn() -> F,
    ) -> Result<(Slot, Origin), OpenError>
    where
        F: Future<Output = io::Result<TcpStream>> + 'static,
    {
        let key = Self::key(to, request);
        let started = Instant::now();
        let patience = started + self.0.settings.patience;
        let mut is_counted = false;
        loop {
            let found = self.0.find(&key);
            if !is_counted {
                self.0.count(&found);
                is_counted = true;
            }
            let mut dialing = match found {
                Found::Place(Place::Slot(slot)) => return Ok((slot, Origin::Reused)),
                Found::Place(Place::Soon(tunnel)) => {
                    self.told(to.peer, by, &tunnel).await?;
                    continue;
                }
                Found::Dialing(dialing) => dialing,
                Found::Nothing => self
                    .dial(&key, to, connect())
                    .map_err(|err| OpenError::Dial(Arc::new(err)))?,
            };
            let outcome = async {
                match dialing.wait_for(Option::is_some).await {
                    Ok(outcome) => outcome.clone(),
                    Err(_) => None,
                }
            };
            let outcome = match (self.0.dead(&key), by) {
                (None, None) => outcome.await,
                (Some(dead), _) => timeout_at(by.map_or(patience, |by| by.min(patience)), outcome)
                    .await
                    .unwrap_or(Some(Err(dead))),
                // Its task goes on: the next one who asks for this peer may find a tunnel.
                (None, Some(by)) => timeout_at(by, outcome).await.unwrap_or_else(|_| {
                    let (peer, after) = (to.peer, by.saturating_duration_since(started));
                    Some(Err(Arc::new(DialError::Timeout { peer, after })))
                }),
            };
            let cut = || Arc::new(DialError::Cut { peer: to.peer });
            let outcome = outcome.ok_or_else(cut).and_then(|outcome| outcome);
            let tunnel = match outcome {
                Ok(tunnel) => tunnel,
                // One that has no room now is better than none.
                Err(err) => match self.0.crowded(&key) {
                    Some(slot) => return Ok((slot, Origin::Reused)),
                    None => return Err(OpenError::Dial(err)),
                },
            };
            match self.0.take(&key, &tunnel) {
                Ok(slot) => return Ok((slot, Origin::Fresh)),
                // More waited than fit in, or than may go ahead.
                Err(NoSlot::Full | NoSlot::TooSoon) => {}
                // It broke at once, and so would the next.
                Err(NoSlot::Broken(err)) => return Err(failure(to.peer, err)),
            }
        }
    }

    /// Waits until the peer of a new tunnel has said how many streams it allows. One that breaks meanwhile is found broken
    /// by whoever looks for a place next.
    async fn told(
        &self,
        peer: HboneAddr,
        by: Option<Instant>,
        tunnel: &Tunnel,
    ) -> Result<(), OpenError> {
        let usual = self.0.settings.handshake_timeout;
        let left = by.map(|by| by.saturating_duration_since(Instant::now()));
        let after = left.map_or(usual, |left| left.min(usual));
        let told = poll_fn(|cx| tunnel.connection().borrow_mut().poll_told(cx));
        match limit(after, told).await {
            Ok(Ok(()) | Err(_)) => Ok(()),
            Err(_) => Err(OpenError::NoAnswer { peer, after }),
        }
    }

    fn key(to: &Destination, request: &Connect<'_>) -> Key {
        Key {
            source: to.credential.identity().clone(),
            client: request.from.ip(),
            expected: Arc::clone(&to.expected),
            peer: to.peer,
        }
    }

    fn dial(
        &self,
        key: &Key,
        to: &Destination,
        connect: impl Future<Output = io::Result<TcpStream>> + 'static,
    ) -> Result<Dialing, DialError> {
        self.0
            .make_room(key)
            .inspect_err(|err| self.0.failed(err))?;
        let (tell, dialing) = watch::channel(None);
        let connect_timeout = {
            let mut entries = self.0.entries.borrow_mut();
            let entry = entries.entry(key.clone()).or_default();
            entry.dialing = Some(dialing.clone());
            let settings = &self.0.settings;
            match entry.dead {
                Some(_) => settings.retry_timeout.min(settings.connect_timeout),
                None => settings.connect_timeout,
            }
        };
        let attempt = Attempt {
            pool: Rc::clone(&self.0),
            key: key.clone(),
        };
        let (credential, expected) = (Arc::clone(&to.credential), Arc::clone(&to.expected));
        // Boxed: the futures of a TLS handshake are large, and what is left of the task lasts as long as the tunnel.
        self.0.tasks.spawn(async move {
            let pool = Rc::clone(&attempt.pool);
            let key = attempt.key.clone();
            let (settings, started) = (&pool.settings, Instant::now());
            let dialed = Box::pin(dial(
                key.peer,
                connect,
                &credential,
                expected,
                settings,
                connect_timeout,
                &pool.metrics,
            ))
            .await;
            // Kept no longer than needed: the roots it came with are trusted as long as it is there.
            drop(credential);
            let (tunnel, driver) = match dialed {
                Ok(dialed) => dialed,
                Err(err) => {
                    pool.failed(&err);
                    let err = Arc::new(err);
                    // One that says no at once may be asked again by the next.
                    let is_slow = started.elapsed() >= settings.patience.min(connect_timeout);
                    let mut is_dead = false;
                    attempt.end(|entry| {
                        is_dead = is_slow || entry.dead.is_some();
                        entry.dead = is_dead.then(|| Arc::clone(&err));
                    });
                    tell.send_replace(Some(Err(Arc::clone(&err))));
                    drop(tell);
                    if !is_dead {
                        return;
                    }
                    tokio::select! {
                        () = sleep(settings.dead_for) => {}
                        () = pool.shutdown.started() => {}
                    }
                    return pool.take_for_living(&key, &err);
                }
            };
            pool.metrics
                .dial_seconds
                .observe(started.elapsed().as_secs_f64());
            let _open = Counting::one(&pool.metrics.open);
            let weak = Rc::downgrade(&tunnel);
            attempt.end(|entry| {
                entry.dead = None;
                entry.tunnels.push(Rc::clone(&tunnel));
            });
            tell.send_replace(Some(Ok(tunnel)));
            // With the sender and the last waiter goes their copy of the tunnel.
            drop(tell);
            let shutdown = pool.shutdown.clone();
            let release = || {
                if let Some(tunnel) = weak.upgrade() {
                    pool.forget(&key, &tunnel);
                }
            };
            driver.run(weak.clone(), shutdown, release).await;
        });
        Ok(dialing)
    }

    /// How many tunnels are there or being made, and how many other peers are taken for dead.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

enum Found {
    Place(Place),
    Dialing(Dialing),
    Nothing,
}

impl Inner {
    fn len(&self) -> usize {
        self.entries.borrow().values().map(Entry::size).sum()
    }

    fn count(&self, found: &Found) {
        let PoolMetrics {
            found: reused,
            waited,
            opened,
            ..
        } = &*self.metrics;
        match found {
            Found::Place(Place::Slot(_)) => reused.inc(),
            Found::Place(Place::Soon(_)) => waited.inc(),
            Found::Dialing(_) => waited.inc(),
            Found::Nothing => opened.inc(),
        }
    }

    fn failed(&self, err: &DialError) {
        self.metrics.dial_failed(err.reason(), err.is_untracked());
    }

    fn find(&self, key: &Key) -> Found {
        self.with(key, |entry| {
            // The bound of tunnels is reached: the one with the fewest streams has to do.
            let enough = entry.tunnels.len() >= self.settings.tunnels_per_peer;
            match (entry.place(enough), &entry.dialing) {
                (Some(place), _) => Found::Place(place),
                (None, Some(dialing)) => Found::Dialing(dialing.clone()),
                (None, None) => Found::Nothing,
            }
        })
        .unwrap_or(Found::Nothing)
    }

    /// A slot in any tunnel there is.
    fn crowded(&self, key: &Key) -> Option<Slot> {
        match self.with(key, |entry| entry.place(true)).flatten()? {
            Place::Slot(slot) => Some(slot),
            Place::Soon(_) => None,
        }
    }

    fn dead(&self, key: &Key) -> Option<Arc<DialError>> {
        self.with(key, |entry| entry.dead.clone()).flatten()
    }

    /// A slot of `tunnel`, which leaves the pool when that was its last, or when it has none.
    fn take(&self, key: &Key, tunnel: &Rc<Tunnel>) -> Result<Slot, NoSlot> {
        let slot = tunnel.slot();
        if tunnel.is_retired() {
            self.forget(key, tunnel);
        }
        slot
    }

    fn forget(&self, key: &Key, tunnel: &Rc<Tunnel>) {
        self.with(key, |entry| {
            entry.tunnels.retain(|one| !Rc::ptr_eq(one, tunnel));
        });
    }

    /// Whoever says so tries to reach it next; how that ends decides.
    fn take_for_dead(&self, key: &Key, err: DialError) {
        let mut entries = self.entries.borrow_mut();
        let is_known = entries.contains_key(key);
        if is_known || entries.len() < self.settings.max_tunnels {
            let entry = entries.entry(key.clone()).or_default();
            // Somebody may have reached it already.
            if entry.tunnels.is_empty() {
                entry.dead = Some(Arc::new(err));
            }
        }
    }

    /// Ends what `err` began, unless something was found out since.
    fn take_for_living(&self, key: &Key, err: &Arc<DialError>) {
        self.with(key, |entry| {
            let same = |dead: &mut Arc<DialError>| Arc::ptr_eq(dead, err);
            drop(entry.dead.take_if(same));
        });
    }

    /// Works on the entry of `key`, and removes it if nothing is left in it.
    fn with<T>(&self, key: &Key, job: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key)?;
        let outcome = job(entry);
        if entry.is_empty() {
            entries.remove(key);
        }
        Some(outcome)
    }

    /// Keeps the pool in its bound by letting go of a dead peer, or of the tunnel that has been without streams for
    /// longest.
    fn make_room(&self, wanted: &Key) -> Result<(), DialError> {
        let tunnels = self.len();
        if tunnels < self.settings.max_tunnels {
            return Ok(());
        }
        let mut entries = self.entries.borrow_mut();
        // Its entry counts already, if there is nothing else in it.
        let only_dead = |entry: &Entry| entry.tunnels.is_empty() && entry.dialing.is_none();
        if entries.get(wanted).is_some_and(only_dead) {
            return Ok(());
        }
        let dead = entries.iter().find(|(_, entry)| only_dead(entry));
        if let Some(key) = dead.map(|(key, _)| key.clone()) {
            entries.remove(&key);
            return Ok(());
        }
        let idle = entries.iter().flat_map(|(key, entry)| {
            let tunnels = entry.tunnels.iter();
            tunnels.filter_map(move |tunnel| Some((key, tunnel, tunnel.idle()?)))
        });
        let longest = idle
            .max_by_key(|(_, _, idle)| *idle)
            .map(|(key, tunnel, _)| (key.clone(), Rc::clone(tunnel)));
        drop(entries);
        match longest {
            Some((key, tunnel)) => {
                tunnel.retires(Retired::Evicted);
                self.forget(&key, &tunnel);
                Ok(())
            }
            None => Err(DialError::TooMany {
                peer: wanted.peer,
                tunnels,
            }),
        }
    }
}

/// A running attempt to connect: that it runs is forgotten with it.
struct Attempt {
    pool: Rc<Inner>,
    key: Key,
}

impl Attempt {
    /// It has an outcome, to be noted by `note`.
    fn end(self, note: impl FnOnce(&mut Entry)) {
        self.pool.with(&self.key, |entry| {
            entry.dialing = None;
            note(entry);
        });
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.pool.with(&self.key, |entry| entry.dialing = None);
    }
}
