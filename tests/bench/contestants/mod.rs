//! Who is compared: a pair of pods each, on two nodes, with whatever is between them.

mod envoy;
mod nodes;

use std::net::SocketAddr;
use std::path::PathBuf;

use lab::load::{Load, MARKER};
use lab::{ControlPlane, Lab, LabError, Pod, Process, Result};
use serde::Serialize;

use crate::plan::{Plan, Scenario};
use envoy::Codec;

/// Port of the server in its pod.
const APP_PORT: u16 = 8080;
/// Port of the service in front of it.
const SERVICE_PORT: u16 = 80;
/// So that new connections do not run out of ports while old ones linger.
const MANY_PORTS: (&str, &str) = ("net/ipv4/ip_local_port_range", "16000 65000");

const MESH: &str = "
workloads:
  - {name: client, namespace: bare, node: node1, service_account: client, addresses: [10.244.1.10]}
  - {name: server, namespace: bare, node: node2, service_account: server, addresses: [10.244.2.10]}
  - {name: client, namespace: ours, node: node1, service_account: client, addresses: [10.244.1.11]}
  - {name: server, namespace: ours, node: node2, service_account: server, addresses: [10.244.2.11]}
  - {name: client, namespace: envoy-tcp, node: node1, service_account: client, addresses: [10.244.1.12]}
  - {name: server, namespace: envoy-tcp, node: node2, service_account: server, addresses: [10.244.2.12]}
  - {name: client, namespace: envoy-http, node: node1, service_account: client, addresses: [10.244.1.13]}
  - {name: server, namespace: envoy-http, node: node2, service_account: server, addresses: [10.244.2.13]}
services:
  - {name: server, namespace: ours, addresses: [10.96.0.11], ports: {80: 8080}, workloads: [server]}
  - {name: server, namespace: envoy-tcp, addresses: [10.96.0.12], ports: {80: 8080}, workloads: [server]}
  - {name: server, namespace: envoy-http, addresses: [10.96.0.13], ports: {80: 8080}, workloads: [server]}
";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Who {
    NoMesh,
    Ours,
    /// Ours once more: what differs is noise.
    OursAgain,
    EnvoyTcp,
    EnvoyHttp,
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoMesh => "no mesh",
            Self::Ours => "ours",
            Self::OursAgain => "ours again",
            Self::EnvoyTcp => "Envoy TCP",
            Self::EnvoyHttp => "Envoy HTTP",
        }
    }

    fn namespace(self) -> &'static str {
        match self {
            Self::NoMesh => "bare",
            Self::Ours | Self::OursAgain => "ours",
            Self::EnvoyTcp => "envoy-tcp",
            Self::EnvoyHttp => "envoy-http",
        }
    }
}

/// The pair of Envoys, or why there is none.
#[derive(Clone, Debug)]
pub(crate) enum Envoy {
    At(PathBuf),
    Missing(String),
}

pub(crate) struct Contestant {
    pub(crate) who: Who,
    pub(crate) client: Pod,
    /// Where the client connects to.
    pub(crate) to: SocketAddr,
    /// Process ids of its proxies: the client's, the server's. Empty without proxies.
    pub(crate) proxies: Vec<u32>,
    /// The port on the wire between the nodes.
    wire: u16,
    // Ended when this is dropped.
    _programs: Vec<Process>,
    _envoys: Vec<lab::Envoy>,
}

/// The lab that all of them live in, and they. The contestants go first.
pub(crate) struct Arena {
    pub(crate) contestants: Vec<Contestant>,
    lab: Lab,
}

impl Arena {
    pub(crate) fn build(plan: &Plan, envoy: &Envoy) -> Result<Self> {
        let lab = Lab::from_yaml(MESH)?;
        for pod in lab.pods() {
            pod.namespace().set_sysctls([MANY_PORTS])?;
        }
        let mut contestants = vec![Contestant::no_mesh(&lab)?];
        contestants.push(nodes::start(&lab)?);
        if plan.control {
            contestants.push(contestants[1].again());
        }
        if let Envoy::At(program) = envoy {
            contestants.push(envoy::start(&lab, Who::EnvoyTcp, Codec::Tcp, program)?);
            contestants.push(envoy::start(&lab, Who::EnvoyHttp, Codec::Http, program)?);
        }
        Ok(Self { contestants, lab })
    }

    /// One answer through each of them, watched on the link between the nodes.
    ///
    /// # Errors
    /// When bytes of a mesh are in the clear or do not go its way, or those of no mesh are not seen: then the watch
    /// would prove nothing.
    pub(crate) fn check_wire(&self, plan: &Plan) -> Result<()> {
        for contestant in &self.contestants {
            let tap = self.lab.tap("node1", "node2", &[MARKER])?;
            let load = Load {
                connections: 1,
                measure: std::time::Duration::from_millis(1),
                ..Scenario::Requests(1).load(contestant.to, plan)
            };
            let mut load = contestant.client.start_load(&load)?;
            load.measured()?;
            let report = load.report()?;
            let seen = tap.stop()?;
            let clear = seen.marker(MARKER);
            let carried = seen.on_port(contestant.wire);
            let meshed = !contestant.proxies.is_empty();
            if report.errors > 0 || (clear > 0) == meshed || carried < MARKER.len() as u64 {
                return Err(LabError::new(format!(
                    "{}: {} errors ({:?}); {carried} bytes on port {} between the nodes, in the clear in {clear} packets",
                    contestant.who.name(),
                    report.errors,
                    report.first_error,
                    contestant.wire
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn control_plane(&self) -> &ControlPlane {
        self.lab.control_plane()
    }

    /// The end of the logs of both daemons, for people, without the many lines about connections.
    pub(crate) fn logs(&self) -> String {
        let tails = self.lab.log_tails();
        let lines = tails.lines().filter(|line| !line.contains(" access: "));
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Contestant {
    /// What every contestant has: its pods, and the server in one of them.
    fn with_server(lab: &Lab, who: Who, wire: u16) -> Result<Self> {
        let namespace = who.namespace();
        let (client, server) = (
            lab.pod(&format!("{namespace}/client")),
            lab.pod(&format!("{namespace}/server")),
        );
        let mesh = lab.control_plane().mesh();
        let service = mesh.services.iter().find(|s| s.namespace == namespace);
        let to = match service.and_then(|service| service.addresses.first()) {
            Some(address) => SocketAddr::new(*address, SERVICE_PORT),
            None => SocketAddr::new(server.v4()?, APP_PORT),
        };
        let program = server.serve_load(APP_PORT)?;
        Ok(Self {
            who,
            client,
            to,
            proxies: Vec::new(),
            wire,
            _programs: vec![program],
            _envoys: Vec::new(),
        })
    }

    fn no_mesh(lab: &Lab) -> Result<Self> {
        Self::with_server(lab, Who::NoMesh, APP_PORT)
    }

    fn again(&self) -> Self {
        Self {
            who: Who::OursAgain,
            client: self.client.clone(),
            to: self.to,
            proxies: self.proxies.clone(),
            wire: self.wire,
            _programs: Vec::new(),
            _envoys: Vec::new(),
        }
    }
}
