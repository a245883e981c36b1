//! Two connections and a wire between them, and the tasks that use them. Tasks are woken by real wakers and do nothing
//! unless they were woken: whoever is not woken, though there is something to do, is found out at the end.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;

use super::super::*;
use super::random::Random;
use crate::ErrorCode;

/// Whether a task was woken.
#[derive(Default)]
pub(super) struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Flag {
    fn raised() -> Arc<Self> {
        let flag = Arc::new(Self::default());
        flag.raise();
        flag
    }

    fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// What differs from run to run.
pub(super) struct Plan {
    pub(super) client: Settings,
    pub(super) server: Settings,
    /// The window of all streams together, smaller than the protocol lets one begin with.
    pub(super) narrow: Option<u32>,
    /// Streams that are opened.
    pub(super) streams: usize,
    /// The most that one side sends in a stream.
    pub(super) longest: usize,
    /// How much the wire holds.
    pub(super) wire: usize,
    /// One of so many steps of a stream gives it up.
    pub(super) impatience: usize,
    /// One of so many steps resizes a window.
    pub(super) resizes: usize,
    /// The windows there may be.
    pub(super) windows: &'static [u32],
    /// The server goes away at this step.
    pub(super) goes_away: usize,
}

/// One end.
pub(super) struct End {
    pub(super) conn: Connection,
    /// What has come and was not read.
    inbound: VecDeque<u8>,
    driver: Arc<Flag>,
    /// The driver waits for room in the wire.
    is_full: bool,
}

impl End {
    fn new(conn: Connection) -> Self {
        Self {
            conn,
            inbound: VecDeque::new(),
            driver: Flag::raised(),
            is_full: false,
        }
    }
}

/// One of the two halves of a stream at one end. Each is a task.
struct Half {
    flag: Arc<Flag>,
    /// It has a reason of its own to go on.
    is_ready: bool,
    /// It will have one, once nothing else happens any more.
    is_asleep: bool,
    is_done: bool,
    count: usize,
}

impl Half {
    fn new() -> Self {
        Self {
            flag: Flag::raised(),
            is_ready: false,
            is_asleep: false,
            is_done: false,
            count: 0,
        }
    }

    fn runs(&mut self) -> bool {
        let woken = self.flag.take();
        (std::mem::take(&mut self.is_ready) || woken) && !self.is_done
    }

    fn waker(&self) -> Waker {
        self.flag.clone().into()
    }
}

/// A stream at one end.
struct Talk {
    end: usize,
    key: StreamKey,
    /// The id, for what it says.
    id: u32,
    sender: Half,
    receiver: Half,
    /// How much there is to send.
    total: usize,
    /// A client has to have its answer first, a server has to give it.
    is_answered: bool,
    unreleased: usize,
    error: Option<StreamError>,
    is_closed: bool,
}

pub(super) struct World {
    pub(super) ends: [End; 2],
    random: Random,
    plan: Plan,
    talks: Vec<Talk>,
    openers: Vec<Half>,
    opened: u32,
    gone: usize,
    /// Streams that one side gave up: the other may not get all of it.
    given_up: BTreeSet<u32>,
    steps: usize,
    /// Streams that are through stay until this.
    closes: bool,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// What all streams send, each from another place on.
static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(1);
    (0..300_000).map(|_| random.below(256) as u8).collect()
});

