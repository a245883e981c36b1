//! What policies look at in a connection, and whether a rule matches it.

use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::addr::{AppAddr, ClientAddr};
use crate::name::Principal;
use crate::policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch};

/// A connection as policies see it.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    peer: Option<&'a Principal>,
    pub(crate) source: IpAddr,
    pub(crate) target: SocketAddr,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(peer: Option<&'a Principal>, client: ClientAddr, app: AppAddr) -> Self {
        Self {
            peer,
            source: client.0.ip().to_canonical(),
            target: SocketAddr::new(app.0.ip().to_canonical(), app.0.port()),
        }
    }

    /// A peer without identity has no principal at all, so nothing matches it.
    pub(crate) fn principal(&self) -> Option<&'a str> {
        self.peer.map(Principal::as_str)
    }

    /// A peer without identity has the empty namespace, so an empty prefix matches it.
    pub(crate) fn namespace(&self) -> &'a str {
        self.peer.map_or("", |peer| &peer.identity().namespace)
    }

    /// Namespace and service account.
    pub(crate) fn account(&self) -> Option<(&'a str, &'a str)> {
        let identity = self.peer?.identity();
        Some((&identity.namespace, &identity.service_account))
    }

    pub(crate) fn matches_rule(&self, rule: &Rule) -> bool {
        rule.clauses
            .iter()
            .all(|clause| self.matches_clause(clause))
    }

    fn matches_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|m| self.matches_match(m))
    }

    fn matches_match(&self, m: &Match) -> bool {
        let in_net = |ip: IpAddr| move |net: &IpNet| net.contains(&ip);
        !m.is_empty()
            && m.source_ips.holds(in_net(self.source))
            && m.destination_ips.holds(in_net(self.target.ip()))
            && m.destination_ports
                .holds(|port| *port == self.target.port())
            && m.service_accounts
                .holds(|account| self.has_account(account))
            && m.namespaces
                .holds(|namespace| namespace.matches(self.namespace()))
            && m.principals
                .holds(|principal| self.has_principal(principal))
    }

    fn has_account(&self, account: &ServiceAccountMatch) -> bool {
        self.account() == Some((&account.namespace, &account.service_account))
    }

    fn has_principal(&self, principal: &StringMatch) -> bool {
        self.principal().is_some_and(|own| principal.matches(own))
    }
}
