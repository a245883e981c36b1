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

use super::{EnrollError, EnrollRequest, Enroller, PodState, PodStatus};
use crate::explain::{Explainer, Explanation, Question};
use crate::inspect::{End, Inspector, List, NodeStatus, Page, PodsGlance, Rows};
use crate::prove::{Proof, Prover, Wanted};
use crate::task::{Backoff, Shutdown, TaskGroup};
use crate::telemetry::chain;

/// Longest request.
const MAX_REQUEST: u64 = 64 * 1024;
/// Clients served at a time; more wait.
const MAX_CLIENTS: usize = 16;
/// How long a client may take for its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long it may take to read an answer, or a page of one.
const READ_DEADLINE: Duration = Duration::from_secs(20);

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
    /// Make a connection of a pod, and watch the wire.
    Prove(Wanted),
    /// The node at a glance.
    Status {},
    /// What there is of something: the answer is pages, one in each line.
    List(List),
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
    Proof(Box<Proof>),
    Status(Box<NodeStatus>),
    /// More follow until one has an end.
    Page(Page),
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
    read_line(&mut BufReader::new(stream)).await.map_err(talk)
}

/// Asks the daemon for a list, and puts its pages together. Whatever else is answered is given as it is.
///
/// # Errors
/// When there is no daemon or it goes away.
pub async fn call_list(
    socket: &Path,
    list: List,
) -> Result<Result<(Rows, End), Outcome>, ApiError> {
    let path = || socket.to_owned();
    let connect = |source| ApiError::Connect {
        path: path(),
        source,
    };
    let talk = |source| ApiError::Talk {
        path: path(),
        source,
    };
    let mut stream = UnixStream::connect(socket).await.map_err(connect)?;
    write_line(&mut stream, &Request::List(list))
        .await
        .map_err(talk)?;
    let mut answer = BufReader::new(stream);
    let mut all: Option<Rows> = None;
    loop {
        let page = match read_line(&mut answer).await.map_err(talk)? {
            Outcome::Page(page) => page,
            other => return Ok(Err(other)),
        };
        let rows = match all.take() {
            Some(mut rows) => {
                rows.append(page.rows);
                rows
            }
            None => page.rows,
        };
        if let Some(end) = page.end {
            return Ok(Ok((rows, end)));
        }
        all = Some(rows);
    }
}

async fn read_line(from: &mut BufReader<UnixStream>) -> io::Result<Outcome> {
    let mut line = String::new();
    from.read_line(&mut line).await?;
    if line.is_empty() {
        let gone = "the daemon went away";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, gone));
    }
    Ok(serde_json::from_str(&line)?)
}

/// Who answers what.
#[derive(Clone)]
pub struct Answerers {
    pub enroller: Enroller,
    pub explainer: Explainer,
    pub prover: Prover,
    pub inspector: Inspector,
    /// Told when a client asked the daemon to end, after everything is removed.
    pub stop: mpsc::Sender<()>,
    /// Of the daemon.
    pub version: &'static str,
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

    /// Serves the API until shutdown.
    pub fn serve(self, answerers: Answerers, shutdown: Shutdown, tasks: &TaskGroup) {
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
                        let answerers = answerers.clone();
                        group.spawn(async move {
                            if let Err(err) = client(stream, &answerers).await {
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

async fn client(stream: UnixStream, answerers: &Answerers) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(MAX_REQUEST);
        let read = timeout(REQUEST_DEADLINE, limited.read_until(b'\n', &mut line)).await??;
        if read == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, answerers).await,
            Err(err) => {
                let (code, reason) = (
                    "BAD_REQUEST".into(),
                    format!("the request is not understood: {err}"),
                );
                write_answer(&mut write, &Outcome::Refused { code, reason }).await?;
                return Ok(());
            }
        };
        match answer {
            Answer::One(outcome) => write_answer(&mut write, &outcome).await?,
            Answer::Pages(mut pages) => {
                let mut ended = false;
                while let Some(page) = pages.recv().await {
                    ended = page.end.is_some();
                    write_answer(&mut write, &Outcome::Page(page)).await?;
                }
                if !ended {
                    // Somebody who waits for the rest has to know.
                    return Ok(());
                }
            }
        }
    }
}

enum Answer {
    One(Outcome),
    Pages(mpsc::Receiver<Page>),
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self::One(outcome)
    }
}

async fn answer(request: Request, answerers: &Answerers) -> Answer {
    let Answerers {
        enroller,
        explainer,
        prover,
        inspector,
        stop,
        version,
    } = answerers;
    let done = match request {
        Request::Pods {} => return Outcome::Pods(enroller.pods().await).into(),
        Request::Explain(question) => {
            return match explainer.explain(&enroller.known().await, &question) {
                Ok(explanation) => Outcome::Explained(Box::new(explanation)),
                Err(err) => Outcome::Refused {
                    code: err.code().into(),
                    reason: err.to_string(),
                },
            }
            .into();
        }
        Request::Prove(wanted) => {
            let proof = prover.prove(enroller.candidates().await, &wanted);
            return match Box::pin(proof).await {
                Ok(proof) => Outcome::Proof(Box::new(proof)),
                Err(err) => Outcome::Refused {
                    code: err.code().into(),
                    reason: chain(&err),
                },
            }
            .into();
        }
        Request::Status {} => {
            let pods = glance(enroller.pods().await);
            let status = Box::pin(inspector.status(version, pods)).await;
            return Outcome::Status(Box::new(status)).into();
        }
        Request::List(list) => {
            return match inspector.list(list).await {
                Ok(pages) => Answer::Pages(pages),
                Err(busy) => Answer::One(Outcome::Refused {
                    code: "BUSY".into(),
                    reason: busy.to_string(),
                }),
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
    .into()
}

pub(crate) fn glance(pods: Vec<PodStatus>) -> PodsGlance {
    let mut glance = PodsGlance::default();
    for pod in pods {
        match pod.state {
            PodState::Captured => glance.captured += 1,
            PodState::Leaving => glance.leaving += 1,
            PodState::Defective => glance.add_defective(
                format!("{}/{}", pod.namespace, pod.name),
                pod.problem.unwrap_or_default(),
            ),
        }
    }
    glance
}

/// Nobody may keep an answer, and with it a place among the clients, by not reading it.
async fn write_answer(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    outcome: &Outcome,
) -> io::Result<()> {
    timeout(READ_DEADLINE, write_line(stream, outcome)).await?
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
