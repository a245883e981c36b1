//! Heads: RFC 9113 section 8, and what a head of more than one frame or of no meaning does.

use std::task::{Context, Poll};

use super::peer::{Our::*, *};
use crate::ErrorCode;
use crate::http2::{Field, StreamError};

/// The status that a client is answered with in its first stream.
fn answer(peer: &mut Peer) -> Poll<Result<String, StreamError>> {
    let (key, waker) = (peer.streams[0], peer.waker());
    let polled = peer.conn.poll_answer(key, &mut Context::from_waker(&waker));
    polled.map_ok(|fields| {
        let status = fields.first(":status").unwrap();
        String::from_utf8(status.to_vec()).unwrap()
    })
}

#[test]
fn a_malformed_request_ends_its_stream() {
    for fields in [
        &[][..],
        &[(":authority", "a:1")],
        &[(":method", "GET"), (":path", "/")],
        &[("a", "b"), (":method", "CONNECT")],
        &[(":method", "CONNECT"), (":method", "CONNECT")],
        &[(":method", "CONNECT"), (":status", "200")],
        &[(":method", "CONNECT"), (":what", "x")],
        &[(":method", "CONNECT"), ("Upper", "x")],
        &[(":method", "CONNECT"), ("connection", "x")],
        &[(":method", "CONNECT"), ("te", "gzip")],
        &[(":method", "CONNECT"), ("a", "b\r\nc")],
    ] {
        check(Server, &[head(1, NONE, fields)], "RST 1 PROTOCOL_ERROR");
        // The others go on, and what was on its way for it ends nothing.
        let says = [head(1, NONE, fields), data(1, END, 9), connect(3)];
        check(Server, &says, "RST 1 PROTOCOL_ERROR");
    }
}

#[test]
fn a_malformed_answer_ends_its_stream() {
    for fields in [
        &[][..],
        &[("a", "b")],
        &[(":status", "20")],
        &[(":status", "200"), (":status", "200")],
        &[(":status", "200"), (":path", "/")],
        &[("a", "b"), (":status", "200")],
    ] {
        check(Client, &[head(1, NONE, fields)], "RST 1 PROTOCOL_ERROR");
        let mut peer = Peer::greeted(Client);
        assert!(answer(&mut peer).is_pending());
        peer.says(&[head(1, NONE, fields)]);
        assert!(peer.is_woken());
        assert!(matches!(
            answer(&mut peer),
            Poll::Ready(Err(StreamError::Reset(_)))
        ));
    }
    // Data before an answer is none.
    check(Client, &[data(1, NONE, 5)], "RST 1 PROTOCOL_ERROR");
}

#[test]
fn answers_that_are_not_the_last_are_passed_over() {
    let mut peer = Peer::greeted(Client);
    let early = |status| head(1, NONE, &[(":status", status)]);
    peer.says(&[early("100"), early("103"), early("199")]);
    assert!(answer(&mut peer).is_pending());
    peer.says(&[early("403")]);
    assert!(peer.is_woken());
    assert!(matches!(answer(&mut peer), Poll::Ready(Ok(status)) if status == "403"));
    assert_eq!(peer.hears(), "");
    let last = head(1, END, &[(":status", "100")]);
    check(Client, &[last], "RST 1 PROTOCOL_ERROR");
    check(
        Client,
        &[early("100"), data(1, NONE, 5)],
        "RST 1 PROTOCOL_ERROR",
    );
}

#[test]
fn trailers_are_an_end() {
    let trailers = |flags, fields| head(1, flags, fields);
    for our in [Client, Server] {
        let first = || if our == Client { ok(1) } else { connect(1) };
        let mut peer = Peer::greeted(our);
        peer.says(&[first(), data(1, NONE, 5)]);
        assert!(matches!(peer.reads(0), Poll::Ready(Ok(Some(_)))));
        assert!(peer.reads(0).is_pending());
        peer.says(&[trailers(END, &[("grpc-status", "0")])]);
        assert!(peer.is_woken());
        assert!(matches!(peer.reads(0), Poll::Ready(Ok(None))));
        assert_eq!(peer.hears(), "");
        let wrong = "RST 1 PROTOCOL_ERROR";
        check(our, &[first(), trailers(NONE, &[("a", "b")])], wrong);
        check(our, &[first(), trailers(END, &[(":status", "200")])], wrong);
        check(our, &[first(), trailers(END, &[("A", "b")])], wrong);
    }
}

