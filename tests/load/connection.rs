//! One connection of a client: what it is waiting for.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Instant;

use lab::load::MARKER;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

/// A proxy adds a few headers of its own, and no more.
const LONGEST_HEAD: usize = 16 << 10;

pub(crate) struct Connection {
    pub(crate) socket: TcpStream,
    pub(crate) state: State,
    /// When the request began that it waits for; with a connection for each, the connect.
    pub(crate) began: Instant,
    /// The part of an answer's head that is here, while it is not here whole.
    head: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The request is not sent yet, since the handshake is not done.
    Connecting,
    /// The head of an answer is on its way.
    Asked,
    /// So many bytes of the body are.
    Body(u64),
    /// Everything is here but the end.
    Ending,
    /// Nothing is on its way.
    Idle,
}

/// What reading has brought.
pub(crate) struct Progress {
    pub(crate) body: u64,
    /// The answer is here whole, and where each request has its own connection, its end too.
    pub(crate) answered: bool,
}

impl Connection {
    /// Begins to connect, and asks at once if that is done at once.
    pub(crate) fn open(to: SocketAddr, request: &[u8]) -> io::Result<Self> {
        let began = Instant::now();
        let family = if to.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(err) => return Err(err.into()),
        }
        let mut connection = Self {
            socket: TcpStream::from(fd),
            state: State::Connecting,
            began,
            head: Vec::new(),
        };
        connection.try_ask(request)?;
        Ok(connection)
    }

    /// Sends the request, unless the connection is not there yet.
    pub(crate) fn try_ask(&mut self, request: &[u8]) -> io::Result<()> {
        match self.socket.write(request) {
            Ok(length) if length == request.len() => {
                self.state = State::Asked;
                Ok(())
            }
            Ok(length) => Err(io::Error::other(format!(
                "only {length} bytes of a request could be sent"
            ))),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => match self.state {
                State::Connecting => Ok(()),
                _ => Err(io::Error::other("an empty socket takes no request")),
            },
            Err(err) => Err(err),
        }
    }

    /// Reads once. `ends`: the other side is expected to end the connection after its answer.
    pub(crate) fn read(&mut self, into: &mut [u8], ends: bool) -> io::Result<Progress> {
        let length = match self.socket.read(into) {
            Ok(length) => length,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Progress {
                    body: 0,
                    answered: false,
                });
            }
            Err(err) => return Err(err),
        };
        if length == 0 {
            return match self.state {
                State::Ending => {
                    self.state = State::Idle;
                    Ok(Progress {
                        body: 0,
                        answered: true,
                    })
                }
                state => Err(io::Error::other(format!(
                    "the connection ended while {state:?}"
                ))),
            };
        }
        let mut body = length as u64;
        if self.state == State::Asked {
            match self.head(&into[..length])? {
                None => body = 0,
                Some((expected, here)) => {
                    body = here as u64;
                    self.state = State::Body(expected);
                }
            }
        }
        if let State::Body(left) = self.state {
            let left = left
                .checked_sub(body)
                .ok_or_else(|| io::Error::other("more bytes than the answer has"))?;
            self.state = match (left, ends) {
                (0, true) => State::Ending,
                (0, false) => State::Idle,
                _ => State::Body(left),
            };
        } else if self.state != State::Asked {
            return Err(io::Error::other(format!("bytes while {:?}", self.state)));
        }
        Ok(Progress {
            body,
            answered: self.state == State::Idle,
        })
    }

    /// Length of the body, and how much of it is here already, once the head is here whole.
    fn head(&mut self, bytes: &[u8]) -> io::Result<Option<(u64, usize)>> {
        // Almost always all of it comes at once, and then nothing is copied.
        let joined;
        let bytes = if self.head.is_empty() {
            bytes
        } else {
            joined = [&self.head, bytes].concat();
            &joined
        };
        let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
            if bytes.len() > LONGEST_HEAD {
                return Err(io::Error::other("the head of an answer has no end"));
            }
            self.head = bytes.to_vec();
            return Ok(None);
        };
        let (head, body) = (&bytes[..end], &bytes[end + 4..]);
        let length = body_length(head)?;
        let shown = MARKER.len().min(body.len());
        if body[..shown] != MARKER.as_bytes()[..shown] {
            return Err(io::Error::other("the body is not the one that was sent"));
        }
        let here = body.len();
        self.head.clear();
        Ok(Some((length, here)))
    }
}

fn body_length(head: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(head).map_err(io::Error::other)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(format!("the answer is `{status}`")));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the answer does not say how long it is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_found_however_it_is_spelled() {
        let head = b"HTTP/1.1 200 OK\r\nserver: x\r\ncontent-Length:  100";
        assert_eq!(body_length(head).unwrap(), 100);
        assert!(body_length(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 1").is_err());
        assert!(body_length(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked").is_err());
    }
}
