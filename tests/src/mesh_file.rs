//! The mesh as a person writes it: workloads, services, policies. The one source of truth of a lab.
//!
//! From the same file the lab builds its pods and the control plane fills its answers, so the two cannot
//! disagree. What is wrong in it is refused with the place and the reason, before anything is built from it.
//! Names of pods, services and policies are written `namespace/name`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, LabError, Result};

/// The names of links that lead to a node have this and `to-`, and the kernel gives them fifteen.
const LONGEST_NODE_NAME: usize = 12;

/// Everything the control plane knows, and what the lab builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshFile {
    /// Trust domain of all identities. Default `cluster.local`.
    #[serde(
        default = "default_trust_domain",
        skip_serializing_if = "is_default_trust_domain"
    )]
    pub trust_domain: String,
    /// Network that all addresses live on. Default: the empty network.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Nodes of the lab. Default `[node1, node2]`.
    #[serde(default = "default_nodes")]
    pub nodes: Vec<String>,
    /// Pods, and whatever else shall be announced as a workload.
    #[serde(default)]
    pub workloads: Vec<Workload>,
    /// Services in front of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// Authorization policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
}

/// A pod of the lab, as the control plane announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Node it runs on.
    pub node: String,
    /// Service account; with namespace and trust domain it makes the identity. Default `default`.
    #[serde(default = "default_service_account")]
    pub service_account: String,
    /// Addresses of the pod; at most one per family is used as its main one.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// How others reach it. Default: HBONE while the lab has it enrolled, NONE otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Whether it may be chosen as an endpoint.
    #[serde(default, skip_serializing_if = "Health::is_healthy")]
    pub status: Health,
    /// Switches IPv6 off in the pod.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disable_ipv6: bool,
    /// Builds a pod for it. False for something that is only announced. Default true.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub pod: bool,
    /// Announces it. False for a pod that the control plane has never heard of. Default true.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub announce: bool,
    /// Waypoint for traffic addressed to the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Gateway>,
    /// How the last hop into it differs from a plain connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Keys (`namespace/name`) of the policies with a selector that match it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorization_policies: Vec<String>,
    /// Weight in load balancing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Network of this one workload, if not that of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Name to resolve, for one without addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Whether its addresses are those of its node.
    #[serde(default, skip_serializing_if = "is_false")]
    pub host_network: bool,
    /// Where clients on other networks reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_gateway: Option<Gateway>,
    /// Trust domain of this one workload, if not that of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
}

/// A service and its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Name of the service.
    pub name: String,
    /// Namespace of the service.
    pub namespace: String,
    /// Host name. Default `<name>.<namespace>.svc.cluster.local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Virtual addresses; none makes it headless.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Blocks of virtual addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub address_blocks: Vec<Cidr>,
    /// Service port to port of the pod. Zero: each endpoint says for itself.
    pub ports: BTreeMap<u16, u16>,
    /// Its endpoints: names of workloads, `namespace/name` when in another namespace.
    #[serde(default)]
    pub workloads: Vec<String>,
    /// Waypoint for traffic addressed to the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Gateway>,
    /// Waypoints of which one is drawn for each connection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weighted_waypoints: Vec<WeightedGateway>,
    /// Further identities that its endpoints may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// How endpoints are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// Which of an endpoint's addresses may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_families: Option<IpFamilies>,
    /// Only clients of its own namespace may see it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub namespace_only: bool,
}

/// Where a waypoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Its address, or
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// its service, as `namespace/hostname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its HBONE port.
    #[serde(default = "default_hbone_port")]
    pub port: u16,
}

/// How the last hop into a workload differs from a plain connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationTunnel {
    /// What goes before the client's bytes.
    #[serde(default)]
    pub protocol: ApplicationProtocol,
    /// The port that takes all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A waypoint among others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedGateway {
    /// Where it is.
    pub to: Gateway,
    /// Its part of all weights. Zero: never.
    pub weight: u32,
}

