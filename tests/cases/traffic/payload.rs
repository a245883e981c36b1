//! Much data: every byte arrives, once, in order.

use lab::tester::Check;

use super::Everywhere;

const MIB: u64 = 1 << 20;

fn carries_64_mib_each_way_at_once(what: &str) {
    let mut everywhere = Everywhere::enrolled();
    let paths = everywhere.paths();
    let mut found = paths.iter().filter(|path| path.what == what).peekable();
    assert!(found.peek().is_some(), "there is no path `{what}`");
    for path in found {
        let (report, event) = everywhere.good(path, &Check::duplex(64 * MIB, 64 * MIB));
        assert_eq!((report.sent, report.received), (64 * MIB, 64 * MIB));
        assert_eq!(event.received, 64 * MIB);
    }
}

#[test]
fn between_nodes_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("to the other node");
}

#[test]
fn to_a_service_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("to a service");
}

#[test]
fn from_outside_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("from outside");
}

#[test]
fn to_outside_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("to outside");
}
