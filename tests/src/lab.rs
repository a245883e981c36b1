//! A lab: everything together, from one mesh file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::control_plane::ControlPlane;
use crate::daemon;
use crate::dir::LabDir;
use crate::dns::{self, Dns};
use crate::error::{Doing, LabError, Result};
use crate::fingerprint::{Fingerprint, listeners};
use crate::mesh_file::{MeshFile, Workload};
use crate::net::{CONTROL_PLANE_V4, Namespace, Topology, to};
use crate::node::Node;
use crate::place::Place;
use crate::pod::Pod;
use crate::process::Process;
use crate::sync::lock;
use crate::tap::Tap;

/// How long proxies may take to learn what the control plane says.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a daemon may take to give back what it held for a pod.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of each log is shown when a test fails.
const TAIL: usize = 60;

/// Nodes, pods, an outside and a control plane. All of it is gone when this is dropped.
pub struct Lab {
    // Fields are dropped in this order: whoever uses something goes before it.
    forwarders: Mutex<Vec<Process>>,
    nodes: Vec<Node>,
    pods: Mutex<BTreeMap<String, Pod>>,
    links_made: Mutex<usize>,
    outside: Place,
    control_plane: Arc<ControlPlane>,
    topology: Topology,
    dir: Arc<LabDir>,
}

impl Lab {
    /// Builds a lab from YAML.
    ///
    /// # Errors
    /// When the YAML is wrong, or the kernel refuses (the lab needs root).
    pub fn from_yaml(yaml: &str) -> Result<Self> {
        Self::build(MeshFile::parse("the mesh of the lab", yaml)?)
    }

