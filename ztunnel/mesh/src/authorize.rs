//! Decides whether a connection may reach an app.
//!
//! Invariants: a `Permit` comes from `authorize` and from nowhere else. A policy that the workload lists but that
//! is not known (workloads and policies travel apart, and the workload comes first) refuses the connection: it
//! may be a DENY that is still on its way. The peer is only ever judged by the identity it proved.
//!
//! Evaluates each policy in turn. Policies of a waypoint are not evaluated here; the connection it makes is
//! judged as the waypoint's own.

use alloc::format;
use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::addr::{AppAddr, ClientAddr};
use crate::name::{Identity, PolicyName};
use crate::policy::{Action, Clause, Match, Policy, Rule, ServiceAccountMatch, StringMatch};
use crate::reason::{Reason, Refusal};
use crate::snapshot::Mesh;
use crate::workload::Workload;

/// Proof that policy allowed a connection. Nothing reaches an app without it.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    policy: Option<PolicyName>,
}

impl Permit {
    /// The policy that allowed it; none when no policy restricts the pod.
    #[must_use]
    pub fn policy(&self) -> Option<&PolicyName> {
        self.policy.as_ref()
    }
}

/// The other end of an inbound connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// What it proved in TLS; none for plaintext.
    pub identity: Option<&'a Identity>,
    /// The TCP peer.
    pub addr: ClientAddr,
}

/// Asks the policies of `pod` about a connection of `peer` to `target`.
///
/// # Errors
/// `PolicyDenied`, with the policy that denied it or what is missing.
pub fn authorize(
    mesh: &Mesh,
    pod: &Workload,
    peer: Peer<'_>,
    target: AppAddr,
) -> Result<Permit, Refusal> {
    let flow = Flow {
        identity: peer.identity,
        source: peer.addr.0.ip().to_canonical(),
        target: SocketAddr::new(target.0.ip().to_canonical(), target.0.port()),
    };
    let applicable = |action| {
        let listed = pod.policies.iter().filter_map(|name| mesh.policy(name));
        let policies = mesh.policies_of_namespace(&pod.namespace).chain(listed);
        policies.filter(move |policy: &&Arc<Policy>| !policy.dry_run && policy.action == action)
    };
    let denied = |detail| Err(Refusal::new(Reason::PolicyDenied, detail));

    if let Some(policy) = applicable(Action::Deny).find(|policy| flow.matches(policy)) {
        return denied(format!("policy {} denies it", policy.key));
    }
    if let Some(name) = pod.policies.iter().find(|name| mesh.policy(name).is_none()) {
        return denied(format!(
            "policy {name} of workload {} has not arrived from the control plane",
            pod.uid
        ));
    }
    let mut allow = applicable(Action::Allow).peekable();
    if allow.peek().is_none() {
        return Ok(Permit { policy: None });
    }
    match allow.find(|policy| flow.matches(policy)) {
        Some(policy) => Ok(Permit {
            policy: Some(policy.key.clone()),
        }),
        None => denied(format!("no ALLOW policy of workload {} matches", pod.uid)),
    }
}

/// What policies may look at.
struct Flow<'a> {
    identity: Option<&'a Identity>,
    source: IpAddr,
    target: SocketAddr,
}

impl Flow<'_> {
    fn matches(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| self.matches_rule(rule))
    }

    fn matches_rule(&self, rule: &Rule) -> bool {
        rule.clauses
            .iter()
            .all(|clause| self.matches_clause(clause))
    }

    fn matches_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|m| self.matches_match(m))
    }

    fn matches_match(&self, m: &Match) -> bool {
        let in_net = |ip: IpAddr| move |net: &IpNet| net.contains(&ip);
        !m.is_empty()
            && m.source_ips.holds(in_net(self.source))
            && m.destination_ips.holds(in_net(self.target.ip()))
            && m.destination_ports
                .holds(|port| *port == self.target.port())
            && m.service_accounts
                .holds(|account| self.has_account(account))
            && m.namespaces
                .holds(|namespace| self.has_namespace(namespace))
            && m.principals
                .holds(|principal| self.has_principal(principal))
    }

    fn has_account(&self, account: &ServiceAccountMatch) -> bool {
        self.identity.is_some_and(|identity| {
            identity.namespace == account.namespace
                && identity.service_account == account.service_account
        })
    }

    // A peer without identity has the empty namespace, so an empty prefix matches it.
    fn has_namespace(&self, namespace: &StringMatch) -> bool {
        namespace.matches(self.identity.map_or("", |identity| &identity.namespace))
    }

    // A peer without identity has no principal at all, so nothing matches it.
    fn has_principal(&self, principal: &StringMatch) -> bool {
        self.identity.is_some_and(|identity| {
            let Identity {
                trust_domain,
                namespace,
                service_account,
            } = identity;
            principal.matches(&format!(
                "{trust_domain}/ns/{namespace}/sa/{service_account}"
            ))
        })
    }
}

#[cfg(test)]
mod tests;
