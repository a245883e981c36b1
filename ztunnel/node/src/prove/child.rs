//! The process that connects in a pod's place, and how the daemon talks with it.
//!
//! A process of its own, because capture tells the daemon from the apps by its cgroup: nothing in the daemon's is
//! captured. This one leaves that cgroup, enters the pod's namespace, and connects as any app would. Both ends of a socket
//! pair, which it has as its standard input, speak lines of JSON.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::process::{Child as Process, Command};
use tokio::time::{Instant, sleep_until, timeout};
use ztunnel_sys::cgroup;
use ztunnel_sys::netns::NetNs;
use ztunnel_sys::socket::{self, Family};

/// The hidden subcommand that becomes such a process.
pub const SUBCOMMAND: &str = "prove-connect";

/// This program, also when its file was replaced since it was started.
const SELF: &str = "/proc/self/exe";
/// How long it may take to begin, and to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it waits for the other side to end too.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the process is to do next. The end of orders means: end the connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Connect {},
    Send { text: String },
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Told {
    /// The port that it will connect from.
    Ready {
        port: u16,
    },
    /// It cannot connect as an app would.
    Unable {
        problem: String,
    },
    Connected {
        from: SocketAddr,
    },
    /// The connect failed.
    Refused {
        error: String,
        forbidden: bool,
    },
    /// The first bytes have come back.
    Answered {},
    /// The connection has ended, by itself or because it was told to.
    Ended {
        received: u64,
        reset: bool,
    },
}

/// Arguments of the process.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The network namespace to connect from.
    pub netns: PathBuf,
    pub to: SocketAddr,
    /// The daemon's, where nothing is captured.
    pub not_cgroup: u64,
}

/// The process, as the daemon sees it. Killed when dropped.
pub(super) struct Child {
    process: Process,
    pid: Option<u32>,
    told: Lines<BufReader<OwnedReadHalf>>,
    orders: Option<OwnedWriteHalf>,
}

impl Child {
    /// Starts it. It does nothing to anybody yet.
    pub(super) fn start(netns: &NetNs, to: SocketAddr, own_cgroup: u64) -> io::Result<Self> {
        let (ours, its) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // The path that the pod was enrolled with may lead elsewhere by now.
        let fd = netns.as_fd().as_raw_fd();
        let netns = format!("/proc/{}/fd/{fd}", std::process::id());
        let process = Command::new(SELF)
            .args([SUBCOMMAND, "--netns", &netns, "--to", &to.to_string()])
            .args(["--not-cgroup", &own_cgroup.to_string()])
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        Ok(Self {
            pid: process.id(),
            process,
            told: BufReader::new(read).lines(),
            orders: Some(write),
        })
    }

    /// What it says next.
    pub(super) async fn told(&mut self) -> io::Result<Told> {
        match self.told.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    pub(super) async fn connect(&mut self) -> io::Result<()> {
        self.order(&Order::Connect {}).await
    }

    pub(super) async fn send(&mut self, text: &str) -> io::Result<()> {
        let text = text.to_owned();
        self.order(&Order::Send { text }).await
    }

    async fn order(&mut self, order: &Order) -> io::Result<()> {
        match &mut self.orders {
            Some(orders) => write(orders, order).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the connection, and the process. Gives what it still had to say.
    pub(super) async fn end(mut self) -> Vec<Told> {
        self.orders = None;
        let end = async {
            // Each of a handful of things is said once.
            let mut rest = Vec::new();
            while let Ok(told) = self.told().await {
                rest.push(told);
            }
            let _ = self.process.wait().await;
            rest
        };
        let rest = timeout(PATIENCE, end).await.unwrap_or_default();
        // Killing one that has ended does nothing.
        drop(self.process.kill().await);
        if let Some(pid) = self.pid {
            cgroup::remove_leaf_of(pid);
        }
        rest
    }
}

async fn write(to: &mut OwnedWriteHalf, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).await
}

/// What the process does: connects when it is told to, and tells.
///
/// # Errors
/// When the daemon is gone.
pub fn run(connect: &Connect) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let daemon = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        daemon.set_nonblocking(true)?;
        let (read, mut tell) = UnixStream::from_std(daemon)?.into_split();
        let mut orders = BufReader::new(read).lines();
        let socket = match prepare(connect) {
            Ok(socket) => socket,
            Err(problem) => return write(&mut tell, &Told::Unable { problem }).await,
        };
        let port = socket.local_addr()?.port();
        write(&mut tell, &Told::Ready { port }).await?;
        let Some(Order::Connect {}) = next(&mut orders).await? else {
            return Ok(());
        };
        let connected = tokio::select! {
            connected = socket.connect(connect.to) => connected,
            // Told to end before it was connected.
            _ = next(&mut orders) => return Ok(()),
        };
        match connected {
            Ok(stream) => {
                let from = stream.local_addr()?;
                write(&mut tell, &Told::Connected { from }).await?;
                follow(stream, &mut orders, &mut tell).await
            }
            Err(err) => {
                let told = Told::Refused {
                    error: err.to_string(),
                    forbidden: err.kind() == io::ErrorKind::PermissionDenied,
                };
                write(&mut tell, &told).await
            }
        }
    })
}

/// A socket as an app of the pod would have it.
fn prepare(connect: &Connect) -> Result<TcpSocket, String> {
    cgroup::enter_own().map_err(|err| crate::telemetry::chain(&err))?;
    let own = cgroup::current_id().map_err(|err| crate::telemetry::chain(&err))?;
    if own == connect.not_cgroup {
        return Err("the hierarchy of cgroups cannot be written, so no process of the daemon's can be captured".into());
    }
    let family = Family::of(connect.to.ip());
    let opened = NetNs::open(&connect.netns)
        .and_then(|netns| netns.run(|| socket::tcp_with_port(family)))
        .and_then(|opened| opened);
    match opened {
        Ok((fd, _)) => Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(fd))),
        Err(err) => Err(format!("no socket in the pod's network namespace: {err}")),
    }
}

async fn next(orders: &mut Lines<BufReader<OwnedReadHalf>>) -> io::Result<Option<Order>> {
    match orders.next_line().await? {
        Some(line) => Ok(Some(serde_json::from_str(&line)?)),
        None => Ok(None),
    }
}

/// Reads what comes, for as long as the daemon wants the connection.
async fn follow(
    stream: TcpStream,
    orders: &mut Lines<BufReader<OwnedReadHalf>>,
    tell: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let (mut received, mut buffer) = (0, vec![0; 16 * 1024]);
    let mut over: Option<Instant> = None;
    let reset = loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            order = next(orders), if over.is_none() => match order? {
                Some(Order::Send { text }) => match to.write_all(text.as_bytes()).await {
                    Ok(()) => continue,
                    Err(_) => break true,
                },
                Some(Order::Connect {}) => continue,
                None => {
                    over = Some(Instant::now() + FAREWELL);
                    let _ = to.shutdown().await;
                    continue;
                }
            },
            () = sleep_until(over.unwrap_or_else(Instant::now)), if over.is_some() => break false,
        };
        match read {
            Ok(0) => break false,
            Ok(bytes) => {
                if received == 0 {
                    write(tell, &Told::Answered {}).await?;
                }
                received += bytes as u64;
            }
            Err(_) => break true,
        }
    };
    write(tell, &Told::Ended { received, reset }).await
}
