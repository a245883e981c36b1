//! Connections share tunnels, and do not suffer from each other in them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::tester::{Check, Service};

use super::good;
use super::wire::HBONE_PORT;
use crate::mesh::enrolled;

const MIB: u64 = 1 << 20;

/// More than a proxy may take in for one stream that nobody reads, and the sockets on the way.
const MORE_THAN_FITS: u64 = 64 * MIB;

#[test]
fn a_hundred_connections_at_once_share_a_tunnel_of_each_worker() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    for &to in far.ips() {
        let link = lab.tap("node1", "node2", &[]).unwrap();
        let to = SocketAddr::new(to, Service::Echo.port());
        let report = good(&client, to, &Check::parallel(100));
        assert_eq!(report.good, 100);
        let seen = link.stop().unwrap();
        // There are two workers.
        assert!((1..=2).contains(&seen.opened_to(HBONE_PORT)), "{seen:?}");
    }
}

#[test]
fn more_connections_than_one_tunnel_takes_go_through_more_tunnels() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[]).unwrap();
    let to = SocketAddr::new(far.v4().unwrap(), Service::Echo.port());
    let report = good(&client, to, &Check::parallel(250));
    assert_eq!(report.good, 250);
    let seen = link.stop().unwrap();
    assert!((3..=6).contains(&seen.opened_to(HBONE_PORT)), "{seen:?}");
}

#[test]
fn connections_one_after_the_other_use_the_tunnel_that_is_there() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[]).unwrap();
    for to in ["10.96.0.10".parse().unwrap(), far.v4().unwrap()] {
        for _ in 0..5 {
            let to = SocketAddr::new(to, Service::Echo.port());
            good(&client, to, &Check::echo("hello"));
        }
    }
    let seen = link.stop().unwrap();
    assert!((1..=2).contains(&seen.opened_to(HBONE_PORT)), "{seen:?}");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    let link = lab.tap("node1", "node2", &[]).unwrap();
    let to = SocketAddr::new(far.v4().unwrap(), Service::Duplex.port());

    let mut slow = client.connect(to, Duration::from_secs(5)).unwrap();
    ask_for(&mut slow, MORE_THAN_FITS);
    slow.peek(&mut [0]).unwrap(); // it comes
    for _ in 0..3 {
        good(&client, to, &Check::duplex(8 * MIB, 8 * MIB));
    }
    let mut received = Vec::new();
    slow.read_to_end(&mut received).unwrap();
    // The verdict comes last.
    assert_eq!(received.len() as u64, MORE_THAN_FITS + 1);

    let seen = link.stop().unwrap();
    assert_eq!(seen.opened_to(HBONE_PORT), 1, "in one tunnel: {seen:?}");
}

/// Has the server send so much, and sends nothing.
fn ask_for(stream: &mut TcpStream, length: u64) {
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    let lengths = [0_u64.to_be_bytes(), length.to_be_bytes()].concat();
    stream.write_all(&lengths).unwrap();
}
