use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::*;
use crate::fixture::workload;
use crate::name::Identity;
use crate::policy::{
    Action, Attribute, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch,
};
use crate::snapshot::{Delta, Upsert};

/// `policy` is `<allow|deny> <ns>/<name> <global|namespace|selector> [dry-run]`, then one `rule` for each rule with
/// its clauses behind it: `clause` opens one, `match` opens a match, `<attribute>=<value>,...` and
/// `<attribute>!=...` restrict it.
fn policy(text: &str) -> Policy {
    let mut words = text.split_whitespace();
    let action = match words.next().unwrap() {
        "allow" => Action::Allow,
        _ => Action::Deny,
    };
    let key = PolicyName::parse(words.next().unwrap()).unwrap();
    let scope = match words.next().unwrap() {
        "global" => PolicyScope::Global,
        "namespace" => PolicyScope::Namespace,
        _ => PolicyScope::WorkloadSelector,
    };
    let mut dry_run = false;
    let mut rules: Vec<Vec<Vec<Match>>> = vec![];
    for word in words {
        match word {
            "dry-run" => dry_run = true,
            "rule" => rules.push(vec![]),
            "clause" => rules.last_mut().unwrap().push(vec![]),
            "match" => {
                let clause = rules.last_mut().unwrap().last_mut().unwrap();
                clause.push(Match::default());
            }
            _ => {
                let (field, values) = word.split_once('=').unwrap();
                let clause = rules.last_mut().unwrap().last_mut().unwrap();
                restrict(clause.last_mut().unwrap(), field, values);
            }
        }
    }
    let clause = |matches: Vec<Match>| Clause {
        matches: matches.into(),
    };
    let rule = |clauses: Vec<Vec<Match>>| Rule {
        clauses: clauses.into_iter().map(clause).collect(),
    };
    Policy {
        key,
        scope,
        action,
        dry_run,
        rules: rules.into_iter().map(rule).collect(),
    }
}

fn restrict(m: &mut Match, field: &str, values: &str) {
    fn add<T>(attribute: &mut Attribute<T>, not: bool, values: &str, parse: impl Fn(&str) -> T) {
        let list = values.split(',').map(parse).collect();
        if not {
            attribute.is_not = list;
        } else {
            attribute.is = list;
        }
    }
    let string = |value: &str| match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(suffix), _) => StringMatch::Suffix(suffix.into()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        (None, None) => StringMatch::Exact(value.into()),
    };
    let account = |value: &str| {
        let (namespace, service_account) = value.split_once('/').unwrap();
        ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    };
    let not = field.ends_with('!');
    match field.trim_end_matches('!') {
        "ns" => add(&mut m.namespaces, not, values, string),
        "principal" => add(&mut m.principals, not, values, string),
        "sa" => add(&mut m.service_accounts, not, values, account),
        "from" => add(&mut m.source_ips, not, values, |v| v.parse().unwrap()),
        "to" => add(&mut m.destination_ips, not, values, |v| v.parse().unwrap()),
        "port" => add(&mut m.destination_ports, not, values, |v| {
            v.parse().unwrap()
        }),
        _ => panic!("unknown attribute {field:?}"),
    }
}

fn mesh(policies: &[&str]) -> Mesh {
    let upserts = policies.iter().map(|p| Upsert::Policy(Arc::new(policy(p))));
    Mesh::default().apply(Delta {
        upserts: upserts.collect(),
        removals: vec![],
    })
}

fn policies_of(pod: &str, policies: &[&str]) -> PodPolicies {
    PodPolicies::new(&mesh(policies), &Arc::new(workload(pod)))
}

