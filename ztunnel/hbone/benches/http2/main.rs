//! Is our own HTTP/2 still worth having? The same scripts over ours and over the `h2` crate, both ends on one thread and
//! without TLS. What counts is the ratio: a row whose median is above its bound says so, and the benchmark fails.
//!
//! ```text
//! cargo bench -p ztunnel-hbone --bench http2
//! ```
//! When it was written (h2 0.4.20, two shared cores; runs differ by 0.01, a round by 0.03): a stream took 0.17 of the time
//! that it takes `h2`, an exchange on 16 streams at once 0.20, on one 0.16, bulk 0.89, and an idle stream 0.51 of the
//! memory. The bounds leave room for noise only.
//!
//! Both have the settings of a tunnel, the same buffers between their ends, with reads no longer than a record of TLS, and the
//! same turns: in each, one end reads all there is and writes all it has. Nobody is ever woken, so neither pays for a
//! runtime. What is not comparable:
//! - `h2` reads as from a socket, into a buffer of its own. Ours takes bytes where they lie, as a tunnel does with those of
//!   TLS. That is most of what it wins in bulk: with a copy before it, the ratio was 0.93 to 1.01.
//! - Requests and answers of `h2` are those of the `http` crate, which checks and hashes what is in them; ours are text.
//!   Its baggage is a constant, for which it does neither.
//! - `h2` puts each field into its compression table unless the value is secret. Those that never repeat are marked as
//!   such, though that changed little; it cannot be done with `:authority`.
//! - `h2` may be used by many threads, and locks. Nobody else wants the lock here.
//! - Memory is what more pages the process has, by the system's allocator, for streams that were answered and are idle, with
//!   their handles. 1,000 of them nearly fill a table of ours, which grows by doubling; pages that it has not used do not
//!   count.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

mod ours;
mod theirs;
mod wire;

use std::array::from_fn;
use std::env::{args, current_exe};
use std::fs::read_to_string;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::slice;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use ours::Ours;
use theirs::Theirs;

const ROUNDS: usize = 15;
/// In a round, after as many that are not timed.
const STREAMS: usize = 2_000;
const EXCHANGES: usize = 16_000;
const PIECES: usize = 1_000;
/// So many connections have so many idle streams each.
const FILLED: usize = 20;
const FILL: usize = 1_000;

const MESSAGE: Bytes = Bytes::from_static(&[7; 100]);
const PIECE: Bytes = Bytes::from_static(&[7; 64 * 1024]);
const BAGGAGE: &str = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=checkout,\
    service.name=checkout,service.version=v1.27.13,cloud.region=eu-west-1";
const _: () = assert!(BAGGAGE.len() == 150);

// As those of a tunnel.
const STREAM_WINDOW: u32 = 4 << 20;
const WINDOW: u32 = 16 << 20;
const MAX_FRAME: u32 = 1 << 20;
const SEND_BUFFER: u32 = 400 * 1024;
const HEADER_LIST: u32 = 64 * 1024;

/// As the first argument: print what a stream takes, in a process that has used no memory before.
const MEMORY: [&str; 2] = ["memory-of-ours", "memory-of-h2"];

fn main() -> ExitCode {
    match args().nth(1) {
        Some(arg) if arg == MEMORY[0] => print_memory::<Ours>(),
        Some(arg) if arg == MEMORY[1] => print_memory::<Theirs>(),
        _ => compare(),
    }
}