/// What an end sends in a stream.
fn text(id: u32, end: usize) -> &'static [u8] {
    &TEXT[(id as usize * 2 + end) * 100..]
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan) -> Self {
        let mut client = End::new(Connection::client(&plan.client));
        let mut server = End::new(Connection::server(&plan.server));
        for end in [&mut client, &mut server] {
            if let Some(window) = plan.narrow {
                end.conn.incoming = window::Incoming::new(window);
                end.conn.outgoing = window::Outgoing::new(window);
                end.conn.resize(window);
            }
        }
        Self {
            ends: [client, server],
            random: Random::new(seed),
            talks: Vec::new(),
            openers: (0..plan.streams).map(|_| Half::new()).collect(),
            opened: 0,
            gone: 0,
            given_up: BTreeSet::new(),
            steps: 0,
            closes: false,
            plan,
        }
    }

    /// Until nobody has anything to do.
    pub(super) fn run(&mut self) {
        let mut idle = 0;
        while idle < 3 {
            idle += 1;
            for _ in 0..2 * (self.talks.len() + self.openers.len()) + 8 {
                if self.step() {
                    idle = 0;
                }
            }
            // Everybody once more: nobody is forgotten by chance.
            if idle > 0 && (self.step_all() || self.wake_one()) {
                idle = 0;
            }
            assert!(self.steps < 3_000_000, "no end");
        }
    }

    fn step(&mut self) -> bool {
        self.steps += 1;
        if self.steps == self.plan.goes_away {
            self.ends[SERVER].conn.go_away();
        }
        if !self.closes && self.random.chance(self.plan.resizes) {
            self.resize();
        }
        match self.random.below(8) {
            0..3 => self.drive(self.steps % 2),
            3 if !self.openers.is_empty() => {
                let which = self.random.below(self.openers.len());
                self.open(which)
            }
            _ if !self.talks.is_empty() => {
                let which = self.random.below(self.talks.len());
                self.talk(which)
            }
            _ => false,
        }
    }

    fn step_all(&mut self) -> bool {
        let mut any = self.drive(CLIENT) | self.drive(SERVER);
        for which in (0..self.openers.len()).rev() {
            any |= self.open(which);
        }
        for which in (0..self.talks.len()).rev() {
            any |= self.talk(which);
        }
        any
    }

    /// Nothing else happens: something new comes from one of the apps, all alone.
    fn wake_one(&mut self) -> bool {
        let halves = self.talks.iter_mut();
        let halves = halves.flat_map(|talk| [&mut talk.sender, &mut talk.receiver]);
        let mut asleep: Vec<_> = halves.filter(|half| half.is_asleep).collect();
        if asleep.is_empty() {
            return false;
        }
        let one = self.random.below(asleep.len());
        asleep[one].is_asleep = false;
        asleep[one].is_ready = true;
        true
    }

    fn resize(&mut self) {
        let window = self.random.one_of(self.plan.windows);
        let conn = &mut self.ends[self.steps % 2].conn;
        if self.random.chance(2) {
            conn.resize_streams(window);
        } else {
            conn.resize(window.max(self.plan.narrow.unwrap_or(1000)));
        }
    }

    // The wire.

    fn drive(&mut self, which: usize) -> bool {
        let (first, second) = self.ends.split_at_mut(1);
        let (end, other) = match which {
            CLIENT => (&mut first[0], &mut second[0]),
            _ => (&mut second[0], &mut first[0]),
        };
        let random = &mut self.random;
        let is_woken = end.driver.take();
        if !is_woken && end.inbound.is_empty() {
            return false;
        }
        let waker = end.driver.clone().into();
        end.conn.set_driver(&waker);
        let most = random.one_of(&[1, 2, 9, 100, 20_000, 100_000]);
        let some = end.inbound.len().min(most);
        let bytes = end.inbound.make_contiguous()[..some].to_vec();
        end.inbound.drain(..some);
        end.conn.receive(&bytes).unwrap();
        if other.is_full && end.inbound.len() < self.plan.wire {
            other.is_full = false;
            other.driver.raise();
        }
        let wire = self.plan.wire;
        let driver = end.driver.clone();
        let _ = end.conn.poll_transmit(|slices| {
            if random.chance(10) {
                // Not now, but soon.
                driver.raise();
                return Poll::Pending;
            }
            let room = wire.saturating_sub(other.inbound.len());
            if room == 0 {
                end.is_full = true;
                return Poll::Pending;
            }
            let all = slices
                .iter()
                .map(|slice| &slice[..])
                .collect::<Vec<_>>()
                .concat();
            assert!(!all.is_empty(), "nothing to write");
            let some = all
                .len()
                .min(room)
                .min(random.one_of(&[1, 3, 50, 5000, 100_000]));
            other.inbound.extend(&all[..some]);
            Poll::Ready(Ok(some))
        });
        while which == SERVER
            && let Some((key, head)) = end.conn.accept()
        {
            assert_eq!(head.first(":method"), Some(&b"CONNECT"[..]));
            let total = random.below(self.plan.longest);
            self.talks.push(Talk::new(SERVER, key, total));
        }
        end.conn.check();
        true
    }

    // Tasks.

    fn open(&mut self, which: usize) -> bool {
        let opener = &mut self.openers[which];
        if !opener.runs() {
            return false;
        }
        let conn = &mut self.ends[CLIENT].conn;
        match conn.poll_open(&mut Context::from_waker(&opener.waker())) {
            Poll::Pending => return true,
            Poll::Ready(Err(err)) => {
                assert!(matches!(err, StreamError::NotTaken), "{err}");
                self.gone += 1;
            }
            Poll::Ready(Ok(())) => {
                let authority = format!("10.0.0.{}:80", self.random.below(9));
                let head = [
                    Field::usual(":method", b"CONNECT"),
                    Field::usual(":authority", authority.as_bytes()),
                    Field::unique("traceparent", &[b'a'; 100]),
                ];
                let key = conn.open(&head).unwrap();
                let total = self.random.below(self.plan.longest);
                self.opened += 1;
                self.talks.push(Talk::new(CLIENT, key, total));
            }
        }
        self.openers.swap_remove(which);
        true
    }

    fn talk(&mut self, which: usize) -> bool {
        let talk = &mut self.talks[which];
        let conn = &mut self.ends[talk.end].conn;
        let mut any = false;
        let first = self.random.chance(2);
        for half in [first, !first] {
            any |= match half {
                true => talk.sender.runs() && talk.send(conn, &mut self.random),
                false => talk.receiver.runs() && talk.receive(conn, &mut self.random),
            };
        }
        if any && !talk.is_closed && self.random.chance(self.plan.impatience) {
            self.given_up.insert(talk.id);
            conn.close_stream(talk.key, ErrorCode::CANCEL);
            talk.is_closed = true;
        }
        let is_through = talk.sender.is_done && talk.receiver.is_done && talk.unreleased == 0;
        if is_through && !talk.is_closed && (self.closes || talk.error.is_some()) {
            talk.check(
                &self.given_up,
                self.plan.client.max_streams > self.plan.server.max_streams,
            );
            conn.close_stream(talk.key, ErrorCode::NO_ERROR);
            talk.is_closed = true;
            any = true;
        }
        if talk.is_closed {
            self.talks.swap_remove(which);
        }
        any
    }

    /// Windows of nothing are no end: whoever waits for one is to go on when it opens. Not done otherwise, since it wakes
    /// all that should have been woken before.
    pub(super) fn open_windows(&mut self) {
        self.plan.resizes = usize::MAX;
        for which in [CLIENT, SERVER, CLIENT, SERVER] {
            let conn = &mut self.ends[which].conn;
            if conn.stream_window == 0 {
                assert!(conn.resize_streams(5000));
                self.run();
            }
        }
    }

    // What must hold.

    /// Nobody waits although nothing happens any more.
    pub(super) fn check_nobody_waits(&mut self) {
        let [client, server] = &self.ends;
        assert!(client.inbound.is_empty() && server.inbound.is_empty());
        assert!(
            self.openers.is_empty(),
            "{} wait to open",
            self.openers.len()
        );
        for talk in &self.talks {
            let who = ["client", "server"][talk.end];
            let id = talk.id;
            assert!(
                talk.receiver.is_done,
                "{who} {id} waits: {} received, {}",
                talk.receiver.count,
                self.ends[talk.end].conn.shows()
            );
            assert!(
                talk.sender.is_done,
                "{who} {id} waits: {} sent of {}, {}",
                talk.sender.count,
                talk.total,
                self.ends[talk.end].conn.shows()
            );
        }
    }

    /// The accounts of both sides are the same.
    pub(super) fn check_windows(&mut self) {
        let [client, server] = &mut self.ends;
        check_windows(client, server);
        check_windows(server, client);
    }

    /// All streams are closed, and nothing is left of them.
    pub(super) fn close(&mut self) {
        self.closes = true;
        for talk in &mut self.talks {
            talk.sender.flag.raise();
            talk.receiver.flag.raise();
        }
        self.close_talks();
        self.run();
        assert!(self.talks.is_empty());
        self.check_windows();
        for end in &mut self.ends {
            end.conn.check_is_empty();
        }
        self.ends[CLIENT].conn.finish();
        self.run();
        assert!(self.ends[CLIENT].conn.is_done() && self.ends[SERVER].conn.is_done());
    }

    fn close_talks(&mut self) {
        for talk in std::mem::take(&mut self.talks) {
            talk.check(
                &self.given_up,
                self.plan.client.max_streams > self.plan.server.max_streams,
            );
            let conn = &mut self.ends[talk.end].conn;
            conn.close_stream(talk.key, ErrorCode::NO_ERROR);
            if self.random.chance(3) {
                self.drive(talk.end);
            }
        }
    }
}

