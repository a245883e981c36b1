//! The policy routing that takes marked packets round to `lo`, in the calling thread's namespace.
//!
//! ```text
//! pref 100  fwmark <capture>    lookup <table>    what the connect hook marked
//! pref 101  fwmark <delivery>   lookup <table>    daemon -> app, and the app's answers
//! pref 102  fwmark <capture>    unreachable       never anywhere else, should the table have no route
//! pref 103  fwmark <answer>     lookup local      daemon -> app: answers to captured connections, as without a mark
//! pref 104  fwmark <answer>     lookup <table>    app -> daemon, where the kernel has no socket of the app's any more
//! pref 105  fwmark <answer>     unreachable
//! pref 200  from all            lookup local      moved from pref 0: or else the pod's own addresses match there
//!                                                 first, and the daemon's delivery would be captured again
//! table:    local default dev lo    src <address>   without src the kernel picks 127.0.0.1 and connect fails
//!           local default dev eth0  src <address>   for sockets bound to an interface
//! ```
//!
//! The answer mark comes back: what the kernel says for a socket that is gone, closed and in TIME-WAIT, or not connected
//! yet, has the mark of the packet that it answers (`fwmark_reflect`, which delivery needs), and not the one of the
//! socket: `IP4_REPLY_MARK(net, skb->mark) ?: sk->sk_mark` in `ip_send_unicast_reply` (net/ipv4/ip_output.c),
//! `IP6_REPLY_MARK` in `tcp_v6_send_response` (net/ipv6/tcp_ipv6.c). Those are the last ACK of a client that closed
//! first, and the resets of one that is gone. Their destination is not the pod: without rules for them they leave the
//! pod in the clear, and the daemon's socket, which waits for them, stays in LAST-ACK for a minute or two and stands in
//! the way of the next connection from the same port.
//!
//! Everything is tagged with a routing protocol number of its own, so what is ours can be found and removed
//! without remembering it.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::interface::{Interface, LO, is_link_local};
use crate::netlink::Netlink;
use crate::socket::Family;

/// Our routing protocol number (`rtm_protocol`), unassigned in `rtnetlink.h` and iproute2's `rt_protos`.
const OURS: RouteProtocol = RouteProtocol::Other(122);
const TABLE: u32 = 0x7a74;
const TABLE_LOCAL: u32 = 255;

const PREF_LOCAL: u32 = 0;
const PREF_CAPTURE: u32 = 100;
const PREF_DELIVERY: u32 = 101;
const PREF_BACKSTOP: u32 = 102;
const PREF_ANSWER: u32 = 103;
const PREF_ANSWER_BACK: u32 = 104;
const PREF_ANSWER_BACKSTOP: u32 = 105;
const PREF_LOCAL_MOVED: u32 = 200;

/// Of all our rules, in their order.
const PREFS: [u32; 7] = [
    PREF_CAPTURE,
    PREF_DELIVERY,
    PREF_BACKSTOP,
    PREF_ANSWER,
    PREF_ANSWER_BACK,
    PREF_ANSWER_BACKSTOP,
    PREF_LOCAL_MOVED,
];

/// The marks to route.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    pub capture: u32,
    pub delivery: u32,
    pub answer: u32,
}

/// Makes routes, then rules, what they should be in every family the namespace has. What is right already is left
/// as it is, and nothing that captures is taken away for a moment: connections that are marked go on.
///
/// # Errors
/// When the kernel refuses a route or a rule, or somebody's rule stands before ours; the message says which. What
/// was added until then stays, for [`remove`] or for another try.
pub fn install(interfaces: &[Interface], marks: Marks) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    families(&mut netlink)
        .into_iter()
        .try_for_each(|family| install_family(&mut netlink, family, interfaces, marks))
}

/// Removes whatever of ours there is, rules before routes, and puts the `local` rule back.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    for family in families(&mut netlink) {
        let (ours, others): (Vec<_>, Vec<_>) = rules(&mut netlink, family)?
            .into_iter()
            .partition(is_our_rule);
        // Also when somebody has flushed the rules and the moved one with them: without any, the namespace would
        // not even know its own addresses.
        if !others
            .iter()
            .any(|rule| table_of(rule) == Some(TABLE_LOCAL))
        {
            let first = local_rule(family, PREF_LOCAL, RouteProtocol::Kernel);
            add_rule(&mut netlink, first)?;
        }
        for rule in ours {
            netlink.change(Message::DelRule(rule), 0)?;
        }
        for route in our_routes(&mut netlink, family)? {
            netlink.change(Message::DelRoute(route), 0)?;
        }
    }
    Ok(())
}

