//! Many policies, asked as one: which of them matches a connection, without asking each.
//!
//! Most rules begin with who may call: this principal, these namespaces, that port. A rule can match only if one of
//! those does, so it is filed under them, and a connection looks up what is filed under its own. Prefixes and
//! ranges of addresses are filed as they are, and looked up once for each length in use. What can be filed under
//! nothing (presence, exclusions alone) is asked every time.
//!
//! Invariants: what is filed where is only about speed. Whatever a look-up brings is evaluated in full, so a
//! wrong hit costs time and no more; and nothing that could match is missed. Of several that match, the answer is
//! the first by name. Asking allocates nothing.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::{BuildHasher as _, Hash};
use core::net::IpAddr;

use hashbrown::{DefaultHashBuilder, HashMap};
use ipnet::IpNet;

use crate::flow::Flow;
use crate::policy::{Action, Attribute, Clause, Match, Policy, Rule, StringMatch};

/// Policies that apply together. Those that never decide are left out.
#[derive(Debug, Default)]
pub(crate) struct PolicySet {
    deny: Index,
    allow: Index,
}

impl PolicySet {
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Arc<Policy>>) -> Self {
        Self::in_steps(policies, &mut || ())
    }

    /// The same. Calls `step` for each policy.
    pub(crate) fn in_steps<'a>(
        policies: impl Iterator<Item = &'a Arc<Policy>>,
        step: &mut impl FnMut(),
    ) -> Self {
        let mut deciding: Vec<_> = policies.filter(|policy| !policy.dry_run).collect();
        deciding.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        deciding.dedup_by(|a, b| a.key == b.key);
        let mut of = |action| Index::new(deciding.iter().filter(|p| p.action == action), step);
        Self {
            deny: of(Action::Deny),
            allow: of(Action::Allow),
        }
    }

    /// The first policy that denies it.
    pub(crate) fn denies(&self, flow: &Flow<'_>) -> Option<&Arc<Policy>> {
        self.deny.first_match(flow)
    }

    /// The first policy that allows it.
    pub(crate) fn allows(&self, flow: &Flow<'_>) -> Option<&Arc<Policy>> {
        self.allow.first_match(flow)
    }

    /// Whether only what is allowed is allowed.
    pub(crate) fn has_allow(&self) -> bool {
        !self.allow.policies.is_empty()
    }

    /// Those that deny, and those that allow.
    pub(crate) fn deciding(&self) -> (&[Arc<Policy>], &[Arc<Policy>]) {
        (&self.deny.policies, &self.allow.policies)
    }

    /// Whether the same policies decide in both.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same = |a: &Index, b: &Index| {
            let mut both = a.policies.iter().zip(&b.policies);
            a.policies.len() == b.policies.len() && both.all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
        };
        same(&self.deny, &other.deny) && same(&self.allow, &other.allow)
    }
}

/// The rules of policies with one action.
#[derive(Debug, Default)]
struct Index {
    policies: Box<[Arc<Policy>]>,
    /// Which policy and which of its rules, in the order of the policies.
    rules: Vec<(u32, u32)>,
    /// Rules by the hash of what they are filed under.
    filed: HashMap<u64, Vec<u32>>,
    hasher: DefaultHashBuilder,
    /// What has to be looked up for a connection.
    drawers: BTreeSet<Drawer>,
    /// Rules that are asked every time.
    rest: Vec<u32>,
}

/// What a rule is filed by, from the most telling to the least. With the length of what is compared, for
/// prefixes, suffixes and ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Drawer {
    Principal(Part),
    Account,
    Namespace(Part),
    Source { v6: bool, length: u8 },
    Target { v6: bool, length: u8 },
    Port,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Part {
    Whole,
    Prefix(usize),
    Suffix(usize),
}

/// A place to file a rule, or to look for some.
type Place = (Drawer, u64);

