//! What to pick when an endpoint was drawn that the caller avoids.
//!
//! Invariants: the choice is among the endpoints that the service's preferences allow at all, so STRICT stays strict.
//! An endpoint that is not avoided beats any that is, even one that fits better; among those, what fits better. If all
//! that may be used are avoided, one of them it is. Of a service with up to [`SCAN`] endpoints this is exact; of a larger
//! one a bounded number is looked at, so a pick does not get slower the more endpoints there are.

use core::ops::ControlFlow;

use super::{Pick, Picked, Rng, below};
use crate::endpoints::Endpoint;
use crate::service::{LoadBalancingMode, Scope};
use crate::trie::Weigh as _;
use crate::workload::Workload;

/// Draws with one set of preferences.
const DRAWS: usize = 3;

/// The same in places farther away, where those that are near are drawn as well.
const FARTHER_DRAWS: usize = 16;

/// Endpoints to look at, one after the other.
const SCAN: usize = 64;

impl<'a> Pick<'a, '_> {
    #[cold]
    pub(super) fn instead_of(&self, avoided: Picked<'a>, rng: &mut impl Rng) -> Picked<'a> {
        let scopes = self.endpoints.scopes();
        if let Some(picked) = self.draw_again(DRAWS, scopes, rng) {
            return picked;
        }
        let Scan { found, complete } = self.scan(rng);
        if complete {
            return found.unwrap_or(avoided);
        }
        // Most of many are avoided: a whole zone may be down. Places farther away have others.
        let farther = match self.service.load_balancing.mode {
            LoadBalancingMode::Strict => 0,
            _ => scopes.len(),
        };
        let draw = |shared: usize| self.draw_again(FARTHER_DRAWS, scopes.get(..shared)?, rng);
        let drawn = (0..farther).rev().find_map(draw);
        drawn.or(found).unwrap_or(avoided)
    }

    fn draw_again(&self, times: usize, scopes: &[Scope], rng: &mut impl Rng) -> Option<Picked<'a>> {
        (0..times).find_map(|_| {
            let picked = self.draw(scopes, rng)?;
            let avoided = rng.avoids(&picked.endpoint.workload.uid, picked.port);
            (!avoided).then_some(picked)
        })
    }

    /// Draws, of the first endpoints there are, one that is not avoided and fits best.
    fn scan(&self, rng: &mut impl Rng) -> Scan<'a> {
        let (mut left, mut rank, mut weight, mut found) = (SCAN, 0, 0, None);
        let scanned = self.usable().try_for_each(|(port, group)| {
            group.visit(&mut |endpoint: &'a Endpoint| {
                if left == 0 {
                    return ControlFlow::Break(());
                }
                left -= 1;
                let Some(fits) = self.rank(&endpoint.workload) else {
                    return ControlFlow::Continue(());
                };
                let own = endpoint.weight();
                let worse = found.is_some() && fits < rank;
                if own == 0 || worse || rng.avoids(&endpoint.workload.uid, port) {
                    return ControlFlow::Continue(());
                }
                if fits > rank {
                    (rank, weight) = (fits, 0);
                }
                weight += own;
                if weight == own || below(weight, rng).is_some_and(|at| at < own) {
                    found = Some(Picked { endpoint, port });
                }
                ControlFlow::Continue(())
            })
        });
        Scan {
            found,
            complete: scanned.is_continue(),
        }
    }

    /// How well an endpoint fits the service's preferences, if it may be used at all.
    fn rank(&self, endpoint: &Workload) -> Option<usize> {
        let same = |scope: &Scope| scope.of(self.client) == scope.of(endpoint);
        let in_a_row = |scopes: &[Scope]| scopes.iter().take_while(|scope| same(scope)).count();
        let scopes = self.endpoints.scopes();
        match (self.service.load_balancing.mode, scopes) {
            (LoadBalancingMode::Strict, _) => scopes.iter().all(same).then_some(0),
            (_, [Scope::Network, rest @ ..]) if same(&Scope::Network) => {
                Some(1 + rest.len() + in_a_row(rest))
            }
            (_, [Scope::Network, rest @ ..]) => Some(in_a_row(rest)),
            _ => Some(in_a_row(scopes)),
        }
    }
}

struct Scan<'a> {
    found: Option<Picked<'a>>,
    /// Whether there are no other endpoints.
    complete: bool,
}
