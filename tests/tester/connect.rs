//! Opening connections in every way an application may.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use clap::Args;
use lab::tester::{Outcome, Service};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// How a client connects, and what it does then.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What the server is expected to do.
    #[arg(long, value_parser = parse_service, default_value = "echo")]
    pub(crate) service: Service,
    /// Time limit of the whole check.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) timeout_ms: u64,
    /// Line to exchange.
    #[arg(long, default_value = "hello")]
    pub(crate) text: String,
    /// Bytes to send.
    #[arg(long, default_value_t = 1 << 20)]
    pub(crate) up: u64,
    /// Bytes to receive.
    #[arg(long, default_value_t = 1 << 20)]
    pub(crate) down: u64,
    /// Connections to open at the same time.
    #[arg(long, default_value_t = 1)]
    pub(crate) parallel: u32,
    /// Address to connect from.
    #[arg(long)]
    source_ip: Option<IpAddr>,
    /// Port to connect from.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// Value of SO_MARK.
    #[arg(long)]
    mark: Option<u32>,
    /// Interface for SO_BINDTODEVICE.
    #[arg(long)]
    device: Option<String>,
    /// Connect to an IPv4 address by a dual-stack socket.
    #[arg(long)]
    v4_mapped: bool,
    /// Set TCP_FASTOPEN_CONNECT.
    #[arg(long)]
    fast_open: bool,
}

impl Options {
    /// Opens a connection; reads, writes and the connect itself are bound by the time limit.
    pub(crate) fn open(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let to = match to {
            SocketAddr::V4(to) if self.v4_mapped => {
                SocketAddr::new(to.ip().to_ipv6_mapped().into(), to.port())
            }
            other => other,
        };
        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let limit = TimeVal::milliseconds(self.timeout_ms.try_into().unwrap_or(i64::MAX));
        setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
        if let Some(mark) = &self.mark {
            setsockopt(&fd, sockopt::Mark, mark)?;
        }
        if let Some(device) = &self.device {
            setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
        }
        if self.fast_open {
            setsockopt(&fd, sockopt::TcpFastOpenConnect, &true)?;
        }
        if self.source_ip.is_some() || self.source_port != 0 {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            let from = SocketAddr::new(self.source_ip.unwrap_or(any), self.source_port);
            bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        }
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).map_err(|errno| match errno {
            // What a connect says whose SO_SNDTIMEO ran out.
            nix::Error::EINPROGRESS => io::Error::from(io::ErrorKind::TimedOut),
            other => other.into(),
        })?;
        Ok(TcpStream::from(fd))
    }

    /// The time limit.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Sorts an error of a socket.
pub(crate) fn outcome(err: &io::Error) -> Outcome {
    use io::ErrorKind as Kind;
    match err.kind() {
        Kind::ConnectionRefused => Outcome::Refused,
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => Outcome::Reset,
        Kind::UnexpectedEof => Outcome::Ended,
        Kind::TimedOut | Kind::WouldBlock => Outcome::TimedOut,
        Kind::HostUnreachable | Kind::NetworkUnreachable => Outcome::Unreachable,
        Kind::PermissionDenied => Outcome::Forbidden,
        _ => Outcome::Failed,
    }
}

fn parse_service(text: &str) -> Result<Service, String> {
    serde_json::from_value(text.into()).map_err(|err| err.to_string())
}