/// `peer` is `<identity or plain> <ip>`. Expected: `allow`, `allow by <policy>`, or a piece of the detail.
fn check_pod(pod: &str, policies: &[&str], peer: &str, expected: &str) {
    let (who, ip) = peer.split_once(' ').unwrap();
    let identity: Option<Identity> = (who != "plain").then(|| {
        let (namespace, account) = who.split_once('/').unwrap();
        alloc::format!("spiffe://td/ns/{namespace}/sa/{account}")
            .parse()
            .unwrap()
    });
    let principal = identity.map(Principal::from);
    let peer = Peer {
        principal: principal.as_ref(),
        addr: ClientAddr(SocketAddr::new(ip.parse().unwrap(), 40000)),
    };
    let target = AppAddr("10.1.0.1:8080".parse().unwrap());
    let result: String = match policies_of(pod, policies).authorize(peer, target) {
        Ok(permit) => match permit.policy() {
            None => "allow".into(),
            Some(policy) => alloc::format!("allow by {policy}"),
        },
        Err(refusal) => {
            let missing = refusal.detail.contains("has not arrived");
            let reason = [Reason::PolicyDenied, Reason::PolicyMissing][usize::from(missing)];
            assert_eq!(refusal.reason, reason, "{refusal}");
            refusal.detail
        }
    };
    if expected.starts_with("allow") {
        assert_eq!(result, expected, "{policies:?} for {who} {ip}");
    } else {
        assert!(
            !result.starts_with("allow"),
            "{policies:?} for {who} {ip}: {result}"
        );
        assert!(
            result.contains(expected),
            "{policies:?} for {who} {ip}: {result}"
        );
    }
}

const POD: &str = "pod shop/web ip=10.1.0.1";
const PEER: &str = "shop/cart 10.1.0.2";
const PLAIN: &str = "plain 10.1.0.2";

fn check(policies: &[&str], peer: &str, expected: &str) {
    check_pod(POD, policies, peer, expected);
}

/// Whether one match with these words matches the peer, asked through an ALLOW policy.
fn check_match(words: &str, peer: &str, matches: bool) {
    let policy = alloc::format!("allow shop/p namespace rule clause match {words}");
    let expected = if matches {
        "allow by shop/p"
    } else {
        "no ALLOW"
    };
    check(&[&policy], peer, expected);
}

#[test]
fn without_policies_everything_is_allowed() {
    check(&[], PEER, "allow");
    check(&[], PLAIN, "allow");
}

#[test]
fn scopes_decide_which_policies_apply() {
    let denies = |key: &str, scope: &str| alloc::format!("deny {key} {scope} rule");
    check(&[&denies("root/p", "global")], PEER, "root/p");
    check(&[&denies("shop/p", "namespace")], PEER, "shop/p");
    check(&[&denies("other/p", "namespace")], PEER, "allow");
    // A selector policy applies where it is listed, whatever its namespace.
    check(&[&denies("shop/p", "selector")], PEER, "allow");
    let listed = "pod shop/web policies=other/p";
    check_pod(listed, &[&denies("other/p", "selector")], PEER, "other/p");
}

#[test]
fn a_listed_policy_that_is_not_here_refuses() {
    let listed = "pod shop/web policies=shop/soon";
    check_pod(listed, &[], PEER, "shop/soon");
    check_pod(listed, &["allow shop/p namespace rule"], PEER, "shop/soon");
    // A policy that denies anyway says so.
    check_pod(
        listed,
        &["deny shop/p namespace rule"],
        PEER,
        "policy shop/p",
    );
    check_pod(listed, &["deny shop/soon selector"], PEER, "allow");
}

#[test]
fn deny_comes_first_then_any_allow() {
    let (allow, deny) = ("allow shop/a namespace rule", "deny shop/d namespace rule");
    check(&[allow], PEER, "allow by shop/a");
    check(&[allow, deny], PEER, "shop/d");
    check(
        &["allow shop/a namespace", "allow root/b global rule"],
        PEER,
        "allow by root/b",
    );
}

#[test]
fn dry_run_never_decides() {
    check(&["deny shop/d namespace dry-run rule"], PEER, "allow");
    check(&["allow shop/a namespace dry-run"], PEER, "allow");
}

