//! What this node believes about other people's certificates: the roots of each trust domain, and the revocation
//! lists.
//!
//! A root set belongs to the node and the trust domain, not to the certificate it came with. It is the union of what
//! the CA said along with each certificate that is in use now. So a root that the CA adds is trusted by all identities
//! of the node as soon as the first of them is renewed, and not only when each has had its turn, which takes half of a
//! certificate's life: that is the time in which a peer may already show a certificate of the new CA. And a root that
//! the CA drops is trusted until the last certificate that came with it is renewed, forgotten or expired: no later
//! than if each identity had roots of its own, but for all of them at once, so that no pod loses a peer that its
//! neighbor still talks to. "The newest set wins" was rejected: replicas of a control plane do not learn of a root
//! at the same moment, and an answer of the one that is behind would take the new root away again. Trust domains are
//! kept apart: a root of one says nothing about the other.
//!
//! What no node can do by itself: believe a new CA before it has been told. Connections survive a rotation without a
//! failure when the CA first hands out both roots, signs with the new one when everybody has them, and drops the old
//! one when nobody shows a certificate of it any more.
//!
//! Invariants: a [`Trusted`] never changes; a change of roots or lists makes another one, so what was verified under
//! one is never taken for verified under the next. Handshakes read it without a lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use rustls_pki_types::TrustAnchor;

use super::revocation::RevocationLists;
use super::verified::VerifiedChains;

/// Roots of one trust domain, of all its certificates together. The newest have precedence.
const MAX_ROOTS: usize = 1024;

/// What one handshake goes by.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) lists: Arc<RevocationLists>,
    /// Chains that were found good by exactly this.
    pub(super) verified: VerifiedChains,
}

/// The trust of a node.
#[derive(Debug, Default)]
pub(super) struct Trust(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lists: Arc<RevocationLists>,
    domains: HashMap<Arc<str>, Domain>,
}

