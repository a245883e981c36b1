//! Readers that do not read: they hold up nobody else, and do not make us hold more than we want to.

use std::future::{pending, poll_fn};

use bytes::Bytes;
use tokio::task::yield_now;

use super::*;
use crate::relay::Far as _;
use crate::task::Budget;

const MIB: usize = 1 << 20;

/// An app behind the server.
const READS: ([u8; 4], u16) = ([10, 0, 0, 9], 81);

/// Sends until `len` bytes are on their way, or nothing goes for a while. Says how many did.
async fn send(stream: &mut Stream, len: usize) -> usize {
    send_patiently(stream, len, Duration::from_millis(1000)).await
}

/// Sends so much, however long a busy machine takes.
async fn send_all(stream: &mut Stream, len: usize) {
    assert_eq!(send_patiently(stream, len, SOON).await, len);
}

async fn send_patiently(stream: &mut Stream, len: usize, patience: Duration) -> usize {
    static CHUNK: [u8; 65_527] = [7; 65_527];
    let mut sent = 0;
    while sent < len {
        let wanted = CHUNK.len().min(len - sent);
        let room = poll_fn(|cx| stream.poll_capacity(cx, wanted));
        let Ok(room) = timeout(patience, room).await else {
            break;
        };
        let room = room.unwrap().min(wanted);
        stream.send(Bytes::from_static(&CHUNK[..room])).unwrap();
        sent += room;
    }
    stream.yield_capacity();
    sent
}

/// Reads a whole stream.
async fn read(stream: &mut Stream) -> usize {
    let mut received = 0;
    while let Some(data) = poll_fn(|cx| stream.poll_data(cx)).await.unwrap() {
        received += data.len();
        stream.release(data.len());
    }
    received
}

/// Does something with all of them at the same time.
async fn each<T: 'static, U: 'static>(
    all: impl IntoIterator<Item = T>,
    job: impl AsyncFn(&mut T) -> U + Copy + 'static,
) -> Vec<(T, U)> {
    let running: Vec<_> = all
        .into_iter()
        .map(|mut one| {
            spawn_local(async move {
                let outcome = job(&mut one).await;
                (one, outcome)
            })
        })
        .collect();
    let mut done = Vec::new();
    for one in running {
        done.push(one.await.unwrap());
    }
    done
}

/// Reads once and never again.
async fn stall(mut stream: Stream) {
    drop(poll_fn(|cx| stream.poll_data(cx)).await);
    stream.stop();
    pending().await
}

/// The first `stalled` streams of a tunnel stop. Says how much went into them, after the other `others` have carried
/// all that they should.
async fn up(stalled: usize, others: usize, each: usize) -> usize {
    let ca = TestCa::new("one");
    let seen = Rc::new(Cell::new(0));
    let whole = Rc::new(Cell::new(0));
    let serve = {
        let (seen, whole) = (Rc::clone(&seen), Rc::clone(&whole));
        move |request| {
            let (number, whole) = (seen.replace(seen.get() + 1), Rc::clone(&whole));
            async move {
                let mut stream = open(request);
                if number < stalled {
                    return stall(stream).await;
                }
                assert_eq!(read(&mut stream).await, each);
                whole.set(whole.get() + 1);
                stream.finish().unwrap();
            }
        }
    };
    let settings = TunnelSettings {
        max_streams: 200,
        ..TunnelSettings::default()
    };
    let server = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
    let client = Client::new(&ca, server.addr, DB, settings);
    let stuck = client.open_all(stalled).await;
    let stuck = stuck.into_iter().map(|opened| opened.unwrap().stream);
    let held = self::each(stuck, async |stream| send(stream, 64 * MIB).await).await;
    let moving = client.open_all(others).await;
    let moving = moving.into_iter().map(|opened| opened.unwrap().stream);
    let carry = async move |stream: &mut Stream| {
        send_all(stream, each).await;
        stream.finish().unwrap();
        assert_eq!(read(stream).await, 0);
    };
    self::each(moving, carry).await;
    assert_eq!(whole.get(), others);
    assert_eq!(server.accepted.get(), 1, "all in one tunnel");
    held.iter().map(|(_, sent)| sent).sum()
}

#[test]
fn eight_stalled_readers_hold_up_nobody() {
    run(async {
        let held = up(8, 92, 2 * MIB).await;
        // They took as much as the whole window of a busy tunnel: it was not by holding them back.
        let fixed = TunnelSettings::default().connection_window as usize;
        assert!(held >= fixed, "{held}");
    });
}

