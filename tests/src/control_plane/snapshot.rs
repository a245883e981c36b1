//! What the control plane says at one moment: every resource with its version.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use prost_types::Any;
use ztunnel_proto::envoy::service::discovery::v3::Resource;
use ztunnel_proto::istio::workload::{Workload, address};
use ztunnel_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use super::wire::{self, Body};
use crate::mesh_file::MeshFile;

/// The two types there are, in the order that tables by type use.
pub(crate) const TYPES: [&str; 2] = [ADDRESS_TYPE, AUTHORIZATION_TYPE];

/// All resources, and how many snapshots there were before.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    types: [BTreeMap<String, Arc<Entry>>; 2],
}

/// One resource, ready to send.
#[derive(Debug)]
pub(crate) struct Entry {
    body: Body,
    /// Hash of the content. Opaque to clients.
    pub(crate) version: String,
    bytes: Vec<u8>,
}

impl Snapshot {
    /// The snapshot after this one. What did not change keeps its version.
    pub(crate) fn next(&self, mesh: &MeshFile, enrolled: &BTreeSet<String>) -> Self {
        let fresh = [wire::addresses(mesh, enrolled), wire::authorizations(mesh)];
        let mut types = <[BTreeMap<String, Arc<Entry>>; 2]>::default();
        for ((into, before), bodies) in types.iter_mut().zip(&self.types).zip(fresh) {
            *into = bodies
                .into_iter()
                .map(|(name, body)| {
                    let kept = before
                        .get(&name)
                        .filter(|entry| entry.body == body)
                        .cloned();
                    (name, kept.unwrap_or_else(|| Arc::new(Entry::new(body))))
                })
                .collect();
        }
        Self {
            generation: self.generation + 1,
            types,
        }
    }

    /// The same, and among the addresses resources of these names that nobody can read.
    pub(crate) fn with_nonsense(mut self, names: &BTreeSet<String>) -> Self {
        let nonsense = names
            .iter()
            .map(|name| (name.clone(), Arc::new(Entry::new(Body::Nonsense))));
        self.types[0].extend(nonsense);
        self
    }

    /// The same, and these among the addresses.
    pub(crate) fn with(mut self, others: &BTreeMap<String, Arc<Entry>>) -> Self {
        self.types[0].extend(others.clone());
        self
    }

    /// All resources of a type, by name.
    pub(crate) fn of_type(&self, kind: usize) -> &BTreeMap<String, Arc<Entry>> {
        &self.types[kind]
    }
}

impl Entry {
    /// Whether it is a workload of this node.
    pub(crate) fn is_on(&self, node: &str) -> bool {
        self.workload()
            .is_some_and(|workload| workload.node == node)
    }

    /// Whether it is a workload behind this service.
    pub(crate) fn is_member_of(&self, service: &str) -> bool {
        self.workload()
            .is_some_and(|workload| workload.services.contains_key(service))
    }

    pub(crate) fn is_service(&self) -> bool {
        matches!(self.address(), Some(address::Type::Service(_)))
    }

    pub(crate) fn has_alias(&self, name: &str) -> bool {
        self.aliases().iter().any(|alias| alias == name)
    }

    /// Its addresses, as names that it can be asked for by.
    pub(crate) fn aliases(&self) -> Vec<String> {
        let alias = |network: &str, bytes: &[u8]| {
            let ip = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let ip = ip.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
            ip.map(|ip| format!("{network}/{ip}")).ok()
        };
        match self.address() {
            Some(address::Type::Workload(workload)) => {
                let all = workload.addresses.iter();
                all.filter_map(|ip| alias(&workload.network, ip)).collect()
            }
            Some(address::Type::Service(service)) => {
                let all = service.addresses.iter();
                all.filter_map(|at| alias(&at.network, &at.address))
                    .collect()
            }
            None => Vec::new(),
        }
    }

    fn workload(&self) -> Option<&Workload> {
        match self.address() {
            Some(address::Type::Workload(workload)) => Some(workload),
            _ => None,
        }
    }

    fn address(&self) -> Option<&address::Type> {
        match &self.body {
            Body::Address(message) => message.r#type.as_ref(),
            Body::Authorization(_) | Body::Padded(..) | Body::Nonsense => None,
        }
    }

    pub(crate) fn new(body: Body) -> Self {
        let bytes = body.encode();
        let mut hash = DefaultHasher::new();
        bytes.hash(&mut hash);
        Self {
            version: format!("{:016x}", hash.finish()),
            body,
            bytes,
        }
    }

    /// As it goes on the wire. Policies carry no version there, as with Istio.
    pub(crate) fn resource(&self, kind: usize, name: &str) -> Resource {
        let version = match &self.body {
            Body::Address(_) | Body::Padded(..) | Body::Nonsense => self.version.clone(),
            Body::Authorization(_) => String::new(),
        };
        Resource {
            name: name.to_owned(),
            version,
            resource: Some(Any {
                type_url: TYPES[kind].to_owned(),
                value: self.bytes.clone(),
            }),
            ..Resource::default()
        }
    }
}
