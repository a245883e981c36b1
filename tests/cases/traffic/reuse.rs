//! How connections are gone: at once on both sides, whoever closes first, so that the next one may have the same port.
//!
//! A client closes for good, it does not wait for the server's end. What the server says then, the kernel answers for a
//! socket that is no more; the proxy has to hear that as well.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::Service;
use lab::{Lab, Place};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Everywhere, Path, own_address, ports::connect_from};
use crate::mesh::enrolled;

/// One that services have, too.
const PORT: u16 = Service::Echo.port();
const CLIENT_PORT: u16 = 45_000;
/// Far more than anything takes, far less than what retransmissions go on for.
const AT_ONCE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Server,
    Both,
}

/// One way for bytes to take, and a server at its end.
struct Ends {
    client: Place,
    server: Place,
    listener: TcpListener,
    from: SocketAddr,
    to: SocketAddr,
}

impl Ends {
    fn of(lab: &Lab, path: &Path) -> Self {
        let (pod, server) = match path.server {
            "outside" => (None, lab.outside().clone()),
            key => (Some(lab.pod(key)), Place::clone(&lab.pod(key))),
        };
        let own: Vec<_> = match path.what {
            "from outside" => super::OUTSIDE_HOST.map(super::ip).to_vec(),
            _ => lab.pod("shop/client").ips().to_vec(),
        };
        let at = pod.map_or(path.to, |pod| own_address(pod.ips(), path.to));
        Self {
            client: path.from.clone(),
            listener: server.listen(SocketAddr::new(at, PORT)).unwrap(),
            server,
            from: SocketAddr::new(own_address(&own, path.to), CLIENT_PORT),
            to: SocketAddr::new(path.to, PORT),
        }
    }

    /// A connection that has been of use.
    fn open(&self) -> (TcpStream, TcpStream) {
        let inside = self.client.namespace();
        let connect = || connect_from(self.from, self.to, AT_ONCE);
        let mut client = inside.enter(connect).unwrap().unwrap();
        client.write_all(b"?").unwrap();
        let (mut server, _) = self.listener.accept().unwrap();
        server.set_read_timeout(Some(AT_ONCE)).unwrap();
        server.set_write_timeout(Some(AT_ONCE)).unwrap();
        read(&mut server, b"?");
        server.write_all(b"!").unwrap();
        read(&mut client, b"!");
        (client, server)
    }

    /// Waits until sockets of our connections in `place` are in such states.
    fn wait(place: &Place, what: &str, right: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + AT_ONCE;
        loop {
            let filter = format!("( sport = :{PORT} or dport = :{PORT} )");
            let said = place.run(["ss", "-Htan", &filter]).unwrap();
            let rows = said.success().unwrap().stdout;
            let states = rows.lines().filter_map(|row| row.split(' ').next());
            let states: Vec<_> = states.map(str::to_owned).collect();
            if right(&states) {
                return;
            }
            let name = place.name();
            assert!(Instant::now() < deadline, "{what}, in {name}: {rows}");
            thread::yield_now();
        }
    }

    /// Waits until the other side knows that the first one has closed, and has said so.
    fn wait_half_closed(place: &Place, what: &str) {
        Self::wait(place, what, |states| {
            states.iter().any(|s| s == "FIN-WAIT-2")
        });
    }

    /// Waits until there is nothing left of a connection but what shows where it was.
    fn wait_gone(&self, what: &str) {
        for place in [&self.client, &self.server] {
            Self::wait(place, what, |states| {
                let mut states = states.iter();
                states.all(|s| ["LISTEN", "TIME-WAIT"].contains(&s.as_str()))
            });
        }
    }
}

fn read(stream: &mut TcpStream, expected: &[u8]) {
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, expected);
}

fn read_end(stream: &mut TcpStream) {
    // Unlike one read, it goes on when it is interrupted, which happens to calls with a time limit.
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
}

/// In a lab without servers.
fn on_every_path(job: impl Fn(&Ends, &str)) {
    let everywhere = Everywhere {
        servers: [].into(),
        lab: enrolled().unwrap(),
    };
    for path in everywhere.paths() {
        let what = format!("{} ({})", path.what, path.to);
        job(&Ends::of(&everywhere.lab, &path), &what);
    }
}

#[test]
fn the_same_port_works_again_whoever_closes_first() {
    on_every_path(|ends, what| {
        for first in [First::Client, First::Server, First::Both] {
            let what = format!("{what}, {first:?} first");
            for _ in 0..2 {
                let (mut client, mut server) = ends.open();
                match first {
                    First::Client => {
                        drop(client);
                        read_end(&mut server);
                        Ends::wait_half_closed(&ends.client, &what);
                        drop(server);
                    }
                    First::Server => {
                        drop(server);
                        read_end(&mut client);
                        Ends::wait_half_closed(&ends.server, &what);
                        drop(client);
                    }
                    First::Both => {
                        client.shutdown(Shutdown::Write).unwrap();
                        server.shutdown(Shutdown::Write).unwrap();
                        read_end(&mut client);
                        read_end(&mut server);
                    }
                }
                ends.wait_gone(&what);
            }
        }
    });
}

#[test]
fn a_server_that_goes_on_learns_that_its_client_is_gone() {
    on_every_path(|ends, what| {
        let (client, mut server) = ends.open();
        drop(client);
        read_end(&mut server);
        Ends::wait_half_closed(&ends.client, what);
        server.write_all(b"more").unwrap();
        // Nothing is waited for but an error.
        let mut fds = [PollFd::new(server.as_fd(), PollFlags::empty())];
        let timeout = PollTimeout::try_from(AT_ONCE).unwrap();
        assert_eq!(poll(&mut fds, timeout), Ok(1), "{what}");
        drop(server);
        ends.wait_gone(what);
    });
}
