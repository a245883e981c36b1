//! Sockets inside one pod's network namespace, for code that runs outside it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use ztunnel_abi::DELIVERY_MARK;
use ztunnel_mesh::addr::{AppAddr, ClientAddr};
use ztunnel_sys::netns::{NetNs, NetnsThread};
use ztunnel_sys::socket::{self, Family, Liveness};

/// Opens connections from inside a pod's namespace. Neither kind sets a deadline: that is the caller's.
#[derive(Clone, Debug)]
pub struct PodNet {
    netns: Arc<NetNs>,
    thread: NetnsThread,
    liveness: Liveness,
}

impl PodNet {
    /// Sockets in `netns`, opened by `thread`.
    #[must_use]
    pub fn new(netns: Arc<NetNs>, thread: NetnsThread, liveness: Liveness) -> Self {
        Self {
            netns,
            thread,
            liveness,
        }
    }

    /// Connects from the pod's own address: to a peer's tunnel port, or to a destination outside the mesh.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let family = Family::of(to.ip());
        let liveness = self.liveness;
        let fd = self.open(move || socket::tcp(family, liveness)).await?;
        connect(fd, to).await
    }

    /// Connects to the app in the pod so that it sees `client` as its peer. The port is another one.
    ///
    /// # Errors
    /// As `connect(2)`; `ConnectionRefused` when the app does not listen.
    pub async fn connect_as(&self, client: ClientAddr, to: AppAddr) -> io::Result<TcpStream> {
        /// Draws of a port. Of a client with many connections to the app, two may draw the same.
        const DRAWS: usize = 32;
        let (client, to, liveness) = (socket::canonical(client.0), to.0, self.liveness);
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for _ in 0..DRAWS {
            let fd = self
                .open(move || delivery_socket(client, to.ip(), liveness))
                .await?;
            match connect(fd, to).await {
                Err(err) if err.kind() == io::ErrorKind::AddrNotAvailable => last = err,
                connected => return connected,
            }
        }
        Err(last)
    }

    async fn open(
        &self,
        open: impl FnOnce() -> io::Result<OwnedFd> + Send + 'static,
    ) -> io::Result<OwnedFd> {
        let (reply, opened) = oneshot::channel();
        self.thread
            .submit(&self.netns, move || drop(reply.send(open())))?;
        opened
            .await
            .map_err(|_| io::Error::other("the pod's network namespace cannot be entered"))?
    }
}

fn delivery_socket(client: SocketAddr, app: IpAddr, liveness: Liveness) -> io::Result<OwnedFd> {
    let family = Family::of(app);
    let fd = socket::tcp(family, liveness)?;
    // The mark takes the packets round through `lo`, where `sk_lookup` lets them pass to the app, and makes the
    // app's answers come back the same way. See the capture design: delivery.
    socket::set_mark(fd.as_fd(), DELIVERY_MARK)?;
    // A pod that calls itself is its own client: nothing to spoof, and binding to it would clash.
    if client.ip() != app && Family::of(client.ip()) == family {
        socket::set_transparent(fd.as_fd(), family)?;
        socket::bind_as(fd.as_fd(), client, rand::random::<u16>)?;
    }
    Ok(fd)
}

async fn connect(fd: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(StdTcpStream::from(fd));
    socket.connect(to).await
}
