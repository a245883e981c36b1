//! The steps of a decision, for whoever wants to know how it came about.
//!
//! A decision tells each step while it takes it: there is no second version of it that only explains. A step borrows
//! what it is about and prints itself, so to a listener that ignores it, it costs nothing.
//!
//! Invariants: a step never changes what is decided. It says what was looked at, not more: a draw at random is called
//! one, with how likely it was.

use alloc::sync::Arc;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use crate::addr::OrigDst;
use crate::endpoints::{Endpoint, Group, Kind, Reach};
use crate::flow::Flow;
use crate::name::{PolicyName, ServiceName};
use crate::policy::{Action, Policy};
use crate::service::{HealthPolicy, Scope, Service};
use crate::snapshot::Mesh;
use crate::workload::{GatewayAddress, Health, TunnelProtocol, Workload};

/// How many names of a list are printed.
const NAMES: usize = 6;

/// One step of a decision. Closed; prints as one line.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// What the app has addressed: asks for a workload first, on the proxy's own network.
    Addressed(Lookup<'a>),
    /// Who takes connections to an address: asks for a service first, on the client's network.
    Taken(Lookup<'a>),
    /// What a name means.
    Named { name: &'a ServiceName, is: Is<'a> },
    /// The service that was addressed has no waypoint.
    NoWaypoint { service: &'a Service },
    /// The waypoint of the service that was addressed.
    Waypoint {
        service: &'a Service,
        waypoint: &'a GatewayAddress,
        /// When it was drawn: its weight, and that of all.
        drawn: Option<(u64, u64)>,
    },
    /// A reference of the control plane that is followed.
    Reference {
        role: Role,
        of: &'a Workload,
        reference: &'a GatewayAddress,
    },
    /// The workload has a waypoint, and the client is it.
    IsTheWaypoint { workload: &'a Workload },
    /// The workload has a waypoint, which is not for connections to its services.
    WaypointOfOthers { workload: &'a Workload },
    /// The service has no such port.
    NoSuchPort { service: &'a Service, port: u16 },
    /// Endpoints that cannot take the connection.
    LeftOut(Kindred<'a>),
    /// Endpoints that are not where strict load balancing wants them.
    TooFar { weight: u64, scopes: &'a [Scope] },
    /// Endpoints that can take the connection.
    Fitting {
        weight: u64,
        rank: usize,
        /// Others are preferred.
        beaten: bool,
    },
    /// The endpoint that was drawn, and the weight that it was drawn from.
    Drawn {
        endpoint: &'a Endpoint,
        port: u16,
        of: u64,
    },
    /// No endpoint can take it.
    NoEndpoint { service: &'a Service },
    /// The service says that connections go where they were going.
    Passthrough { service: &'a Service },
    /// Nobody of the mesh has the address.
    Outside { to: SocketAddr },
    /// The workload is on another network than the client.
    OtherNetwork {
        workload: &'a Workload,
        client: &'a str,
    },
    /// The last hop: the workload that is the destination, and its port.
    Destination { workload: &'a Workload, port: u16 },
    /// The next hop is a waypoint or a gateway.
    Via { role: Role, workload: &'a Workload },
    /// A port of the proxy itself.
    OwnPort { to: OrigDst },
    /// What policies say.
    Policy(PolicyStep<'a>),
}

/// What a reference is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Waypoint,
    Gateway,
}

/// Who has an address on a network.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) network: &'a str,
    pub(crate) ip: IpAddr,
    /// Of the client.
    pub(crate) namespace: &'a str,
    pub(crate) is: Is<'a>,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub enum Is<'a> {
    Workload(&'a Workload),
    Service(&'a Service),
    Nothing,
}

/// Endpoints that have the same health, ports and reach.
#[derive(Clone, Copy, Debug)]
pub struct Kindred<'a> {
    pub(crate) service: &'a Service,
    pub(crate) client: &'a Workload,
    pub(crate) kind: &'a Kind,
    pub(crate) group: &'a Group,
    pub(crate) port: u16,
}

/// A step of asking policies.
#[derive(Clone, Copy, Debug)]
pub enum PolicyStep<'a> {
    /// What applies to the pod, from one of the three places.
    Apply {
        scope: PolicyPlace<'a>,
        deny: &'a [Arc<Policy>],
        allow: &'a [Arc<Policy>],
    },
    /// No policy applies.
    NoneApply,
    /// One that only would decide.
    DryRun(Asked<'a>),
    /// The one that decides.
    Match(Asked<'a>),
    /// No DENY policy matches.
    NotDenied,
    /// No ALLOW policy matches, and there are some.
    NotAllowed,
    /// There are no ALLOW policies: who is not denied is allowed.
    Unrestricted,
    /// A policy that the pod lists and that has not arrived.
    Missing {
        policy: &'a PolicyName,
        /// Its absence counts.
        counts: bool,
    },
}

/// Where policies apply.
#[derive(Clone, Copy, Debug)]
pub enum PolicyPlace<'a> {
    Mesh,
    Namespace(&'a str),
    Pod,
}

/// One policy, asked about one connection.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) flow: &'a Flow<'a>,
}

impl Step<'_> {
    /// What it is about, in a word.
    #[must_use]
    pub const fn about(&self) -> &'static str {
        match self {
            Self::Addressed(_) => "addressed",
            Self::Taken(_) | Self::Named { .. } => "lookup",
            Self::NoWaypoint { .. }
            | Self::Waypoint { .. }
            | Self::IsTheWaypoint { .. }
            | Self::WaypointOfOthers { .. } => "waypoint",
            Self::Reference { role, .. } | Self::Via { role, .. } => role.as_str(),
            Self::NoSuchPort { .. } => "port",
            Self::LeftOut(_) | Self::TooFar { .. } | Self::Fitting { .. } => "endpoints",
            Self::NoEndpoint { .. } => "endpoints",
            Self::Drawn { .. } => "endpoint",
            Self::Passthrough { .. } => "service",
            Self::Outside { .. } => "address",
            Self::OtherNetwork { .. } => "network",
            Self::Destination { .. } => "destination",
            Self::OwnPort { .. } => "port",
            Self::Policy(PolicyStep::DryRun(_)) => "dry run",
            Self::Policy(_) => "policy",
        }
    }
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addressed(lookup) | Self::Taken(lookup) => lookup.fmt(f),
            Self::Named { name, is } => write!(f, "{name} is {is}"),
            Self::NoWaypoint { service } => write!(f, "service {} has none", service.key),
            Self::Waypoint {
                service,
                waypoint,
                drawn,
            } => {
                write!(f, "service {} has the waypoint {waypoint}", service.key)?;
                match drawn {
                    Some((weight, of)) if weight < of => {
                        write!(f, ", drawn at random: weight {weight} of {of}")
                    }
                    _ => Ok(()),
                }
            }
            Self::Reference {
                role,
                of,
                reference,
            } => write!(f, "{} is reached through the {role} {reference}", Name(of)),
            Self::IsTheWaypoint { workload } => {
                write!(f, "the client is the waypoint of {}", Name(workload))
            }
            Self::WaypointOfOthers { workload } => write!(
                f,
                "{} has one, which is not for connections to services",
                Name(workload)
            ),
            Self::NoSuchPort { service, port } => {
                write!(f, "service {} has no port {port}", service.key)
            }
            Self::LeftOut(group) => group.fmt(f),
            Self::TooFar { weight, scopes } => write!(
                f,
                "capacity {weight} left out: not in the client's {}",
                Scopes(scopes)
            ),
            Self::Fitting { weight: 0, .. } => {
                f.write_str("capacity 0 left out: it is never chosen")
            }
            Self::Fitting {
                weight,
                rank,
                beaten,
            } => {
                write!(f, "capacity {weight} can take it")?;
                // How many of the service's preferences they share with the client.
                match (rank, beaten) {
                    (rank, true) => write!(f, ", rank {rank}: others are nearer"),
                    (0, false) => Ok(()),
                    (rank, false) => write!(f, ", rank {rank}"),
                }
            }
            Self::Drawn { endpoint, port, of } => {
                let (name, weight) = (Name(&endpoint.workload), endpoint.capacity());
                write!(f, "{name} port {port}")?;
                if weight < *of {
                    write!(f, ", drawn at random: capacity {weight} of {of}")
                } else {
                    f.write_str(", the only one")
                }
            }
            Self::NoEndpoint { service } => {
                write!(f, "service {} has none that can take it", service.key)
            }
            Self::Passthrough { service } => write!(
                f,
                "service {} passes through: connections go where they were going",
                service.key
            ),
            Self::Outside { to } => write!(
                f,
                "{to} is outside of the mesh: plain TCP, to where it was going"
            ),
            Self::OtherNetwork { workload, client } => write!(
                f,
                "{} is on network {:?}, the client on {client:?}",
                Name(workload),
                workload.network
            ),
            Self::Destination { workload, port } => match workload.tunnel {
                TunnelProtocol::Hbone => write!(
                    f,
                    "{} takes tunnels: to its port {port} by HBONE",
                    Name(workload)
                ),
                TunnelProtocol::None => write!(
                    f,
                    "{} takes no tunnels: to its port {port} by plain TCP",
                    Name(workload)
                ),
            },
            Self::Via { role, workload } => write!(f, "the {role} is {}", Name(workload)),
            Self::OwnPort { to } => write!(f, "{to} is a port of the proxy itself"),
            Self::Policy(step) => step.fmt(f),
        }
    }
}

impl fmt::Display for Is<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => write!(f, "workload {}", Name(workload)),
            Self::Service(service) => write!(f, "service {}", service.key),
            Self::Nothing => f.write_str("nobody's"),
        }
    }
}

impl fmt::Display for Lookup<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mesh,
            network,
            ip,
            namespace,
            is,
        } = *self;
        write!(f, "{ip}")?;
        if !network.is_empty() {
            write!(f, " on network {network:?}")?;
        }
        write!(f, " is {is}")?;
        if let Is::Workload(_) = is {
            return Ok(());
        }
        let chosen = match is {
            Is::Service(service) => Some(service),
            Is::Workload(_) | Is::Nothing => None,
        };
        let all = mesh.services_sharing(network, ip);
        let others = all
            .iter()
            .filter(|(other, _)| chosen.is_none_or(|chosen| chosen.key != other.key));
        let chosen = chosen.and_then(|chosen| all.iter().find(|(s, _)| s.key == chosen.key));
        for (number, (other, length)) in others.enumerate() {
            if number == NAMES {
                return f.write_str("; and not others");
            }
            let why = if !other.visible_to(namespace) {
                "which is private to its namespace"
            } else if let Some((chosen, chosen_length)) = chosen {
                let own = |service: &Service| *service.key.namespace == *namespace;
                match (chosen_length, length) {
                    (None, Some(_)) => "which has a range around it",
                    _ if own(chosen) && !own(other) => "of another namespace than the client's",
                    _ if chosen_length > length => "which has a wider range",
                    _ if chosen.canonical && !other.canonical => "which is not canonical",
                    _ => "which comes later by name",
                }
            } else {
                continue;
            };
            write!(f, "; not {}, {why}", other.key)?;
        }
        Ok(())
    }
}

impl fmt::Display for Kindred<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            client,
            kind,
            group,
            port,
        } = self;
        write!(f, "capacity {} left out: ", group.weight())?;
        if service.load_balancing.health_policy == HealthPolicy::OnlyHealthy
            && kind.health == Health::Unhealthy
        {
            return f.write_str("not healthy");
        }
        match &kind.reach {
            Reach::Nowhere => f.write_str("neither address nor name"),
            Reach::OtherNetworks(network) if **network == *client.network => {
                f.write_str("no address, and its gateway is for other networks")
            }
            Reach::Anywhere | Reach::OtherNetworks(_) => {
                write!(f, "no port for port {port} of the service")
            }
        }
    }
}

