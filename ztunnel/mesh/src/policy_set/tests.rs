//! The index against the contract read aloud: every policy, every rule, every word of it, for random policies and
//! connections.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::*;
use crate::addr::{AppAddr, ClientAddr};
use crate::fixture::Lcg;
use crate::name::{Identity, PolicyName, Principal};
use crate::policy::{PolicyScope, ServiceAccountMatch};

impl Lcg {
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> T) -> Box<[T]> {
        let len = self.one_of(&[0, 0, 0, 1, 1, 2, 3]);
        (0..len).map(|_| item(self)).collect()
    }

    fn attribute<T>(&mut self, item: impl Fn(&mut Self) -> T) -> Attribute<T> {
        let restricted = self.below(3) == 0;
        let mut list = |now: bool| match now {
            true => self.list(&item),
            false => Box::default(),
        };
        Attribute {
            is: list(restricted),
            is_not: list(restricted),
        }
    }
}

const TRUST_DOMAINS: [&str; 2] = ["td", "cluster.local"];
const NAMESPACES: [&str; 4] = ["shop", "shopping", "bar", ""];
const ACCOUNTS: [&str; 3] = ["web", "web2", "db"];
const IPS: [&str; 5] = [
    "10.1.0.1",
    "10.1.0.2",
    "10.2.0.1",
    "fd00::1",
    "::ffff:10.1.0.1",
];
const PORTS: [u16; 3] = [80, 81, 8080];

fn identity(random: &mut Lcg) -> Identity {
    Identity {
        trust_domain: random.one_of(&TRUST_DOMAINS).into(),
        namespace: random.one_of(&NAMESPACES).into(),
        service_account: random.one_of(&ACCOUNTS).into(),
    }
}

/// Something that is, begins or ends like `text`.
fn string(random: &mut Lcg, text: &str) -> StringMatch {
    let cut = random.below(text.len() + 1);
    match random.below(6) {
        0..3 => StringMatch::Exact(text.into()),
        3 => StringMatch::Prefix(text[..cut].into()),
        4 => StringMatch::Suffix(text[cut..].into()),
        _ => StringMatch::Presence,
    }
}

fn principal(identity: &Identity) -> String {
    identity.to_string().replace("spiffe://", "")
}

fn net(random: &mut Lcg) -> IpNet {
    let ip: IpAddr = random.one_of(&IPS).parse().unwrap();
    let ip = ip.to_canonical();
    let max = if ip.is_ipv4() { 32 } else { 128 };
    let length = random.one_of(&[0, 8, 16, 31, max]).min(max);
    IpNet::new(ip, length).unwrap()
}

fn one_match(random: &mut Lcg) -> Match {
    Match {
        namespaces: random.attribute(|r| {
            let text = r.one_of(&NAMESPACES);
            string(r, text)
        }),
        principals: random.attribute(|r| {
            let text = principal(&identity(r));
            string(r, &text)
        }),
        service_accounts: random.attribute(|r| ServiceAccountMatch {
            namespace: r.one_of(&NAMESPACES).into(),
            service_account: r.one_of(&ACCOUNTS).into(),
        }),
        source_ips: random.attribute(net),
        destination_ips: random.attribute(net),
        destination_ports: random.attribute(|r| r.one_of(&PORTS)),
    }
}

fn policy(random: &mut Lcg, number: usize) -> Policy {
    Policy {
        key: PolicyName::new("ns", &format!("{:02}", number * 7 % 40)),
        scope: PolicyScope::Namespace,
        action: random.one_of(&[Action::Allow, Action::Deny]),
        dry_run: random.below(8) == 0,
        rules: random.list(|r| Rule {
            clauses: r.list(|r| Clause {
                matches: r.list(one_match),
            }),
        }),
    }
}

/// A connection, as the contract speaks of it.
struct Connection {
    identity: Option<Identity>,
    source: IpAddr,
    destination: SocketAddr,
}

