//! Much data: every byte arrives, once, in order.

use std::net::IpAddr;

use lab::tester::Check;

use super::Everywhere;

const MIB: u64 = 1 << 20;

fn carries_64_mib_each_way_at_once(what: &str, families: &[fn(&IpAddr) -> bool]) {
    let mut everywhere = Everywhere::enrolled();
    let paths = everywhere.paths();
    for family in families {
        let mut found = paths
            .iter()
            .filter(|path| path.what == what && family(&path.to));
        let path = found.next().unwrap();
        let (report, event) = everywhere.good(path, &Check::duplex(64 * MIB, 64 * MIB));
        assert_eq!((report.sent, report.received), (64 * MIB, 64 * MIB));
        assert_eq!(event.received, 64 * MIB);
    }
}

#[test]
fn between_nodes_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("to the other node", &[IpAddr::is_ipv4, IpAddr::is_ipv6]);
}

#[test]
fn to_a_service_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("to a service", &[IpAddr::is_ipv4]);
}

#[test]
fn from_outside_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("from outside", &[IpAddr::is_ipv6]);
}

#[test]
fn to_outside_64_mib_each_way_at_once_arrive_unharmed() {
    carries_64_mib_each_way_at_once("to outside", &[IpAddr::is_ipv4]);
}
