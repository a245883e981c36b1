//! Chains that were verified before: the peers of a node are few, and each of their certificates is shown many times.
//!
//! Verifying a chain of a leaf and an intermediate is two signature checks, more with revocation lists: the largest
//! part of a handshake that need not be done again (figures: `benches/handshake.rs`).
//!
//! Invariants: an entry counts for exactly the bytes it was made for, for the usage it was made for, and from the
//! moment of verification until the first certificate of the chain expires. It lives inside one `Trusted`, so a
//! change of roots or of revocation lists begins with nothing. Only what verified gets in. Bounded. What is *not*
//! remembered: that the peer has the key, which every handshake proves anew, and who is welcome.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{self, SHA256};
use rustls_pki_types::{CertificateDer, UnixTime};
use ztunnel_mesh::name::Identity;

use super::verify::Usage;

/// Entries of one generation; there are two.
const GENERATION: usize = 1024;

/// What a chain is known by: a digest of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChainId([u8; 32]);

impl ChainId {
    pub(super) fn of(usage: Usage, leaf: &[u8], intermediates: &[CertificateDer<'_>]) -> Self {
        let mut digest = digest::Context::new(&SHA256);
        digest.update(&[usage as u8]);
        for der in std::iter::once(leaf).chain(intermediates.iter().map(AsRef::as_ref)) {
            // With the length in front, no two chains are the same bytes.
            digest.update(&der.len().to_be_bytes());
            digest.update(der);
        }
        let mut id = [0; 32];
        id.copy_from_slice(digest.finish().as_ref());
        Self(id)
    }
}

/// A chain that verified.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub(super) at: UnixTime,
    /// When the first certificate of the chain expires.
    pub(super) until: UnixTime,
    /// Whom the leaf names.
    pub(super) names: Arc<[Identity]>,
}

/// The chains that verified lately.
#[derive(Debug, Default)]
pub(super) struct VerifiedChains(Mutex<Generations>);

/// What is not asked for while a generation fills up is forgotten with the next one.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<ChainId, Verified>,
    old: HashMap<ChainId, Verified>,
}

impl VerifiedChains {
    /// Whom the leaf of a chain names, if it verified before and still would.
    pub(super) fn find(&self, id: &ChainId, now: UnixTime) -> Option<Arc<[Identity]>> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let verified = match generations.young.get(id) {
            Some(verified) => verified.clone(),
            None => {
                let verified = generations.old.remove(id)?;
                generations.insert(*id, verified.clone());
                verified
            }
        };
        (verified.at <= now && now <= verified.until).then_some(verified.names)
    }

    /// Remembers a chain.
    pub(super) fn insert(&self, id: ChainId, verified: Verified) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, verified);
    }
}

impl Generations {
    fn insert(&mut self, id: ChainId, verified: Verified) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, verified);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn id(number: usize) -> ChainId {
        ChainId::of(Usage::Server, &number.to_be_bytes(), &[])
    }

    fn verified() -> Verified {
        Verified {
            at: at(10),
            until: at(20),
            names: Arc::new([]),
        }
    }

    #[test]
    fn entry_counts_from_its_verification_to_the_first_expiry() {
        let chains = VerifiedChains::default();
        chains.insert(id(1), verified());
        for (now, counts) in [(9, false), (10, true), (20, true), (21, false)] {
            assert_eq!(chains.find(&id(1), at(now)).is_some(), counts, "{now}");
        }
        assert!(chains.find(&id(2), at(15)).is_none());
    }

    #[test]
    fn id_is_of_usage_leaf_intermediates_and_where_each_ends() {
        let chain = |usage, leaf: &'static [u8], rest: &[&'static [u8]]| {
            let rest: Vec<_> = rest.iter().map(|&der| CertificateDer::from(der)).collect();
            ChainId::of(usage, leaf, &rest)
        };
        let ids = [
            chain(Usage::Server, b"ab", &[b"c"]),
            chain(Usage::Client, b"ab", &[b"c"]),
            chain(Usage::Server, b"a", &[b"bc"]),
            chain(Usage::Server, b"abc", &[]),
            chain(Usage::Server, b"ab", &[b"c", b""]),
        ];
        for (number, id) in ids.iter().enumerate() {
            assert!(!ids[..number].contains(id), "{number}");
        }
    }

    #[test]
    fn there_is_a_bound_and_what_is_in_use_stays() {
        let chains = VerifiedChains::default();
        for number in 0..10 * GENERATION {
            chains.insert(id(number), verified());
            assert!(chains.find(&id(0), at(15)).is_some());
        }
        let generations = chains.0.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
