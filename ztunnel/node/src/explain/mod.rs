//! Explains what would become of a connection, and why: the steps of the decision and of the policies, as they are
//! taken now.
//!
//! Invariants: reads one snapshot, and changes nothing; nobody is asked and nothing is connected. What decides is
//! `decide`, `target` and `PodPolicies`, as for connections: there is no second opinion here. What a connection would
//! meet after the decision (certificates, the network, the app) is not looked at.

mod answer;
mod error;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ztunnel_mesh::addr::{AppAddr, Authority, ClientAddr, HBONE_PORT, OrigDst};
use ztunnel_mesh::authorize::{Peer, PodPolicies};
use ztunnel_mesh::decide::{Decision, HboneRoute, Route, decide};
use ztunnel_mesh::inbound::{Connect, plaintext_target, target};
use ztunnel_mesh::name::{Identity, PodName, Principal};
pub use ztunnel_mesh::reason;
use ztunnel_mesh::reason::Reason;
use ztunnel_mesh::workload::TunnelProtocol;
use ztunnel_mesh::{Mesh, Refusal, Rng, Step, Workload};

pub use answer::{Destination, Explanation, Plan, Refused, Tunnel, Verdict, Why};
pub use error::ExplainError;

use crate::state::MeshReader;

/// So many steps are told. More only a mesh has that nobody would read about.
const STEPS: usize = 200;

/// A connection to explain. Texts, as a person writes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// An app of a pod of this node connects.
    Outbound {
        /// `namespace/name`.
        from: String,
        to: String,
    },
    /// Somebody connects to a pod of this node.
    Inbound {
        to: String,
        /// The SPIFFE id that the client proves, or `plaintext`.
        peer: String,
        from_ip: Option<String>,
    },
}

/// A pod of this node, as far as explanations need it.
#[derive(Clone, Debug)]
pub struct KnownPod {
    pub name: PodName,
    pub addresses: Vec<IpAddr>,
    /// The ports of the proxy's listeners in it.
    pub listeners: Arc<[u16]>,
    /// Whether its connections are served.
    pub served: bool,
}

/// Explains decisions of this node.
#[derive(Clone, Debug)]
pub struct Explainer {
    pub node: Arc<str>,
    pub network: Arc<str>,
    pub mesh: MeshReader,
}

impl Explainer {
    /// Explains one connection of or to one of `pods`, which are those of this node.
    ///
    /// # Errors
    /// When there is no such connection.
    pub fn explain(
        &self,
        pods: &[KnownPod],
        question: &Question,
    ) -> Result<Explanation, ExplainError> {
        let mesh = self.mesh.load();
        match question {
            Question::Outbound { from, to } => {
                let (namespace, name) = from
                    .split_once('/')
                    .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
                    .ok_or_else(|| ExplainError::PodName { text: from.clone() })?;
                let to = address(to)?;
                if to.ip().is_loopback() {
                    return Err(ExplainError::Loopback { to });
                }
                let is_it =
                    |pod: &&KnownPod| *pod.name.namespace == *namespace && *pod.name.name == *name;
                let pod = pods
                    .iter()
                    .find(is_it)
                    .ok_or_else(|| self.no_pod(&mesh, namespace, name))?;
                served(pod)?;
                Ok(self.outbound(&mesh, pod, to))
            }
            Question::Inbound { to, peer, from_ip } => {
                let to = address(to)?;
                let principal = match &**peer {
                    "plaintext" => None,
                    id => Some(Principal::from(id.parse::<Identity>()?)),
                };
                let from_ip = from_ip.as_deref().map(ip).transpose()?;
                let pod = pods
                    .iter()
                    .find(|pod| pod.addresses.contains(&to.ip()))
                    .ok_or_else(|| self.no_pod_at(&mesh, to.ip()))?;
                served(pod)?;
                Ok(self.inbound(&mesh, pod, to, principal.as_ref(), from_ip))
            }
        }
    }

