//! Sockets inside one pod's network namespace, for code that runs outside it.

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tracing::warn;
use ztunnel_abi::DELIVERY_MARK;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::socket::{self, Family, Liveness};

/// Whose address apps see as that of their client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceAddress {
    /// The client's, or the connection fails.
    Client,
    /// The client's; the pod's own where that cannot be had.
    #[default]
    ClientIfPossible,
    /// The pod's own.
    Pod,
}

/// What comes after the connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Nothing that is known of.
    Anything,
    /// Data, at once.
    Data,
}

/// Why an app was not reached from the address of its client.
enum NotAsClient {
    /// The address cannot be used.
    Address(io::Error),
    Connect(io::Error),
}

/// Opens connections from inside a pod's namespace. Neither kind sets a deadline: that is the caller's.
#[derive(Clone, Debug)]
pub struct PodNet {
    netns: Arc<NetNs>,
    /// Where the daemon's threads are.
    home: Arc<NetNs>,
    liveness: Liveness,
    spare: Arc<Mutex<Spare>>,
}

impl PodNet {
    /// Sockets in `netns`, opened by threads of `home`.
    #[must_use]
    pub fn new(netns: Arc<NetNs>, home: Arc<NetNs>, liveness: Liveness) -> Self {
        Self {
            netns,
            home,
            liveness,
            spare: Arc::default(),
        }
    }

    /// Connects from the pod's own address: to a peer's tunnel port, to a destination outside the mesh, or from loopback
    /// to an app there.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let family = Family::of(to.ip());
        let liveness = self.liveness;
        let fd = (self.netns).visit(&self.home, || socket::tcp(family, liveness))??;
        let socket = TcpSocket::from_std_stream(StdTcpStream::from(fd));
        socket.connect(to).await
    }

    /// Connects to the app in the pod so that it sees `client` as its peer, as far as `source` says so. The port is
    /// another one.
    ///
    /// # Errors
    /// As `connect(2)`; `ConnectionRefused` when the app does not listen.
    pub async fn connect_as(
        &self,
        client: ClientAddr,
        to: AppAddr,
        source: SourceAddress,
        follows: Follows,
    ) -> io::Result<TcpStream> {
        let (client, to) = (socket::canonical(client.0), to.0);
        // A pod that calls itself is its own client: nothing to pretend, and binding to its address would clash.
        let is_other = client.ip() != to.ip() && client.is_ipv4() == to.is_ipv4();
        if source != SourceAddress::Pod && is_other {
            match self.connect_from(client, to, follows).await {
                Ok(connected) => return Ok(connected),
                Err(NotAsClient::Address(error)) if source == SourceAddress::ClientIfPossible => {
                    warn!(%client, app = %to, %error, "the app is told the pod's address, not its client's");
                }
                Err(NotAsClient::Address(err) | NotAsClient::Connect(err)) => return Err(err),
            }
        }
        let fd = self.delivery_socket(None, Family::of(to.ip()), follows)?;
        connect_nearby(fd, to).await
    }

    async fn connect_from(
        &self,
        client: SocketAddr,
        to: SocketAddr,
        follows: Follows,
    ) -> Result<TcpStream, NotAsClient> {
        /// Draws of a port. Of a client with many connections to the app, two may draw the same.
        const DRAWS: usize = 32;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for _ in 0..DRAWS {
            let fd = self
                .delivery_socket(Some(client), Family::of(to.ip()), follows)
                .map_err(NotAsClient::Address)?;
            match connect_nearby(fd, to).await {
                Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => last = err,
                connected => return connected.map_err(NotAsClient::Connect),
            }
        }
        Err(NotAsClient::Address(last))
    }

    fn delivery_socket(
        &self,
        client: Option<SocketAddr>,
        family: Family,
        follows: Follows,
    ) -> io::Result<OwnedFd> {
        let fd = self.socket(family)?;
        // The mark takes the packets round through `lo`, where `sk_lookup` lets them pass to the app, and makes the
        // app's answers come back the same way. See the capture design: delivery.
        socket::set_mark(fd.as_fd(), DELIVERY_MARK)?;
        if follows == Follows::Data {
            socket::acknowledge_with_data(fd.as_fd())?;
        }
        if let Some(client) = client {
            socket::set_transparent(fd.as_fd(), family)?;
            socket::bind_as(fd.as_fd(), client, rand::random::<u16>)?;
        }
        Ok(fd)
    }

    /// A socket for an app in the pod. Both ends are in one kernel and namespace, so none can be gone without the other being
    /// told: keepalive would be four system calls for nothing.
    fn socket(&self, family: Family) -> io::Result<OwnedFd> {
        let open = || socket::tcp(family, Liveness::default());
        // Whatever panicked, sockets are sockets.
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = spare.of(family).pop() {
            return Ok(fd);
        }
        let more = spare.wanted();
        self.netns.visit(&self.home, || {
            let fd = open()?;
            for _ in 0..more {
                match open() {
                    Ok(fd) => spare.of(family).push(fd),
                    Err(_) => break,
                }
            }
            Ok(fd)
        })?
    }
}