#[test]
fn a_hundred_stalled_readers_hold_up_nobody() {
    run(async {
        let held = up(100, 90, MIB).await;
        // The tunnel's bound, and what waits on the client's side: each stream's send buffer.
        let buffers = 100 * TunnelSettings::default().send_buffer;
        assert!(held <= 64 * MIB + buffers, "{held}");
    });
}

#[test]
fn the_same_in_the_other_direction() {
    run(async {
        let ca = TestCa::new("one");
        let serve = |request| async move {
            let mut stream = open(request);
            // Some never get that far.
            if send_patiently(&mut stream, 5 * MIB, SOON).await == 5 * MIB {
                stream.finish().unwrap();
            }
            pending().await
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        for opened in client.open_all(30).await {
            spawn_local(stall(opened.unwrap().stream));
        }
        let moving = client.open_all(60).await;
        let moving = moving.into_iter().map(|opened| opened.unwrap().stream);
        for (_, received) in each(moving, async |stream| read(stream).await).await {
            assert_eq!(received, 5 * MIB);
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn readers_that_go_on_get_everything_and_the_windows_back() {
    run(async {
        let ca = TestCa::new("one");
        let (go_on, waiting) = tokio::sync::watch::channel(false);
        let serve = move |request| {
            let mut waiting = waiting.clone();
            async move {
                let mut stream = open(request);
                let first = poll_fn(|cx| stream.poll_data(cx)).await.unwrap().unwrap();
                stream.stop();
                waiting.wait_for(|go_on| *go_on).await.unwrap();
                stream.release(first.len());
                assert_eq!(first.len() + read(&mut stream).await, 8 * MIB);
                stream.finish().unwrap();
            }
        };
        let server = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        for stuck in [true, false] {
            // The first time nobody reads until everybody is stuck.
            go_on.send_replace(!stuck);
            let streams = client.open_all(20).await;
            let streams = streams.into_iter().map(|opened| opened.unwrap().stream);
            let begin = async move |stream: &mut Stream| match stuck {
                true => send(stream, 8 * MIB).await,
                false => 0,
            };
            let streams = each(streams, begin).await;
            go_on.send_replace(true);
            let rest = async move |(stream, sent): &mut (Stream, usize)| {
                assert!(*sent < 8 * MIB, "{sent}");
                send_all(stream, 8 * MIB - *sent).await;
                stream.finish().unwrap();
                assert_eq!(read(stream).await, 0);
            };
            each(streams, rest).await;
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

/// Ten tunnels, each with twenty apps that do not read, and one that does.
#[test]
fn readers_that_stall_in_many_tunnels_stay_in_the_budget_and_hold_up_nobody() {
    const TUNNELS: usize = 10;
    const LIMIT: usize = 40 * MIB;
    run(async {
        let ca = TestCa::new("one");
        let memory = Budget::new(LIMIT as u64);
        let serve = |request: Box<Request>| async move {
            // The app on this port reads.
            let reads = request.asked().unwrap().authority == Authority::Ip(READS.into());
            let mut stream = open(request);
            if !reads {
                drop(poll_fn(|cx| stream.poll_data(cx)).await);
                stream.stop();
                poll_fn(|cx| stream.poll_broken(cx)).await;
                return;
            }
            assert_eq!(read(&mut stream).await, MIB / 16);
            stream.finish().unwrap();
        };
        let settings = TunnelSettings {
            memory: memory.clone(),
            ..TunnelSettings::default()
        };
        let server = Server::start(ca.credential(DB), settings, serve).await;
        // Apart from each other, so each has a tunnel of its own.
        let clients: Vec<_> = (0..TUNNELS)
            .map(|_| Client::new(&ca, server.addr, DB, TunnelSettings::default()))
            .collect();
        let mut stuck = Vec::new();
        for client in &clients {
            let streams = client.open_all(20).await;
            stuck.extend(streams.into_iter().map(|opened| opened.unwrap().stream));
        }
        let stuck = each(stuck, async |stream| send(stream, 8 * MIB).await).await;
        let sent: usize = stuck.iter().map(|(_, sent)| sent).sum();
        let taken = usize::try_from(memory.taken()).unwrap();
        assert!(taken <= LIMIT && taken > TUNNELS * MIB, "{taken}");
        assert!(sent <= taken, "{sent} of {taken}");
        let mut moving = Vec::new();
        for client in &clients {
            moving.push(client.open_to(READS.into()).await.unwrap().stream);
        }
        let carry = async |stream: &mut Stream| {
            send_all(stream, MIB / 16).await;
            stream.finish().unwrap();
            assert_eq!(read(stream).await, 0);
        };
        let moved = each(moving, carry).await;
        assert_eq!(server.accepted.get(), TUNNELS);
        assert!(memory.taken() <= LIMIT as u64);
        for client in &clients {
            client.shutdown.start();
        }
        drop((stuck, moved));
        until(|| server.ended.borrow().len() == TUNNELS).await;
        until(|| memory.taken() == 0).await;
    });
}

#[test]
fn a_tunnel_that_carries_much_grows_and_gives_back_what_it_had() {
    run(async {
        let ca = TestCa::new("one");
        let memory = Budget::new(64 << 20);
        let settings = TunnelSettings {
            memory: memory.clone(),
            ..TunnelSettings::default()
        };
        let serve = |request| async move {
            let mut stream = open(request);
            read(&mut stream).await;
            stream.finish().unwrap();
        };
        let server = Server::start(ca.credential(DB), settings, serve).await;
        let client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        let mut stream = client.open().await.unwrap().stream;
        assert_eq!(memory.taken(), 1 << 20);
        send_all(&mut stream, 40 * MIB).await;
        stream.finish().unwrap();
        read(&mut stream).await;
        assert!(memory.taken() > 1 << 20);
        drop(stream);
        client.shutdown.start();
        until(|| memory.taken() == 0).await;
    });
}

#[test]
fn a_tunnel_without_room_gets_no_new_streams() {
    run(async {
        let ca = TestCa::new("one");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tls = ca.credential(DB).server_config();
        let accepted = Rc::new(Cell::new(0));
        let count = Rc::clone(&accepted);
        // A peer with windows of fixed size, whose apps never read.
        spawn_local(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                let tls = crate::tls::accept(Arc::clone(&tls), tcp, SOON)
                    .await
                    .unwrap();
                spawn_local(async move {
                    let mut connection = h2::server::handshake(tls.stream).await.unwrap();
                    let mut streams = Vec::new();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let send = respond.send_response(http::Response::new(()), false);
                        streams.push((request, send.unwrap()));
                    }
                });
            }
        });
        let client = Client::new(&ca, addr, DB, TunnelSettings::default());
        let mut full = client.open().await.unwrap().stream;
        assert_eq!(send(&mut full, MIB).await, 65_535);
        let mut stuck = client.open().await.unwrap().stream;
        assert_eq!(accepted.get(), 1);
        assert_eq!(send(&mut stuck, 1).await, 0);
        // Now it is known.
        let mut free = client.open().await.unwrap().stream;
        assert_eq!((accepted.get(), client.pool.len()), (2, 2));
        assert_eq!(send(&mut free, 1).await, 1);
        // There is an end to it: the first streams of four tunnels fill them.
        let mut more = vec![full, stuck, free];
        for _ in 0..20 {
            let mut stream = client.open().await.unwrap().stream;
            send(&mut stream, MIB).await;
            more.push(stream);
            if accepted.get() == 4 {
                break;
            }
        }
        assert_eq!(client.pool.len(), 4);
    });
}

/// Takes what comes, each time a part, a moment after it came.
async fn read_in_parts(stream: &mut Stream) -> usize {
    let mut received = 0;
    while let Some(data) = poll_fn(|cx| stream.poll_data(cx)).await.unwrap() {
        for part in data.chunks(20_000) {
            stream.stop();
            yield_now().await;
            stream.release(part.len());
        }
        received += data.len();
    }
    received
}

/// The window of streams becomes smaller than what some have received and taken of the former one.
#[test]
fn nobody_is_left_behind_when_windows_get_smaller() {
    const STREAMS: usize = 100;
    run(async {
        let ca = TestCa::new("one");
        let settings = TunnelSettings {
            connection_window: MIB as u32,
            ..TunnelSettings::default()
        };
        let serve = |request| async move {
            let mut stream = open(request);
            send_all(&mut stream, MIB).await;
            stream.finish().unwrap();
            read(&mut stream).await;
        };
        let server = Server::start(ca.credential(DB), settings.clone(), serve).await;
        let client = Client::new(&ca, server.addr, DB, settings);
        let streams = client.open_all(STREAMS).await;
        let streams = streams.into_iter().map(|opened| opened.unwrap().stream);
        let carry = async |stream: &mut Stream| {
            stream.finish().unwrap();
            read_in_parts(stream).await
        };
        for (_, received) in each(streams, carry).await {
            assert_eq!(received, MIB);
        }
    });
}
