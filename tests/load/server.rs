//! The server: answers `GET /<length>` with a body of that length, on one thread.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use lab::load::MARKER;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 256;
/// Requests are a few hundred bytes, also after a proxy has added its own.
const LONGEST_REQUEST: usize = 16 << 10;
/// What is written at once of a long body.
const CHUNK: usize = 256 << 10;
/// No answer is longer than this.
const LONGEST_BODY: u64 = 16 << 30;

pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(
        listener.as_fd(),
        EpollEvent::new(EpollFlags::EPOLLIN, LISTENER),
    )?;
    println!("listening");
    let mut server = Server {
        epoll,
        connections: Vec::new(),
        free: Vec::new(),
        body: MARKER.as_bytes().repeat(CHUNK / MARKER.len()),
        input: vec![0; LONGEST_REQUEST],
        output: Vec::with_capacity(CHUNK * 2),
    };
    loop {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match server.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(err) => return Err(err.into()),
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                server.accept(&listener);
            } else {
                server.attend(usize::try_from(event.data()).unwrap_or(usize::MAX));
            }
        }
    }
}

struct Server {
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    body: Vec<u8>,
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Connection {
    socket: TcpStream,
    /// A request that is not here whole.
    partial: Vec<u8>,
    /// Bytes of a body that are still to be written.
    left: u64,
    close: bool,
    /// Whether it waits for room in the socket, instead of for a request.
    writing: bool,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener) {
        // Whoever is not taken now is announced again.
        for _ in 0..EVENTS {
            let Ok((socket, _)) = listener.accept() else {
                return;
            };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let event = EpollEvent::new(EpollFlags::EPOLLIN, slot as u64);
            let ready = socket
                .set_nonblocking(true)
                .and_then(|()| socket.set_nodelay(true))
                .and_then(|()| Ok(self.epoll.add(socket.as_fd(), event)?));
            if ready.is_err() {
                self.free.push(slot);
                continue;
            }
            self.connections[slot] = Some(Connection {
                socket,
                partial: Vec::new(),
                left: 0,
                close: false,
                writing: false,
            });
        }
    }

    fn attend(&mut self, slot: usize) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let done = if connection.writing {
            connection.write_more(&self.body)
        } else {
            connection.answer(&mut self.input, &mut self.output, &self.body)
        };
        let keep = done.and_then(|()| {
            let busy = connection.left > 0;
            if busy != connection.writing {
                connection.writing = busy;
                let wanted = if busy {
                    EpollFlags::EPOLLOUT
                } else {
                    EpollFlags::EPOLLIN
                };
                let mut event = EpollEvent::new(wanted, slot as u64);
                self.epoll.modify(connection.socket.as_fd(), &mut event)?;
            }
            Ok(busy || !connection.close)
        });
        if !matches!(keep, Ok(true)) {
            self.connections[slot] = None;
            self.free.push(slot);
        }
    }
}

impl Connection {
    /// Reads what is there and answers it, if it is a request.
    fn answer(&mut self, input: &mut [u8], output: &mut Vec<u8>, body: &[u8]) -> io::Result<()> {
        let length = match self.socket.read(input) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(err) => return Err(err),
        };
        let joined;
        let bytes = if self.partial.is_empty() {
            &input[..length]
        } else {
            joined = [&self.partial, &input[..length]].concat();
            &joined
        };
        if !bytes.ends_with(b"\r\n\r\n") {
            if bytes.len() > LONGEST_REQUEST {
                return Err(ErrorKind::InvalidData.into());
            }
            self.partial = bytes.to_vec();
            return Ok(());
        }
        let request = Request::parse(bytes).ok_or(ErrorKind::InvalidData)?;
        self.partial = Vec::new();
        self.close = request.close;
        let connection = if request.close {
            "Connection: close\r\n"
        } else {
            ""
        };
        output.clear();
        write!(
            output,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{connection}\r\n",
            request.length
        )?;
        let now = body
            .len()
            .min(usize::try_from(request.length).unwrap_or(usize::MAX));
        output.extend_from_slice(&body[..now]);
        let head = output.len() - now;
        let written = self.socket.write(output)?;
        if written < head {
            return Err(ErrorKind::WriteZero.into());
        }
        self.left = request.length - (written - head) as u64;
        Ok(())
    }

    fn write_more(&mut self, body: &[u8]) -> io::Result<()> {
        let now = body
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        match self.socket.write(&body[..now]) {
            Ok(written) => {
                self.left -= written as u64;
                Ok(())
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(err) => Err(err),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    length: u64,
    close: bool,
}

impl Request {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.split("\r\n");
        let length = lines.next()?.strip_prefix("GET /")?.split(' ').next()?;
        let close = lines.filter_map(|line| line.split_once(':')).any(|(k, v)| {
            k.eq_ignore_ascii_case("connection") && v.trim().eq_ignore_ascii_case("close")
        });
        let length = length
            .parse()
            .ok()
            .filter(|length| *length <= LONGEST_BODY)?;
        Some(Self { length, close })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_proxies_rewrite_them() {
        let parse = |text: &str| Request::parse(text.as_bytes());
        let plain = Request {
            length: 100,
            close: false,
        };
        let last = Request {
            length: 7,
            close: true,
        };
        assert_eq!(parse("GET /100 HTTP/1.1\r\nhost: x\r\n\r\n"), Some(plain));
        assert_eq!(
            parse("GET /7 HTTP/1.1\r\nconnection: Close\r\n\r\n"),
            Some(last)
        );
        assert_eq!(parse("POST /7 HTTP/1.1\r\n\r\n"), None);
        assert_eq!(parse("GET /99999999999999 HTTP/1.1\r\n\r\n"), None);
    }
}
