//! Frames that are not what they should be: RFC 9113 sections 4 and 6, of each kind.

use super::peer::{Our::*, *};
use crate::ErrorCode;

const SIZE: &str = "GOAWAY 0 FRAME_SIZE_ERROR";
const PROTOCOL: &str = "GOAWAY 0 PROTOCOL_ERROR";
const PONG: &str = "PING ack";

fn ping() -> Vec<u8> {
    frame(PING, NONE, 0, b"whatever")
}

/// That one of another kind is heard after it says that it was passed over as a whole.
#[test]
fn what_is_not_known_is_passed_over() {
    for our in [Client, Server] {
        for kind in [0xa, 0xbe, 0xff] {
            for (stream, len) in [(0, 0), (0, 8), (1, 16_384), (77, 5), (1 << 31 | 2, 1)] {
                check(
                    our,
                    &[frame(kind, 0xff, stream, &vec![7; len]), ping()],
                    PONG,
                );
            }
            check(our, &[frame(kind, 0, 0, &[0; 16_385])], SIZE);
        }
        // Flags that mean nothing, and the bit that is reserved.
        check(our, &[frame(PING, 0xfe, 1 << 31, b"whatever")], PONG);
    }
}

#[test]
fn each_kind_has_its_length() {
    for our in [Client, Server] {
        for kind in [DATA, HEADERS, SETTINGS, GOAWAY, CONTINUATION] {
            check(our, &[frame(kind, NONE, 1, &[0; 16_385])], SIZE);
        }
        for (kind, stream, len) in [
            (PRIORITY, 1, 4),
            (PRIORITY, 1, 6),
            (PRIORITY, 1, 0),
            (RST_STREAM, 1, 3),
            (RST_STREAM, 1, 5),
            (RST_STREAM, 1, 0),
            (PING, 0, 6),
            (PING, 0, 9),
            (PING, 0, 0),
            (GOAWAY, 0, 7),
            (WINDOW_UPDATE, 0, 3),
            (WINDOW_UPDATE, 1, 5),
            (WINDOW_UPDATE, 1, 0),
        ] {
            check(our, &[frame(kind, NONE, stream, &vec![0; len])], SIZE);
        }
    }
}

#[test]
fn each_kind_is_of_a_stream_or_of_none() {
    for our in [Client, Server] {
        for (kind, stream, len) in [
            (DATA, 0, 5),
            (DATA, 0, 0),
            (HEADERS, 0, 1),
            (PRIORITY, 0, 5),
            (RST_STREAM, 0, 4),
            (CONTINUATION, 0, 1),
            (PING, 1, 8),
            (GOAWAY, 1, 8),
        ] {
            check(our, &[frame(kind, NONE, stream, &vec![0; len])], PROTOCOL);
        }
    }
}

#[test]
fn nothing_is_pushed() {
    for our in [Client, Server] {
        let promise = [&[0, 0, 0, 2][..], &block(&CONNECT)].concat();
        check(our, &[frame(PUSH_PROMISE, WHOLE, 1, &promise)], PROTOCOL);
    }
}

#[test]
fn priority_says_nothing() {
    let priority = |stream| frame(PRIORITY, NONE, stream, &[0, 0, 0, 9, 200]);
    for our in [Client, Server] {
        // Of streams in any state.
        check(our, &[priority(1), priority(99), priority(2), ping()], PONG);
    }
    let says = [&[0, 0, 0, 3, 9][..], &block(&CONNECT)].concat();
    let says = frame(HEADERS, WHOLE | WITH_PRIORITY | END, 1, &says);
    check(Server, &[says, data(1, END, 0)], "RST 1 STREAM_CLOSED");
    check(
        Server,
        &[frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &[0; 4])],
        SIZE,
    );
}

#[test]
fn a_ping_comes_back_as_it_is_and_an_answer_does_not() {
    for our in [Client, Server] {
        check(our, &[ping(), frame(PING, ACK, 0, b"whatever")], PONG);
    }
    let mut peer = Peer::greeted(Server);
    peer.conn.ping();
    assert_eq!(peer.hears(), "PING");
    peer.says(&[frame(PING, ACK, 0, b"whatever")]);
    assert!(peer.conn.is_pinging());
    peer.says(&[frame(PING, ACK, 0, b"alive?\0\0")]);
    assert!(!peer.conn.is_pinging());
}

#[test]
fn padding_is_taken_off() {
    let padded = |kind, flags, padding: u8, content: &[u8]| {
        let padded = [&[padding][..], content, &vec![0; padding.into()]].concat();
        frame(kind, flags | PADDED, 1, &padded)
    };
    for padding in [0, 1, 100, 255] {
        for (flags, len) in [(NONE, 0), (NONE, 1), (END, 0), (END, 300)] {
            for size in [usize::MAX, 1, 3] {
                let mut peer = Peer::greeted(Server);
                peer.says(&[padded(HEADERS, WHOLE, padding, &block(&CONNECT))]);
                let says = padded(DATA, flags, padding, &vec![b'x'; len]);
                for piece in says.chunks(size.min(says.len())) {
                    assert_eq!(peer.says(&[piece.to_vec()]), None);
                }
                let mut count = 0;
                while let std::task::Poll::Ready(Ok(Some(data))) = peer.reads(0) {
                    count += data.len();
                }
                assert_eq!(count, len);
                assert_eq!(peer.conn.is_at_end(peer.streams[0]), flags == END);
                assert_eq!(peer.conn.held(peer.streams[0]), len, "padding is not held");
            }
        }
    }
}

#[test]
fn padding_is_less_than_the_frame() {
    for (kind, our) in [(DATA, Server), (HEADERS, Server)] {
        let first = if kind == DATA { connect(1) } else { Vec::new() };
        let last = if kind == DATA { 1 } else { 0 };
        let protocol = format!("GOAWAY {last} PROTOCOL_ERROR");
        for content in [&[1][..], &[5, 0, 0, 0, 0], &[255; 100]] {
            let says = frame(kind, PADDED | WHOLE, 1, content);
            check(our, &[first.clone(), says], &protocol);
        }
        let says = frame(kind, PADDED | WHOLE, 1, &[]);
        let size = format!("GOAWAY {last} FRAME_SIZE_ERROR");
        check(our, &[first, says], &size);
    }
}

#[test]
fn nothing_comes_between_the_frames_of_a_head() {
    let block = block(&CONNECT);
    let (first, rest) = block.split_at(3);
    let begin = || frame(HEADERS, NONE, 1, first);
    for says in [
        data(1, NONE, 1),
        connect(3),
        connect(1),
        ping(),
        set(&[]),
        window(0, 1),
        window(1, 1),
        frame(PRIORITY, NONE, 1, &[0; 5]),
        frame(0xbe, 0, 1, &[]),
        reset(1, ErrorCode::CANCEL),
        frame(CONTINUATION, WHOLE, 3, rest),
    ] {
        check(Server, &[begin(), says], PROTOCOL);
    }
    for our in [Client, Server] {
        check(our, &[frame(CONTINUATION, WHOLE, 1, rest)], PROTOCOL);
    }
    let end = || frame(CONTINUATION, WHOLE, 1, rest);
    let empty = || frame(CONTINUATION, NONE, 1, &[]);
    check(Server, &[begin(), empty(), end(), ping()], PONG);
    check(Server, &[begin(), end(), end()], "GOAWAY 1 PROTOCOL_ERROR");
    // END_STREAM is of the first frame.
    let begin_end = frame(HEADERS, END, 1, first);
    check(
        Server,
        &[begin_end, end(), data(1, NONE, 1)],
        "RST 1 STREAM_CLOSED",
    );
}
