//! Authorization policies as the control plane sends them. What they mean is `authorize`'s business.

use alloc::boxed::Box;
use alloc::sync::Arc;

use ipnet::IpNet;

use crate::name::PolicyName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub key: PolicyName,
    pub scope: PolicyScope,
    pub action: Action,
    /// Never decides.
    pub dry_run: bool,
    /// Any of them; none matches nothing.
    pub rules: Box<[Rule]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyScope {
    /// Every workload.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that list it.
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

/// All of its clauses; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub clauses: Box<[Clause]>,
}

/// Any of its matches; none matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    pub matches: Box<[Match]>,
}

/// All of its attributes; a match without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    pub namespaces: Attribute<StringMatch>,
    pub principals: Attribute<StringMatch>,
    pub service_accounts: Attribute<ServiceAccountMatch>,
    pub source_ips: Attribute<IpNet>,
    pub destination_ips: Attribute<IpNet>,
    pub destination_ports: Attribute<u16>,
}

/// What one attribute may be and may not be; an empty list does not restrict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute<T> {
    /// One of these.
    pub is: Box<[T]>,
    /// None of these.
    pub is_not: Box<[T]>,
}

impl<T> Default for Attribute<T> {
    fn default() -> Self {
        Self {
            is: Box::default(),
            is_not: Box::default(),
        }
    }
}

impl<T> Attribute<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.is.is_empty() && self.is_not.is_empty()
    }

    pub(crate) fn holds(&self, test: impl Fn(&T) -> bool) -> bool {
        (self.is.is_empty() || self.is.iter().any(&test)) && !self.is_not.iter().any(&test)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Anything but the empty string.
    Presence,
}

impl StringMatch {
    pub(crate) fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(s) => **s == *value,
            Self::Prefix(s) => value.starts_with(&**s),
            Self::Suffix(s) => value.ends_with(&**s),
            Self::Presence => !value.is_empty(),
        }
    }
}

/// A service account in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

impl Match {
    /// Whether no attribute restricts it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            principals,
            service_accounts,
            source_ips,
            destination_ips,
            destination_ports,
        } = self;
        namespaces.is_empty()
            && principals.is_empty()
            && service_accounts.is_empty()
            && source_ips.is_empty()
            && destination_ips.is_empty()
            && destination_ports.is_empty()
    }
}