    /// Builds a lab from a file.
    ///
    /// # Errors
    /// As [`from_yaml`](Self::from_yaml).
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::build(MeshFile::read(path)?)
    }

    /// Builds a lab.
    ///
    /// # Errors
    /// As [`from_yaml`](Self::from_yaml).
    pub fn build(mesh: MeshFile) -> Result<Self> {
        mesh.check()?;
        let dir = Arc::new(LabDir::new()?);
        let topology = Topology::build(&mesh.nodes)?;
        let plane_dir = dir.path().join("control-plane");
        fs::create_dir(&plane_dir).doing(|| "make the control plane's directory")?;
        let control_plane = Arc::new(ControlPlane::start(
            topology.outside.clone(),
            &plane_dir,
            mesh.clone(),
        )?);
        let mut nodes = Vec::new();
        for ns in &topology.nodes {
            ns.mount_bpffs()?;
            let place = Place::new(ns.clone(), dir.path().join(ns.name()))?;
            nodes.push(Node::new(place, control_plane.clone(), dir.clone()));
        }
        let outside = Place::new(topology.outside.clone(), dir.path().join("outside"))?;
        for ns in topology.nodes.iter().chain([&topology.outside]) {
            mount_hosts(ns, &control_plane)?;
        }
        // No lab ever asks the machine's own name servers.
        let resolv_conf = dir.path().join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {CONTROL_PLANE_V4}\n"))
            .doing(|| "write a resolver configuration")?;
        for ns in &topology.nodes {
            ns.bind_mount(&resolv_conf, "/etc/resolv.conf")?;
        }
        let lab = Self {
            forwarders: Mutex::default(),
            nodes,
            pods: Mutex::default(),
            links_made: Mutex::new(0),
            outside,
            control_plane,
            topology,
            dir,
        };
        let pods: Vec<Workload> = mesh.workloads.iter().filter(|w| w.pod).cloned().collect();
        lab.build_pods(&mesh, pods)?;
        Ok(lab)
    }

    /// The control plane.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// A node.
    ///
    /// # Panics
    /// When there is no such node: the test is wrong.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.unwrap_or_else(|| panic!("the lab has no node `{name}`"))
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A pod, by `namespace/name`.
    ///
    /// # Panics
    /// When there is no such pod: the test is wrong.
    #[must_use]
    pub fn pod(&self, key: &str) -> Pod {
        let pod = lock(&self.pods).get(key).cloned();
        pod.unwrap_or_else(|| panic!("the lab has no pod `{key}`"))
    }

    /// All pods.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        lock(&self.pods).values().cloned().collect()
    }

    /// Where hosts outside the mesh are.
    #[must_use]
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    /// The directory of everything that is written.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the name server that the nodes ask.
    ///
    /// # Errors
    /// When it cannot be bound; there is one at a time.
    pub fn name_server(&self) -> Result<Dns> {
        let on = format!("{CONTROL_PLANE_V4}:{}", dns::PORT);
        let on = on.parse().doing(|| "know the name server")?;
        Dns::start(&self.outside, on)
    }

    /// Adds a pod to a running lab, and to its mesh.
    ///
    /// # Errors
    /// When it does not fit the rest.
    pub fn add_pod(&self, workload: Workload) -> Result<Pod> {
        let key = workload.key();
        self.control_plane
            .update(|mesh| mesh.workloads.push(workload.clone()))?;
        self.build_pods(&self.control_plane.mesh(), vec![workload])?;
        Ok(self.pod(&key))
    }

    /// Takes a pod off the network, as when its container is deleted, and out of the mesh and its services.
    ///
    /// # Errors
    /// When its links and routes cannot be removed.
    pub fn remove_pod(&self, key: &str) -> Result<()> {
        let pod = self.pod(key);
        lock(&self.pods).remove(key);
        self.topology.remove_pod(pod.net())?;
        self.control_plane.set_enrolled(key, false);
        self.control_plane.update(|mesh| {
            for service in &mut mesh.services {
                let keep = service.workload_keys().map(|member| member != key);
                let mut keep = keep.collect::<Vec<_>>().into_iter();
                service.workloads.retain(|_| keep.next().unwrap_or(true));
            }
            mesh.workloads.retain(|workload| workload.key() != key);
        })
    }

    /// Starts a daemon on every node.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_daemons(&self) -> Result<()> {
        thread::scope(|scope| {
            let starting: Vec<_> = self
                .nodes
                .iter()
                .map(|node| scope.spawn(|| node.start_daemon()))
                .collect();
            starting.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .map_err(|_| LabError::new("starting a daemon panicked"))?
            })
        })
    }

    /// Enrolls pods with the daemons of their nodes, announces them as reachable by HBONE, and waits until every
    /// proxy knows.
    ///
    /// # Errors
    /// When a daemon refuses, or a proxy does not learn of it in time.
    pub fn enroll(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            self.remember(key)?;
            let pod = self.pod(key);
            self.node(pod.node()).daemon(|daemon| daemon.enroll(&pod))?;
            self.control_plane.set_enrolled(key, true);
        }
        self.settle()
    }

    /// Takes note of what a pod looks like, for [`pod_leftovers`](Self::pod_leftovers). Enrolling does it; a test of
    /// what goes wrong before that does it itself. Only the first note counts.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn remember(&self, key: &str) -> Result<()> {
        let pod = self.pod(key);
        let mut before = lock(pod.before());
        if before.is_none() {
            *before = Some(pod.fingerprint()?);
        }
        Ok(())
    }

    /// Announces pods as not reachable by HBONE, waits until every proxy knows, and unenrolls them.
    ///
    /// # Errors
    /// As [`enroll`](Self::enroll).
    pub fn unenroll(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            self.control_plane.set_enrolled(key, false);
        }
        self.settle()?;
        for key in keys {
            let pod = self.pod(key);
            self.node(pod.node())
                .daemon(|daemon| daemon.unenroll(&pod))?;
        }
        Ok(())
    }

    /// Enrolls every pod.
    ///
    /// # Errors
    /// As [`enroll`](Self::enroll).
    pub fn enroll_all(&self) -> Result<()> {
        let keys: Vec<String> = lock(&self.pods).keys().cloned().collect();
        self.enroll(&keys.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits until every daemon that runs has taken everything that the control plane says.
    ///
    /// # Errors
    /// When that is not so in time.
    pub fn settle(&self) -> Result<()> {
        let running = self.nodes.iter().filter(|node| node.has_daemon());
        let running: Vec<&str> = running.map(|node| node.name()).collect();
        self.control_plane.settled(&running, SETTLE_TIMEOUT)
    }

    /// Watches the link between two nodes.
    ///
    /// # Errors
    /// When the capture cannot be started.
    pub fn tap(&self, a: &str, b: &str, markers: &[&str]) -> Result<Tap> {
        let a = self.topology.node_number(a)?;
        let b = self.topology.node_number(b)?;
        Tap::start(
            &self.topology.nodes[a],
            &to(&self.topology.nodes[b]),
            markers,
        )
    }

    /// Serves the services of the mesh on every node for pods that are not enrolled, as kube-proxy does, except that
    /// servers see the node's address as the client. Endpoints are those of now.
    ///
    /// # Errors
    /// When a node cannot listen.
    pub fn start_service_proxies(&self) -> Result<()> {
        let mesh = self.control_plane.mesh();
        for node in &self.nodes {
            for service in &mesh.services {
                for &address in &service.addresses {
                    let address_text = address.to_string();
                    let mut add = vec!["ip", "addr", "replace", &address_text, "dev", "lo"];
                    add.extend(address.is_ipv6().then_some("nodad"));
                    node.run(add)?.success()?;
                    for (&port, &target) in &service.ports {
                        let same_family = |workload: &&Workload| {
                            workload
                                .addresses
                                .iter()
                                .any(|ip| ip.is_ipv4() == address.is_ipv4())
                        };
                        let endpoints: Vec<_> = service
                            .workload_keys()
                            .filter_map(|key| mesh.workload(&key))
                            .filter(same_family)
                            .filter_map(|w| if address.is_ipv4() { w.v4() } else { w.v6() })
                            .map(|ip| (ip, target).into())
                            .collect();
                        let forwarder = node.forward((address, port).into(), &endpoints)?;
                        lock(&self.forwarders).push(forwarder);
                    }
                }
            }
        }
        Ok(())
    }

    /// What enrolling left in a pod: changes to its network since before it was first enrolled, listening sockets of
    /// the daemon, descriptors of the daemon that keep the pod's namespace alive.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn pod_leftovers(&self, key: &str) -> Result<Vec<String>> {
        let pod = self.pod(key);
        let before: Option<Fingerprint> = lock(pod.before()).clone();
        let before = before.ok_or_else(|| LabError::new(format!("{key} was never enrolled")))?;
        let mut found = pod.fingerprint()?.changes_since(&before);
        if let Some(pid) = self.node(pod.node()).daemon_pid() {
            let held = descriptors(pid);
            let namespace = format!("net:[{}]", pod.namespace().inode()?);
            if held.contains(&namespace) {
                found.push("the daemon still has the namespace open".to_owned());
            }
            for listener in pod.namespace().enter(listeners)?? {
                if held.contains(&format!("socket:[{}]", listener.inode)) {
                    found.push(format!(
                        "the daemon still listens on port {}",
                        listener.port
                    ));
                }
            }
        }
        Ok(found
            .into_iter()
            .map(|what| format!("{key}: {what}"))
            .collect())
    }

    /// Everything left behind: in all pods that were ever enrolled, and on the nodes whose daemon was stopped.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for pod in self.pods() {
            if lock(pod.before()).is_some() {
                found.extend(self.pod_leftovers(&pod.key())?);
            }
        }
        for node in self.nodes.iter().filter(|node| !node.has_daemon()) {
            found.extend(node.leftovers()?);
        }
        Ok(found)
    }

    /// Waits until nothing is left behind.
    ///
    /// # Errors
    /// With a list of what is still there after ten seconds.
    pub fn expect_nothing_left(&self) -> Result<()> {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        loop {
            let found = self.leftovers()?;
            if found.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(LabError::new(format!("left behind:\n{}", found.join("\n"))));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The ends of all logs, for people.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            text += &format!("--- log of {} ---\n{}\n", node.name(), node.log_tail(TAIL));
        }
        let plane = daemon::tail(&self.control_plane.log_file(), TAIL);
        text + &format!("--- log of the control plane ---\n{plane}\n")
    }

    fn build_pods(&self, mesh: &MeshFile, workloads: Vec<Workload>) -> Result<()> {
        let first = {
            let mut made = lock(&self.links_made);
            *made += workloads.len();
            *made - workloads.len()
        };
        let nets = self.topology.add_pods(first, &workloads)?;
        for (workload, net) in workloads.into_iter().zip(nets) {
            let key = workload.key();
            let dir = self.dir.path().join(key.replace('/', "."));
            let place = Place::new(net.ns.clone(), dir)?;
            mount_hosts(&net.ns, &self.control_plane)?;
            let node = self.topology.nodes[net.node].clone();
            let identity = mesh.identity(&workload);
            lock(&self.pods).insert(key, Pod::new(place, workload, identity, net, node));
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
        for node in &self.nodes {
            node.abandon();
        }
    }
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lab({})", self.dir.path().display())
    }
}

/// Lets names of services be resolved inside, by a hosts file that follows the mesh.
fn mount_hosts(ns: &Namespace, control_plane: &ControlPlane) -> Result<()> {
    ns.bind_mount(&control_plane.hosts_file(), "/etc/hosts")
}

/// What the descriptors of a process lead to, as `/proc` shows it.
fn descriptors(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}