/// Whether rules and routes of ours are all there, as `install` would make them, and come first.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_complete(interfaces: &[Interface]) -> io::Result<bool> {
    let mut netlink = Netlink::open()?;
    for family in families(&mut netlink) {
        let rules = rules(&mut netlink, family)?;
        let mut prefs: Vec<u32> = rules
            .iter()
            .filter(|rule| is_our_rule(rule))
            .map(pref_of)
            .collect();
        prefs.sort_unstable();
        let routes = our_routes(&mut netlink, family)?;
        let mut wanted = wanted_routes(family, interfaces);
        if prefs != PREFS
            || first_before_ours(&rules).is_some()
            || routes.len() != wanted_routes(family, interfaces).count()
            || !wanted.all(|want| routes.iter().any(|route| is_route(route, want)))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The families that there are. Not told by whether there are rules: that somebody has removed all of them is to
/// be found out, not to be taken for a namespace that needs none.
fn families(netlink: &mut Netlink) -> Vec<Family> {
    /// There is none in a kernel without IPv6, or with `ipv6.disable=1`.
    const V6: &str = "/proc/thread-self/net/if_inet6";
    let v6 = Path::new(V6).exists() && rules(netlink, Family::V6).is_ok();
    std::iter::once(Family::V4)
        .chain(v6.then_some(Family::V6))
        .collect()
}

fn install_family(
    netlink: &mut Netlink,
    family: Family,
    interfaces: &[Interface],
    marks: Marks,
) -> io::Result<()> {
    install_routes(netlink, family, interfaces)?;

    let moved = local_rule(family, PREF_LOCAL_MOVED, OURS);
    add_rule(netlink, moved).map_err(|err| named(&err, "add the moved local rule", family))?;
    remove_first_local(netlink, family)
        .map_err(|err| named(&err, "remove the first local rule", family))?;
    if let Some(pref) = first_before_ours(&rules(netlink, family)?) {
        return Err(io::Error::other(format!(
            "a routing rule of somebody else for {family:?} with preference {pref} comes before those of capture \
             ({PREF_CAPTURE} to {PREF_ANSWER_BACKSTOP}), so captured connections could leave in plaintext; move it to a \
             preference above {PREF_LOCAL_MOVED}"
        )));
    }
    let (to, never) = (RuleAction::ToTable, RuleAction::Unreachable);
    let Marks {
        capture,
        delivery,
        answer,
    } = marks;
    // A backstop comes last for answers, of which there may be some that go by `local` until now, and first for what is
    // captured.
    for (pref, mark, table, action) in [
        (PREF_ANSWER, answer, TABLE_LOCAL, to),
        (PREF_ANSWER_BACK, answer, TABLE, to),
        (PREF_ANSWER_BACKSTOP, answer, TABLE, never),
        (PREF_BACKSTOP, capture, TABLE, never),
        (PREF_DELIVERY, delivery, TABLE, to),
        (PREF_CAPTURE, capture, TABLE, to),
    ] {
        let mut rule = rule(family, pref, table, action, OURS);
        rule.attributes
            .extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(u32::MAX)]);
        add_rule(netlink, rule).map_err(|err| named(&err, "add a capture rule", family))?;
    }
    Ok(())
}

fn install_routes(
    netlink: &mut Netlink,
    family: Family,
    interfaces: &[Interface],
) -> io::Result<()> {
    let present = our_routes(netlink, family)?;
    for (interface, source) in wanted_routes(family, interfaces) {
        if present
            .iter()
            .any(|route| is_route(route, (interface, source)))
        {
            continue;
        }
        // An address may have changed. Only a route of ours is replaced: somebody else's stays theirs.
        let ours = |route: &RouteMessage| oif_of(route) == Some(interface);
        let flags = if present.iter().any(ours) {
            NLM_F_CREATE | NLM_F_REPLACE
        } else {
            NLM_F_CREATE | NLM_F_EXCL
        };
        let route = Message::NewRoute(local_default(family, interface, source));
        match netlink.change(route, flags) {
            // IPv6 is compiled in but off on this interface: nothing can leave through it either.
            Err(err)
                if source.is_none()
                    && family == Family::V6
                    && err.kind() != io::ErrorKind::AlreadyExists => {}
            outcome => outcome.map_err(|err| named(&err, "add a capture route", family))?,
        }
    }
    let gone = |route: &RouteMessage| {
        wanted_routes(family, interfaces).all(|(interface, _)| oif_of(route) != Some(interface))
    };
    for route in present.into_iter().filter(gone) {
        netlink
            .change(Message::DelRoute(route), 0)
            .map_err(|err| named(&err, "remove an old capture route", family))?;
    }
    Ok(())
}

