//! Workloads: whatever has an identity or an address and can be one end of a connection.
//!
//! A value of these types is what the control plane said, already parsed. It is never changed in place: a new
//! record replaces the old one whole. Most wire defaults are applied by whoever parses; `identity` applies its
//! own again, because an identity with an empty part must not exist.
//!
//! There may be a hundred thousand of them. What many have in common (where they run, what they belong to) is
//! behind an `Arc`, for whoever parses to share.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::net::IpAddr;
use core::{fmt, ops, slice};

use crate::name::{
    DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN, Identity, PolicyName, ServiceName,
};

/// One workload as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Primary key, opaque.
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub trust_domain: Arc<str>,
    pub service_account: Arc<str>,
    /// The network its addresses live on; empty is a network too.
    pub network: Arc<str>,
    pub addresses: Addresses,
    /// A name to resolve when there is no address.
    pub hostname: Arc<str>,
    pub network_mode: NetworkMode,
    pub tunnel: TunnelProtocol,
    /// It ends HBONE itself, no node proxy in front.
    pub native_tunnel: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
    pub waypoint: Option<Arc<GatewayAddress>>,
    pub network_gateway: Option<Arc<GatewayAddress>>,
    pub health: Health,
    /// Weight among the endpoints of a service; 0 is never chosen.
    pub capacity: u32,
    pub place: Arc<Place>,
    /// Keys of the selector policies that select it.
    pub policies: Arc<[PolicyName]>,
    /// The services it is an endpoint of; each at most once.
    pub memberships: Box<[Arc<Membership>]>,
    pub app: Arc<App>,
}

/// The addresses of a workload; most have one.
#[derive(Clone, PartialEq, Eq)]
pub enum Addresses {
    One(IpAddr),
    Other(Box<[IpAddr]>),
}

impl ops::Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::One(ip) => slice::from_ref(ip),
            Self::Other(ips) => ips,
        }
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(ips: I) -> Self {
        let ips: Box<[IpAddr]> = ips.into_iter().collect();
        match *ips {
            [ip] => Self::One(ip),
            _ => Self::Other(ips),
        }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Where workloads run: the same for all of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub node: Arc<str>,
    pub cluster_id: Arc<str>,
    pub locality: Locality,
}

/// What telemetry knows workloads as: the same for all of a deployment's revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct App {
    pub workload_type: WorkloadType,
    pub workload_name: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
}

/// That workloads are endpoints of a service, and on which of their ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    pub service: ServiceName,
    pub ports: Box<[PortPair]>,
}

/// A port of a service and what it means on the workload; target 0 is "not said".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortPair {
    pub service: u16,
    pub target: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelProtocol {
    #[default]
    None,
    Hbone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    #[default]
    Standard,
    /// Shares the node's addresses, so an address says nothing about it.
    HostNetwork,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    #[default]
    Deployment,
    CronJob,
    Pod,
    Job,
}

impl WorkloadType {
    /// As telemetry and baggage spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// How the last hop into the workload differs from a plain connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    pub protocol: ApplicationProtocol,
    /// Replaces the port of the last hop.
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplicationProtocol {
    None,
    /// A PROXY protocol header goes first.
    Proxy,
}

/// Where a waypoint or a network gateway is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    pub destination: GatewayDestination,
    pub hbone_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    Address { network: Arc<str>, ip: IpAddr },
    Hostname(ServiceName),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            GatewayDestination::Address { network, ip } if network.is_empty() => ip.fmt(f),
            GatewayDestination::Address { network, ip } => write!(f, "{network}/{ip}"),
            GatewayDestination::Hostname(name) => name.fmt(f),
        }?;
        write!(f, " port {}", self.hbone_port)
    }
}

impl Workload {
    /// A workload of which nothing else is known: wire defaults everywhere.
    #[must_use]
    pub fn new(uid: &str) -> Self {
        let empty: Arc<str> = Arc::from("");
        let e = || Arc::clone(&empty);
        Self {
            uid: uid.into(),
            name: e(),
            namespace: e(),
            trust_domain: DEFAULT_TRUST_DOMAIN.into(),
            service_account: DEFAULT_SERVICE_ACCOUNT.into(),
            network: e(),
            addresses: Addresses::Other(Box::default()),
            hostname: e(),
            network_mode: NetworkMode::default(),
            tunnel: TunnelProtocol::default(),
            native_tunnel: false,
            application_tunnel: None,
            waypoint: None,
            network_gateway: None,
            health: Health::default(),
            capacity: 1,
            place: Arc::new(Place {
                node: e(),
                cluster_id: DEFAULT_CLUSTER.into(),
                locality: Locality::default(),
            }),
            policies: Arc::default(),
            memberships: Box::default(),
            app: Arc::new(App {
                workload_type: WorkloadType::default(),
                workload_name: e(),
                canonical_name: e(),
                canonical_revision: e(),
            }),
        }
    }

    /// Who it is to its peers.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: or_default(&self.trust_domain, DEFAULT_TRUST_DOMAIN),
            namespace: Arc::clone(&self.namespace),
            service_account: or_default(&self.service_account, DEFAULT_SERVICE_ACCOUNT),
        }
    }

    /// The ports it offers as an endpoint of `service`, or nothing when it is none.
    #[must_use]
    pub fn membership(&self, service: &ServiceName) -> Option<&Membership> {
        let memberships = self.memberships.iter().map(|m| &**m);
        memberships.into_iter().find(|m| m.service == *service)
    }

    /// Which of several workloads on one address is meant: the highest.
    pub(crate) fn rank(&self) -> u8 {
        let pod = if self.uid.contains("//Pod/") { 2 } else { 0 };
        pod + u8::from(self.tunnel == TunnelProtocol::Hbone)
    }
}

impl Membership {
    /// This endpoint's own port for a port of the service, when it says one.
    #[must_use]
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        target_port(&self.ports, service_port)
    }
}

/// The cluster of a workload that names none.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";

pub(crate) fn target_port(ports: &[PortPair], service_port: u16) -> Option<u16> {
    let pair = ports.iter().find(|pair| pair.service == service_port)?;
    (pair.target != 0).then_some(pair.target)
}

pub(crate) fn or_default(value: &Arc<str>, default: &str) -> Arc<str> {
    if value.is_empty() {
        default.into()
    } else {
        Arc::clone(value)
    }
}
