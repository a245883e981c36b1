//! Windows, both ways: RFC 9113 sections 5.2 and 6.9.

use super::peer::{Our::*, *};
use super::settings;
use crate::http2::Settings;

#[test]
fn what_is_said_after_a_frame_was_made_does_not_overtake_it() {
    let mut peer = Peer::greeted(Client);
    peer.says(&[ok(1)]);
    peer.sends(0, 100, false);
    // The wire takes nothing: the frame waits.
    peer.room = 0;
    peer.transmit();
    // Neither may anything follow a reset, nor may it be more than a window that was agreed to.
    peer.says(&[set(&[(4, 10)])]);
    peer.closes(0);
    peer.room = usize::MAX;
    assert_eq!(peer.hears(), "DATA 1 100; SETTINGS ack; RST 1 CANCEL");
}

/// A server whose three streams are open and answered, and have windows that are larger than that of all together.
fn three_streams() -> Peer {
    let settings = Settings {
        send_buffer: 1 << 20,
        ..settings()
    };
    let mut peer = Peer::greeted_with(Server, &settings);
    peer.says(&[set(&[(4, 1 << 20)]), connect(1), connect(3), connect(5)]);
    (0..3).for_each(|which| peer.answers(which, false));
    peer.hears();
    peer
}

#[test]
fn room_goes_to_the_next_when_the_first_has_no_use_for_it() {
    let mut peer = three_streams();
    assert_eq!(peer.room(0), Some(65_535));
    peer.sends(0, 65_535, false);
    assert_eq!((peer.room(1), peer.room(2)), (None, None));
    peer.hears();
    // It gives up its place, and is not to be counted for it.
    peer.conn.yield_capacity(peer.streams[1]);
    assert!(!peer.is_woken());
    peer.says(&[window(0, 10)]);
    assert!(peer.is_woken());
    assert_eq!(peer.room(2), Some(10));
}

#[test]
fn room_goes_to_the_next_when_the_first_is_closed() {
    let mut peer = three_streams();
    peer.sends(0, 65_535, false);
    assert_eq!((peer.room(1), peer.room(2)), (None, None));
    peer.hears();
    peer.closes(1);
    peer.says(&[window(0, 10)]);
    assert!(peer.is_woken());
    assert_eq!(peer.room(2), Some(10));
}

#[test]
fn room_that_a_smaller_window_leaves_is_given_to_others() {
    let mut peer = three_streams();
    peer.sends(0, 65_535, false);
    assert_eq!((peer.room(1), peer.room(2)), (None, None));
    // The first has nothing left to send by, so what was spoken for is free.
    peer.says(&[set(&[(4, 0)]), window(3, 100)]);
    peer.is_woken();
    assert_eq!(peer.room(1), None);
    assert_eq!(peer.hears(), "SETTINGS ack");
    assert!(peer.is_woken());
    assert_eq!(peer.room(1), Some(100));
}

#[test]
fn nobody_sends_more_than_it_may() {
    let data = |stream, len| data(stream, NONE, len);
    let full = |stream| vec![data(stream, 16_000); 4];
    // All streams together, and one.
    let all = [
        vec![connect(1), connect(3)],
        full(1),
        vec![data(3, 1535), data(3, 1)],
    ];
    check(Server, &all.concat(), "GOAWAY 3 FLOW_CONTROL_ERROR");
    let wide = Settings {
        window: 1 << 20,
        ..settings()
    };
    let mut peer = Peer::greeted_with(Server, &wide);
    let one = [
        vec![connect(1), connect(3)],
        full(1),
        vec![data(1, 1535), data(1, 1)],
    ];
    assert_eq!(peer.says(&one.concat()), None);
    assert_eq!(peer.hears(), "RST 1 FLOW_CONTROL_ERROR");
    assert_eq!(peer.conn.incoming.held(), 0);
    // A frame counts as a whole, with its padding.
    let padded = frame(DATA, PADDED, 1, &[&[200][..], &[0; 1736]].concat());
    let padded = [vec![connect(1)], full(1), vec![padded]].concat();
    check(Server, &padded, "GOAWAY 1 FLOW_CONTROL_ERROR");
}