/// Removes the rules that look into table `local` first, whoever made them.
fn remove_first_local(netlink: &mut Netlink, family: Family) -> io::Result<()> {
    let first = rules(netlink, family)?.into_iter().filter(|rule| {
        pref_of(rule) == PREF_LOCAL
            && table_of(rule) == Some(TABLE_LOCAL)
            && rule.header.action == RuleAction::ToTable
    });
    for rule in first {
        netlink.change(Message::DelRule(rule), 0)?;
    }
    Ok(())
}

/// The preference of the first rule that would be asked before ours are. The kernel lists rules in their order.
fn first_before_ours(rules: &[RuleMessage]) -> Option<u32> {
    rules
        .iter()
        .take_while(|rule| pref_of(rule) <= PREF_ANSWER_BACKSTOP)
        .find(|rule| !is_our_rule(rule))
        .map(pref_of)
}

fn named(err: &io::Error, what: &str, family: Family) -> io::Error {
    io::Error::new(err.kind(), format!("{what} for {family:?}: {err}"))
}

/// `lo` first, so that it is the one for sockets that are bound to no interface.
fn wanted_routes(
    family: Family,
    interfaces: &[Interface],
) -> impl Iterator<Item = (u32, Option<IpAddr>)> {
    let source = move |interface: &Interface| {
        interface
            .addresses
            .iter()
            .copied()
            .find(|ip| Family::of(*ip) == family && !is_link_local(*ip))
    };
    let real = move |interface: &&Interface| interface.index != LO;
    let first = interfaces.iter().filter(real).find_map(source);
    let others = interfaces
        .iter()
        .filter(real)
        .filter_map(move |interface| source(interface).map(|ip| (interface.index, Some(ip))));
    std::iter::once((LO, first)).chain(others)
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn local_default(family: Family, interface: u32, source: Option<IpAddr>) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = address_family(family);
    route.header.protocol = OURS;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    // The metric keeps the routes apart and `lo` in front.
    route.attributes = vec![
        RouteAttribute::Table(TABLE),
        RouteAttribute::Oif(interface),
        RouteAttribute::Priority(interface),
    ];
    route
        .attributes
        .extend(source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    route
}

fn rule(
    family: Family,
    pref: u32,
    table: u32,
    action: RuleAction,
    tag: RouteProtocol,
) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.action = action;
    rule.attributes = vec![RuleAttribute::Priority(pref), RuleAttribute::Protocol(tag)];
    if action == RuleAction::ToTable {
        rule.attributes.push(RuleAttribute::Table(table));
    }
    rule
}

fn local_rule(family: Family, pref: u32, tag: RouteProtocol) -> RuleMessage {
    rule(family, pref, TABLE_LOCAL, RuleAction::ToTable, tag)
}

fn add_rule(netlink: &mut Netlink, rule: RuleMessage) -> io::Result<()> {
    match netlink.change(Message::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

fn rules(netlink: &mut Netlink, family: Family) -> io::Result<Vec<RuleMessage>> {
    let mut request = RuleMessage::default();
    request.header.family = address_family(family);
    let answers = netlink.dump(Message::GetRule(request))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            Message::NewRule(rule) if rule.header.family == address_family(family) => Some(rule),
            _ => None,
        })
        .collect())
}

fn is_our_rule(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(OURS))
}

fn our_routes(netlink: &mut Netlink, family: Family) -> io::Result<Vec<RouteMessage>> {
    let mut request = RouteMessage::default();
    request.header = RouteHeader {
        address_family: address_family(family),
        ..Default::default()
    };
    let answers = netlink.dump(Message::GetRoute(request))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            Message::NewRoute(route) if is_ours(&route, family) => Some(route),
            _ => None,
        })
        .collect())
}

fn is_ours(route: &RouteMessage, family: Family) -> bool {
    route.header.address_family == address_family(family)
        && route.header.protocol == OURS
        && route.attributes.contains(&RouteAttribute::Table(TABLE))
}

fn table_of(rule: &RuleMessage) -> Option<u32> {
    rule.attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        })
}

/// The kernel leaves out a preference of 0.
fn pref_of(rule: &RuleMessage) -> u32 {
    rule.attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(pref) => Some(*pref),
            _ => None,
        })
        .unwrap_or_default()
}

