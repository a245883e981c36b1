//! Decides whether a connection may reach an app.
//!
//! Invariants: a `Permit` comes from `authorize` and from nowhere else. A policy that the workload lists but that
//! is not known (workloads and policies travel apart, and the workload comes first) refuses the connection: it
//! may be a DENY that is still on its way. The peer is only ever judged by the identity it proved. Asking takes no
//! lock and, unless it ends in a refusal, allocates nothing.
//!
//! A connection that has a permit is asked about again when policies change. Then it may be right to leave out, for a
//! moment, what has not arrived; only who knows since when it is missing can say.
//!
//! Policies of a waypoint are not evaluated here; the connection it makes is judged as the waypoint's own.

use alloc::format;
use alloc::sync::Arc;

use crate::addr::{AppAddr, ClientAddr};
use crate::flow::Flow;
use crate::name::{PolicyName, Principal};
use crate::policy::{Policy, PolicyScope};
use crate::policy_set::PolicySet;
use crate::reason::{Reason, Refusal};
use crate::snapshot::{Mesh, PolicyVersion};
use crate::step::{Asked, PolicyPlace, PolicyStep, Step};
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
    pub principal: Option<&'a Principal>,
    /// The TCP peer.
    pub addr: ClientAddr,
}

/// The policies of one pod, ready to be asked. To be kept for as long as they are current.
#[derive(Debug)]
pub struct PodPolicies {
    version: PolicyVersion,
    pod: Arc<Workload>,
    /// The policies of the whole mesh, of the pod's namespace, and those that the pod lists.
    sets: [Option<Arc<PolicySet>>; 3],
    /// A policy the pod lists that has not come.
    missing: Option<PolicyName>,
}

impl PodPolicies {
    /// Collects what applies to `pod`. Costs as much as the pod lists policies.
    #[must_use]
    pub fn new(mesh: &Mesh, pod: &Arc<Workload>) -> Self {
        let listed = pod.policies.iter().filter_map(|name| mesh.policy(name));
        let listed = (!pod.policies.is_empty()).then(|| Arc::new(PolicySet::new(listed)));
        Self {
            version: mesh.policy_version(),
            pod: Arc::clone(pod),
            sets: [
                mesh.global_policies(),
                mesh.namespace_policies(&pod.namespace),
                listed,
            ],
            missing: pod
                .policies
                .iter()
                .find(|name| mesh.policy(name).is_none())
                .cloned(),
        }
    }

    /// Whether a new collection would be the same.
    #[must_use]
    pub fn is_current(&self, mesh: &Mesh, pod: &Workload) -> bool {
        self.version == mesh.policy_version()
            && self.pod.namespace == pod.namespace
            && self.pod.policies == pod.policies
    }

    /// Whether `other` would decide the same about any connection, as far as can be told without asking about it.
    #[must_use]
    pub fn decides_like(&self, other: &Self) -> bool {
        let mut sets = self.sets.iter().zip(&other.sets);
        self.missing == other.missing
            && sets.all(|sets| match sets {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.is_same(b),
                (None, Some(_)) | (Some(_), None) => false,
            })
    }

    /// The pod they were collected for.
    #[must_use]
    pub fn pod(&self) -> &Arc<Workload> {
        &self.pod
    }

    /// A policy that the pod lists and that has not arrived.
    #[must_use]
    pub fn missing(&self) -> Option<&PolicyName> {
        self.missing.as_ref()
    }

