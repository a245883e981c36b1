//! How a test or a demo steers the control plane and asks what happened.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::authority::{Authority, Validity};
use super::ca::{CaMode, Issued, Refused};
use super::crowd::Crowd;
use super::faults::{DiscoveryFault, giants};
use super::server::RunningServer;
use super::session::Answer;
use super::shared::{Shared, lock};
use super::{HOSTNAME, PORT};
use crate::error::{Doing, LabError, Result};
use crate::mesh_file::MeshFile;
use crate::net::{CONTROL_PLANE_V4, CONTROL_PLANE_V6, Namespace};

/// The control plane of a lab.
pub struct ControlPlane {
    shared: Arc<Shared>,
    ns: Arc<Namespace>,
    server: Mutex<Option<RunningServer>>,
    certificate: (String, String),
    dir: PathBuf,
}

impl ControlPlane {
    /// Starts it in `ns`. Below `dir` it keeps the mesh file, its root, its log and one token per node.
    pub(crate) fn start(ns: Arc<Namespace>, dir: &Path, mesh: MeshFile) -> Result<Self> {
        let own = Authority::new("control plane")?;
        let certificate =
            own.issue_server(&[HOSTNAME, CONTROL_PLANE_V4, CONTROL_PLANE_V6, "localhost"])?;
        let mut tokens = BTreeMap::new();
        for node in &mesh.nodes {
            tokens.insert(node.clone(), new_token(node));
        }
        let control_plane = Self {
            shared: Arc::new(Shared::new(mesh, tokens, dir)?),
            ns,
            server: Mutex::new(None),
            certificate,
            dir: dir.to_owned(),
        };
        std::fs::write(control_plane.root_file(), own.root_pem())
            .doing(|| "write the root of the control plane")?;
        for (node, token) in lock(&control_plane.shared.tokens).iter() {
            write_whole(&control_plane.token_file(node), token)?;
        }
        control_plane.write_mesh()?;
        control_plane.resume()?;
        Ok(control_plane)
    }

    /// The mesh file. Edit it, and the control plane says what it says.
    #[must_use]
    pub fn mesh_file(&self) -> PathBuf {
        self.dir.join("mesh.yaml")
    }

    /// The certificate that clients have to trust, PEM.
    #[must_use]
    pub fn root_file(&self) -> PathBuf {
        self.dir.join("root-cert.pem")
    }

    /// The token of a node.
    #[must_use]
    pub fn token_file(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.token"))
    }

