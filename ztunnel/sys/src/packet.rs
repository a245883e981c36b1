//! Packets as they pass the interfaces of a network namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// The largest packet: segments are not split on virtual links (BIG TCP).
const LARGEST: usize = 512 * 1024;
/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;

/// Sees all packets of a namespace from when it was opened, without link headers. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub struct Packets {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

/// One packet, from its network header on.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub interface: u32,
    /// Whether the namespace sends it.
    pub outgoing: bool,
    pub bytes: &'a [u8],
}

impl Packets {
    /// Opens it in the namespace of the calling thread. `buffer` bytes may wait to be read; a reader waits `patience`.
    ///
    /// # Errors
    /// When the capability is missing.
    pub fn open(buffer: usize, patience: Duration) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        setsockopt(&fd, sockopt::RcvBufForce, &buffer)?;
        let patience = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(1));
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self {
            fd,
            buffer: vec![0; LARGEST],
        })
    }

    /// The next packet; none when there was none for a while.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn receive(&mut self) -> io::Result<Option<Packet<'_>>> {
        match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut self.buffer) {
            Ok((length, Some(from))) => Ok(Some(Packet {
                interface: u32::try_from(from.ifindex()).unwrap_or(0),
                outgoing: from.pkttype() == OUTGOING,
                bytes: &self.buffer[..length.min(LARGEST)],
            })),
            Ok((_, None)) | Err(nix::Error::EINTR | nix::Error::EAGAIN) => Ok(None),
            // An interface that goes down is told once; the others go on.
            Err(nix::Error::ENETDOWN) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    /// How many packets found no room since the last time that this was asked.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn missed(&self) -> io::Result<u32> {
        statistics(self.fd.as_fd()).map(|[_, dropped]| dropped)
    }
}

/// `struct tpacket_stats`: packets seen and dropped.
fn statistics(fd: BorrowedFd<'_>) -> io::Result<[u32; 2]> {
    let mut counts = [0u32; 2];
    let mut len = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: `fd` is borrowed, so it stays open for the call. `counts` is writable for `len` bytes and the kernel
    // writes no more than `len`.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(counts)
    } else {
        Err(io::Error::last_os_error())
    }
}