/// How endpoints are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancing {
    /// Mode.
    #[serde(default)]
    pub mode: BalancingMode,
    /// Preferences, strongest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routing_preference: Vec<Scope>,
    /// Unhealthy endpoints count too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allow_unhealthy: bool,
}

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Name of the policy.
    pub name: String,
    /// Namespace of the policy.
    pub namespace: String,
    /// Whom it applies to.
    #[serde(default)]
    pub scope: PolicyScope,
    /// What a match means.
    #[serde(default)]
    pub action: PolicyAction,
    /// Alternatives; each is a list of clauses that must all hold; each clause a list of alternatives.
    #[serde(default)]
    pub rules: Vec<Vec<Vec<Match>>>,
    /// Only reported, never enforced.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

/// Conditions that must all hold. Strings match exactly; `x*`, `*x` and `*` are prefix, suffix and presence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names are those of the wire")]
pub struct Match {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<Cidr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<Cidr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<Cidr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<Cidr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
    /// `namespace/service account`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// `namespace/service account`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
}

/// An address block: `10.0.0.0/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// First address.
    pub address: IpAddr,
    /// Prefix length.
    pub length: u8,
}

macro_rules! wire_enum {
    ($(#[$doc:meta])* $name:ident { $(#[$first_doc:meta])* $first:ident $(, $(#[$variant_doc:meta])* $variant:ident)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        #[expect(missing_docs, reason = "the names are those of the wire")]
        pub enum $name { #[default] $(#[$first_doc])* $first $(, $(#[$variant_doc])* $variant)* }
    };
}
wire_enum!(
    /// How a workload is reached.
    Protocol { None, Hbone }
);
wire_enum!(
    /// What goes before the bytes of a client.
    ApplicationProtocol { None, Proxy }
);
wire_enum!(
    /// Whether a workload may be chosen as an endpoint.
    Health { Healthy, Unhealthy }
);
wire_enum!(
    /// How endpoints are chosen.
    BalancingMode { UnspecifiedMode, Strict, Failover, Passthrough }
);
wire_enum!(
    /// What a routing preference compares.
    Scope { Region, Zone, Subzone, Node, Cluster, Network }
);
wire_enum!(
    /// Which families of a service's endpoints are used.
    IpFamilies { Automatic, Ipv4Only, Ipv6Only, Dual }
);
wire_enum!(
    /// Whom a policy applies to.
    PolicyScope { Namespace, Global, WorkloadSelector }
);
wire_enum!(
    /// What a match of a policy means.
    PolicyAction { Allow, Deny }
);

impl Health {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature serde wants"
    )]
    fn is_healthy(&self) -> bool {
        *self == Self::Healthy
    }
}