#[test]
fn windows_have_a_largest_size() {
    let largest = i32::MAX as u32;
    for our in [Client, Server] {
        let first = || {
            if our == Server {
                connect(1)
            } else {
                Vec::new()
            }
        };
        let last = if our == Server { 1 } else { 0 };
        let goaway = |code| format!("GOAWAY {last} {code}");
        let (flow, protocol) = (goaway("FLOW_CONTROL_ERROR"), goaway("PROTOCOL_ERROR"));
        check(our, &[first(), window(0, largest - 65_535)], "");
        check(our, &[first(), window(0, largest - 65_534)], &flow);
        check(our, &[first(), window(0, 0)], &protocol);
        check(our, &[first(), window(1, largest - 65_535)], "");
        check(
            our,
            &[first(), window(1, largest)],
            "RST 1 FLOW_CONTROL_ERROR",
        );
        check(our, &[first(), window(1, 0)], "RST 1 PROTOCOL_ERROR");
        // The bit that is reserved.
        check(our, &[first(), window(0, 1 << 31 | 1)], "");
        let says = [first(), window(1, largest - 65_535), set(&[(4, 65_536)])];
        check(our, &says, &flow);
        let says = [first(), window(1, largest - 65_535), set(&[(4, 65_534)])];
        check(our, &says, "SETTINGS ack");
    }
}

#[test]
fn a_window_of_the_peer_gets_smaller_and_larger() {
    let mut peer = Peer::greeted(Client);
    peer.says(&[ok(1), set(&[(4, 10)])]);
    assert_eq!(peer.room(0), Some(10));
    peer.sends(0, 10, false);
    assert_eq!(peer.hears(), "SETTINGS ack; DATA 1 10");
    assert_eq!(peer.room(0), None);
    // Below nothing.
    peer.says(&[set(&[(4, 4)])]);
    peer.says(&[window(1, 6)]);
    assert!(!peer.is_woken());
    peer.says(&[window(1, 3)]);
    assert!(peer.is_woken());
    assert_eq!(peer.room(0), Some(3));
    peer.sends(0, 3, false);
    assert_eq!(peer.room(0), None);
    peer.says(&[set(&[(4, 8)])]);
    assert!(peer.is_woken());
    assert_eq!(peer.room(0), Some(4));
    // The end waits for nobody.
    peer.sends(0, 4, false);
    peer.sends(0, 0, true);
    assert_eq!(
        peer.hears(),
        "SETTINGS ack; SETTINGS ack; DATA 1 3; DATA 1 4 end"
    );
    // Streams that are opened after that begin with it.
    peer.open();
    peer.says(&[ok(5)]);
    assert_eq!(peer.room(2), Some(8));
}

#[test]
fn the_end_waits_for_no_window() {
    let mut peer = Peer::greeted(Client);
    peer.says(&[ok(1), ok(3), set(&[(4, 65_535 + 10)])]);
    assert_eq!(peer.room(0), Some(65_535));
    peer.sends(0, 65_535, false);
    peer.hears();
    peer.sends(1, 0, true);
    assert_eq!(peer.hears(), "DATA 3 0 end");
    peer.sends(0, 0, true);
    assert_eq!(peer.hears(), "DATA 1 0 end");
}

#[test]
fn streams_take_turns() {
    let mut peer = three_streams();
    for which in 0..3 {
        peer.sends(which, 20_000, true);
    }
    let expected = "DATA 1 16384; DATA 3 16384; DATA 5 16384; DATA 1 3616 end; DATA 3 3616 end; DATA 5 3616 end";
    assert_eq!(peer.hears(), expected);
}