/// Sockets that were made while the thread was in the namespace for another one. A visit is 3.6 µs, of 90 that a new
/// connection takes: while they come one upon the other, only each fourth pays it.
#[derive(Debug, Default)]
struct Spare {
    v4: Vec<OwnedFd>,
    v6: Vec<OwnedFd>,
    visited: Option<Instant>,
}

impl Spare {
    const MOST: usize = 3;

    fn of(&mut self, family: Family) -> &mut Vec<OwnedFd> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// How many to make on the visit that is due, none of which there are now.
    fn wanted(&mut self) -> usize {
        const BUSY: Duration = Duration::from_millis(5);
        let now = Instant::now();
        let before = self.visited.replace(now);
        match before.is_some_and(|before| now - before < BUSY) {
            true => Self::MOST,
            false => 0,
        }
    }
}

async fn connect_nearby(fd: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    let connected = socket::connect_nearby(fd.as_fd(), to)?;
    let stream = TcpStream::from_std(StdTcpStream::from(fd))?;
    if !connected {
        stream.writable().await?;
        if let Some(err) = stream.take_error()? {
            return Err(err);
        }
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_client_address_that_cannot_be_had_is_fatal_only_where_it_is_asked_for() {
        let netns = Arc::new(NetNs::current().unwrap());
        let net = PodNet::new(Arc::clone(&netns), netns, Liveness::default());
        let app = TcpListener::bind("[::1]:0").await.unwrap();
        let to = AppAddr(app.local_addr().unwrap());
        // Without its interface such an address is none that a socket can have.
        let client = ClientAddr("[fe80::1]:40000".parse().unwrap());
        let refused = net
            .connect_as(client, to, SourceAddress::Client, Follows::Anything)
            .await;
        assert_eq!(
            refused.map_err(|err| err.kind()).unwrap_err(),
            io::ErrorKind::InvalidInput
        );
        for source in [SourceAddress::ClientIfPossible, SourceAddress::Pod] {
            let connected = net
                .connect_as(client, to, source, Follows::Anything)
                .await
                .unwrap();
            let (_, peer) = app.accept().await.unwrap();
            assert_eq!(peer, connected.local_addr().unwrap());
            assert_eq!(peer.ip(), to.0.ip());
        }
    }

    #[tokio::test]
    async fn an_app_that_is_not_there_is_not_tried_as_somebody_else() {
        let netns = Arc::new(NetNs::current().unwrap());
        let net = PodNet::new(Arc::clone(&netns), netns, Liveness::default());
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = AppAddr(gone.local_addr().unwrap());
        drop(gone);
        let client = ClientAddr("127.0.0.9:40000".parse().unwrap());
        let refused = net.connect_as(
            client,
            to,
            SourceAddress::ClientIfPossible,
            Follows::Anything,
        );
        let refused = refused.await.map_err(|err| err.kind());
        assert_eq!(refused.unwrap_err(), io::ErrorKind::ConnectionRefused);
    }
}
