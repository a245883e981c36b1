//! The local API: a unix socket on which one line of JSON is a request and one line of JSON the answer.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::warn;
use ztunnel_mesh::name::{PodName, PodUid};

use super::{EnrollError, EnrollRequest, Enroller, PodStatus};
use crate::explain::{Explainer, Explanation, Question};
use crate::task::{Backoff, Shutdown, TaskGroup};
use crate::telemetry::chain;

/// Longest request.
const MAX_REQUEST: u64 = 64 * 1024;
/// Clients served at a time; more wait.
const MAX_CLIENTS: usize = 16;
/// How long a client may take for its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Enroll {
        uid: String,
        netns: PathBuf,
        namespace: String,
        name: String,
        service_account: String,
    },
    Unenroll {
        uid: String,
    },
    Pods {},
    /// What would become of a connection, and why.
    Explain(Question),
    /// Unenroll every pod, leave nothing behind, end.
    Stop {},
}

/// What it gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// `changed` is false when it was so already.
    Done {
        changed: bool,
    },
    Pods(Vec<PodStatus>),
    Explained(Box<Explanation>),
    /// A refusal: a stable code, and the reason for people.
    Refused {
        code: String,
        reason: String,
    },
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("connect to {path}; is the daemon running, and is this its socket?")]
    Connect { path: PathBuf, source: io::Error },
    #[error("talk to the daemon at {path}")]
    Talk { path: PathBuf, source: io::Error },
    #[error("listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
}

/// Sends one request to the daemon and waits for its answer.
///
/// # Errors
/// When there is no daemon or it goes away.
pub async fn call(socket: &Path, request: &Request) -> Result<Outcome, ApiError> {
    let connect = |source| ApiError::Connect {
        path: socket.to_owned(),
        source,
    };
    let talk = |source| ApiError::Talk {
        path: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).await.map_err(connect)?;
    write_line(&mut stream, request).await.map_err(talk)?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .await
        .map_err(talk)?;
    if line.is_empty() {
        return Err(talk(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the daemon went away",
        )));
    }
    serde_json::from_str(&line).map_err(|err| talk(err.into()))
}

/// The socket of the API. Clients that come before it is served wait.
#[derive(Debug)]
pub struct ApiListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ApiListener {
    /// Listens on `path`, where only root may connect.
    ///
    /// # Errors
    /// When the socket cannot be bound, or another daemon answers there.
    pub fn bind(path: &Path) -> Result<Self, ApiError> {
        let listener = bind(path).map_err(|source| ApiError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves the API until shutdown. `stop` is told when a client asked the daemon to end, after everything is
    /// removed.
    pub fn serve(
        self,
        enroller: Enroller,
        explainer: Explainer,
        stop: mpsc::Sender<()>,
        shutdown: Shutdown,
        tasks: &TaskGroup,
    ) {
        let group = tasks.clone();
        let api = self;
        tasks.spawn(async move {
            let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
            let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
            loop {
                let Ok(slot) = Arc::clone(&clients).acquire_owned().await else {
                    break;
                };
                let accepted = tokio::select! {
                    () = shutdown.started() => break,
                    accepted = api.listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        backoff.reset();
                        let (enroller, stop) = (enroller.clone(), stop.clone());
                        let explainer = explainer.clone();
                        group.spawn(async move {
                            if let Err(err) = client(stream, &enroller, &explainer, &stop).await {
                                warn!(error = %err, "local API client failed");
                            }
                            drop(slot);
                        });
                    }
                    Err(err) => {
                        warn!(error = %err, "local API cannot accept");
                        tokio::time::sleep(backoff.delay()).await;
                    }
                }
            }
        });
    }
}

/// A path that nobody listens on would look like a daemon that hangs.
impl Drop for ApiListener {
    fn drop(&mut self) {
        // Before the socket closes: from then on the path may be another daemon's.
        drop(std::fs::remove_file(&self.path));
    }
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another daemon answers there",
        ));
    }
    match std::fs::remove_file(socket) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn client(
    stream: UnixStream,
    enroller: &Enroller,
    explainer: &Explainer,
    stop: &mpsc::Sender<()>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(MAX_REQUEST);
        let read = timeout(REQUEST_DEADLINE, limited.read_until(b'\n', &mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        let outcome = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, enroller, explainer, stop).await,
            Err(err) => {
                let (code, reason) = (
                    "BAD_REQUEST".into(),
                    format!("the request is not understood: {err}"),
                );
                write_line(&mut write, &Outcome::Refused { code, reason }).await?;
                return Ok(());
            }
        };
        write_line(&mut write, &outcome).await?;
    }
}

async fn answer(
    request: Request,
    enroller: &Enroller,
    explainer: &Explainer,
    stop: &mpsc::Sender<()>,
) -> Outcome {
    let done = match request {
        Request::Pods {} => return Outcome::Pods(enroller.pods().await),
        Request::Explain(question) => {
            return match explainer.explain(&enroller.known().await, &question) {
                Ok(explanation) => Outcome::Explained(Box::new(explanation)),
                Err(err) => Outcome::Refused {
                    code: err.code().into(),
                    reason: err.to_string(),
                },
            };
        }
        Request::Enroll {
            uid,
            netns,
            namespace,
            name,
            service_account,
        } => {
            let pod = PodName {
                namespace: namespace.into(),
                name: name.into(),
                service_account: service_account.into(),
            };
            enroller
                .enroll(EnrollRequest {
                    uid: PodUid(uid.into()),
                    netns,
                    pod,
                })
                .await
        }
        Request::Unenroll { uid } => enroller.unenroll(PodUid(uid.into())).await,
        Request::Stop {} => {
            let removed = enroller.remove_everything().await;
            // A second request to stop finds the first one there.
            let _ = stop.try_send(());
            removed.map(|()| true)
        }
    };
    match done {
        Ok(changed) => Outcome::Done { changed },
        Err(err) => refused(&err),
    }
}

fn refused(err: &EnrollError) -> Outcome {
    Outcome::Refused {
        code: err.code().into(),
        reason: chain(err),
    }
}

async fn write_line(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await
}
