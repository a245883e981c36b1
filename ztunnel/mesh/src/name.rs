//! Names of things: pods, services, policies and SPIFFE identities.
//!
//! Strings are shared, so a clone costs a reference count. Parsed once at the edge; a value of these types is
//! always well formed.

use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use core::fmt;
use core::str::FromStr;

/// The trust domain of a workload that names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// The service account of a workload that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

const SCHEME: &str = "spiffe://";

/// The uid of a pod as its source of enrolment knows it (the Kubernetes pod uid).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Arc<str>);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which pod this is, as enrolment says it. Only the trust domain of its identity comes from elsewhere (the
/// workload in xDS).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub service_account: Arc<str>,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

macro_rules! namespaced {
    ($(#[$doc:meta])* $name:ident, $second:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            pub namespace: Arc<str>,
            pub $second: Arc<str>,
        }

        impl $name {
            /// The two parts of the name.
            #[must_use]
            pub fn new(namespace: &str, $second: &str) -> Self {
                Self {
                    namespace: namespace.into(),
                    $second: $second.into(),
                }
            }

            /// Parses `<namespace>/<name>`, apart at the first slash; nothing when there is none.
            #[must_use]
            pub fn parse(key: &str) -> Option<Self> {
                let (namespace, $second) = key.split_once('/')?;
                Some(Self::new(namespace, $second))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.$second)
            }
        }
    };
}

namespaced! {
    /// The key of a service: `<namespace>/<hostname>`.
    ServiceName, hostname
}
namespaced! {
    /// The key of an authorization policy: `<namespace>/<name>`.
    PolicyName, name
}

/// A SPIFFE identity in the form Istio uses: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    pub trust_domain: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            service_account,
        } = self;
        write!(
            f,
            "{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"
        )
    }
}

/// A string that is no SPIFFE identity of the form Istio uses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct BadIdentity(pub String);

impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(uri: &str) -> Result<Self, BadIdentity> {
        let bad = || BadIdentity(uri.into());
        let mut parts = uri.strip_prefix(SCHEME).ok_or_else(bad)?.split('/');
        let mut next = || parts.next().ok_or_else(bad);
        let (trust_domain, ns, namespace, sa, service_account) =
            (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }
}

/// An identity that was proved, with the text that policies compare: made once for a tunnel, compared for each of
/// its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    identity: Identity,
    /// The SPIFFE id without its scheme.
    text: Arc<str>,
}

impl Principal {
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    #[must_use]
    pub fn into_identity(self) -> Identity {
        self.identity
    }

    /// As policies spell it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

impl From<Identity> for Principal {
    fn from(identity: Identity) -> Self {
        let uri = identity.to_string();
        let text = uri.strip_prefix(SCHEME).unwrap_or(&uri).into();
        Self { identity, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_survives_a_round_trip() {
        let uri = "spiffe://cluster.local/ns/shop/sa/web";
        assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
    }

    #[test]
    fn other_uris_are_no_identity() {
        for uri in [
            "",
            "spiffe://td",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/a/ns/b",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}
