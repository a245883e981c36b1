//! The states of streams: RFC 9113 section 5.1.

use std::task::{Context, Poll};

use super::peer::{Our::*, *};
use crate::ErrorCode;
use crate::http2::StreamError;

const PROTOCOL: &str = "GOAWAY 0 PROTOCOL_ERROR";

fn cancel(stream: u32) -> Vec<u8> {
    reset(stream, ErrorCode::CANCEL)
}

#[test]
fn an_idle_stream_has_nothing_but_heads_and_priority() {
    for our in [Client, Server] {
        for stream in [5, 2, 1001] {
            check(our, &[data(stream, NONE, 1)], PROTOCOL);
            check(our, &[cancel(stream)], PROTOCOL);
            check(our, &[window(stream, 1)], PROTOCOL);
        }
    }
    check(Client, &[ok(5)], PROTOCOL);
    check(Client, &[ok(2)], PROTOCOL);
    check(Server, &[connect(2)], PROTOCOL);
}

#[test]
fn nothing_follows_the_end_of_what_a_peer_sends() {
    let closed = "RST 1 STREAM_CLOSED";
    for our in [Client, Server] {
        let ended = || match our {
            Client => head(1, END, &OK),
            Server => head(1, END, &CONNECT),
        };
        check(our, &[ended(), data(1, NONE, 1)], closed);
        check(our, &[ended(), data(1, END, 0)], closed);
        check(our, &[ended(), head(1, END, &[("a", "b")])], closed);
        // It is told once.
        check(our, &[ended(), data(1, NONE, 1), data(1, NONE, 1)], closed);
        check(
            our,
            &[ended(), window(1, 9), cancel(1), cancel(1), window(1, 9)],
            "",
        );
    }
}

#[test]
fn nothing_follows_a_reset_of_the_peer() {
    let closed = "RST 1 STREAM_CLOSED";
    check(Server, &[connect(1), cancel(1), data(1, NONE, 5)], closed);
    check(Server, &[connect(1), cancel(1), head(1, END, &[])], closed);
    check(Server, &[connect(1), cancel(1), connect(1)], closed);
    check(
        Server,
        &[connect(1), cancel(1), window(1, 0), cancel(1)],
        "",
    );
    check(
        Client,
        &[cancel(1), data(1, NONE, 5), data(1, NONE, 5)],
        closed,
    );
    check(Client, &[cancel(1), ok(1)], closed);
}

#[test]
fn the_peer_may_not_have_heard_of_a_reset() {
    let late = || {
        [
            data(1, NONE, 5),
            window(1, 5),
            head(1, END, &[("a", "b")]),
            cancel(1),
        ]
    };
    for our in [Client, Server] {
        for is_closed in [true, false] {
            let mut peer = Peer::greeted(our);
            if our == Server {
                peer.says(&[connect(1), connect(3)]);
            }
            match is_closed {
                true => peer.closes(0),
                // As one that was wrong.
                false => assert_eq!(peer.says(&[window(1, 0)]), None),
            }
            let code = if is_closed {
                "CANCEL"
            } else {
                "PROTOCOL_ERROR"
            };
            assert_eq!(peer.hears(), format!("RST 1 {code}"));
            assert_eq!(peer.says(&late()), None);
            assert_eq!(peer.hears(), "");
        }
    }
}

#[test]
fn a_stream_that_ended_both_ways_is_closed() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[head(1, END, &CONNECT)]);
    peer.answers(0, true);
    assert_eq!(peer.hears(), "HEADERS 1 end");
    assert_eq!(peer.says(&[window(1, 5), cancel(1)]), None);
    peer.closes(0);
    assert_eq!(peer.says(&[window(1, 5), cancel(1)]), None);
    assert_eq!(peer.hears(), "");
    peer.says(&[data(1, NONE, 1)]);
    assert_eq!(peer.hears(), "RST 1 STREAM_CLOSED");
    assert!(peer.conn.streams.len() == 0);
}

/// It is not told from one that was closed: neither is a reason to end the others.
#[test]
fn an_id_that_was_passed_over_is_closed() {
    check(Server, &[connect(5), connect(3)], "RST 3 STREAM_CLOSED");
}

#[test]
fn there_are_no_more_streams_than_allowed() {
    let all = || [connect(1), connect(3), connect(5)].concat();
    check(Server, &[all(), connect(7)], "RST 7 REFUSED_STREAM");
    check(
        Server,
        &[all(), connect(7), data(7, END, 10)],
        "RST 7 REFUSED_STREAM",
    );
    check(Server, &[all(), cancel(3), connect(7)], "");
    // One that has ended one way counts.
    let ended = head(1, END, &CONNECT);
    check(
        Server,
        &[ended, connect(3), connect(5), connect(7)],
        "RST 7 REFUSED_STREAM",
    );
}