    fn outbound(&self, mesh: &Mesh, pod: &KnownPod, to: SocketAddr) -> Explanation {
        let mut told = Told::default();
        let workload = mesh.local_workload(&self.node, &pod.name);
        let (verdict, destination) = match workload {
            None => (refused(self.unknown(pod)), None),
            Some(workload) => {
                let decision = decide(mesh, &self.network, workload, OrigDst(to), &mut told);
                let destination = match &decision {
                    Decision::Go {
                        route: Route::Hbone(route),
                        ..
                    } => told
                        .destination
                        .as_deref()
                        .and_then(|uid| mesh.workload(uid))
                        .map(|far| at_the_far_side(mesh, &self.network, far, workload, route)),
                    _ => None,
                };
                (judged(pod, decision), destination)
            }
        };
        Explanation {
            from: pod.name.to_string(),
            identity: workload.map(|workload| workload.identity().to_string()),
            to: to.to_string(),
            steps: told.steps,
            verdict,
            destination,
        }
    }

    /// The checks in the order in which a connection meets them.
    fn inbound(
        &self,
        mesh: &Mesh,
        pod: &KnownPod,
        to: SocketAddr,
        principal: Option<&Principal>,
        from_ip: Option<IpAddr>,
    ) -> Explanation {
        let mut told = Told::default();
        let workload = mesh.local_workload(&self.node, &pod.name);
        let verdict = match workload {
            None => refused(self.unknown(pod)),
            Some(workload) => {
                let app = match principal {
                    None => plaintext_target(to),
                    Some(_) => {
                        let local = SocketAddr::new(to.ip(), HBONE_PORT);
                        app(mesh, &self.network, workload, &Authority::Ip(to), local)
                    }
                };
                let app = app.and_then(|app| not_own(pod, app));
                match app {
                    Err(refusal) => refused(refusal),
                    Ok(app) => permitted(mesh, workload, principal, from_ip, app, &mut told),
                }
            }
        };
        Explanation {
            from: from_ip.map_or_else(|| "anywhere".to_owned(), |ip| ip.to_string()),
            identity: principal.map(ToString::to_string),
            to: to.to_string(),
            steps: told.steps,
            verdict,
            destination: None,
        }
    }

    fn unknown(&self, pod: &KnownPod) -> Refusal {
        let (name, account, node) = (&pod.name, &pod.name.service_account, &self.node);
        Refusal {
            reason: Reason::WorkloadUnknown,
            detail: format!(
                "the control plane does not know pod {name} with service account {account:?} on node {node}; a \
                 connection would wait some seconds for it"
            ),
        }
    }

    fn no_pod(&self, mesh: &Mesh, namespace: &str, name: &str) -> ExplainError {
        let pod = format!("{namespace}/{name}");
        let mut named = mesh
            .workloads()
            .filter(|workload| *workload.namespace == *namespace && *workload.name == *name);
        match named.find(|workload| *workload.place.node != *self.node) {
            Some(elsewhere) => ExplainError::Elsewhere {
                pod,
                node: elsewhere.place.node.to_string(),
            },
            None => ExplainError::NotEnrolled { pod },
        }
    }

    fn no_pod_at(&self, mesh: &Mesh, ip: IpAddr) -> ExplainError {
        if let Some(workload) = mesh.workload_by_ip(&self.network, ip) {
            return self.no_pod(mesh, &workload.namespace, &workload.name);
        }
        match mesh.service_by_vip(&self.network, ip, "") {
            Some(service) => ExplainError::ServiceAddress {
                ip,
                service: service.key.to_string(),
            },
            None => ExplainError::NobodysAddress { ip },
        }
    }
}

fn served(pod: &KnownPod) -> Result<(), ExplainError> {
    if pod.served {
        return Ok(());
    }
    Err(ExplainError::NotServed {
        pod: pod.name.to_string(),
    })
}

fn not_own(pod: &KnownPod, app: AppAddr) -> Result<AppAddr, Refusal> {
    if pod.listeners.contains(&app.0.port()) {
        return Err(Refusal {
            reason: Reason::Loop,
            detail: format!("{app} is a port of the proxy itself"),
        });
    }
    Ok(app)
}

