//! The server's half: one listener and one thread per service, one thread per connection.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use lab::tester::{Event, Outcome, Service};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use crate::connect::outcome;
use crate::pattern::Pattern;
use crate::proxy_header;
use crate::read::read;

/// What a server says that speaks first.
pub(crate) const BANNER: &[u8] = b"220 at your service\n";
/// What [`Service::Source`] sends.
pub(crate) const SOURCE_BYTES: u64 = 1 << 20;
/// Patterns from client to server, and back.
pub(crate) const UP_SEED: u64 = 0x0075_7075_7075_7075;
/// See [`UP_SEED`].
pub(crate) const DOWN_SEED: u64 = 0x646f_776e_646f_776e;

/// A connection on which nothing happens for so long is given up.
const IDLE: Duration = Duration::from_secs(600);

/// Offers all services until it is killed.
pub(crate) fn serve() -> ExitCode {
    let mut listeners = Vec::new();
    for service in Service::ALL {
        match listen(service.port()) {
            Ok(listener) => listeners.push((service, listener)),
            Err(err) => {
                eprintln!("cannot listen on port {}: {err}", service.port());
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{{\"listening\":true}}");
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|(service, listener)| thread::spawn(move || accept(service, &listener)))
        .collect();
    for thread in threads {
        drop(thread.join());
    }
    ExitCode::FAILURE
}

/// One socket for both families, as most applications have it; IPv4 alone where IPv6 is off.
fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn accept(service: Service, listener: &TcpListener) {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                thread::spawn(move || connection(service, stream, canonical(peer)));
            }
            // Out of descriptors: wait for some to come back.
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn connection(service: Service, mut stream: TcpStream, peer: SocketAddr) {
    let Ok(local) = stream.local_addr().map(canonical) else {
        return;
    };
    let mut received = 0;
    let ended = prepare(&stream).and_then(|()| attend(service, &mut stream, peer, &mut received));
    let event = Event {
        service,
        peer,
        local,
        received,
        outcome: ended.map_or_else(|err| outcome(&err), |()| Outcome::Good),
    };
    if let Ok(line) = serde_json::to_string(&event) {
        println!("{line}");
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)
}

fn attend(
    service: Service,
    stream: &mut TcpStream,
    peer: SocketAddr,
    received: &mut u64,
) -> io::Result<()> {
    match service {
        Service::Echo => echo(stream, received),
        Service::Banner => {
            stream.write_all(BANNER)?;
            echo(stream, received)
        }
        Service::Sink => {
            *received = io::copy(stream, &mut io::sink())?;
            Ok(())
        }
        Service::Source => {
            Pattern::new(DOWN_SEED).write(stream, SOURCE_BYTES)?;
            stream.shutdown(Shutdown::Write)?;
            *received = io::copy(stream, &mut io::sink())?;
            Ok(())
        }
        Service::AfterFin => {
            *received = io::copy(stream, &mut io::sink())?;
            writeln!(stream, "got {received} bytes")
        }
        Service::EarlyFin => {
            stream.write_all(BANNER)?;
            stream.shutdown(Shutdown::Write)?;
            *received = io::copy(stream, &mut io::sink())?;
            Ok(())
        }
        Service::Reset => {
            stream.read_exact(&mut [0])?;
            *received = 1;
            let at_once = linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&*stream, sockopt::Linger, &at_once)?;
            Ok(()) // closing it now sends RST
        }
        Service::Peer => writeln!(stream, "{peer}"),
        Service::Duplex => duplex(stream, received),
        Service::Proxied => {
            let header = proxy_header::read(stream)?;
            // Before a byte of the client, so that it is seen where the client's begin.
            writeln!(stream, "{header} at {peer}")?;
            echo(stream, received)
        }
    }
}

fn echo(stream: &mut TcpStream, received: &mut u64) -> io::Result<()> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        let length = read(stream, &mut chunk)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        *received += length as u64;
        stream.write_all(&chunk[..length])?;
    }
}

/// Two lengths, then as many bytes each way at once, then whether what came was right.
fn duplex(stream: &mut TcpStream, received: &mut u64) -> io::Result<()> {
    let (mut up, mut down) = ([0; 8], [0; 8]);
    stream.read_exact(&mut up)?;
    stream.read_exact(&mut down)?;
    let (up, down) = (u64::from_be_bytes(up), u64::from_be_bytes(down));
    let mut writer = stream.try_clone()?;
    let sending = thread::spawn(move || Pattern::new(DOWN_SEED).write(&mut writer, down));
    let right = Pattern::new(UP_SEED).check(stream, up).is_ok();
    *received = up;
    sending
        .join()
        .map_err(|_| io::Error::other("the sender panicked"))??;
    stream.write_all(if right { b"+" } else { b"-" })
}

/// IPv4 clients of a socket for both families are shown as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
