//! How a connection ends: RFC 9113 sections 5.4.1 and 6.8.

use super::peer::{Our::*, *};
use crate::ErrorCode;
use crate::http2::{Lost, StreamError};

const PONG: [u8; 8] = *b"goaway\0\0";

fn pong() -> Vec<u8> {
    frame(PING, ACK, 0, &PONG)
}

#[test]
fn a_server_serves_what_is_on_its_way() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1)]);
    peer.conn.go_away();
    peer.conn.go_away();
    assert_eq!(peer.hears(), "GOAWAY 2147483647 NO_ERROR; PING");
    peer.says(&[connect(3)]);
    assert!(peer.conn.lost().is_none() && !peer.conn.is_done());
    peer.says(&[pong()]);
    peer.says(&[pong()]);
    assert_eq!(peer.hears(), "GOAWAY 3 NO_ERROR");
    assert_eq!(peer.streams.len(), 2);
    for which in 0..2 {
        assert!(!peer.conn.is_done());
        peer.answers(which, true);
        peer.says(&[data(2 * which as u32 + 1, END, 10)]);
    }
    assert!(peer.conn.is_done());
    assert_eq!(peer.hears(), "HEADERS 1 end; HEADERS 3 end");
}

#[test]
fn what_comes_too_late_is_not_looked_at_and_ends_nothing() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1)]);
    peer.conn.go_away();
    peer.says(&[pong()]);
    peer.hears();
    let late = [
        connect(3),
        data(3, NONE, 10_000),
        window(3, 5),
        connect(7),
        head(3, END, &[("a", "b")]),
        data(7, END, 10_000),
        reset(3, ErrorCode::CANCEL),
    ];
    assert_eq!(peer.says(&late), None);
    assert_eq!((peer.hears(), peer.streams.len()), (String::new(), 1));
    // It took room in the window.
    assert_eq!(peer.conn.incoming.held(), 0);
    assert_eq!(peer.says(&[data(1, NONE, 10_000)]), None);
    assert!(peer.says(&[data(9, NONE, 1)]).is_some());
    assert_eq!(peer.hears(), "WINDOW 0 +20000; GOAWAY 1 PROTOCOL_ERROR");
}

#[test]
fn a_client_opens_elsewhere_what_was_not_looked_at() {
    let mut peer = Peer::greeted(Client);
    peer.open();
    peer.hears();
    let goes = peer.says(&[goaway(i32::MAX as u32, ErrorCode::NO_ERROR)]);
    assert_eq!(goes, None);
    assert!(matches!(peer.conn.may_open(), Err(StreamError::NotTaken)));
    assert!(peer.reads(2).is_pending());
    peer.says(&[goaway(3, ErrorCode::NO_ERROR)]);
    assert!(peer.is_woken());
    let told = |peer: &mut Peer, which| match peer.reads(which) {
        std::task::Poll::Ready(Err(StreamError::NotTaken)) => true,
        polled => polled.is_ready(),
    };
    assert!(told(&mut peer, 2) && !told(&mut peer, 1));
    // It does not take that back.
    peer.says(&[
        goaway(5, ErrorCode::NO_ERROR),
        goaway(1, ErrorCode::NO_ERROR),
    ]);
    assert!(told(&mut peer, 1) && !told(&mut peer, 0));
    assert!(!peer.conn.is_done());
    peer.says(&[head(1, END, &OK)]);
    peer.sends(0, 0, true);
    assert_eq!(peer.hears(), "DATA 1 0 end");
    assert!(peer.conn.is_done());
}

#[test]
fn a_client_finishes_when_its_streams_have() {
    let mut peer = Peer::greeted(Client);
    peer.conn.finish();
    assert!(peer.conn.may_open().is_err() && !peer.conn.is_done());
    peer.closes(0);
    peer.says(&[head(3, END, &OK)]);
    peer.sends(1, 5, true);
    assert_eq!(
        peer.hears(),
        "GOAWAY 0 NO_ERROR; RST 1 CANCEL; DATA 3 5 end"
    );
    assert!(peer.conn.is_done());
}

#[test]
fn a_server_ends_when_its_client_goes() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), goaway(0, ErrorCode::NO_ERROR)]);
    assert!(!peer.conn.is_done());
    peer.answers(0, true);
    peer.says(&[data(1, END, 0)]);
    assert!(peer.conn.is_done());
}

#[test]
fn all_streams_hear_that_the_connection_is_lost() {
    for lose in [
        |peer: &mut Peer| assert!(peer.says(&[data(0, NONE, 0)]).is_some()),
        |peer: &mut Peer| peer.conn.abort(ErrorCode::ENHANCE_YOUR_CALM),
        |peer: &mut Peer| peer.conn.lose(Lost::Closed),
    ] {
        let mut peer = Peer::greeted(Server);
        peer.says(&[connect(1), data(1, NONE, 16_000), connect(3)]);
        peer.answers(0, false);
        peer.sends(0, 100, false);
        peer.transmit();
        assert!(peer.reads(1).is_pending());
        lose(&mut peer);
        assert!(peer.is_woken() && peer.conn.is_done());
        assert!(matches!(
            peer.reads(1),
            std::task::Poll::Ready(Err(StreamError::Lost(_)))
        ));
        let hears = peer.hears();
        let goaway = hears.rsplit("; ").next().unwrap();
        assert!(
            goaway.starts_with("GOAWAY 3 ") || goaway == "DATA 1 100",
            "{hears}"
        );
        // Nothing follows.
        assert_eq!(peer.says(&[connect(5)]), None);
        (0..2).for_each(|which| peer.closes(which));
        assert_eq!(peer.hears(), "");
        assert_eq!(peer.conn.streams.len(), 0);
    }
}

#[test]
fn a_request_that_nobody_took_is_lost_with_the_connection() {
    let mut peer = Peer::greeted(Server);
    peer.conn.receive(&connect(1)).unwrap();
    peer.conn.lose(Lost::Closed);
    assert!(peer.conn.accept().is_none());
    assert_eq!(peer.conn.streams.len(), 0);
}