#[test]
fn what_cannot_be_read_ends_the_connection() {
    let wrong = "COMPRESSION_ERROR";
    for our in [Client, Server] {
        for block in [
            &[0x80][..],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0xc0],
            &[0x40],
            &[0x3f, 0xff, 0x7f],
        ] {
            let goaway = format!("GOAWAY 0 {wrong}");
            check(our, &[frame(HEADERS, WHOLE, 1, block)], &goaway);
        }
    }
    // Also for a stream that is over, since the tables are no longer the same.
    let reset = reset(1, ErrorCode::CANCEL);
    let bad = frame(HEADERS, WHOLE, 1, &[0x80]);
    check(Client, &[reset, bad], "GOAWAY 0 COMPRESSION_ERROR");
}

/// A head adds a field to the table, and the next one refers to it. `between` is whatever the first one was for.
#[test]
fn the_table_is_kept_whatever_becomes_of_a_head() {
    let add = |id, also: &[(&str, &str)]| {
        let mut block = block(&CONNECT);
        block.extend_from_slice(&[0x40, 1, b'k', 1, b'v']);
        block.extend(super::peer::block(also));
        frame(HEADERS, WHOLE, id, &block)
    };
    let refer = |id| frame(HEADERS, WHOLE, id, &[block(&CONNECT), vec![0xbe]].concat());
    let full = || vec![connect(1), connect(3), connect(5)];
    for (first, expected) in [
        (vec![add(1, &[])], ""),
        (vec![add(1, &[("Bad", "x")])], "RST 1 PROTOCOL_ERROR"),
        (
            [full(), vec![add(7, &[]), reset(1, ErrorCode::CANCEL)]].concat(),
            "RST 7 REFUSED_STREAM",
        ),
        (
            vec![connect(1), reset(1, ErrorCode::CANCEL), add(1, &[])],
            "RST 1 STREAM_CLOSED",
        ),
    ] {
        check(Server, &[first, vec![refer(9)]].concat(), expected);
    }
    let mut peer = Peer::greeted(Server);
    peer.conn.go_away();
    peer.says(&[frame(PING, ACK, 0, b"goaway\0\0"), add(1, &[]), refer(3)]);
    assert!(peer.conn.lost().is_none());
}

#[test]
fn a_head_that_is_too_large_is_answered_so() {
    // A field of 3000 bytes, and then nine references to it: small on the wire.
    let mut block = block(&CONNECT);
    block.extend_from_slice(&[0x40, 1, b'k', 0x7f, 0xb9, 0x16]);
    block.extend_from_slice(&[b'v'; 3000]);
    block.extend_from_slice(&[0xbe; 9]);
    for (flags, hears) in [
        (NONE, "HEADERS 1 end; RST 1 NO_ERROR"),
        (END, "HEADERS 1 end"),
    ] {
        let mut peer = Peer::greeted(Server);
        peer.says(&[frame(HEADERS, WHOLE | flags, 1, &block)]);
        assert_eq!(peer.hears(), hears);
        assert_eq!(peer.fields, ":status=431 ");
        assert_eq!(peer.conn.streams.len(), 0);
        peer.says(&[connect(3)]);
        assert_eq!(peer.streams.len(), 1);
    }
    let status = super::peer::block(&OK);
    let answer = frame(
        HEADERS,
        WHOLE,
        1,
        &[&status, &block[block.len() - 3015..]].concat(),
    );
    check(Client, &[answer], "RST 1 PROTOCOL_ERROR");
}

#[test]
fn a_long_head_is_sent_in_several_frames() {
    let mut peer = Peer::greeted(Client);
    let long = vec![b'x'; 40_000];
    let head = [
        Field::usual(":method", b"CONNECT"),
        Field::unique("baggage", &long),
    ];
    peer.conn.open(&head).unwrap();
    peer.conn.ping();
    let hears = "Headers 5 begins; Continuation 5 begins; Continuation 5; PING";
    assert_eq!(peer.hears(), hears);
}

#[test]
fn a_head_comes_in_pieces() {
    let block = block(&CONNECT);
    for size in 1..block.len() {
        let mut says = Vec::new();
        let mut pieces = block.chunks(size).peekable();
        let mut kind = HEADERS;
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { WHOLE } else { NONE };
            says.push(frame(kind, flags, 1, piece));
            kind = CONTINUATION;
        }
        let mut peer = Peer::greeted(Server);
        assert_eq!(peer.says(&says), None);
        assert_eq!(peer.streams.len(), 1);
    }
}