fn check_windows(from: &mut End, to: &End) {
    let (from, to) = (&mut from.conn, &to.conn);
    assert_eq!(
        from.outgoing.left(),
        i64::from(to.incoming.left()),
        "connection"
    );
    for (key, stream) in from.streams.all() {
        let there = to.streams.find(key.id);
        if stream.broken.is_none()
            && let Some(there) = there.and_then(|there| to.streams.get(there))
            && there.broken.is_none()
        {
            let left = i64::from(there.incoming.left());
            assert_eq!(stream.outgoing.left(), left, "stream {}", key.id);
        }
    }
}

impl Talk {
    fn new(end: usize, key: StreamKey, total: usize) -> Self {
        Self {
            end,
            key,
            id: key.id,
            sender: Half::new(),
            receiver: Half::new(),
            total,
            is_answered: false,
            unreleased: 0,
            error: None,
            is_closed: false,
        }
    }

    fn fails(&mut self, err: StreamError) -> bool {
        self.error = Some(err);
        self.sender.is_done = true;
        // What came before is still there to be read.
        self.receiver.is_ready = true;
        true
    }

    fn send(&mut self, conn: &mut Connection, random: &mut Random) -> bool {
        if self.end == SERVER && !self.is_answered {
            if random.chance(3) {
                self.sender.is_ready = true;
                return true;
            }
            self.is_answered = true;
            let end = random.chance(8);
            let answer = [Field::usual(":status", b"200")];
            if let Err(err) = conn.answer(self.key, &answer, end) {
                return self.fails(err);
            }
            if end {
                (self.total, self.sender.count) = (0, 0);
                self.sender.is_done = true;
                return true;
            }
        }
        if self.sender.count == self.total {
            let waker = self.sender.waker();
            if let Err(err) = conn.send(self.key, Bytes::new(), true) {
                return self.fails(err);
            }
            // It may only be told that it is broken now.
            let _ = conn.poll_broken(self.key, &mut Context::from_waker(&waker));
            self.sender.is_done = true;
            return true;
        }
        // The app may have nothing to send just now.
        if self.sender.is_asleep || random.chance(6) {
            conn.yield_capacity(self.key);
            self.sender.is_asleep |= random.chance(2);
            self.sender.is_ready = !self.sender.is_asleep;
            return true;
        }
        let waker = self.sender.waker();
        let wanted = random.one_of(&[1, 100, 5000, 65_536]);
        let room = match conn.poll_capacity(self.key, &mut Context::from_waker(&waker), wanted) {
            Poll::Pending => return true,
            Poll::Ready(Err(err)) => return self.fails(err),
            Poll::Ready(Ok(room)) => room,
        };
        assert!(room > 0 && room <= wanted);
        if random.chance(10) {
            // It turns out that there is nothing.
            conn.yield_capacity(self.key);
            self.sender.is_asleep = random.chance(2);
            self.sender.is_ready = !self.sender.is_asleep;
            return true;
        }
        let some = room.min(self.total - self.sender.count);
        let some = if random.chance(4) {
            random.below(some) + 1
        } else {
            some
        };
        let data = &text(self.id, self.end)[self.sender.count..][..some];
        self.sender.count += some;
        let end = self.sender.count == self.total && random.chance(2);
        if let Err(err) = conn.send(self.key, Bytes::from_static(data), end) {
            return self.fails(err);
        }
        self.sender.is_done = end;
        self.sender.is_ready = !end;
        true
    }