/// A trust domain of which some certificate is in use.
#[derive(Debug, Default)]
struct Domain {
    /// What the CA said, oldest first, each with the number of certificates that came with it.
    said: Vec<(Arc<[TrustAnchor<'static>]>, usize)>,
    current: Arc<ArcSwap<Trusted>>,
}

/// The share of one certificate in the roots of its trust domain. Dropping it withdraws the share.
#[derive(Debug)]
pub(super) struct Share {
    trust: Arc<Trust>,
    domain: Arc<str>,
    said: Arc<[TrustAnchor<'static>]>,
    current: Arc<ArcSwap<Trusted>>,
}

impl Trust {
    /// Adds the roots that came with a certificate of `domain`.
    pub(super) fn add(
        self: &Arc<Self>,
        domain: &Arc<str>,
        roots: Vec<TrustAnchor<'static>>,
    ) -> Share {
        let mut state = self.state();
        let lists = Arc::clone(&state.lists);
        let entry = state.domains.entry(Arc::clone(domain)).or_default();
        let known = entry.said.iter_mut().find(|(said, _)| **said == *roots);
        let said = if let Some((said, certificates)) = known {
            *certificates += 1;
            Arc::clone(said)
        } else {
            let said: Arc<[_]> = roots.into();
            entry.said.push((Arc::clone(&said), 1));
            entry.publish(&lists);
            said
        };
        Share {
            trust: Arc::clone(self),
            domain: Arc::clone(domain),
            said,
            current: Arc::clone(&entry.current),
        }
    }

    /// Replaces the revocation lists, for all trust domains.
    pub(super) fn set_lists(&self, lists: RevocationLists) {
        let mut state = self.state();
        state.lists = Arc::new(lists);
        let lists = Arc::clone(&state.lists);
        for domain in state.domains.values_mut() {
            domain.publish(&lists);
        }
    }

    pub(super) fn lists(&self) -> Arc<RevocationLists> {
        Arc::clone(&self.state().lists)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made of steps that leave something usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Domain {
    fn publish(&self, lists: &Arc<RevocationLists>) {
        let mut anchors: Vec<TrustAnchor<'static>> = Vec::new();
        for anchor in self.said.iter().rev().flat_map(|(said, _)| said.iter()) {
            if anchors.len() < MAX_ROOTS && !anchors.contains(anchor) {
                anchors.push(anchor.clone());
            }
        }
        let before = self.current.load();
        let same = |anchor| before.anchors.contains(anchor);
        // The order does not count, and what is verified already should stay so.
        if Arc::ptr_eq(&before.lists, lists)
            && before.anchors.len() == anchors.len()
            && anchors.iter().all(same)
        {
            return;
        }
        self.current.store(Arc::new(Trusted {
            anchors,
            lists: Arc::clone(lists),
            verified: VerifiedChains::default(),
        }));
    }
}

impl Share {
    /// What handshakes of this certificate go by, now and after every change.
    pub(super) fn current(&self) -> &Arc<ArcSwap<Trusted>> {
        &self.current
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.trust.state();
        let lists = Arc::clone(&state.lists);
        let Some(domain) = state.domains.get_mut(&self.domain) else {
            return;
        };
        let place = domain
            .said
            .iter()
            .position(|(said, _)| Arc::ptr_eq(said, &self.said));
        let Some(place) = place else {
            return;
        };
        domain.said[place].1 -= 1;
        if domain.said[place].1 > 0 {
            return;
        }
        domain.said.remove(place);
        if domain.said.is_empty() {
            state.domains.remove(&self.domain);
        } else {
            domain.publish(&lists);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_ca::TestCa;
    use super::*;

    fn root(name: &str) -> TrustAnchor<'static> {
        TestCa::new(name).anchor()
    }

    fn domain(name: &str) -> Arc<str> {
        name.into()
    }

    fn trusts(share: &Share, roots: &[&TrustAnchor<'static>]) -> bool {
        let now = share.current().load();
        now.anchors.len() == roots.len() && roots.iter().all(|root| now.anchors.contains(root))
    }

    #[test]
    fn roots_are_those_of_all_certificates_in_use() {
        let (trust, td) = (Arc::<Trust>::default(), domain("cluster.local"));
        let (old, new) = (root("old"), root("new"));
        let web = trust.add(&td, vec![old.clone()]);
        let db = trust.add(&td, vec![old.clone()]);
        assert!(trusts(&web, &[&old]));
        // The first that is renewed brings the new root for both.
        let renewed = trust.add(&td, vec![old.clone(), new.clone()]);
        drop(web);
        assert!(trusts(&db, &[&old, &new]) && trusts(&renewed, &[&old, &new]));
        // The old one goes with the last certificate that came with it.
        let last = trust.add(&td, vec![new.clone()]);
        drop(renewed);
        assert!(trusts(&last, &[&old, &new]));
        drop(db);
        assert!(trusts(&last, &[&new]));
        drop(last);
        assert!(trust.state().domains.is_empty());
    }

    #[test]
    fn trust_domains_are_kept_apart() {
        let trust = Arc::<Trust>::default();
        let (one, two) = (root("one"), root("two"));
        let here = trust.add(&domain("cluster.local"), vec![one.clone()]);
        let there = trust.add(&domain("example.org"), vec![two.clone()]);
        assert!(trusts(&here, &[&one]) && trusts(&there, &[&two]));
    }

    #[test]
    fn same_roots_in_another_order_leave_what_is_verified() {
        let (trust, td) = (Arc::<Trust>::default(), domain("cluster.local"));
        let (old, new) = (root("old"), root("new"));
        let web = trust.add(&td, vec![old.clone(), new.clone()]);
        let before = web.current().load_full();
        let db = trust.add(&td, vec![new, old]);
        assert!(Arc::ptr_eq(&before, &db.current().load_full()));
        trust.set_lists(RevocationLists::default());
        assert!(!Arc::ptr_eq(&before, &db.current().load_full()));
    }

    #[test]
    fn there_is_a_bound_and_the_newest_are_in_it() {
        let (trust, td) = (Arc::<Trust>::default(), domain("cluster.local"));
        let one = root("one");
        let numbered = |number: usize| TrustAnchor {
            subject: number.to_be_bytes().to_vec().into(),
            ..one.clone()
        };
        let first = trust.add(&td, (0..MAX_ROOTS).map(numbered).collect());
        let _second = trust.add(&td, vec![numbered(MAX_ROOTS)]);
        let now = first.current().load();
        assert_eq!(now.anchors.len(), MAX_ROOTS);
        assert_eq!(now.anchors[0].subject.as_ref(), MAX_ROOTS.to_be_bytes());
    }
}
