//! A mesh that is known in part: what has to be asked for before a connection can be decided, and what was asked
//! for and is not there.
//!
//! A control plane that is asked on demand tells about the node's own workloads and about what it was asked for.
//! Nothing follows then from not finding something, until the control plane has said that it does not know it
//! either: only such an absence lets a decision take an address for one outside of the mesh.
//!
//! Invariants: a mesh that is not partial lacks nothing. What the mesh has wins over an absence on record, which may
//! be older. The number of absences is bounded by whoever records them, and so is their age: nobody tells when
//! something absent appears.
//!
//! Absent on purpose: services with a range around an address. They cannot be asked for by one of its addresses; one
//! that is known for another reason is used.

use alloc::sync::Arc;
use core::fmt;
use core::net::IpAddr;

use crate::name::ServiceName;
use crate::snapshot::Mesh;
use crate::trie::Trie;

/// What a control plane can be asked for. Prints as the name of the resource on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Whatever has this address: a workload, or a service and its workloads.
    Address { network: Arc<str>, ip: IpAddr },
    /// A service and its workloads.
    Service(ServiceName),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The empty network is a network: the name begins with the slash then.
            Self::Address { network, ip } => write!(f, "{network}/{ip}"),
            Self::Service(name) => name.fmt(f),
        }
    }
}

/// What a partial mesh knows besides what is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partial {
    absent: Trie<Arc<Key>>,
}

impl Mesh {
    /// A mesh of which nothing is known yet, and which will never be known as a whole.
    #[must_use]
    pub fn partial() -> Self {
        let mut mesh = Self::default();
        mesh.partial = Some(Partial::default());
        mesh
    }

    /// Whether `key` must be asked for before anything may follow from not finding it.
    #[must_use]
    pub fn lacks(&self, key: &Key) -> bool {
        let Some(partial) = &self.partial else {
            return false;
        };
        let known = match key {
            Key::Address { network, ip } => self.has_address(network, *ip),
            Key::Service(name) => self.service(name).is_some(),
        };
        !known
            && partial
                .absent
                .get(self.hash(key), |k| **k == *key)
                .is_none()
    }

    /// The same for an address: the key to ask for, if it must be.
    pub(crate) fn lacks_address(&self, network: &str, ip: IpAddr) -> Option<Key> {
        // Most meshes are not partial, most addresses of the others are known: no key is made for them.
        if self.partial.is_none() || self.has_address(network, ip) {
            return None;
        }
        let network = network.into();
        let key = Key::Address { network, ip };
        self.lacks(&key).then_some(key)
    }

    /// The same for a service.
    pub(crate) fn lacks_service(&self, name: &ServiceName) -> Option<Key> {
        self.partial.as_ref()?;
        let key = Key::Service(name.clone());
        self.lacks(&key).then_some(key)
    }

    /// The mesh with `absent` on record, and without what was on record of `forgotten`. This one stays as it is, and
    /// one that is not partial has no such record.
    #[must_use]
    pub fn with_absences<'a>(
        &self,
        absent: impl IntoIterator<Item = &'a Key>,
        forgotten: impl IntoIterator<Item = &'a Key>,
    ) -> Self {
        let mut next = self.clone();
        if let Some(partial) = &mut next.partial {
            for key in absent {
                let hash = self.hash(key);
                partial
                    .absent
                    .put(hash, Arc::new(key.clone()), |k| **k == *key);
            }
            for key in forgotten {
                partial.absent.remove(self.hash(key), |k| **k == *key);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{uid, upserts};
    use crate::snapshot::{Delta, Removal};
    use alloc::string::ToString as _;
    use alloc::vec;

    fn address(network: &str, ip: &str) -> Key {
        Key::Address {
            network: network.into(),
            ip: ip.parse().unwrap(),
        }
    }

    fn service(key: &str) -> Key {
        Key::Service(ServiceName::parse(key).unwrap())
    }

    fn put(mesh: &Mesh, text: &str) -> Mesh {
        mesh.apply(Delta {
            upserts: upserts(text),
            removals: vec![],
        })
    }

    #[test]
    fn keys_print_as_the_wire_names_them() {
        assert_eq!(address("", "10.0.0.1").to_string(), "/10.0.0.1");
        assert_eq!(address("net-1", "fd00::1").to_string(), "net-1/fd00::1");
        assert_eq!(service("a/b.c").to_string(), "a/b.c");
    }

    #[test]
    fn a_whole_mesh_lacks_nothing() {
        let mesh = Mesh::default();
        assert!(!mesh.lacks(&address("", "10.0.0.1")));
        assert!(!mesh.lacks(&service("a/s")));
        let key = address("", "10.0.0.1");
        assert!(!mesh.with_absences([&key], []).lacks(&key));
    }

    #[test]
    fn a_partial_mesh_lacks_what_is_neither_there_nor_known_to_be_absent() {
        let mesh = put(
            &Mesh::partial(),
            "pod a/1 ip=10.1.0.1; pod a/host ip=10.1.0.9 host-network; \
             svc a/s vip=10.0.0.1,far@10.0.0.2,10.9.0.0/16 private",
        );
        for (key, lacking) in [
            (address("", "10.1.0.1"), false),
            (address("far", "10.1.0.1"), true),
            // Whoever may use the service, it is there.
            (address("", "10.0.0.1"), false),
            (address("", "10.0.0.2"), true),
            (address("far", "10.0.0.2"), false),
            // A range says nothing about what else has the address.
            (address("", "10.9.0.1"), true),
            // An address of the node is nobody's.
            (address("", "10.1.0.9"), true),
            (service("a/s"), false),
            (service("b/s"), true),
        ] {
            assert_eq!(mesh.lacks(&key), lacking, "{key}");
            let absent = mesh.with_absences([&key], []);
            assert!(!absent.lacks(&key), "{key}");
            assert_eq!(mesh.lacks(&key), lacking, "{key}: the old one changed");
            assert_eq!(absent.with_absences([], [&key]).lacks(&key), lacking);
        }
    }

    #[test]
    fn what_is_removed_is_lacking_again() {
        let mesh = put(&Mesh::partial(), "pod a/1 ip=10.1.0.1");
        let mesh = mesh.apply(Delta {
            upserts: vec![],
            removals: vec![Removal::Address(uid("a/1"))],
        });
        assert!(mesh.lacks(&address("", "10.1.0.1")));
    }
}