impl fmt::Display for PolicyStep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply { scope, deny, allow } => {
                match scope {
                    PolicyPlace::Mesh => f.write_str("of the whole mesh")?,
                    PolicyPlace::Namespace(namespace) => write!(f, "of namespace {namespace}")?,
                    PolicyPlace::Pod => f.write_str("of the pod itself")?,
                }
                for (action, policies) in [("DENY", deny), ("ALLOW", allow)] {
                    let Some((first, rest)) = policies.split_first() else {
                        continue;
                    };
                    write!(f, "; {action} {}", first.key)?;
                    for policy in rest.iter().take(NAMES) {
                        write!(f, ", {}", policy.key)?;
                    }
                    if let more @ 1.. = rest.len().saturating_sub(NAMES) {
                        write!(f, " and {more} more")?;
                    }
                }
                Ok(())
            }
            Self::NoneApply => f.write_str("none applies to the pod"),
            Self::DryRun(asked) => write!(f, "{asked}, and never decides"),
            Self::Match(asked) => asked.fmt(f),
            Self::NotDenied => f.write_str("no DENY policy matches"),
            Self::NotAllowed => f.write_str("no ALLOW policy matches, and only what they allow is"),
            Self::Unrestricted => f.write_str("no ALLOW policy: who is not denied is allowed"),
            Self::Missing { policy, counts } => {
                write!(f, "{policy}, which the pod lists, has not arrived")?;
                f.write_str(if *counts {
                    ": it may be a DENY"
                } else {
                    ": left out"
                })
            }
        }
    }
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, flow } = self;
        let action = match policy.action {
            Action::Deny => "DENY",
            Action::Allow => "ALLOW",
        };
        write!(f, "{action} {}", policy.key)?;
        match policy.rules.iter().position(|rule| flow.matches_rule(rule)) {
            Some(rule) => write!(
                f,
                " matches, by rule {} of {}",
                rule + 1,
                policy.rules.len()
            ),
            None => f.write_str(" does not match"),
        }
    }
}

/// What people know a workload as.
struct Name<'a>(&'a Workload);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload {
            uid,
            namespace,
            name,
            ..
        } = self.0;
        if name.is_empty() {
            return uid.fmt(f);
        }
        write!(f, "{namespace}/{name}")
    }
}

struct Scopes<'a>(&'a [Scope]);

impl fmt::Display for Scopes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, scope) in self.0.iter().enumerate() {
            let name = match scope {
                Scope::Region => "region",
                Scope::Zone => "zone",
                Scope::Subzone => "subzone",
                Scope::Node => "node",
                Scope::Cluster => "cluster",
                Scope::Network => "network",
            };
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