impl MeshFile {
    /// Reads and checks YAML. `origin` is what an error calls the text.
    ///
    /// # Errors
    /// When it is not YAML of this shape, or contradicts itself.
    pub fn parse(origin: &str, yaml: &str) -> Result<Self> {
        let mesh: Self = serde_saphyr::from_str(yaml).doing(|| format!("parse {origin}"))?;
        mesh.check()
            .map_err(|reason| LabError::because(format!("accept {origin}"), reason))?;
        Ok(mesh)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and when the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).doing(|| format!("read {}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// As YAML that [`parse`](Self::parse) reads back.
    ///
    /// # Errors
    /// When the serializer gives up.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(self).doing(|| "write the mesh as YAML")
    }

    /// The workload called `namespace/name`.
    #[must_use]
    pub fn workload(&self, key: &str) -> Option<&Workload> {
        self.workloads.iter().find(|w| w.key() == key)
    }

    /// The workload called `namespace/name`, to change it.
    pub fn workload_mut(&mut self, key: &str) -> Option<&mut Workload> {
        self.workloads.iter_mut().find(|w| w.key() == key)
    }

    /// The service called `namespace/name`.
    #[must_use]
    pub fn service(&self, key: &str) -> Option<&Service> {
        self.services.iter().find(|s| s.key() == key)
    }

    /// The service called `namespace/name`, to change it.
    pub fn service_mut(&mut self, key: &str) -> Option<&mut Service> {
        self.services.iter_mut().find(|s| s.key() == key)
    }

    /// SPIFFE id of a workload.
    #[must_use]
    pub fn identity(&self, workload: &Workload) -> String {
        let trust_domain = workload.trust_domain.as_ref().unwrap_or(&self.trust_domain);
        format!(
            "spiffe://{trust_domain}/ns/{}/sa/{}",
            workload.namespace, workload.service_account
        )
    }

    /// The first contradiction, if there is one.
    ///
    /// # Errors
    /// Naming what is wrong and with what.
    pub fn check(&self) -> Result<()> {
        if self.nodes.is_empty() {
            return Err(LabError::new(
                "`nodes` is empty: a lab has at least one node",
            ));
        }
        unique("node", self.nodes.iter().cloned())?;
        for node in &self.nodes {
            check_name("node", node)?;
            if node.len() > LONGEST_NODE_NAME {
                return Err(LabError::new(format!(
                    "node `{node}` has more than {LONGEST_NODE_NAME} letters"
                )));
            }
        }
        unique("workload", self.workloads.iter().map(Workload::key))?;
        unique("service", self.services.iter().map(Service::key))?;
        unique("hostname", self.services.iter().map(Service::hostname))?;
        unique(
            "policy",
            self.policies
                .iter()
                .map(|p| format!("{}/{}", p.namespace, p.name)),
        )?;
        let pods = self.workloads.iter().filter(|w| w.pod);
        unique(
            "pod address",
            pods.flat_map(|w| &w.addresses).map(IpAddr::to_string),
        )?;
        for workload in &self.workloads {
            self.check_workload(workload).map_err(|reason| {
                LabError::because(format!("workload {}", workload.key()), reason)
            })?;
        }
        for service in &self.services {
            self.check_service(service).map_err(|reason| {
                LabError::because(format!("service {}", service.key()), reason)
            })?;
        }
        for policy in &self.policies {
            check_name("namespace", &policy.namespace)?;
            // Those that Istio makes of other resources have underscores.
            check_name("policy", &policy.name.replace('_', "-"))?;
            for text in policy
                .rules
                .iter()
                .flatten()
                .flatten()
                .flat_map(|m| m.service_accounts.iter().chain(&m.not_service_accounts))
            {
                if text.split('/').count() != 2 {
                    return Err(LabError::new(format!(
                        "policy {}/{}: `{text}` is not `namespace/service account`",
                        policy.namespace, policy.name
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_workload(&self, workload: &Workload) -> Result<()> {
        check_name("name", &workload.name)?;
        check_name("namespace", &workload.namespace)?;
        check_name("service_account", &workload.service_account)?;
        if workload.pod && !self.nodes.contains(&workload.node) {
            return Err(LabError::new(format!(
                "runs on `{}`, which is not among the nodes {:?} (`pod: false` announces it without building it)",
                workload.node, self.nodes
            )));
        }
        if workload.pod && workload.addresses.is_empty() {
            return Err(LabError::new("a pod needs at least one address"));
        }
        if workload.disable_ipv6 && workload.addresses.iter().any(IpAddr::is_ipv6) {
            return Err(LabError::new(
                "has an IPv6 address, but `disable_ipv6` is set",
            ));
        }
        let gateways = [&workload.waypoint, &workload.network_gateway];
        gateways.into_iter().flatten().try_for_each(Gateway::check)
    }

    fn check_service(&self, service: &Service) -> Result<()> {
        check_name("name", &service.name)?;
        check_name("namespace", &service.namespace)?;
        for key in service.workload_keys() {
            if self.workload(&key).is_none() {
                return Err(LabError::new(format!(
                    "its workload `{key}` does not exist"
                )));
            }
        }
        let weighted = service.weighted_waypoints.iter().map(|w| &w.to);
        service
            .waypoint
            .iter()
            .chain(weighted)
            .try_for_each(Gateway::check)
    }
}

impl Workload {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The control plane's unique name for it.
    #[must_use]
    pub fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
    }

    /// Its first IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Option<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv4)
    }

    /// Its first IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Option<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv6)
    }
}

impl Service {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its host name.
    #[must_use]
    pub fn hostname(&self) -> String {
        self.hostname
            .clone()
            .unwrap_or_else(|| format!("{}.{}.svc.cluster.local", self.name, self.namespace))
    }

    /// Its endpoints, each as `namespace/name`.
    pub fn workload_keys(&self) -> impl Iterator<Item = String> + '_ {
        self.workloads.iter().map(|name| {
            if name.contains('/') {
                name.clone()
            } else {
                format!("{}/{name}", self.namespace)
            }
        })
    }
}

impl Gateway {
    fn check(&self) -> Result<()> {
        match (&self.address, &self.hostname) {
            (Some(_), None) => Ok(()),
            (None, Some(name)) if name.split('/').count() == 2 => Ok(()),
            (None, Some(name)) => Err(LabError::new(format!(
                "waypoint hostname `{name}` is not `namespace/hostname`"
            ))),
            _ => Err(LabError::new(
                "a waypoint has either an `address` or a `hostname`",
            )),
        }
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (address, length) = text.split_once('/').unwrap_or((&text, ""));
        let wrong = || format!("`{text}` is not an address or `address/length`");
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = if length.is_empty() {
            most
        } else {
            length.parse().map_err(|_| wrong())?
        };
        if length > most {
            return Err(wrong());
        }
        Ok(Self { address, length })
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        format!("{}/{}", cidr.address, cidr.length)
    }
}

fn unique(what: &str, names: impl Iterator<Item = String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.clone()) {
            return Err(LabError::new(format!("{what} `{name}` appears twice")));
        }
    }
    Ok(())
}

/// The part of Kubernetes' rule for names that keeps paths, identities and keys unambiguous.
fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
        return Err(LabError::new(format!(
            "{what} `{name}` is not 1 to 63 of a-z, 0-9, `-` and `.`"
        )));
    }
    Ok(())
}

