//! Clients whose ports are those that the proxy likes to take: nobody gets in another's way.
//!
//! An app sees the client's address with a port that the proxy chose. A connection whose addresses and ports are
//! those of another one in the same namespace never opens, or, if it is refused by the kernel, fails at once.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use lab::Place;
use lab::tester::Service;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::{OUTSIDE_HOST, ip, own_address};
use crate::mesh::enrolled;

/// Connections that are open at the same time. So many that two draws of a port out of some twenty thousand are
/// sure to meet.
const CONNECTIONS: u16 = 600;
/// Below what the kernel draws from.
const LOW_PORTS: u16 = 20_000;

/// Opens connections from ports in a row and uses each while all before it are open.
fn all_work(from: &Place, own: IpAddr, to: IpAddr) {
    let to = SocketAddr::new(to, Service::Echo.port());
    let opened = from.namespace().enter(|| {
        let ports = LOW_PORTS..LOW_PORTS + CONNECTIONS;
        ports
            .map(|port| exchange(SocketAddr::new(own, port), to))
            .collect::<Vec<_>>()
    });
    for (number, stream) in opened.unwrap().iter().enumerate() {
        assert!(stream.is_ok(), "connection {number} to {to}: {stream:?}");
    }
}

/// Connects from a port that may have been used a moment ago. No call takes longer than `limit`.
pub(super) fn connect_from(
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> io::Result<TcpStream> {
    let family = match from {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(limit.as_secs().cast_signed(), limit.subsec_micros().into());
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(fd))
}

/// A connection that has been of use.
fn exchange(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect_from(from, to, Duration::from_secs(1))?;
    stream.write_all(&from.port().to_be_bytes())?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer)?;
    if answer != from.port().to_be_bytes() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(stream)
}

#[test]
fn many_connections_from_low_ports_through_tunnels_all_work() {
    let lab = enrolled().unwrap();
    let (client, far) = (lab.pod("shop/client"), lab.pod("shop/far"));
    let _server = far.serve().unwrap();
    all_work(&client, client.v4().unwrap(), far.v4().unwrap());
}

#[test]
fn many_connections_from_low_ports_outside_all_work() {
    let lab = enrolled().unwrap();
    let far = lab.pod("shop/far");
    let _server = far.serve().unwrap();
    for &to in far.ips() {
        all_work(lab.outside(), own_address(&OUTSIDE_HOST.map(ip), to), to);
    }
}