#[test]
fn empty_lists_mean_what_their_level_says() {
    // No rule matches nothing.
    check(&["allow shop/a namespace"], PEER, "no ALLOW");
    check(&["deny shop/d namespace"], PEER, "allow");
    // No clause, and no match in a clause, match everything.
    check(&["deny shop/d namespace rule"], PEER, "shop/d");
    check(&["deny shop/d namespace rule clause"], PEER, "shop/d");
    // A match without any attribute matches nothing.
    check(&["deny shop/d namespace rule clause match"], PEER, "allow");
    check(
        &["deny shop/d namespace rule clause match match port=8080"],
        PEER,
        "shop/d",
    );
}

#[test]
fn rules_are_or_clauses_are_and_matches_are_or() {
    let (yes, no) = ("match port=8080", "match port=1");
    for (shape, matches) in [
        (["rule clause", no, "rule clause", yes], true),
        (["rule clause", no, "rule clause", no], false),
        (["rule clause", yes, "clause", yes], true),
        (["rule clause", yes, "clause", no], false),
        (["rule clause", no, "", yes], true),
        (["rule clause", no, "", no], false),
    ] {
        let policy = alloc::format!("deny shop/d namespace {}", shape.join(" "));
        check(&[&policy], PEER, if matches { "shop/d" } else { "allow" });
    }
    check_match("port=8080 sa=shop/cart", PEER, true);
    check_match("port=8080 sa=shop/other", PEER, false);
    check_match("port=1,8080", PEER, true);
    check_match("port=8080 port!=8080", PEER, false);
    check_match("port!=1,2", PEER, true);
    check_match("port!=1,8080", PEER, false);
}

#[test]
fn addresses_match_prefixes_of_their_own_family() {
    check_match("from=10.1.0.0/16", PEER, true);
    check_match("from=10.1.0.7/16", PEER, true);
    check_match("from=10.2.0.0/16", PEER, false);
    check_match("from=10.1.0.0/16", "shop/cart ::ffff:10.1.0.2", true);
    check_match("from=0.0.0.0/0", "shop/cart fd00::2", false);
    check_match("from=::/0", PEER, false);
    check_match("from!=0.0.0.0/0", "shop/cart fd00::2", true);
    check_match("from!=::/0", PEER, true);
    check_match("to=10.1.0.1/32", PEER, true);
    check_match("to!=10.1.0.1/32", PEER, false);
}

#[test]
fn identities_match_by_their_parts() {
    check_match("principal=td/ns/shop/sa/cart", PEER, true);
    check_match("principal=spiffe://td/ns/shop/sa/cart", PEER, false);
    check_match("principal=td/ns/shop/*", PEER, true);
    check_match("principal=*/sa/cart", PEER, true);
    check_match("principal=*", PEER, true);
    check_match("principal=TD/ns/shop/sa/cart", PEER, false);
    check_match("principal!=td/ns/shop/sa/other", PEER, true);
    check_match("ns=shop", PEER, true);
    check_match("ns=sh*", PEER, true);
    check_match("ns!=shop", PEER, false);
    check_match("sa=shop/cart", PEER, true);
    check_match("sa=other/cart", PEER, false);
    check_match("sa!=shop/cart", PEER, false);
}

#[test]
fn plaintext_matches_no_identity_and_every_exclusion() {
    for (words, matches) in [
        ("principal=*", false),
        ("principal=td/*", false),
        ("sa=shop/cart", false),
        ("ns=*", false),
        ("ns=shop", false),
        ("principal!=*", true),
        ("principal!=td/ns/shop/sa/cart", true),
        ("ns!=*", true),
        ("ns!=shop", true),
        ("sa!=shop/cart", true),
    ] {
        check_match(words, PLAIN, matches);
    }
    // An empty prefix matches even the empty namespace, but not the absent principal.
    check_match("ns=*", "shop/cart 10.1.0.2", true);
    for (attribute, matches) in [("ns", true), ("principal", false)] {
        let mut policy = policy("allow shop/p namespace rule clause match port=8080");
        let m = &mut policy.rules[0].clauses[0].matches[0];
        let empty = || [StringMatch::Prefix("".into())].into();
        match attribute {
            "ns" => m.namespaces.is = empty(),
            _ => m.principals.is = empty(),
        }
        let set = PolicySet::new([&Arc::new(policy)].into_iter());
        let client = ClientAddr("10.1.0.2:40000".parse().unwrap());
        let flow = Flow::new(None, client, AppAddr("10.1.0.1:8080".parse().unwrap()));
        assert_eq!(set.allows(&flow).is_some(), matches, "{attribute}");
    }
}

