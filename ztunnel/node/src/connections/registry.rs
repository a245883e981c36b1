//! All open connections of a pod on one worker thread.
//!
//! Bounded by the connections there are. A connection that is not cut pays for a look at its own state whenever it is
//! polled, which takes no lock. Whoever goes through all of them does so in batches, between which others get their
//! turn: to judge `BATCH` connections takes some 0.05 ms (50,000 take 9 ms in all), to end `MOST_CUT` 0.4 to 1 ms
//! (`benches/live.rs`).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use tokio::task::yield_now;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_mesh::authorize::Peer;
use ztunnel_mesh::name::{PodName, Principal};

use super::record::{Cut, Record, State};
use super::watch::Watch;
use crate::telemetry::{
    Counting, Direction, Facts, KnownPairs, Metrics, Sampler, Telemetry, Traffic,
};

/// So many connections are looked at before others get their turn,
const BATCH: usize = 256;
/// or so many cut: ending one costs far more.
const MOST_CUT: usize = 16;

/// The open connections.
#[derive(Debug)]
pub struct Registry {
    pub(super) pod: PodName,
    pub(super) telemetry: Telemetry,
    pub(super) watch: Watch,
    pub(super) pairs: KnownPairs,
    /// Of those that ended well, which are told about.
    pub(super) sampler: Sampler,
    /// In the order in which they began.
    open: RefCell<BTreeMap<u64, Rc<Connection>>>,
    next: Cell<u64>,
    /// How many of them policy was asked about.
    admitted: Cell<usize>,
}

/// One connection, as its own task and those who go through all of them see it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) number: u64,
    pub(super) direction: Direction,
    /// It was told how it ended, or nothing is to be told about it.
    pub(super) ended: Cell<bool>,
    pub(super) src: ClientAddr,
    pub(super) accepted: Instant,
    pub(super) facts: RefCell<Facts>,
    pub(super) traffic: Traffic,
    pub(super) state: RefCell<State>,
    /// Boxed: those that apps of the pod make have none.
    pub(super) admitted: OnceCell<Box<Admitted>>,
}

/// What policy looks at in a connection to an app of the pod.
#[derive(Debug)]
pub(crate) struct Admitted {
    principal: Option<Principal>,
    client: ClientAddr,
    app: AppAddr,
}

impl Admitted {
    pub(crate) fn peer(&self) -> Peer<'_> {
        Peer {
            principal: self.principal.as_ref(),
            addr: self.client,
        }
    }

    pub(crate) fn app(&self) -> AppAddr {
        self.app
    }
}

/// A way through the connections that were there when it began.
#[derive(Debug)]
pub(crate) struct Batch {
    from: u64,
    end: u64,
    pub(crate) cut: usize,
}

impl Registry {
    /// Of `pod`, without connections so far.
    #[must_use]
    pub fn new(pod: PodName, telemetry: Telemetry) -> Rc<Self> {
        Self::watched(pod, telemetry, Watch::default())
    }

    /// The same, with somebody who may follow a connection.
    #[must_use]
    pub fn watched(pod: PodName, telemetry: Telemetry, watch: Watch) -> Rc<Self> {
        Rc::new(Self {
            pod,
            sampler: Sampler::new(telemetry.told, rand::random()),
            telemetry,
            watch,
            pairs: KnownPairs::default(),
            open: RefCell::default(),
            next: Cell::default(),
            admitted: Cell::default(),
        })
    }

    /// A connection of `src` was just accepted.
    #[must_use]
    pub fn start(self: &Rc<Self>, direction: Direction, src: ClientAddr) -> Record {
        let number = self.next.get();
        self.next.set(number + 1);
        let connection = Rc::new(Connection {
            number,
            direction,
            ended: Cell::new(false),
            src,
            accepted: Instant::now(),
            facts: RefCell::default(),
            traffic: Traffic::default(),
            state: RefCell::new(State::Open(None)),
            admitted: OnceCell::new(),
        });
        self.watch.accepted(&self.pod, &connection);
        let open = Rc::clone(&connection);
        self.open.borrow_mut().insert(number, open);
        Record::new(Rc::clone(self), connection)
    }

    /// The metrics of the node.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.telemetry.metrics
    }

    /// Counts a socket that was just accepted, for as long as it is open.
    #[must_use]
    pub fn socket(&self, direction: Direction) -> Counting {
        let open = &self.metrics().sockets_open;
        Counting::one(&open[direction.reporter() as usize])
    }

    pub(super) fn leave(&self, connection: &Connection) {
        self.open.borrow_mut().remove(&connection.number);
        if connection.admitted.get().is_some() {
            self.admitted.set(self.admitted.get() - 1);
        }
    }

    pub(super) fn admit(&self, connection: &Connection, peer: Peer<'_>, app: AppAddr) {
        let admitted = Admitted {
            principal: peer.principal.cloned(),
            client: peer.addr,
            app,
        };
        if connection.admitted.set(Box::new(admitted)).is_ok() {
            self.admitted.set(self.admitted.get() + 1);
        }
    }

    /// Whether policy was asked about none of those that are open.
    pub(crate) fn none_admitted(&self) -> bool {
        self.admitted.get() == 0
    }

    /// Begins to go through all that are open now.
    pub(crate) fn all(&self) -> Batch {
        Batch {
            from: 0,
            end: self.next.get(),
            cut: 0,
        }
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    /// Looks at the next connections. Says whether there are more, when others have had their turn.
    pub(super) fn look(&self, batch: &mut Batch, mut at: impl FnMut(&Connection)) -> bool {
        let open = self.open.borrow();
        for (seen, (&number, connection)) in open.range(batch.from..batch.end).enumerate() {
            if seen == BATCH {
                batch.from = number;
                return true;
            }
            at(connection);
        }
        false
    }

    /// Looks at the next connections about which policy was asked, and cuts those that `judge` wants to be cut. Says
    /// whether there are more to look at, when others have had their turn.
    pub(crate) fn judge(
        &self,
        batch: &mut Batch,
        judge: impl Fn(&Admitted) -> Option<Cut>,
    ) -> bool {
        self.cut_batch(batch, |connection| judge(connection.admitted.get()?))
    }

    /// Cuts all that are open, and says how many that were.
    pub async fn cut_all(&self, cut: Cut) -> usize {
        let mut batch = self.all();
        while self.cut_batch(&mut batch, |_| Some(cut.clone())) {
            yield_now().await;
        }
        batch.cut
    }

    fn cut_batch(&self, batch: &mut Batch, why: impl Fn(&Connection) -> Option<Cut>) -> bool {
        let most_cut = batch.cut + MOST_CUT;
        let open = self.open.borrow();
        for (seen, (&number, connection)) in open.range(batch.from..batch.end).enumerate() {
            if seen == BATCH || batch.cut == most_cut {
                batch.from = number;
                return true;
            }
            if let Some(cut) = why(connection) {
                batch.cut += usize::from(connection.cut(cut));
            }
        }
        false
    }
}

impl Connection {
    /// Says whether it was not cut before.
    fn cut(&self, cut: Cut) -> bool {
        let mut state = self.state.borrow_mut();
        let State::Open(waker) = &mut *state else {
            return false;
        };
        let waker = waker.take();
        *state = State::Cut(cut);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}
