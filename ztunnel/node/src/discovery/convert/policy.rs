//! Authorization policies from the wire.
//!
//! A value that cannot be understood (an address of 5 bytes, an empty string match) does not reject the policy; a
//! policy that is not there protects nothing. Leaving out the value alone could open what it meant to close, so
//! what remains depends on the action. In an ALLOW policy only what was understood is allowed, and a match whose
//! exclusions are not all understood matches nothing. In a DENY policy an attribute whose values are not all
//! understood does not restrict. Either way more is denied than was said, never less.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ztunnel_mesh::Upsert;
use ztunnel_mesh::name::PolicyName;
use ztunnel_mesh::policy::{
    Action, Attribute, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};
use ztunnel_proto::istio::security as wire;

use super::{ConvertError, Converted, Converter, known, parse_ip, port};

impl Converter {
    pub(super) fn policy(&mut self, p: wire::Authorization) -> Result<Converted, ConvertError> {
        let scope = match known("scope", p.scope)? {
            wire::Scope::Global => PolicyScope::Global,
            wire::Scope::Namespace => PolicyScope::Namespace,
            wire::Scope::WorkloadSelector => PolicyScope::WorkloadSelector,
        };
        let action = match known("action", p.action)? {
            wire::Action::Allow => Action::Allow,
            wire::Action::Deny => Action::Deny,
        };
        let mut warnings = Vec::new();
        let mut one_match = |m: &wire::Match| self.one_match(m, action, &mut warnings);
        let mut clause = |c: &wire::Clause| Clause {
            matches: c.matches.iter().map(&mut one_match).collect(),
        };
        let mut rule = |r: &wire::Rule| Rule {
            clauses: r.clauses.iter().map(&mut clause).collect(),
        };
        let rules = p.rules.iter().map(&mut rule).collect();
        let policy = Policy {
            key: PolicyName {
                namespace: self.names.shared(&*p.namespace),
                name: self.names.shared(&*p.name),
            },
            scope,
            action,
            dry_run: p.dry_run,
            rules,
        };
        Ok(Converted {
            upsert: Upsert::Policy(policy.into()),
            warnings,
        })
    }

    fn one_match(&mut self, m: &wire::Match, action: Action, warnings: &mut Vec<String>) -> Match {
        let names = &mut self.names;
        let mut string = |m: &wire::StringMatch| {
            use wire::string_match::MatchType;
            Some(match m.match_type.as_ref()? {
                MatchType::Exact(s) => StringMatch::Exact(names.shared(&**s)),
                MatchType::Prefix(s) => StringMatch::Prefix(names.shared(&**s)),
                MatchType::Suffix(s) => StringMatch::Suffix(names.shared(&**s)),
                MatchType::Presence(()) => StringMatch::Presence,
            })
        };
        let mut lists = Lists {
            action,
            never: false,
            lost: Vec::new(),
        };
        let namespaces = lists.attribute(
            "namespaces",
            (&m.namespaces, &m.not_namespaces),
            &mut string,
        );
        let principals = lists.attribute(
            "principals",
            (&m.principals, &m.not_principals),
            &mut string,
        );
        let service_accounts = lists.attribute(
            "service_accounts",
            (&m.service_accounts, &m.not_service_accounts),
            |account| {
                Some(ServiceAccountMatch {
                    namespace: names.shared(&*account.namespace),
                    service_account: names.shared(&*account.service_account),
                })
            },
        );
        let converted = Match {
            namespaces,
            principals,
            service_accounts,
            source_ips: lists.attribute("source_ips", (&m.source_ips, &m.not_source_ips), net),
            destination_ips: lists.attribute(
                "destination_ips",
                (&m.destination_ips, &m.not_destination_ips),
                net,
            ),
            destination_ports: lists.attribute(
                "destination_ports",
                (&m.destination_ports, &m.not_destination_ports),
                |p| Some(port(*p)),
            ),
        };
        let any_lost = !lists.lost.is_empty();
        warnings.extend(lists.lost.into_iter().map(|field| {
            format!(
                "{field} has a value that is not understood: the policy denies more than it says"
            )
        }));
        if lists.never {
            // A match without attributes matches nothing.
            Match::default()
        } else if any_lost && converted.is_empty() {
            // And here it must match everything.
            any_source()
        } else {
            converted
        }
    }
}

/// Reads the lists of one match in the direction that is safe for the action of its policy.
struct Lists {
    action: Action,
    /// The match must not match anything.
    never: bool,
    /// The attributes with a value that was not understood.
    lost: Vec<&'static str>,
}

impl Lists {
    fn attribute<W, T>(
        &mut self,
        field: &'static str,
        (is, is_not): (&[W], &[W]),
        mut convert: impl FnMut(&W) -> Option<T>,
    ) -> Attribute<T> {
        let mut understood =
            |values: &[W]| -> Box<[T]> { values.iter().filter_map(&mut convert).collect() };
        let mut attribute = Attribute {
            is: understood(is),
            is_not: understood(is_not),
        };
        let is_lost = attribute.is.len() < is.len();
        let is_not_lost = attribute.is_not.len() < is_not.len();
        if is_lost || is_not_lost {
            self.lost.push(field);
        }
        match self.action {
            Action::Allow => self.never |= is_not_lost || (is_lost && attribute.is.is_empty()),
            Action::Deny if is_lost => attribute.is = Box::default(),
            Action::Deny => {}
        }
        attribute
    }
}

// Host bits are allowed, and mean nothing.
fn net(address: &wire::Address) -> Option<IpNet> {
    let ip = parse_ip(&address.address)?;
    IpNet::new(ip, u8::try_from(address.length).ok()?).ok()
}

fn any_source() -> Match {
    let everything = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    Match {
        source_ips: Attribute {
            is: everything.into(),
            is_not: Box::default(),
        },
        ..Match::default()
    }
}