#[test]
fn strict_mode_is_a_policy_against_absent_principals() {
    let strict = "deny root/istio_converted_static_strict selector rule clause match principal!=*";
    let pod = "pod shop/web policies=root/istio_converted_static_strict";
    check_pod(pod, &[strict], PEER, "allow");
    check_pod(pod, &[strict], PLAIN, "static_strict");
    let except = "deny shop/converted_peer_authentication_x selector rule \
                  clause match port!=8080 clause match principal!=*";
    let pod = "pod shop/web policies=shop/converted_peer_authentication_x";
    check_pod(pod, &[except], PLAIN, "allow");
    check_pod(pod, &[&except.replace("8080", "9090")], PLAIN, "_x");
}

#[test]
fn a_collection_is_current_until_policies_or_the_pod_change() {
    let mesh = mesh(&["allow shop/a namespace rule"]);
    let pod = |text: &str| Arc::new(workload(text));
    let policies = PodPolicies::new(&mesh, &pod(POD));
    assert!(policies.is_current(&mesh, &pod(POD)));
    assert!(policies.is_current(&mesh, &pod("pod shop/web ip=10.1.0.9")));
    assert!(!policies.is_current(&mesh, &pod("pod shop/web policies=shop/a")));
    assert!(!policies.is_current(&mesh, &pod("pod other/web")));

    let unrelated = mesh.apply(Delta {
        upserts: crate::fixture::upserts("pod a/1"),
        removals: vec![],
    });
    assert!(policies.is_current(&unrelated, &pod(POD)));
    let other = Upsert::Policy(Arc::new(policy("deny shop/d namespace rule")));
    let changed = mesh.apply(Delta {
        upserts: vec![other],
        removals: vec![],
    });
    assert!(!policies.is_current(&changed, &pod(POD)));
}

#[test]
fn collections_are_compared_by_what_they_decide() {
    let base = ["allow shop/a namespace rule", "deny x/s selector rule"];
    let of = |pod: &str, policies: &[&str]| policies_of(pod, &[&base, policies].concat());
    let check = |pod: &str, policies: &[&str], same: bool| {
        let (one, other) = (of(POD, &[]), of(pod, policies));
        assert_eq!(one.decides_like(&other), same, "{pod} {policies:?}");
        assert_eq!(other.decides_like(&one), same, "{pod} {policies:?}");
    };
    check(POD, &[], true);
    check("pod shop/web2 ip=10.1.0.9", &[], true);
    check(POD, &["deny other/d namespace rule"], true);
    check(POD, &["deny shop/d selector rule"], true);
    check(POD, &["deny shop/d namespace dry-run rule"], true);
    check(POD, &["deny shop/d namespace rule"], false);
    check(POD, &["deny root/d global rule"], false);
    check(POD, &["allow shop/b namespace rule"], false);
    check(POD, &["deny shop/a namespace rule"], false);
    check(POD, &["allow shop/a namespace"], false);
    check("pod shop/web policies=x/s", &[], false);
    check("pod shop/web policies=x/absent", &[], false);
    check("pod other/web", &[], false);
}