fn compare() -> ExitCode {
    println!("medians of {ROUNDS} rounds (least to most)");
    let [name, ours, theirs, ratio] = ["", "ours", "h2", "ours / h2"];
    println!("{name:<34} {ours:>21} {theirs:>21} {ratio:>21}");
    let rows = [
        row("ns, a stream, CONNECT to end", 0.25, || {
            [streams::<Ours>(), streams::<Theirs>()].map(|all| each(all, STREAMS))
        }),
        row("ns, an exchange on 16 streams", 0.3, || {
            [exchanges::<Ours>(16), exchanges::<Theirs>(16)].map(|all| each(all, EXCHANGES))
        }),
        row("ns, an exchange on one stream", 0.25, || {
            [exchanges::<Ours>(1), exchanges::<Theirs>(1)].map(|all| each(all, EXCHANGES))
        }),
        row("ns, a KiB in pieces of 64", 1.1, || {
            [bulk::<Ours>(), bulk::<Theirs>()].map(|all| each(all, PIECES * PIECE.len() / 1024))
        }),
        row("bytes, an idle stream, both ends", 0.6, || {
            MEMORY.map(memory)
        }),
    ];
    match rows.iter().all(|is_good| *is_good) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Measures ours and theirs in turns. Says whether the ratio is within its bound.
fn row(name: &str, bound: f64, measure: impl Fn() -> [f64; 2]) -> bool {
    let rounds: [[f64; 2]; ROUNDS] = from_fn(|_| measure());
    let [ours, theirs] = [0, 1].map(|which| {
        let [least, median, most] = spread(rounds.map(|round| round[which]));
        format!("{median:.0} ({least:.0} to {most:.0})")
    });
    let [least, median, most] = spread(rounds.map(|[ours, theirs]| ours / theirs));
    let ratio = format!("{median:.2} ({least:.2} to {most:.2})");
    let is_good = median <= bound;
    let lost = if is_good { "" } else { "  LOST" };
    println!("{name:<34} {ours:>21} {theirs:>21} {ratio:>21}{lost}");
    is_good
}

fn spread(mut all: [f64; ROUNDS]) -> [f64; 3] {
    all.sort_by(f64::total_cmp);
    [0, ROUNDS / 2, ROUNDS - 1].map(|at| all[at])
}

fn each(all: Duration, count: usize) -> f64 {
    all.as_nanos() as f64 / count as f64
}

// The scripts.

/// Two ends of a connection and what is between them.
trait Pair {
    /// One end of a stream.
    type Stream;
    fn connect() -> Self;
    /// An end reads all there is, and writes all it has.
    fn turn(&mut self, end: End);
    /// Asks, answers and hears the answer. Gives the client's end and the server's.
    fn open(&mut self, head: &Head) -> [Self::Stream; 2];
    fn send(&mut self, stream: &mut Self::Stream, data: Bytes, end: bool);
    /// What has come, which is something or the end.
    fn take(&mut self, stream: &mut Self::Stream) -> Option<Bytes>;
    fn close(&mut self, stream: Self::Stream);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Client,
    Server,
}

use End::{Client, Server};

/// What of a request is another one each time.
struct Head {
    authority: String,
    forwarded: String,
    trace: String,
}

fn heads() -> [Head; 64] {
    from_fn(|number| Head {
        authority: format!("10.244.3.{number}:8080"),
        forwarded: format!("for=\"10.244.1.17:{}\"", 40_000 + number),
        trace: format!("00-{number:032x}-{number:016x}-01"),
    })
}

/// The second time, when everything is warm.
fn time(mut run: impl FnMut()) -> Duration {
    run();
    let began = Instant::now();
    run();
    began.elapsed()
}

fn streams<P: Pair>() -> Duration {
    let (mut pair, heads) = (P::connect(), heads());
    time(|| {
        for head in heads.iter().cycle().take(STREAMS) {
            let mut stream = pair.open(head);
            exchange(&mut pair, slice::from_mut(&mut stream));
            let [mut near, mut far] = stream;
            pair.send(&mut near, Bytes::new(), true);
            pair.turn(Client);
            pair.turn(Server);
            assert!(pair.take(&mut far).is_none());
            pair.send(&mut far, Bytes::new(), true);
            pair.turn(Server);
            pair.turn(Client);
            assert!(pair.take(&mut near).is_none());
            pair.close(near);
            pair.close(far);
        }
    })
}

fn exchanges<P: Pair>(at_once: usize) -> Duration {
    let mut pair = P::connect();
    let heads = &heads()[..at_once];
    let mut open: Vec<_> = heads.iter().map(|head| pair.open(head)).collect();
    time(|| {
        for _ in 0..EXCHANGES / at_once {
            exchange(&mut pair, &mut open);
        }
    })
}

/// A message there and one back, in each stream.
fn exchange<P: Pair>(pair: &mut P, open: &mut [[P::Stream; 2]]) {
    for [near, _] in &mut *open {
        pair.send(near, MESSAGE, false);
    }
    pair.turn(Client);
    pair.turn(Server);
    for [_, far] in &mut *open {
        assert_eq!(pair.take(far).unwrap().len(), MESSAGE.len());
        pair.send(far, MESSAGE, false);
    }
    pair.turn(Server);
    pair.turn(Client);
    for [near, _] in &mut *open {
        assert_eq!(pair.take(near).unwrap().len(), MESSAGE.len());
    }
}

fn bulk<P: Pair>() -> Duration {
    let mut pair = P::connect();
    let [mut near, mut far] = pair.open(&heads()[0]);
    time(|| {
        for _ in 0..PIECES {
            pair.send(&mut near, PIECE, false);
            pair.turn(Client);
            pair.turn(Server);
            let mut left = PIECE.len();
            while left > 0 {
                left -= black_box(pair.take(&mut far).unwrap()).len();
            }
        }
    })
}

/// What needs no waiting.
pub(crate) fn now<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> T {
    match poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it is not there"),
    }
}

// Memory.

fn memory(which: &str) -> f64 {
    let child = Command::new(current_exe().unwrap()).arg(which).output();
    let printed = String::from_utf8(child.unwrap().stdout).unwrap();
    printed.trim().parse().unwrap()
}

fn print_memory<P: Pair>() -> ExitCode {
    let heads = heads();
    let mut pairs: [P; FILLED] = from_fn(|_| P::connect());
    let mut open = Vec::with_capacity(FILLED * FILL);
    // What a connection needs for the first one is not what a stream costs.
    for pair in &mut pairs {
        open.push(pair.open(&heads[0]));
    }
    let before = resident();
    for pair in &mut pairs {
        let heads = heads.iter().cycle().take(FILL - 1);
        open.extend(heads.map(|head| pair.open(head)));
    }
    let used = resident() - before;
    println!("{}", used as f64 / (FILLED * (FILL - 1)) as f64);
    black_box((pairs, open));
    ExitCode::SUCCESS
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let status = read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib: usize = (line.unwrap().split_whitespace().nth(1).unwrap())
        .parse()
        .unwrap();
    kib * 1024
}