    fn receive(&mut self, conn: &mut Connection, random: &mut Random) -> bool {
        let is_slow = self.key.id % 4 == 1;
        if self.unreleased > 0 {
            if random.chance(if is_slow { 12 } else { 3 }) {
                let some = random.below(self.unreleased) + 1;
                conn.release(self.key, some);
                self.unreleased -= some;
                self.receiver.is_ready = true;
                return true;
            }
            self.receiver.is_asleep |= is_slow && random.chance(4);
            self.receiver.is_ready = !self.receiver.is_asleep;
        }
        let waker = self.receiver.waker();
        let cx = &mut Context::from_waker(&waker);
        if self.end == CLIENT && !self.is_answered {
            match conn.poll_answer(self.key, cx) {
                Poll::Pending => return true,
                Poll::Ready(Err(err)) => {
                    self.receiver.is_done = self.unreleased == 0;
                    self.fails(err);
                    return true;
                }
                Poll::Ready(Ok(_)) => self.is_answered = true,
            }
        }
        match conn.poll_data(self.key, cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(Some(data))) => {
                assert!(!data.is_empty());
                let expected = &text(self.id, 1 - self.end)[self.receiver.count..];
                assert!(expected.starts_with(&data));
                self.receiver.count += data.len();
                self.unreleased += data.len();
                self.receiver.is_ready = true;
            }
            Poll::Ready(Ok(None)) => {
                assert!(conn.is_at_end(self.key));
                self.receiver.is_done = self.unreleased == 0;
                self.receiver.is_ready = true;
            }
            Poll::Ready(Err(err)) => {
                self.receiver.is_done = self.unreleased == 0;
                self.fails(err);
            }
        }
        true
    }

    /// A stream only breaks when somebody wanted that.
    fn check(&self, given_up: &BTreeSet<u32>, may_refuse: bool) {
        match &self.error {
            None => {}
            // Before the server has said how many there may be.
            Some(StreamError::Reset(ErrorCode::REFUSED_STREAM)) if may_refuse => {}
            Some(StreamError::Reset(code)) => {
                assert!(given_up.contains(&self.id), "stream {} got {code}", self.id);
                assert!(
                    matches!(*code, ErrorCode::CANCEL | ErrorCode::NO_ERROR),
                    "{code}"
                );
            }
            Some(StreamError::NotTaken) => {}
            Some(err) => panic!("stream {}: {err}", self.id),
        }
    }
}