#[test]
fn asked_again_what_is_missing_may_be_left_out() {
    let pod = "pod shop/web policies=shop/soon";
    let target = AppAddr("10.1.0.1:8080".parse().unwrap());
    let plain = Peer {
        principal: None,
        addr: ClientAddr("10.1.0.2:40000".parse().unwrap()),
    };
    for (policies, missing_counts, expected) in [
        (&[][..], false, ""),
        (&[], true, "shop/soon"),
        (&["allow shop/a namespace rule"], false, ""),
        (&["allow shop/a namespace"], false, "no ALLOW"),
        (&["deny shop/d namespace rule"], false, "shop/d"),
        (
            &["deny shop/soon selector rule"],
            false,
            "policy shop/soon denies",
        ),
    ] {
        let policies = policies_of(pod, policies);
        let again = policies.reconsider(plain, target, missing_counts);
        let said = again.err().map_or(String::new(), |refusal| refusal.detail);
        assert!(
            said.contains(expected) && said.is_empty() == expected.is_empty(),
            "{said}"
        );
    }
}

/// What `explain` tells about a connection of `shop/cart` (or plaintext) to the pod, and that it decides the same.
fn check_steps(pod: &str, policies: &[&str], plain: bool, expected: &[&str]) {
    let identity: Identity = "spiffe://td/ns/shop/sa/cart".parse().unwrap();
    let principal = Principal::from(identity);
    let peer = Peer {
        principal: (!plain).then_some(&principal),
        addr: ClientAddr("10.1.0.2:40000".parse().unwrap()),
    };
    let target = AppAddr("10.1.0.1:8080".parse().unwrap());
    let mesh = mesh(policies);
    let of_pod = PodPolicies::new(&mesh, &Arc::new(workload(pod)));
    let mut steps = vec![];
    let explained = of_pod.explain(&mesh, peer, target, |step| {
        steps.push(alloc::format!("{}: {step}", step.about()));
    });
    assert_eq!(steps, expected, "{policies:?}");
    let decided = of_pod.authorize(peer, target);
    assert_eq!(explained, decided.map(|permit| permit.policy));
}

#[test]
fn the_steps_say_which_policies_apply_and_which_rule_decides() {
    check_steps(
        POD,
        &[],
        false,
        &[
            "policy: none applies to the pod",
            "policy: no DENY policy matches",
            "policy: no ALLOW policy: who is not denied is allowed",
        ],
    );
    let policies = [
        "deny root/all global rule clause match ns=bank",
        "allow shop/some namespace rule clause match port=1 rule clause match principal=td/ns/shop/sa/cart",
        "deny shop/try namespace dry-run rule clause match ns=shop",
        "allow shop/other namespace dry-run rule clause match ns=bank",
        "deny other/ns namespace rule clause match ns=shop",
        "deny shop/strict selector rule clause match principal!=*",
    ];
    let listing = "pod shop/web ip=10.1.0.1 policies=shop/strict";
    let applying = [
        "policy: of the whole mesh; DENY root/all",
        "policy: of namespace shop; ALLOW shop/some",
        "policy: of the pod itself; DENY shop/strict",
        "dry run: ALLOW shop/other does not match, and never decides",
    ];
    let [mesh_wide, namespace, own, other] = applying;
    check_steps(
        listing,
        &policies,
        false,
        &[
            mesh_wide,
            namespace,
            own,
            other,
            "dry run: DENY shop/try matches, by rule 1 of 1, and never decides",
            "policy: no DENY policy matches",
            "policy: ALLOW shop/some matches, by rule 2 of 2",
        ],
    );
    check_steps(
        listing,
        &policies,
        true,
        &[
            mesh_wide,
            namespace,
            own,
            other,
            "dry run: DENY shop/try does not match, and never decides",
            "policy: DENY shop/strict matches, by rule 1 of 1",
        ],
    );
    check_steps(
        POD,
        &["allow shop/a namespace rule clause match ns=bank"],
        false,
        &[
            "policy: of namespace shop; ALLOW shop/a",
            "policy: no DENY policy matches",
            "policy: no ALLOW policy matches, and only what they allow is",
        ],
    );
    check_steps(
        "pod shop/web ip=10.1.0.1 policies=shop/late",
        &[],
        false,
        &[
            "policy: none applies to the pod",
            "policy: no DENY policy matches",
            "policy: shop/late, which the pod lists, has not arrived: it may be a DENY",
        ],
    );
}