    /// Its log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("control-plane.log")
    }

    /// Host names of services, as `/etc/hosts` has them. Follows the mesh.
    #[must_use]
    pub fn hosts_file(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// Its address, by name.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("https://{HOSTNAME}:{PORT}")
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        format!("{CONTROL_PLANE_V4}:{PORT}")
            .parse()
            .unwrap_or_else(|_| SocketAddr::from(([192, 0, 2, 10], PORT)))
    }

    /// The mesh as it is now.
    #[must_use]
    pub fn mesh(&self) -> MeshFile {
        lock(&self.shared.mesh).file.clone()
    }

    /// Changes the mesh, and the mesh file with it.
    ///
    /// # Errors
    /// When the result contradicts itself (nothing changes then), or the file cannot be written.
    pub fn update(&self, change: impl FnOnce(&mut MeshFile)) -> Result<()> {
        let _edit = lock(&self.shared.edits);
        let mut mesh = self.mesh();
        change(&mut mesh);
        mesh.check()?;
        self.shared.change(|state| state.file = mesh);
        self.write_mesh()
    }

    /// Announces, besides the mesh, resources of these names that nobody can read; none takes all of them back.
    pub fn announce_nonsense(&self, names: &[&str]) {
        self.shared.change(|state| {
            state.nonsense = names.iter().map(|&name| name.to_owned()).collect();
        });
    }

    /// Lets the discovery service behave otherwise from now on.
    pub fn set_discovery_fault(&self, fault: DiscoveryFault) {
        self.shared.fault.send_replace(fault);
    }

    /// Announces, besides the mesh, `count` workloads of `size` bytes each; none takes all of them back.
    pub fn announce_giants(&self, count: usize, size: usize) {
        let giants = giants(count, size);
        self.shared.change(|state| state.giants = giants);
    }

    /// Announces a crowd besides the mesh, instead of the one before it.
    pub fn announce_crowd(&self, crowd: &Crowd) {
        self.shared.change(|state| state.crowd = crowd.0.clone());
    }

    /// Says of a pod that it is enrolled, or no longer, as the node agent does with an annotation.
    pub(crate) fn set_enrolled(&self, key: &str, enrolled: bool) {
        self.shared.change(|state| {
            if enrolled {
                state.enrolled.insert(key.to_owned());
            } else {
                state.enrolled.remove(key);
            }
        });
    }

    /// Waits until the proxies of `nodes` are connected, and every connected one has taken (or rejected) all that
    /// there is to say.
    ///
    /// # Errors
    /// When that is not so in time, saying who is behind.
    pub fn settled<S: AsRef<str>>(&self, nodes: &[S], timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let behind = self.behind(nodes);
            if behind.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LabError::new(format!(
                    "not everybody has the current state after {timeout:?}: {}",
                    behind.join(", ")
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn behind<S: AsRef<str>>(&self, nodes: &[S]) -> Vec<String> {
        let generation = self.shared.snapshots.borrow().generation;
        let sessions = lock(&self.shared.sessions);
        let missing = nodes
            .iter()
            .map(AsRef::as_ref)
            .filter(|&node| !sessions.open.values().any(|open| open.node == node))
            .map(|node| format!("{node} is not connected"));
        let late = sessions.open.values().filter_map(|open| {
            let up_to_date = open.synced.iter().all(|synced| *synced >= Some(generation));
            (!up_to_date).then(|| format!("{} has {:?} of {generation}", open.node, open.synced))
        });
        missing.chain(late).collect()
    }

    /// Nodes whose proxies are connected, one entry per connection.
    #[must_use]
    pub fn connected(&self) -> Vec<String> {
        let sessions = lock(&self.shared.sessions);
        sessions
            .open
            .values()
            .map(|open| open.node.clone())
            .collect()
    }

    /// Everything that clients answered to discovery responses, oldest first.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer> {
        lock(&self.shared.sessions).answers.clone()
    }

    /// How often the proxy of a node asked for a name, after its stream began.
    #[must_use]
    pub fn lookups(&self, node: &str, name: &str) -> usize {
        let sessions = lock(&self.shared.sessions);
        let asked = sessions.lookups.iter();
        asked.filter(|(by, of)| by == node && of == name).count()
    }

    /// Certificates that were signed, oldest first.
    #[must_use]
    pub fn issued(&self) -> Vec<Issued> {
        lock(&self.shared.ca).issued.clone()
    }

    /// How many certificates were signed for an identity.
    #[must_use]
    pub fn issued_for(&self, identity: &str) -> usize {
        let ca = lock(&self.shared.ca);
        ca.issued
            .iter()
            .filter(|issued| issued.identity == identity)
            .count()
    }

    /// Requests for certificates that were refused, oldest first.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        lock(&self.shared.ca).refused.clone()
    }

    /// Lets the certificate service behave otherwise from now on.
    pub fn set_ca_mode(&self, mode: CaMode) {
        lock(&self.shared.ca).mode = mode;
    }

    /// Cuts what certificates are good for, so that a test can see them renewed.
    pub fn limit_certificates(&self, at_most: Validity) {
        lock(&self.shared.ca).at_most = Some(at_most);
    }

    /// What signs the mesh's certificates now. Issues credentials for test clients, too.
    #[must_use]
    pub fn authority(&self) -> Arc<Authority> {
        lock(&self.shared.ca).authority.clone()
    }

    /// Signs with `authority` from now on. The former root stays trusted if `keep_trust`.
    pub fn set_authority(&self, authority: Authority, keep_trust: bool) {
        let mut ca = lock(&self.shared.ca);
        let former = std::mem::replace(&mut ca.authority, Arc::new(authority));
        if keep_trust {
            ca.other_roots.push(former.root_pem());
        } else {
            ca.other_roots.clear();
        }
    }

    /// Says from now on that this root is trusted, besides that of whoever signs: the step before a rotation.
    pub fn trust_also(&self, root_pem: String) {
        lock(&self.shared.ca).other_roots.push(root_pem);
    }

    /// Says from now on that only the root of whoever signs is trusted.
    pub fn trust_nobody_else(&self) {
        lock(&self.shared.ca).other_roots.clear();
    }

    /// Gives a node a new token; the old one is no longer taken.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn rotate_token(&self, node: &str) -> Result<()> {
        let token = new_token(node);
        write_whole(&self.token_file(node), &token)?;
        lock(&self.shared.tokens).insert(node.to_owned(), token);
        Ok(())
    }

    /// Stops the server: all connections end, new ones are refused. What it knows stays.
    pub fn pause(&self) {
        *lock(&self.server) = None;
    }

    /// Starts the server again.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn resume(&self) -> Result<()> {
        let mut server = lock(&self.server);
        if server.is_some() {
            return Ok(());
        }
        let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let listener = self
            .ns
            .listen(everywhere)
            .doing(|| "listen for the control plane")?;
        *server = Some(RunningServer::start(
            self.shared.clone(),
            listener,
            self.certificate.clone(),
            self.mesh_file(),
        )?);
        Ok(())
    }

    fn write_mesh(&self) -> Result<()> {
        let yaml = self.mesh().to_yaml()?;
        let intro = "# The mesh of this lab. Edits take effect within a tenth of a second.\n";
        write_whole(&self.mesh_file(), &format!("{intro}{yaml}"))
    }
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ControlPlane({})", self.mesh_file().display())
    }
}

/// A token that says whose it is and cannot be guessed.
fn new_token(node: &str) -> String {
    format!("{node}.{:032x}", rand::random::<u128>())
}

/// Writes so that a reader sees the old or the new content, never half of it.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .doing(|| format!("write {}", path.display()))
}
