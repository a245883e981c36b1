//! Services: names and virtual addresses that stand for a set of endpoints.
//!
//! A service does not list its endpoints; workloads say which services they belong to.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::net::IpAddr;

use ipnet::IpNet;

use crate::name::{Identity, ServiceName};
use crate::workload::{GatewayAddress, PortPair, target_port};

/// One service as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Primary key: namespace and hostname.
    pub key: ServiceName,
    pub name: Arc<str>,
    pub vips: Box<[Vip]>,
    pub ports: Box<[PortPair]>,
    /// Identities a server may prove besides the endpoint's own.
    pub subject_alt_names: Box<[Identity]>,
    pub waypoint: Option<GatewayAddress>,
    pub weighted_waypoints: Box<[WeightedWaypoint]>,
    pub load_balancing: LoadBalancing,
    pub ip_families: IpFamilies,
    /// Wins among services that share an address or a hostname.
    pub canonical: bool,
    pub visibility: Visibility,
}

/// A virtual address, or a whole range of them, on one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    pub network: Arc<str>,
    net: IpNet,
}

impl Vip {
    /// Bits of an address behind its prefix mean nothing.
    #[must_use]
    pub fn new(network: Arc<str>, net: IpNet) -> Self {
        Self {
            network,
            net: net.trunc(),
        }
    }

    /// The addresses it is.
    #[must_use]
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// The address, when this is one address and no range.
    #[must_use]
    pub fn exact(&self) -> Option<IpAddr> {
        (self.net.prefix_len() == self.net.max_prefix_len()).then(|| self.net.addr())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    pub destination: GatewayAddress,
    pub weight: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    pub mode: LoadBalancingMode,
    /// Most important first.
    pub preferences: Box<[Scope]>,
    pub health_policy: HealthPolicy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadBalancingMode {
    #[default]
    Unspecified,
    Strict,
    Failover,
    /// No selection: connections go where they were going.
    Passthrough,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpFamilies {
    #[default]
    Automatic,
    V4Only,
    V6Only,
    Dual,
}

impl IpFamilies {
    /// Whether addresses of the family of `ip` may be used.
    #[must_use]
    pub fn allow(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::V4Only => ip.is_ipv4(),
            Self::V6Only => ip.is_ipv6(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    #[default]
    Public,
    /// For clients in the service's own namespace only.
    Namespace,
}

impl Service {
    /// A service of which nothing else is known: wire defaults everywhere.
    #[must_use]
    pub fn new(key: ServiceName) -> Self {
        Self {
            name: Arc::clone(&key.hostname),
            key,
            vips: Box::default(),
            ports: Box::default(),
            subject_alt_names: Box::default(),
            waypoint: None,
            weighted_waypoints: Box::default(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::default(),
            canonical: false,
            visibility: Visibility::default(),
        }
    }

    /// Whether clients in `namespace` may use it.
    #[must_use]
    pub fn visible_to(&self, namespace: &str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => *self.key.namespace == *namespace,
        }
    }

    /// Whether connections to its addresses go where they were going.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        self.load_balancing.mode == LoadBalancingMode::Passthrough
    }

    /// Whether it has this port.
    #[must_use]
    pub fn has_port(&self, port: u16) -> bool {
        self.ports.iter().any(|pair| pair.service == port)
    }

    /// The port on all endpoints that do not say their own; none when only endpoints know.
    #[must_use]
    pub fn target_port(&self, port: u16) -> Option<u16> {
        target_port(&self.ports, port)
    }
}
