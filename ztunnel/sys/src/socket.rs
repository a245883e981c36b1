//! Sockets with the options that std and tokio do not offer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SetSockOpt, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
    connect, setsockopt, socket, sockopt,
};

/// The address family of a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The family that reaches `ip`.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// TCP keepalive: how soon a connection without traffic is asked whether the other side is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe. The kernel counts whole seconds.
    pub time: Duration,
    pub interval: Duration,
    pub retries: u32,
}

/// How connections notice that the other side is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    pub keepalive: Option<Keepalive>,
    /// How long sent bytes may stay unacknowledged; the kernel's own limit otherwise.
    pub user_timeout: Option<Duration>,
}

/// Opens a non-blocking TCP socket in the namespace of the calling thread.
///
/// # Errors
/// When the kernel refuses (no such family in this namespace, out of descriptors).
pub fn tcp(family: Family, liveness: Liveness) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(domain, SockType::Stream, flags, SockProtocol::Tcp)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    set_liveness(fd.as_fd(), liveness)?;
    Ok(fd)
}

/// Opens a non-blocking TCP socket with a port of its own, which is known before it connects.
///
/// # Errors
/// As [`tcp`]; when no port is free.
pub fn tcp_with_port(family: Family) -> io::Result<(OwnedFd, u16)> {
    let fd = tcp(family, Liveness::default())?;
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(any, 0)),
    )?;
    let port = local_port(fd.as_fd())?;
    Ok((fd, port))
}

fn set_liveness(fd: BorrowedFd<'_>, liveness: Liveness) -> io::Result<()> {
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    if let Some(Keepalive {
        time,
        interval,
        retries,
    }) = liveness.keepalive
    {
        setsockopt(&fd, sockopt::KeepAlive, &true)?;
        setsockopt(&fd, sockopt::TcpKeepIdle, &seconds(time))?;
        setsockopt(&fd, sockopt::TcpKeepInterval, &seconds(interval))?;
        setsockopt(&fd, sockopt::TcpKeepCount, &retries)?;
    }
    if let Some(timeout) = liveness.user_timeout {
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        setsockopt(&fd, sockopt::TcpUserTimeout, &milliseconds)?;
    }
    Ok(())
}

/// Lets a socket use addresses that are not the host's: it may bind to them, and as a listener it answers
/// for them. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// When the capability is missing.
pub fn set_transparent(fd: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => Ok(setsockopt(&fd, sockopt::IpTransparent, &true)?),
        Family::V6 => set_raw(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1),
    }
}

/// Marks every packet of the socket. Needs `CAP_NET_ADMIN` or `CAP_NET_RAW`.
///
/// # Errors
/// When the capability is missing.
pub fn set_mark(fd: BorrowedFd<'_>, mark: u32) -> io::Result<()> {
    Ok(sockopt::Mark.set(&fd, &mark)?)
}

/// Binds a transparent socket to the address of `client` and a port that is not likely to be one of the client's:
/// with the same port both tuples, of its connection and of the one that stands for it, would be the same, and
/// neither the packets of one nor those of the other would find their socket. `draw` gives random numbers.
///
/// # Errors
/// When no port is free after a bounded number of tries. That another connection has the whole tuple already is
/// told by `connect`, with `AddrNotAvailable`.
pub fn bind_as(
    fd: BorrowedFd<'_>,
    client: SocketAddr,
    mut draw: impl FnMut() -> u16,
) -> io::Result<()> {
    const TRIES: usize = 32;

    // Only the whole tuple must be unique, which connect checks.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let ports = ports_beside(client.port());
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let port = ports.start + draw() % (ports.end - ports.start);
        match bind(
            fd.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(client.ip(), port)),
        ) {
            Ok(()) => return Ok(()),
            Err(err) => last = err.into(),
        }
    }
    Err(last)
}

