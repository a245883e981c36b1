//! State of the control plane that outlives a stop and start of its server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::ca::Ca;
use super::faults::DiscoveryFault;
use super::session::Answer;
use super::snapshot::{Entry, Snapshot};
use super::{Authority, CLUSTER, HOSTNAME};
use crate::error::{Doing as _, Result};
use crate::mesh_file::MeshFile;
use crate::net::{CONTROL_PLANE_V4, CONTROL_PLANE_V6};
pub(crate) use crate::sync::lock;

/// Answers that are kept; older ones are forgotten. Lookups that are kept; later ones are not noted.
const ANSWERS: usize = 10_000;

/// What the services, the file watcher and the handle share.
pub(crate) struct Shared {
    /// Held by whoever changes the mesh and its file, so that the two agree whenever it is free.
    pub(crate) edits: Mutex<()>,
    pub(crate) mesh: Mutex<MeshState>,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) tokens: Mutex<BTreeMap<String, String>>,
    pub(crate) ca: Mutex<Ca>,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) fault: watch::Sender<DiscoveryFault>,
    hosts: PathBuf,
    log: PathBuf,
}

/// The mesh, and which of its pods are enrolled.
pub(crate) struct MeshState {
    pub(crate) file: MeshFile,
    pub(crate) enrolled: BTreeSet<String>,
    /// Names of resources that nobody can read.
    pub(crate) nonsense: BTreeSet<String>,
    /// Addresses besides those of the mesh, for their size.
    pub(crate) giants: BTreeMap<String, Arc<Entry>>,
    /// Addresses besides those of the mesh, for their number.
    pub(crate) crowd: BTreeMap<String, Arc<Entry>>,
}

/// What clients are connected, and what they answered.
#[derive(Default)]
pub(crate) struct Sessions {
    pub(crate) open: BTreeMap<u64, OpenSession>,
    pub(crate) answers: Vec<Answer>,
    /// Node and name of everything that was asked for by name.
    pub(crate) lookups: Vec<(String, String)>,
    next: u64,
}

/// One connected client.
pub(crate) struct OpenSession {
    pub(crate) node: String,
    pub(crate) synced: [Option<u64>; 2],
}

impl Shared {
    /// Writes its log and its table of host names below `dir`.
    pub(crate) fn new(
        mesh: MeshFile,
        tokens: BTreeMap<String, String>,
        dir: &Path,
    ) -> Result<Self> {
        let enrolled = BTreeSet::new();
        let first = Snapshot::default().next(&mesh, &enrolled);
        let hosts = dir.join("hosts");
        fs::write(&hosts, hosts_table(&mesh)).doing(|| format!("write {}", hosts.display()))?;
        Ok(Self {
            edits: Mutex::new(()),
            mesh: Mutex::new(MeshState {
                file: mesh,
                enrolled,
                nonsense: BTreeSet::new(),
                giants: BTreeMap::new(),
                crowd: BTreeMap::new(),
            }),
            snapshots: watch::Sender::new(Arc::new(first)),
            tokens: Mutex::new(tokens),
            ca: Mutex::new(Ca::new(Authority::new("mesh")?)),
            sessions: Mutex::default(),
            fault: watch::Sender::default(),
            hosts,
            log: dir.join("control-plane.log"),
        })
    }

    /// Changes the mesh, or who is enrolled, and publishes the result.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut MeshState) -> T) -> T {
        let mut state = lock(&self.mesh);
        let result = change(&mut state);
        if let Err(err) = write_hosts(&self.hosts, &hosts_table(&state.file)) {
            self.log(&format!(
                "mesh: cannot write {}: {err}",
                self.hosts.display()
            ));
        }
        self.snapshots.send_modify(|snapshot| {
            let next = snapshot.next(&state.file, &state.enrolled);
            *snapshot = Arc::new(
                next.with_nonsense(&state.nonsense)
                    .with(&state.giants)
                    .with(&state.crowd),
            );
        });
        result
    }

    /// The node whose token a request carries.
    pub(crate) fn authenticate(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let refused = |why: &str| {
            self.log(&format!("refused a request: {why}"));
            Status::unauthenticated("request authenticate failure")
        };
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let token = text("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| refused("no bearer token"))?;
        if text("clusterid") != Some(CLUSTER) {
            return Err(refused(&format!("clusterid is {:?}", text("clusterid"))));
        }
        lock(&self.tokens)
            .iter()
            .find(|(_, known)| *known == token)
            .map(|(node, _)| node.clone())
            .ok_or_else(|| refused("unknown token"))
    }

    /// Writes a line to the control plane's log.
    pub(crate) fn log(&self, line: &str) {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let opened = OpenOptions::new().create(true).append(true).open(&self.log);
        if let Ok(mut file) = opened {
            drop(writeln!(file, "{:.3} {line}", since.as_secs_f64()));
        }
    }
}

impl Sessions {
    pub(crate) fn open(&mut self, node: &str) -> u64 {
        self.next += 1;
        let session = OpenSession {
            node: node.to_owned(),
            synced: [None; 2],
        };
        self.open.insert(self.next, session);
        self.next
    }

    pub(crate) fn note_lookups(&mut self, node: &str, names: &[String]) {
        let room = ANSWERS.saturating_sub(self.lookups.len());
        let noted = names.iter().map(|name| (node.to_owned(), name.clone()));
        self.lookups.extend(noted.take(room));
    }

    pub(crate) fn note(&mut self, answer: Answer) {
        if self.answers.len() >= ANSWERS {
            self.answers.remove(0);
        }
        self.answers.push(answer);
    }
}

/// Changes the file in place, not by renaming: this very file is mounted in every namespace of the lab. Nor is it
/// ever empty: somebody who looked up a name just then would go on to ask a DNS server that is not there, and wait
/// five seconds for it. What all tables begin with is overwritten by itself.
fn write_hosts(path: &Path, table: &str) -> io::Result<()> {
    if fs::read(path)? == table.as_bytes() {
        return Ok(());
    }
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(table.as_bytes())?;
    file.set_len(table.len() as u64)
}

/// Host names of services and of the control plane: what cluster DNS would say.
fn hosts_table(mesh: &MeshFile) -> String {
    let mut table = format!(
        "127.0.0.1 localhost\n::1 localhost\n{CONTROL_PLANE_V4} {HOSTNAME}\n{CONTROL_PLANE_V6} {HOSTNAME}\n"
    );
    for service in &mesh.services {
        for address in &service.addresses {
            let (name, namespace) = (&service.name, &service.namespace);
            table += &format!("{address} {} {name}.{namespace}\n", service.hostname());
        }
    }
    table
}