fn default_trust_domain() -> String {
    "cluster.local".to_owned()
}

fn is_default_trust_domain(text: &str) -> bool {
    text == "cluster.local"
}

fn default_nodes() -> Vec<String> {
    vec!["node1".to_owned(), "node2".to_owned()]
}

fn default_service_account() -> String {
    "default".to_owned()
}

fn default_hbone_port() -> u16 {
    15008
}

fn default_true() -> bool {
    true
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde wants"
)]
fn is_true(value: &bool) -> bool {
    *value
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde wants"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "
workloads:
  - {name: web, namespace: shop, node: node1, addresses: [10.1.0.1, 'fd00::1'], service_account: web}
  - {name: db, namespace: shop, node: node2, addresses: [10.1.0.2], protocol: HBONE, disable_ipv6: true}
services:
  - {name: web, namespace: shop, addresses: [10.96.0.1], ports: {80: 8080}, workloads: [web]}
policies:
  - {name: p, namespace: shop, rules: [[[{principals: ['x*'], source_ips: [10.0.0.0/8]}]]]}
";

    fn refused(yaml: &str, expected: &str) {
        let error = MeshFile::parse("mesh.yaml", yaml).unwrap_err().chain();
        assert!(
            error.contains("mesh.yaml") && error.contains(expected),
            "{error}"
        );
    }

    #[test]
    fn written_yaml_reads_back_the_same() {
        let mesh = MeshFile::parse("mesh.yaml", SHOP).unwrap();
        let again = MeshFile::parse("again", &mesh.to_yaml().unwrap()).unwrap();
        assert_eq!(mesh, again);
        let web = mesh.workload("shop/web").unwrap();
        assert_eq!(mesh.identity(web), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(mesh.services[0].hostname(), "web.shop.svc.cluster.local");
    }

    #[test]
    fn contradictions_are_refused_with_the_place_and_the_reason() {
        refused("workloads: [{name: a}]", "missing field");
        refused("pods: []", "unknown field");
        let pod = "{name: a, namespace: n, node: node1, addresses: [10.0.0.1]}";
        refused(
            &format!("workloads: [{pod}, {pod}]"),
            "workload `n/a` appears twice",
        );
        refused(
            "workloads: [{name: a, namespace: n, node: elsewhere, addresses: [10.0.0.1]}]",
            "workload n/a: runs on `elsewhere`",
        );
        refused(
            "services: [{name: s, namespace: n, ports: {}, workloads: [x]}]",
            "its workload `n/x` does not exist",
        );
    }
}