#[test]
fn a_client_waits_for_its_turn() {
    let mut peer = Peer::greeted(Client);
    let waker = peer.waker();
    let is_open = |peer: &mut Peer| {
        let polled = peer.conn.poll_open(&mut Context::from_waker(&waker));
        polled.is_ready()
    };
    assert!(is_open(&mut peer));
    peer.says(&[set(&[(3, 2)])]);
    assert!(!is_open(&mut peer));
    peer.says(&[set(&[(3, 3)])]);
    assert!(peer.is_woken() && is_open(&mut peer));
    peer.says(&[set(&[(3, 0)])]);
    assert!(!is_open(&mut peer));
    peer.says(&[set(&[(3, 2)]), cancel(1)]);
    assert!(peer.is_woken() && is_open(&mut peer));
}

#[test]
fn whoever_waits_to_open_hears_that_it_is_over() {
    for over in [
        |peer: &mut Peer| peer.conn.finish(),
        |peer: &mut Peer| peer.conn.go_away(),
        |peer: &mut Peer| assert_eq!(peer.says(&[goaway(0, ErrorCode::NO_ERROR)]), None),
        |peer: &mut Peer| peer.conn.abort(ErrorCode::NO_ERROR),
    ] {
        let mut peer = Peer::greeted(Client);
        peer.says(&[set(&[(3, 0)])]);
        let waker = peer.waker();
        let cx = &mut Context::from_waker(&waker);
        assert!(peer.conn.poll_open(cx).is_pending());
        over(&mut peer);
        assert!(peer.is_woken());
        assert!(matches!(peer.conn.poll_open(cx), Poll::Ready(Err(_))));
    }
}

#[test]
fn a_request_that_was_canceled_before_it_was_taken_leaves_nothing() {
    let mut peer = Peer::greeted(Server);
    for stream in (1..2001).step_by(20) {
        peer.says(&[connect(stream), data(stream, NONE, 10_000), cancel(stream)]);
        peer.hears();
    }
    assert!(peer.streams.is_empty() && peer.conn.streams.len() == 0);
    assert_eq!(peer.conn.incoming.held(), 0);
}

#[test]
fn what_came_before_a_reset_is_read_before_it() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), data(1, NONE, 5)]);
    peer.says(&[cancel(1)]);
    assert!(matches!(peer.reads(0), Poll::Ready(Ok(Some(data))) if data.len() == 5));
    let told = peer.reads(0);
    assert!(matches!(
        told,
        Poll::Ready(Err(StreamError::Reset(ErrorCode::CANCEL)))
    ));
    // And an end before it is an end.
    peer.says(&[connect(3), data(3, END, 5)]);
    peer.says(&[cancel(3)]);
    assert!(matches!(peer.reads(1), Poll::Ready(Ok(Some(_)))));
    assert!(matches!(peer.reads(1), Poll::Ready(Ok(None))));
}

#[test]
fn a_stream_is_closed_in_the_middle_of_a_frame() {
    for (flags, padding) in [(NONE, 0), (END, 0), (END, 200)] {
        let mut peer = Peer::greeted(Server);
        peer.says(&[connect(1)]);
        let content = [&[padding][..], &[b'x'; 30_000][..16_000]].concat();
        let says = frame(DATA, flags | PADDED, 1, &content);
        let (begin, rest) = says.split_at(5000);
        let (begin, length) = (begin.to_vec(), begin.split_at(9));
        assert_eq!(peer.says(&[length.1[..0].to_vec(), begin]), None);
        peer.closes(0);
        assert_eq!(peer.hears(), "RST 1 CANCEL");
        assert_eq!(peer.says(&[rest.to_vec()]), None);
        assert!(peer.conn.streams.len() == 0);
        assert_eq!(peer.conn.incoming.held(), 0);
        // The rest of the connection goes on.
        peer.says(&[frame(PING, NONE, 0, &[0; 8])]);
        assert_eq!(peer.hears(), "PING ack");
    }
}

#[test]
fn what_has_to_be_sent_is_sent_after_an_orderly_end() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[set(&[(4, 10)]), head(1, END, &CONNECT)]);
    peer.answers(0, false);
    peer.sends(0, 25, true);
    peer.closes(0);
    assert_eq!(peer.hears(), "SETTINGS ack; HEADERS 1; DATA 1 10");
    peer.says(&[window(1, 15)]);
    assert_eq!(peer.hears(), "DATA 1 15 end");
    assert!(peer.conn.streams.len() == 0);
}