fn oif_of(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(interface) => Some(*interface),
            _ => None,
        })
}

/// Whether a route of ours is this one of [`wanted_routes`].
fn is_route(route: &RouteMessage, (interface, source): (u32, Option<IpAddr>)) -> bool {
    let found = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(source) => Some(source),
            _ => None,
        });
    oif_of(route) == Some(interface) && found == source.map(Into::into).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::interfaces;
    use nix::sched::{CloneFlags, unshare};
    use std::process::Command;
    use std::thread;

    const MARKS: Marks = Marks {
        capture: 0x7a74_0001,
        delivery: 0x7a74_0002,
        answer: 0x7a74_0003,
    };

    /// Runs `job` in a new namespace that looks like a pod's.
    fn in_pod(setup: &'static str, job: fn()) {
        let pod = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            ip("link add eth0 type veth peer name far");
            ip("link set eth0 up");
            setup
                .split(';')
                .map(str::trim)
                .filter(|command| !command.is_empty())
                .for_each(|command| {
                    ip(command);
                });
            job();
        });
        pod.join().unwrap();
    }

    fn ip(arguments: &str) -> String {
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn everything() -> [String; 4] {
        [
            "-4 rule",
            "-6 rule",
            "-4 route show table all",
            "-6 route show table all",
        ]
        .map(ip)
    }

    #[test]
    fn what_is_installed_is_complete_and_leaves_no_trace_when_removed() {
        in_pod(
            "addr add 10.0.0.5/32 dev eth0; addr add fd00::5/128 dev eth0 nodad",
            || {
                let before = everything();
                let interfaces = interfaces().unwrap();
                assert!(!is_complete(&interfaces).unwrap());
                install(&interfaces, MARKS).unwrap();
                assert!(is_complete(&interfaces).unwrap(), "{:#?}", everything());
                assert!(ip("route get 192.0.2.1 mark 0x7a740001").contains("dev lo"));
                assert!(ip("-6 route get 2001:db8::1 mark 0x7a740001").contains("dev lo"));
                assert!(ip("route get 192.0.2.1 mark 0x7a740003").contains("dev lo"));
                assert!(ip("-6 route get 2001:db8::1 mark 0x7a740003").contains("dev lo"));
                assert!(ip("rule").contains("103:\tfrom all fwmark 0x7a740003 lookup local"));
                assert!(
                    ip("route get 192.0.2.1 mark 0x7a740001 oif eth0").contains("local 192.0.2.1")
                );
                let installed = everything();
                install(&interfaces, MARKS).unwrap();
                assert_eq!(everything(), installed, "it was so already");
                remove().unwrap();
                assert_eq!(everything(), before);
            },
        );
    }

    #[test]
    fn a_pod_of_one_family_is_complete() {
        in_pod("addr add 10.0.0.5/32 dev eth0", || {
            let interfaces = interfaces().unwrap();
            install(&interfaces, MARKS).unwrap();
            assert!(is_complete(&interfaces).unwrap());
            remove().unwrap();
        });
        in_pod("addr add fd00::5/128 dev eth0 nodad", || {
            let interfaces = interfaces().unwrap();
            install(&interfaces, MARKS).unwrap();
            assert!(is_complete(&interfaces).unwrap());
            remove().unwrap();
        });
    }

    #[test]
    fn an_address_that_changes_replaces_the_route_in_place() {
        in_pod("addr add 10.0.0.5/32 dev eth0", || {
            install(&interfaces().unwrap(), MARKS).unwrap();
            ip("addr add 10.0.0.6/32 dev eth0");
            ip("addr del 10.0.0.5/32 dev eth0");
            let changed = interfaces().unwrap();
            assert!(!is_complete(&changed).unwrap());
            install(&changed, MARKS).unwrap();
            assert!(is_complete(&changed).unwrap(), "{:#?}", everything());
        });
    }

    #[test]
    fn flushed_rules_are_missed_and_the_local_rule_comes_back() {
        in_pod("addr add 10.0.0.5/32 dev eth0", || {
            let interfaces = interfaces().unwrap();
            let [before, ..] = everything();
            install(&interfaces, MARKS).unwrap();
            ip("rule flush");
            assert_eq!(ip("rule"), "");
            assert!(!is_complete(&interfaces).unwrap());
            remove().unwrap();
            let local = before.lines().next().unwrap();
            assert_eq!(ip("rule").trim(), local.trim());
        });
    }
}
