//! Peers that ask for much and give little: each is cut off, or costs nothing.

use super::peer::{Our::*, *};
use super::settings;
use crate::ErrorCode;
use crate::http2::{Connection, Settings};

const KIB: usize = 1024;

fn ping() -> Vec<u8> {
    frame(PING, NONE, 0, &[0; 8])
}

/// One that sends the same again and again and does not listen.
fn is_cut_off(our: Our, first: &[Vec<u8>], again: &[Vec<u8>]) {
    let mut peer = Peer::greeted(our);
    peer.room = 0;
    peer.says(first);
    for _ in 0..40_000 {
        if let Some(violation) = peer.says(again) {
            assert_eq!(violation.code, ErrorCode::ENHANCE_YOUR_CALM);
            assert!(peer.conn.sending.control.len() < 300 * KIB);
            return;
        }
    }
    panic!("it goes on");
}

#[test]
fn whoever_asks_and_does_not_listen_is_cut_off() {
    for our in [Client, Server] {
        is_cut_off(our, &[], &[ping()]);
        is_cut_off(our, &[], &[set(&[])]);
        is_cut_off(our, &[], &[set(&[(4, 1)]), set(&[(4, 2)])]);
    }
}

#[test]
fn whoever_asks_as_fast_as_it_listens_costs_nothing() {
    let mut peer = Peer::greeted(Server);
    peer.room = 0;
    (0..100).for_each(|_| assert_eq!(peer.says(&[ping()]), None));
    for _ in 0..5000 {
        assert_eq!(peer.says(&[ping()]), None);
        peer.room = 17;
        peer.hears();
    }
    assert!(peer.conn.sending.control.capacity() < 50 * KIB);
}

#[test]
fn frames_without_data_are_counted() {
    let empty = |flags, content: &[u8]| frame(DATA, flags, 1, content);
    for frames in [
        empty(NONE, &[]),
        empty(PADDED, &[0]),
        empty(PADDED, &[3, 0, 0, 0]),
    ] {
        is_cut_off(Server, &[connect(1)], &[frames]);
    }
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1)]);
    for _ in 0..5000 {
        let some = [data(1, NONE, 0), empty(PADDED, &[0]), data(1, NONE, 1)];
        assert_eq!(peer.says(&some), None);
        while let std::task::Poll::Ready(Ok(Some(data))) = peer.reads(0) {
            peer.conn.release(peer.streams[0], data.len());
        }
        peer.hears();
    }
}

#[test]
fn a_head_without_an_end_is_cut_off() {
    let calm = |says: &[Vec<u8>]| check(Server, says, "GOAWAY 0 ENHANCE_YOUR_CALM");
    let begin = || frame(HEADERS, NONE, 1, &[]);
    let more = |len| frame(CONTINUATION, NONE, 1, &vec![0; len]);
    // By frames, and by size.
    calm(&[vec![begin()], vec![more(0); 32]].concat());
    calm(&[vec![begin()], vec![more(1); 32]].concat());
    calm(&[vec![begin()], vec![more(6000); 3]].concat());
    let small = Settings {
        max_header_list: 4000,
        ..settings()
    };
    let mut peer = Peer::greeted_with(Server, &small);
    peer.says(&[frame(HEADERS, NONE, 1, &[0; 6000])]);
    assert_eq!(peer.hears(), "GOAWAY 0 ENHANCE_YOUR_CALM");
}

/// A client that opens a stream and ends it at once, each in its own way.
fn is_told_to_go(cancel: impl Fn(u32) -> Vec<u8>) {
    let mut peer = Peer::greeted(Server);
    let mut told = String::new();
    for stream in (1..10_000).step_by(2) {
        let violation = peer.says(&[connect(stream)]);
        let violation = violation.or_else(|| peer.says(&[cancel(stream)]));
        while let Some(key) = peer.streams.pop() {
            peer.conn.close_stream(key, ErrorCode::CANCEL);
        }
        assert!(peer.conn.streams.len() <= 1);
        told += &peer.hears();
        if let Some(violation) = violation {
            // It was asked to go first.
            assert!(told.contains("GOAWAY 2147483647 NO_ERROR"));
            assert_eq!(violation.code, ErrorCode::ENHANCE_YOUR_CALM);
            return;
        }
    }
    panic!("it goes on");
}

#[test]
fn a_client_that_cancels_all_it_asks_for_has_to_go() {
    is_told_to_go(|stream| reset(stream, ErrorCode::CANCEL));
}

/// The server does the reset, but the client wants it.
#[test]
fn a_client_that_makes_us_cancel_has_to_go() {
    is_told_to_go(|stream| window(stream, 0));
    is_told_to_go(|stream| window(stream, i32::MAX as u32));
    is_told_to_go(|stream| [head(stream, END, &[]), data(stream, NONE, 1)].concat());
}

#[test]
fn a_client_that_is_answered_may_cancel() {
    let mut peer = Peer::greeted(Server);
    for stream in (1..10_000).step_by(2) {
        assert_eq!(peer.says(&[connect(stream)]), None);
        peer.answers(0, false);
        peer.says(&[reset(stream, ErrorCode::CANCEL)]);
        peer.closes(0);
        peer.streams.clear();
        peer.hears();
    }
    assert!(peer.conn.lost().is_none() && !peer.conn.is_done());
}

#[test]
fn streams_that_are_gone_wait_for_nothing() {
    let mut peer = Peer::greeted(Server);
    // One uses all of the window, others come and go and wait for it.
    peer.says(&[set(&[(4, 1 << 20)]), connect(1)]);
    peer.answers(0, false);
    assert_eq!(peer.room(0), Some(65_535));
    peer.sends(0, 65_535, false);
    peer.hears();
    for stream in (3..4000).step_by(2) {
        peer.says(&[connect(stream)]);
        peer.answers(1, false);
        assert_eq!(peer.room(1), None);
        peer.says(&[reset(stream, ErrorCode::CANCEL)]);
        peer.closes(1);
        peer.streams.truncate(1);
        peer.conn.check();
        peer.hears();
    }
    // The same for a turn that does not come, since the wire takes other things only.
    peer.says(&[window(0, 1 << 20)]);
    for stream in (4001..8000).step_by(2) {
        peer.room = 0;
        peer.says(&[connect(stream)]);
        peer.answers(1, false);
        peer.sends(1, 10, false);
        peer.says(&[reset(stream, ErrorCode::CANCEL)]);
        peer.closes(1);
        peer.streams.truncate(1);
        peer.conn.check();
        peer.room = peer.conn.sending.waiting();
        peer.hears();
    }
}

#[test]
fn what_is_held_is_not_much_more_than_came() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), connect(3), connect(5)]);
    for _ in 0..10_000 {
        peer.says(&[data(1, NONE, 1), data(3, NONE, 1), data(5, NONE, 1)]);
    }
    let held = |which: usize| peer.conn.held(peer.streams[which]);
    assert_eq!((0..3).map(held).sum::<usize>(), 30_000);
    // No more than the window.
    let more: Vec<_> = (0..3).map(|_| data(1, NONE, 16_000)).collect();
    let violation = peer.says(&more).unwrap();
    assert_eq!(violation.code, ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn an_idle_connection_keeps_little() {
    let mut peer = Peer::new(Connection::server(&settings()));
    peer.says(&[greeting(), set_ack()]);
    peer.room = 0;
    for _ in 0..500 {
        peer.says(&[ping()]);
    }
    peer.room = usize::MAX;
    peer.hears();
    assert!(peer.conn.sending.control.capacity() <= KIB);
}
