//! All policies of a snapshot: by name, and compiled for where they apply.
//!
//! Invariant: after `compile`, the sets are what the policies say. Only what applies where something changed is
//! compiled again, once for a response of the control plane, however many policies it has.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::name::PolicyName;
use crate::policy::{Policy, PolicyScope};
use crate::policy_set::PolicySet;

#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_name: Arc<BTreeMap<PolicyName, Arc<Policy>>>,
    sets: Arc<BTreeMap<Reach, Arc<PolicySet>>>,
    /// Where something has changed since the last `compile`.
    stale: BTreeSet<Reach>,
}

/// The workloads a policy applies to, apart from those that list it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    All,
    Namespace(Arc<str>),
}

/// Tells one state of all policies from another.
#[derive(Clone, Debug)]
pub(crate) struct PolicyVersion(Arc<BTreeMap<PolicyName, Arc<Policy>>>);

impl PartialEq for PolicyVersion {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Policies {
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn get(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.by_name.get(name)
    }

    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.by_name.values()
    }

    pub(crate) fn version(&self) -> PolicyVersion {
        PolicyVersion(Arc::clone(&self.by_name))
    }

    pub(crate) fn global(&self) -> Option<Arc<PolicySet>> {
        self.sets.get(&Reach::All).cloned()
    }

    pub(crate) fn of_namespace(&self, namespace: &str) -> Option<Arc<PolicySet>> {
        self.sets.get(&Reach::Namespace(namespace.into())).cloned()
    }

    pub(crate) fn put(&mut self, policy: Arc<Policy>) {
        self.stale.extend(reach(&policy));
        let key = policy.key.clone();
        if let Some(old) = Arc::make_mut(&mut self.by_name).insert(key, policy) {
            self.stale.extend(reach(&old));
        }
    }

    pub(crate) fn remove(&mut self, name: &PolicyName) {
        if !self.by_name.contains_key(name) {
            return;
        }
        if let Some(old) = Arc::make_mut(&mut self.by_name).remove(name) {
            self.stale.extend(reach(&old));
        }
    }

    /// Calls `step` for each policy it looks at.
    pub(crate) fn compile(&mut self, step: &mut impl FnMut()) {
        if self.stale.is_empty() {
            return;
        }
        let mut applying: BTreeMap<_, Vec<_>> = core::mem::take(&mut self.stale)
            .into_iter()
            .map(|reach| (reach, Vec::new()))
            .collect();
        for policy in self.by_name.values() {
            if let Some(policies) = reach(policy).and_then(|reach| applying.get_mut(&reach)) {
                policies.push(policy);
            }
            step();
        }
        let sets = Arc::make_mut(&mut self.sets);
        for (reach, policies) in applying {
            if policies.is_empty() {
                sets.remove(&reach);
            } else {
                sets.insert(
                    reach,
                    Arc::new(PolicySet::in_steps(policies.into_iter(), step)),
                );
            }
        }
    }

    /// Frees what no clone shares, and calls `step` in between.
    pub(crate) fn free_in_steps(self, step: &mut impl FnMut()) {
        for policy in Arc::into_inner(self.by_name).into_iter().flatten() {
            drop(policy);
            step();
        }
        for set in Arc::into_inner(self.sets).into_iter().flatten() {
            drop(set);
            step();
        }
    }
}

fn reach(policy: &Policy) -> Option<Reach> {
    match policy.scope {
        PolicyScope::Global => Some(Reach::All),
        PolicyScope::Namespace => Some(Reach::Namespace(Arc::clone(&policy.key.namespace))),
        PolicyScope::WorkloadSelector => None,
    }
}
