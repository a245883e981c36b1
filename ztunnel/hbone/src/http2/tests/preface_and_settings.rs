//! How a connection begins, and SETTINGS: RFC 9113 sections 3.4 and 6.5.

use super::peer::{Our::*, *};
use super::settings;
use crate::http2::frame::PREFACE;
use crate::http2::{Connection, Settings};

#[test]
fn both_begin_with_what_they_are() {
    let mut client = Peer::new(Connection::client(&settings()));
    assert_eq!(client.hears(), "PREFACE; SETTINGS");
    let mut server = Peer::new(Connection::server(&settings()));
    assert_eq!(server.hears(), "SETTINGS");
    let large = Settings {
        window: 1 << 20,
        ..settings()
    };
    let mut server = Peer::new(Connection::server(&large));
    assert_eq!(server.hears(), "SETTINGS; WINDOW 0 +983041");
}

/// What a server says to one that begins in this way.
fn begins(our: fn(&Settings) -> Connection, says: &[Vec<u8>], hears: &str) {
    for size in [usize::MAX, 1] {
        let mut peer = Peer::new(our(&settings()));
        peer.hears();
        let says = says.concat();
        for piece in says.chunks(size.min(says.len())) {
            peer.says(&[piece.to_vec()]);
        }
        assert_eq!(peer.hears(), hears);
    }
}

#[test]
fn a_peer_begins_with_preface_and_settings() {
    let preface = || PREFACE.to_vec();
    let client = Connection::client;
    let server = Connection::server;
    begins(server, &[greeting()], "SETTINGS ack");
    begins(
        server,
        &[b"GET / HTTP/1.1\r\n\r\n".to_vec()],
        "GOAWAY 0 PROTOCOL_ERROR",
    );
    begins(
        server,
        &[b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec()],
        "GOAWAY 0 PROTOCOL_ERROR",
    );
    begins(server, &[preface(), connect(1)], "GOAWAY 0 PROTOCOL_ERROR");
    begins(server, &[preface(), set_ack()], "GOAWAY 0 PROTOCOL_ERROR");
    begins(
        server,
        &[preface(), frame(0xbe, 0, 0, &[])],
        "GOAWAY 0 PROTOCOL_ERROR",
    );
    begins(client, &[set(&[])], "SETTINGS ack");
    begins(
        client,
        &[frame(PING, NONE, 0, &[0; 8])],
        "GOAWAY 0 PROTOCOL_ERROR",
    );
}

#[test]
fn whether_it_has_begun_is_known_when_the_preface_is_there() {
    let mut peer = Peer::new(Connection::server(&settings()));
    peer.says(&[PREFACE[..23].to_vec()]);
    assert!(!peer.conn.has_begun());
    peer.says(&[PREFACE[23..].to_vec()]);
    assert!(peer.conn.has_begun());
    assert!(Connection::client(&settings()).has_begun());
}

#[test]
fn settings_are_acknowledged_or_refused() {
    for our in [Client, Server] {
        for (says, hears) in [
            (set(&[]), "SETTINGS ack"),
            (
                set(&[(1, 0), (2, 0), (3, 9), (4, 9), (5, 20_000), (6, 9), (9, 9)]),
                "SETTINGS ack",
            ),
            (set_ack(), ""),
            (set(&[(2, 2)]), "GOAWAY 0 PROTOCOL_ERROR"),
            (set(&[(4, 1 << 31)]), "GOAWAY 0 FLOW_CONTROL_ERROR"),
            (set(&[(5, 16_383)]), "GOAWAY 0 PROTOCOL_ERROR"),
            (set(&[(5, 1 << 24)]), "GOAWAY 0 PROTOCOL_ERROR"),
            (
                frame(SETTINGS, NONE, 0, &[0; 5]),
                "GOAWAY 0 FRAME_SIZE_ERROR",
            ),
            (
                frame(SETTINGS, ACK, 0, &[0; 6]),
                "GOAWAY 0 FRAME_SIZE_ERROR",
            ),
            (frame(SETTINGS, NONE, 1, &[]), "GOAWAY 0 PROTOCOL_ERROR"),
            (frame(SETTINGS, ACK, 1, &[]), "GOAWAY 0 PROTOCOL_ERROR"),
        ] {
            check(our, &[says], hears);
        }
    }
}

#[test]
fn a_larger_frame_is_sent_when_the_peer_takes_it() {
    let mut peer = Peer::greeted(Client);
    peer.says(&[ok(1)]);
    peer.sends(0, 40_000, true);
    assert_eq!(peer.hears(), "DATA 1 16384; DATA 1 16384; DATA 1 7232 end");
    peer.says(&[ok(3), set(&[(5, 30_000)])]);
    peer.sends(1, 20_000, true);
    assert_eq!(peer.hears(), "SETTINGS ack; DATA 3 20000 end");
}

#[test]
fn a_table_that_the_peer_makes_smaller_is_not_used_any_more() {
    let mut peer = Peer::greeted(Client);
    peer.says(&[set(&[(1, 0)])]);
    peer.open();
    assert_eq!(peer.hears(), "SETTINGS ack; HEADERS 5");
    assert_eq!(peer.fields, ":method=CONNECT :authority=a:1 ");
}

#[test]
fn a_table_that_was_smaller_for_a_moment_is_empty() {
    let mut peer = Peer::greeted(Client);
    peer.says(&[set(&[(1, 0), (1, 4096)])]);
    peer.open();
    assert_eq!(peer.hears(), "SETTINGS ack; HEADERS 5");
    assert_eq!(peer.fields, ":method=CONNECT :authority=a:1 ");
    assert!(peer.block.starts_with(&[0x20, 0x3f]), "both are told");
}
