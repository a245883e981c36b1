//! How a policy looks in a dump.

use serde::Serialize;
use ztunnel_mesh::Policy;
use ztunnel_mesh::policy::{
    Action, Attribute, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};

/// The fields in the order of their names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownPolicy<'a> {
    action: &'static str,
    dry_run: bool,
    name: &'a str,
    namespace: &'a str,
    rules: Vec<Vec<Vec<ShownMatch<'a>>>>,
    scope: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownMatch<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<ShownString<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_destination_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<ShownString<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<ShownString<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<ShownAccount<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_source_ips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<ShownString<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<ShownAccount<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    source_ips: Vec<String>,
}

/// An object of one field.
#[derive(Debug, Serialize)]
enum ShownString<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    /// Its value is an empty list.
    Presence([(); 0]),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownAccount<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

impl<'a> From<&'a Policy> for ShownPolicy<'a> {
    fn from(policy: &'a Policy) -> Self {
        let clause = |clause: &'a Clause| clause.matches.iter().map(ShownMatch::from).collect();
        let rule = |rule: &'a Rule| rule.clauses.iter().map(clause).collect();
        Self {
            action: match policy.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
            dry_run: policy.dry_run,
            name: &policy.key.name,
            namespace: &policy.key.namespace,
            rules: policy.rules.iter().map(rule).collect(),
            scope: match policy.scope {
                PolicyScope::Global => "Global",
                PolicyScope::Namespace => "Namespace",
                PolicyScope::WorkloadSelector => "WorkloadSelector",
            },
        }
    }
}

impl<'a> From<&'a Match> for ShownMatch<'a> {
    fn from(shown: &'a Match) -> Self {
        let (destination_ips, not_destination_ips) =
            both(&shown.destination_ips, ToString::to_string);
        let (destination_ports, not_destination_ports) =
            both(&shown.destination_ports, |&port| port);
        let (namespaces, not_namespaces) = both(&shown.namespaces, ShownString::from);
        let (principals, not_principals) = both(&shown.principals, ShownString::from);
        let (service_accounts, not_service_accounts) =
            both(&shown.service_accounts, ShownAccount::from);
        let (source_ips, not_source_ips) = both(&shown.source_ips, ToString::to_string);
        Self {
            destination_ips,
            destination_ports,
            namespaces,
            not_destination_ips,
            not_destination_ports,
            not_namespaces,
            not_principals,
            not_service_accounts,
            not_source_ips,
            principals,
            service_accounts,
            source_ips,
        }
    }
}

fn both<'a, T, S>(
    attribute: &'a Attribute<T>,
    show: impl Fn(&'a T) -> S + Copy,
) -> (Vec<S>, Vec<S>) {
    let shown = |list: &'a [T]| list.iter().map(show).collect();
    (shown(&attribute.is), shown(&attribute.is_not))
}

impl<'a> From<&'a StringMatch> for ShownString<'a> {
    fn from(shown: &'a StringMatch) -> Self {
        match shown {
            StringMatch::Exact(text) => Self::Exact(text),
            StringMatch::Prefix(text) => Self::Prefix(text),
            StringMatch::Suffix(text) => Self::Suffix(text),
            StringMatch::Presence => Self::Presence([]),
        }
    }
}

impl<'a> From<&'a ServiceAccountMatch> for ShownAccount<'a> {
    fn from(shown: &'a ServiceAccountMatch) -> Self {
        Self {
            namespace: &shown.namespace,
            service_account: &shown.service_account,
        }
    }
}
