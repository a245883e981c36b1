//! Carries connections on to one of several servers in turn: what kube-proxy does, in user space.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// How long a server may take to accept.
const CONNECT: Duration = Duration::from_secs(5);

/// Forwards until it is killed.
pub(crate) fn forward(listen: SocketAddr, to: &[SocketAddr]) -> ExitCode {
    let listener = match TcpListener::bind(listen) {
        Ok(listener) => listener,
        Err(err) => {
            eprintln!("cannot listen on {listen}: {err}");
            return ExitCode::FAILURE;
        }
    };
    println!("{{\"listening\":true}}");
    for next in to.iter().copied().cycle() {
        match listener.accept() {
            Ok((client, _)) => {
                thread::spawn(move || {
                    if let Ok(server) = TcpStream::connect_timeout(&next, CONNECT) {
                        drop(join(&client, &server));
                    }
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
    eprintln!("nowhere to forward to");
    ExitCode::FAILURE
}

fn join(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    thread::scope(|scope| {
        let up = scope.spawn(|| one_way(client, server));
        one_way(server, client)?;
        up.join()
            .map_err(|_| io::Error::other("a thread panicked"))?
    })
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to)?;
    to.shutdown(Shutdown::Write)
}
