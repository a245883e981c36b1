//! How connections begin and end: each half by itself, in order or not, or not at all.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::Place;
use lab::tester::{Check, Outcome, Service};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use super::Everywhere;

/// Nobody in the lab listens there.
const CLOSED_PORT: u16 = 7998;

/// A failure has to come at once: nothing in the lab is slow, and no deadline may be what ends it.
const AT_ONCE: Duration = Duration::from_secs(2);

/// What `check` needs is not to be had at `to`, and the client learns it at once.
pub(super) fn assert_turned_away(from: &Place, to: SocketAddr, check: &Check) {
    let report = from.check_at(to, check).unwrap();
    let turned_away = matches!(report.outcome, Outcome::Reset | Outcome::Refused);
    let at_once = Duration::from_millis(report.elapsed_ms) < AT_ONCE;
    assert!(
        turned_away && at_once,
        "{} to {to}: {report:?}",
        from.name()
    );
}

#[test]
fn a_client_may_end_its_half_before_the_server_speaks() {
    let mut everywhere = Everywhere::enrolled();
    for path in everywhere.paths() {
        let (report, event) = everywhere.good(&path, &Check::of(Service::AfterFin));
        assert_eq!(event.outcome, Outcome::Good, "{event:?}");
        assert_eq!(event.received, report.sent, "{event:?}");
    }
}

#[test]
fn a_server_may_end_its_half_before_the_client_speaks() {
    let mut everywhere = Everywhere::enrolled();
    for path in everywhere.paths() {
        let (report, event) = everywhere.good(&path, &Check::of(Service::EarlyFin));
        assert_eq!(event.outcome, Outcome::Good, "{event:?}");
        assert_eq!(event.received, report.sent, "{event:?}");
    }
}

#[test]
fn a_server_may_speak_first() {
    let mut everywhere = Everywhere::enrolled();
    for path in everywhere.paths() {
        everywhere.good(&path, &Check::of(Service::Banner));
        everywhere.good(&path, &Check::of(Service::Source));
    }
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    let mut everywhere = Everywhere::enrolled();
    for path in everywhere.paths() {
        everywhere.good(&path, &Check::of(Service::Reset));
    }
}

#[test]
fn a_reset_by_the_client_reaches_the_server_as_a_reset() {
    let mut everywhere = Everywhere::enrolled();
    for path in everywhere.paths() {
        let to = SocketAddr::new(path.to, Service::Echo.port());
        let mut stream = path.from.connect(to, AT_ONCE).unwrap();
        exchange(&mut stream);
        reset(stream);
        let event = everywhere.event(&path);
        let what = format!("{} ({}): {event:?}", path.what, path.to);
        assert_eq!(event.outcome, Outcome::Reset, "{what}");
    }
}

#[test]
fn a_port_where_nobody_listens_turns_clients_away_at_once() {
    let everywhere = Everywhere::enrolled();
    for path in everywhere.paths() {
        let to = SocketAddr::new(path.to, CLOSED_PORT);
        assert_turned_away(&path.from, to, &Check::echo("hello"));
        // Also one who only listens.
        assert_turned_away(&path.from, to, &Check::of(Service::Banner));
    }
}

fn exchange(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(AT_ONCE)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

fn reset(stream: TcpStream) {
    let at_once = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
    drop(stream);
}
