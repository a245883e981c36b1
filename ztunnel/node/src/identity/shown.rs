//! What is known of certificates, for people to look at.

use std::sync::Arc;
use std::time::SystemTime;

use ztunnel_mesh::name::Identity;

use super::{FetchError, Identities};
use crate::tls::Credential;

/// One identity in use.
#[derive(Clone, Debug)]
pub struct KnownIdentity {
    pub identity: Identity,
    /// Its certificate, when peers still accept it.
    pub credential: Option<Arc<Credential>>,
    /// Why the last request failed, when it did.
    pub failure: Option<Arc<FetchError>>,
}

impl Identities {
    /// All identities in use, in no order.
    #[must_use]
    pub fn known(&self) -> Vec<KnownIdentity> {
        let now = SystemTime::now();
        let table = self.shared.table();
        let known = table.known.iter().map(|(identity, entry)| {
            let latest = entry.latest.borrow();
            KnownIdentity {
                identity: identity.clone(),
                credential: latest.credential(now),
                failure: latest.failure().cloned(),
            }
        });
        known.collect()
    }
}