    /// Asks about a connection of `peer` to `target`.
    ///
    /// # Errors
    /// `PolicyDenied`, with the policy that denied it, or `PolicyMissing`, with the one that is.
    pub fn authorize(&self, peer: Peer<'_>, target: AppAddr) -> Result<Permit, Refusal> {
        self.judge(peer, target, true, &mut |_: Step<'_>| {})
    }

    /// Asks again about a connection that was permitted before, by the policies that have arrived alone unless
    /// `missing_counts`.
    ///
    /// # Errors
    /// As `authorize`.
    pub fn reconsider(
        &self,
        peer: Peer<'_>,
        target: AppAddr,
        missing_counts: bool,
    ) -> Result<(), Refusal> {
        self.judge(peer, target, missing_counts, &mut |_: Step<'_>| {})
            .map(drop)
    }

    /// Asks as `authorize` does, and tells each step: what applies to the pod in `mesh`, which policies are dry runs,
    /// which one decides. Gives the name of the policy that allowed it, and no permit: nothing is let through by it.
    ///
    /// # Errors
    /// As `authorize`.
    pub fn explain(
        &self,
        mesh: &Mesh,
        peer: Peer<'_>,
        target: AppAddr,
        mut told: impl FnMut(Step<'_>),
    ) -> Result<Option<PolicyName>, Refusal> {
        let places = [
            PolicyPlace::Mesh,
            PolicyPlace::Namespace(&self.pod.namespace),
            PolicyPlace::Pod,
        ];
        let mut none = true;
        for (scope, set) in places.into_iter().zip(&self.sets) {
            let (deny, allow) = set
                .as_ref()
                .map_or((&[][..], &[][..]), |set| set.deciding());
            if !(deny.is_empty() && allow.is_empty()) {
                none = false;
                told(Step::Policy(PolicyStep::Apply { scope, deny, allow }));
            }
        }
        let flow = Flow::new(peer.principal, peer.addr, target);
        for policy in mesh.policies().filter(|policy| policy.dry_run) {
            if self.selects(policy) {
                let asked = Asked {
                    policy,
                    flow: &flow,
                };
                told(Step::Policy(PolicyStep::DryRun(asked)));
            }
        }
        if none {
            told(Step::Policy(PolicyStep::NoneApply));
        }
        let permit = self.judge(peer, target, true, &mut told)?;
        Ok(permit.policy)
    }

    /// Whether a policy that decides looks at the address of the client.
    #[must_use]
    pub fn look_at_source(&self) -> bool {
        let mut policies = self.sets().flat_map(|set| {
            let (deny, allow) = set.deciding();
            deny.iter().chain(allow)
        });
        policies.any(|policy| {
            let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
            let mut matches = clauses.flat_map(|clause| &clause.matches);
            matches.any(|m| !m.source_ips.is_empty())
        })
    }

    fn selects(&self, policy: &Policy) -> bool {
        let listed = self.pod.policies.contains(&policy.key);
        match policy.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace => listed || policy.key.namespace == self.pod.namespace,
            PolicyScope::WorkloadSelector => listed,
        }
    }

    fn judge(
        &self,
        peer: Peer<'_>,
        target: AppAddr,
        missing_counts: bool,
        told: &mut impl FnMut(Step<'_>),
    ) -> Result<Permit, Refusal> {
        let flow = Flow::new(peer.principal, peer.addr, target);
        let uid = &self.pod.uid;
        let flow = &flow;
        if let Some(policy) = self.first(|set| set.denies(flow)) {
            told(Step::Policy(PolicyStep::Match(Asked { policy, flow })));
            return Err(denied(format!("policy {} denies it", policy.key)));
        }
        told(Step::Policy(PolicyStep::NotDenied));
        if let Some(policy) = &self.missing {
            let counts = missing_counts;
            told(Step::Policy(PolicyStep::Missing { policy, counts }));
        }
        if let Some(name) = self.missing.as_ref().filter(|_| missing_counts) {
            let detail =
                format!("policy {name} of workload {uid} has not arrived from the control plane");
            return Err(Refusal::new(Reason::PolicyMissing, detail));
        }
        if !self.sets().any(PolicySet::has_allow) {
            told(Step::Policy(PolicyStep::Unrestricted));
            return Ok(Permit { policy: None });
        }
        match self.first(|set| set.allows(flow)) {
            Some(policy) => {
                told(Step::Policy(PolicyStep::Match(Asked { policy, flow })));
                Ok(Permit {
                    policy: Some(policy.key.clone()),
                })
            }
            None => {
                told(Step::Policy(PolicyStep::NotAllowed));
                Err(denied(format!("no ALLOW policy of workload {uid} matches")))
            }
        }
    }

    fn sets(&self) -> impl Iterator<Item = &PolicySet> {
        self.sets.iter().flatten().map(|set| &**set)
    }

    fn first<'a>(
        &'a self,
        matching: impl FnMut(&'a PolicySet) -> Option<&'a Arc<Policy>>,
    ) -> Option<&'a Arc<Policy>> {
        self.sets().find_map(matching)
    }
}

fn denied(detail: alloc::string::String) -> Refusal {
    Refusal::new(Reason::PolicyDenied, detail)
}

#[cfg(test)]
mod tests;