fn judged(pod: &KnownPod, decision: Decision) -> Verdict {
    match decision {
        // The connection would find itself.
        Decision::Go {
            route: Route::Direct { to },
            ..
        } if pod.addresses.contains(&to.ip()) => refused(Refusal {
            reason: Reason::Loop,
            detail: format!("{to} is the pod itself: the connection would come back"),
        }),
        Decision::Go { route, .. } => Verdict::Go(Plan::of(route)),
        Decision::Refuse(refusal) => refused(refusal),
        Decision::Lookup(key) => Verdict::LookUp {
            key: key.to_string(),
        },
    }
}

/// What the destination says, as far as is known here: its node decides.
fn at_the_far_side(
    mesh: &Mesh,
    network: &str,
    far: &Arc<Workload>,
    client: &Workload,
    route: &HboneRoute,
) -> Destination {
    let mut told = Told::default();
    let principal = Principal::from(client.identity());
    let local = route.peer.0;
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == local.is_ipv4();
    let from = client.addresses.iter().find(same_family).copied();
    let verdict = match app(mesh, network, far, &route.authority, local) {
        Err(refusal) => refused(refusal),
        Ok(app) => permitted(mesh, far, Some(&principal), from, app, &mut told),
    };
    Destination {
        workload: format!("{}/{}", far.namespace, far.name),
        node: far.place.node.to_string(),
        steps: told.steps,
        verdict,
    }
}

/// The app that a CONNECT is for, as policy knows it.
fn app(
    mesh: &Mesh,
    own_network: &str,
    pod: &Workload,
    authority: &Authority,
    local: SocketAddr,
) -> Result<AppAddr, Refusal> {
    let connect = Connect {
        own_network,
        pod,
        authority,
        local,
        // Says how the app is reached, not whether.
        localhost_app_tunnel: true,
    };
    target(mesh, &connect).map(|target| target.app)
}

/// Asks the policies of a pod.
fn permitted(
    mesh: &Mesh,
    pod: &Arc<Workload>,
    principal: Option<&Principal>,
    from_ip: Option<IpAddr>,
    app: AppAddr,
    told: &mut Told,
) -> Verdict {
    let policies = PodPolicies::new(mesh, pod);
    let nowhere: IpAddr = match app.0 {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    if from_ip.is_none() && policies.look_at_source() {
        let text = format!(
            "policies look at the client's address; none is given (--from-ip): taken to be {nowhere}"
        );
        told.push("source", text);
    }
    let peer = Peer {
        principal,
        addr: ClientAddr(SocketAddr::new(from_ip.unwrap_or(nowhere), 0)),
    };
    match policies.explain(mesh, peer, app, |step| told.step(step)) {
        Ok(policy) => Verdict::Permitted {
            app: app.0,
            policy: policy.map(|name| name.to_string()),
        },
        Err(refusal) => refused(refusal),
    }
}

fn refused(refusal: Refusal) -> Verdict {
    Verdict::Refused(Refused::new(refusal))
}

fn address(text: &str) -> Result<SocketAddr, ExplainError> {
    let addr: SocketAddr = text.parse().map_err(|_| ExplainError::Address {
        text: text.to_owned(),
    })?;
    Ok(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

fn ip(text: &str) -> Result<IpAddr, ExplainError> {
    let ip: IpAddr = text.parse().map_err(|_| ExplainError::FromIp {
        text: text.to_owned(),
    })?;
    Ok(ip.to_canonical())
}

/// Writes down the steps of a decision, and throws dice for it as a connection would.
#[derive(Default)]
struct Told {
    steps: Vec<Why>,
    /// The uid of the destination, if the way ends at one that takes tunnels.
    destination: Option<Arc<str>>,
}

impl Told {
    fn push(&mut self, about: &str, text: String) {
        if self.steps.len() < STEPS {
            let about = about.to_owned();
            self.steps.push(Why { about, text });
        }
    }
}

impl Rng for Told {
    fn next_u32(&mut self) -> u32 {
        rand::random()
    }

    fn step(&mut self, step: Step<'_>) {
        if let Step::Destination { workload, .. } = step
            && workload.tunnel == TunnelProtocol::Hbone
        {
            self.destination = Some(Arc::clone(&workload.uid));
        }
        self.push(step.about(), step.to_string());
    }
}

#[cfg(test)]
mod tests;