impl Connection {
    fn random(random: &mut Lcg) -> Self {
        let ip = |r: &mut Lcg| -> IpAddr { r.one_of(&IPS).parse().unwrap() };
        Self {
            identity: (random.below(4) > 0).then(|| identity(random)),
            source: ip(random).to_canonical(),
            destination: SocketAddr::new(ip(random).to_canonical(), random.one_of(&PORTS)),
        }
    }

    fn matches(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.is_empty() || clause.matches.iter().any(|m| self.satisfies(m))
            })
        })
    }

    fn satisfies(&self, m: &Match) -> bool {
        let restricted = [
            m.namespaces.is.len() + m.namespaces.is_not.len(),
            m.principals.is.len() + m.principals.is_not.len(),
            m.service_accounts.is.len() + m.service_accounts.is_not.len(),
            m.source_ips.is.len() + m.source_ips.is_not.len(),
            m.destination_ips.is.len() + m.destination_ips.is_not.len(),
            m.destination_ports.is.len() + m.destination_ports.is_not.len(),
        ];
        if restricted.iter().sum::<usize>() == 0 {
            return false;
        }
        let namespace = self.identity.as_ref().map_or("", |i| &*i.namespace);
        let own = self.identity.as_ref().map(principal);
        let in_account = |account: &ServiceAccountMatch| {
            self.identity.as_ref().is_some_and(|i| {
                i.namespace == account.namespace && i.service_account == account.service_account
            })
        };
        one_and_none(&m.namespaces, |n| fits(n, namespace))
            && one_and_none(&m.principals, |p| {
                own.as_ref().is_some_and(|own| fits(p, own))
            })
            && one_and_none(&m.service_accounts, in_account)
            && one_and_none(&m.source_ips, |net| net.contains(&self.source))
            && one_and_none(&m.destination_ips, |net| {
                net.contains(&self.destination.ip())
            })
            && one_and_none(&m.destination_ports, |port| {
                *port == self.destination.port()
            })
    }
}

fn one_and_none<T>(attribute: &Attribute<T>, holds: impl Fn(&T) -> bool) -> bool {
    let one = attribute.is.is_empty() || attribute.is.iter().any(&holds);
    let none = !attribute.is_not.iter().any(&holds);
    one && none
}

fn fits(pattern: &StringMatch, text: &str) -> bool {
    match pattern {
        StringMatch::Exact(s) => text == &**s,
        StringMatch::Prefix(s) => text.len() >= s.len() && text[..s.len()] == **s,
        StringMatch::Suffix(s) => text.len() >= s.len() && text[text.len() - s.len()..] == **s,
        StringMatch::Presence => !text.is_empty(),
    }
}

#[test]
fn the_index_finds_what_reading_every_policy_finds() {
    let mut random = Lcg(3);
    let (mut found, mut nothing) = (0, 0);
    for _ in 0..400 {
        let count = random.below(40);
        let policies: Vec<_> = (0..count)
            .map(|number| Arc::new(policy(&mut random, number)))
            .collect();
        let set = PolicySet::new(policies.iter());
        let first = |action, connection: &Connection| {
            let policies = policies.iter().filter(|p| p.action == action && !p.dry_run);
            let matching = policies.filter(|p| connection.matches(p));
            matching.map(|p| p.key.to_string()).min()
        };
        let allows = policies
            .iter()
            .any(|p| p.action == Action::Allow && !p.dry_run);
        assert_eq!(set.has_allow(), allows);
        for _ in 0..60 {
            let connection = Connection::random(&mut random);
            let principal = connection.identity.clone().map(Principal::from);
            let client = ClientAddr(SocketAddr::new(connection.source, 40_000));
            let flow = Flow::new(principal.as_ref(), client, AppAddr(connection.destination));
            for (answer, action) in [
                (set.allows(&flow), Action::Allow),
                (set.denies(&flow), Action::Deny),
            ] {
                let expected = first(action, &connection);
                assert_eq!(answer.map(|p| p.key.to_string()), expected, "{policies:#?}");
                found += usize::from(expected.is_some());
                nothing += usize::from(expected.is_none());
            }
        }
    }
    assert!(found > 5_000 && nothing > 5_000, "{found} and {nothing}");
}