impl Index {
    fn new<'a>(
        policies: impl Iterator<Item = &'a &'a Arc<Policy>>,
        step: &mut impl FnMut(),
    ) -> Self {
        let policies: Box<[_]> = policies.map(|policy| Arc::clone(policy)).collect();
        let mut index = Self::default();
        for (policy, content) in policies.iter().enumerate() {
            for (rule, content) in content.rules.iter().enumerate() {
                // More rules than fit are more than fit into a message.
                if let (Ok(policy), Ok(rule)) = (u32::try_from(policy), u32::try_from(rule)) {
                    index.file(policy, rule, content);
                }
            }
            step();
        }
        Self { policies, ..index }
    }

    fn file(&mut self, policy: u32, rule: u32, content: &Rule) {
        let number = self.rules.len() as u32;
        self.rules.push((policy, rule));
        let clauses = content.clauses.iter();
        let best = clauses
            .filter_map(|clause| self.places(clause))
            .min_by_key(|places| places.iter().map(|(drawer, _)| drawer.kind()).max());
        let Some(places) = best else {
            return self.rest.push(number);
        };
        for (drawer, hash) in places {
            self.drawers.insert(drawer);
            let filed = self.filed.entry(hash).or_default();
            if filed.last() != Some(&number) {
                filed.push(number);
            }
        }
    }

    /// Places of which one is looked at whenever the clause matches; nothing when there are no such.
    fn places(&self, clause: &Clause) -> Option<Vec<Place>> {
        if clause.matches.is_empty() {
            return None;
        }
        let matches = clause.matches.iter().filter(|m| !m.is_empty());
        let places = matches.map(|m| self.places_of(m));
        Some(places.collect::<Option<Vec<_>>>()?.concat())
    }

    fn places_of(&self, m: &Match) -> Option<Vec<Place>> {
        let principals = || all(&m.principals, |p| self.string(p, Drawer::Principal));
        let accounts = || {
            all(&m.service_accounts, |account| {
                Some(self.account(&account.namespace, &account.service_account))
            })
        };
        let namespaces = || all(&m.namespaces, |n| self.string(n, Drawer::Namespace));
        let sources = || all(&m.source_ips, |net| Some(self.range(*net, source)));
        let targets = || all(&m.destination_ips, |net| Some(self.range(*net, target)));
        let ports = || all(&m.destination_ports, |port| Some(self.port(*port)));
        principals()
            .or_else(accounts)
            .or_else(namespaces)
            .or_else(sources)
            .or_else(targets)
            .or_else(ports)
    }

    fn first_match(&self, flow: &Flow<'_>) -> Option<&Arc<Policy>> {
        let mut first = self.earliest(flow, &self.rest, u32::MAX);
        for drawer in &self.drawers {
            let Some((_, hash)) = self.place_of(flow, *drawer) else {
                continue;
            };
            if let Some(filed) = self.filed.get(&hash) {
                first = self.earliest(flow, filed, first);
            }
        }
        self.policies.get(first as usize)
    }

    /// The first policy with one of these rules that matches, if it is before `limit`.
    fn earliest(&self, flow: &Flow<'_>, rules: &[u32], limit: u32) -> u32 {
        let rules = rules.iter().map(|number| self.rules[*number as usize]);
        rules
            .take_while(|(policy, _)| *policy < limit)
            .find(|(policy, rule)| {
                flow.matches_rule(&self.policies[*policy as usize].rules[*rule as usize])
            })
            .map_or(limit, |(policy, _)| policy)
    }

    /// Where rules are filed that could match the connection.
    fn place_of(&self, flow: &Flow<'_>, drawer: Drawer) -> Option<Place> {
        let part_of = |text: &str, part| {
            let text = text.as_bytes();
            let part = match part {
                Part::Whole => text,
                Part::Prefix(length) => text.get(..length)?,
                Part::Suffix(length) => text.get(text.len().checked_sub(length)?..)?,
            };
            Some(self.place(drawer, part))
        };
        let range = |ip: IpAddr, v6: bool, length| {
            let net = IpNet::new(ip, length).ok()?.trunc();
            (ip.is_ipv6() == v6).then(|| self.place(drawer, &net))
        };
        match drawer {
            Drawer::Principal(part) => part_of(flow.principal()?, part),
            Drawer::Namespace(part) => part_of(flow.namespace(), part),
            Drawer::Account => {
                let (namespace, account) = flow.account()?;
                Some(self.account(namespace, account))
            }
            Drawer::Source { v6, length } => range(flow.source, v6, length),
            Drawer::Target { v6, length } => range(flow.target.ip(), v6, length),
            Drawer::Port => Some(self.port(flow.target.port())),
        }
    }

    fn string(&self, value: &StringMatch, drawer: fn(Part) -> Drawer) -> Option<Place> {
        let (part, text) = match value {
            StringMatch::Exact(text) => (Part::Whole, text),
            StringMatch::Prefix(text) => (Part::Prefix(text.len()), text),
            StringMatch::Suffix(text) => (Part::Suffix(text.len()), text),
            StringMatch::Presence => return None,
        };
        Some(self.place(drawer(part), text.as_bytes()))
    }

    fn account(&self, namespace: &str, account: &str) -> Place {
        self.place(Drawer::Account, &(namespace, account))
    }

    fn range(&self, net: IpNet, drawer: fn(bool, u8) -> Drawer) -> Place {
        let drawer = drawer(matches!(net, IpNet::V6(_)), net.prefix_len());
        self.place(drawer, &net.trunc())
    }

    fn port(&self, port: u16) -> Place {
        self.place(Drawer::Port, &port)
    }

    fn place<T: Hash + ?Sized>(&self, drawer: Drawer, value: &T) -> Place {
        (drawer, self.hasher.hash_one((drawer, value)))
    }
}

impl Drawer {
    /// How telling it is; the less the better.
    fn kind(self) -> u8 {
        match self {
            Self::Principal(_) => 0,
            Self::Account => 1,
            Self::Namespace(_) => 2,
            Self::Source { .. } => 3,
            Self::Target { .. } => 4,
            Self::Port => 5,
        }
    }
}

fn source(v6: bool, length: u8) -> Drawer {
    Drawer::Source { v6, length }
}

fn target(v6: bool, length: u8) -> Drawer {
    Drawer::Target { v6, length }
}

/// A place for each of the values of which one must hold; nothing when any may, or when one has no place.
fn all<T>(attribute: &Attribute<T>, place: impl Fn(&T) -> Option<Place>) -> Option<Vec<Place>> {
    if attribute.is.is_empty() {
        return None;
    }
    attribute.is.iter().map(place).collect()
}

#[cfg(test)]
mod tests;