/// Begins to connect a non-blocking socket, and says whether it is connected already. When the other end is in the same
/// kernel it mostly is, and nobody has to wait for an event: a second connect(2) tells what became of the first.
///
/// # Errors
/// As `connect(2)`.
pub fn connect_nearby(fd: BorrowedFd<'_>, to: SocketAddr) -> io::Result<bool> {
    let to = SockaddrStorage::from(to);
    for _ in 0..2 {
        match connect(fd.as_raw_fd(), &to) {
            Ok(()) => return Ok(true),
            Err(Errno::EINPROGRESS | Errno::EALREADY) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(false)
}

/// Ports that a client does not draw from, going by the one that it has.
fn ports_beside(taken: u16) -> Range<u16> {
    /// Below the kernel's default `ip_local_port_range` of 32768 to 60999, above what services listen on.
    const LOW: Range<u16> = 10_240..32_768;
    /// For clients that are set to draw low ones.
    const HIGH: Range<u16> = 32_768..u16::MAX;

    if LOW.contains(&taken) { HIGH } else { LOW }
}

/// The kernel's cookie for the namespace of the calling thread.
///
/// # Errors
/// When the kernel is older than 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    /// `SO_NETNS_COOKIE` of `asm-generic/socket.h`, not in libc for every target.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let probe = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie: u64 = 0;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `probe` is open for the call. `cookie` is writable for `len` bytes and the kernel writes no
    // more than `len`.
    let rc = unsafe {
        libc::getsockopt(
            probe.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends FIN and keeps reading: the half-close that async wrappers only offer on an exclusive borrow.
///
/// # Errors
/// `NotConnected` when the connection is gone already.
pub fn shutdown_write(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::sys::socket::shutdown(
        fd.as_raw_fd(),
        nix::sys::socket::Shutdown::Write,
    )?)
}

/// Has a connection that is about to be made acknowledge the other side's SYN together with the first data, which has to
/// follow at once: a packet less, and the other side wakes up once for both. Otherwise it does after 200 ms.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn acknowledge_with_data(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_raw(fd, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)
}

/// Receives what there is now, whatever is known of its readiness. Nothing is the end.
///
/// # Errors
/// As `recv(2)`.
pub fn receive_now(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT;
    Ok(nix::sys::socket::recv(fd.as_raw_fd(), bytes, flags)?)
}

/// Sends what the kernel may keep for a moment: more comes at once, or the end.
///
/// # Errors
/// As `send(2)`.
pub fn send_more(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
    let flags = more | MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(nix::sys::socket::send(fd.as_raw_fd(), bytes, flags)?)
}

/// IPv4-mapped IPv6 addresses as the IPv4 addresses they are.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Listens on any port of any address of the family: which connections arrive is decided by `sk_lookup`. Accepted
/// sockets inherit the options, which saves system calls for each.
///
/// # Errors
/// When the kernel refuses; for `Family::V6` also when the namespace has no IPv6.
pub fn listen_any(family: Family, backlog: i32, liveness: Liveness) -> io::Result<OwnedFd> {
    let fd = tcp(family, liveness)?;
    set_transparent(fd.as_fd(), family)?;
    listen(&fd, family, 0, backlog)?;
    Ok(fd)
}

/// Listens on `port` of every address of the calling thread's namespace, of both families where there are both.
///
/// # Errors
/// When the port is taken, or the kernel refuses.
pub fn listen_everywhere(port: u16, backlog: i32) -> io::Result<OwnedFd> {
    let on = |family| -> io::Result<OwnedFd> {
        let fd = tcp(family, Liveness::default())?;
        // Connections of an earlier process that linger must not keep this one from listening.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        listen(&fd, family, port, backlog)?;
        Ok(fd)
    };
    match on(Family::V6) {
        // A namespace without IPv6 has no such sockets, or no such address.
        Err(err) if err.kind() != io::ErrorKind::AddrInUse => on(Family::V4),
        listening => listening,
    }
}

fn listen(fd: &OwnedFd, family: Family, port: u16, backlog: i32) -> io::Result<()> {
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => {
            setsockopt(fd, sockopt::Ipv6V6Only, &false)?;
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        }
    };
    let on = SockaddrStorage::from(SocketAddr::new(any, port));
    bind(fd.as_raw_fd(), &on)?;
    nix::sys::socket::listen(fd, nix::sys::socket::Backlog::new(backlog)?)?;
    Ok(())
}

/// The port that a TCP socket is bound to.
///
/// # Errors
/// When it is no such socket.
pub fn local_port(fd: BorrowedFd<'_>) -> io::Result<u16> {
    let bound: SockaddrStorage = nix::sys::socket::getsockname(fd.as_raw_fd())?;
    let v4 = bound
        .as_sockaddr_in()
        .map(nix::sys::socket::SockaddrIn::port);
    let v6 = || {
        bound
            .as_sockaddr_in6()
            .map(nix::sys::socket::SockaddrIn6::port)
    };
    v4.or_else(v6)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn set_raw(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `fd` is borrowed, so it stays open for the call, and the kernel reads `len` bytes of `value`,
    // which lives on this stack frame.
    let rc =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