#[test]
fn a_smaller_window_of_ours_counts_from_its_acknowledgment_on() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), connect(3)]);
    assert!(peer.conn.resize_streams(100));
    assert!(!peer.conn.resize_streams(200), "one at a time");
    assert_eq!(peer.hears(), "SETTINGS");
    assert_eq!(peer.says(&[data(1, NONE, 5000)]), None);
    peer.says(&[set_ack()]);
    assert!(peer.conn.resize_streams(100));
    assert_eq!(peer.hears(), "");
    // It has nothing left in one, and as much as is said in the others.
    peer.says(&[data(3, NONE, 100), data(1, NONE, 1)]);
    assert_eq!(peer.hears(), "RST 1 FLOW_CONTROL_ERROR");
    peer.says(&[data(3, NONE, 1)]);
    assert_eq!(peer.hears(), "RST 3 FLOW_CONTROL_ERROR");
}

#[test]
fn a_window_below_nothing_opens_once_it_is_taken() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), data(1, NONE, 5000)]);
    peer.conn.resize_streams(100);
    peer.says(&[set_ack()]);
    assert_eq!(peer.hears(), "SETTINGS");
    peer.conn.release(peer.streams[0], 100);
    assert_eq!(peer.hears(), "WINDOW 1 +100", "still below nothing");
    peer.conn.release(peer.streams[0], 4850);
    assert_eq!(peer.hears(), "WINDOW 1 +4850");
    peer.conn.resize_streams(200);
    peer.says(&[set_ack()]);
    assert_eq!(peer.hears(), "SETTINGS");
    assert_eq!(peer.says(&[data(1, NONE, 150)]), None);
    peer.conn.release(peer.streams[0], 1000);
    assert_eq!(peer.hears(), "WINDOW 1 +200");
}

#[test]
fn the_window_of_all_is_opened_for_data_that_is_nobodys() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), connect(3)]);
    peer.closes(0);
    peer.hears();
    for _ in 0..100 {
        assert_eq!(peer.says(&[data(1, NONE, 16_000)]), None);
    }
    let opened: Vec<_> = peer.hears().split("; ").map(str::to_owned).collect();
    assert!(opened.len() > 40 && opened.iter().all(|one| one.starts_with("WINDOW 0 +")));
    assert_eq!(peer.conn.incoming.held(), 0);
    // What was not taken when its stream was closed counts too.
    peer.says(&[
        data(3, NONE, 16_000),
        data(3, NONE, 16_000),
        data(3, NONE, 16_000),
    ]);
    assert_eq!(peer.conn.held(peer.streams[1]), 48_000);
    peer.closes(1);
    assert_eq!(peer.conn.incoming.held(), 0);
}

#[test]
fn a_window_is_not_opened_when_nothing_more_comes() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), data(1, NONE, 16_000), data(1, END, 16_000)]);
    peer.conn.release(peer.streams[0], 32_000);
    assert_eq!(peer.hears(), "WINDOW 0 +32000");
}

#[test]
fn the_window_of_all_is_resized() {
    let mut peer = Peer::greeted(Server);
    peer.conn.resize(200_000);
    assert_eq!(peer.hears(), "WINDOW 0 +134465");
    peer.conn.resize(65_535);
    peer.says(&[connect(1), data(1, NONE, 16_000)]);
    peer.conn.release(peer.streams[0], 16_000);
    assert_eq!(peer.hears(), "", "what was promised is used first");
}

/// Streams that nobody reads hold what there is: no release makes anybody look at the window again.
#[test]
fn what_was_too_little_to_tell_is_told_once_the_rest_is_used_up() {
    let mut peer = Peer::greeted(Server);
    peer.says(&[connect(1), connect(3)]);
    peer.hears();
    peer.conn.resize(65_535 + 20_000);
    assert_eq!(peer.hears(), "");
    let data = |stream, len| data(stream, NONE, len);
    peer.says(&[data(1, 16_000), data(1, 16_000), data(3, 16_000)]);
    assert_eq!(peer.hears(), "WINDOW 0 +20000");
}
