//! Which connections are open, for those who look at a node.
//!
//! Invariants: a worker chooses before it answers, so what goes between threads is bounded by what was asked for, and
//! never by what is open. All are looked at in batches, between which connections get their turn.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::yield_now;
use ztunnel_mesh::addr::ClientAddr;
use ztunnel_mesh::name::{Identity, PodName};
use ztunnel_mesh::service::Service;

use super::registry::{Connection, Registry};
use crate::telemetry::{Direction, Facts, Party};

/// So many are shown at most, however many are asked for.
pub const MOST_LISTED: usize = 10_000;

/// Which are wanted, and which of those first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The pod of this node.
    pub pod: Option<WantedPod>,
    /// Who is at the other end.
    pub peer: Option<WantedPeer>,
    pub direction: Option<Way>,
    pub sort: Sort,
    pub limit: usize,
}

/// Which way a connection was made, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Inbound,
    Outbound,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// What has moved the most bytes, both ways.
    Bytes,
    /// What began first.
    Age,
}

/// A pod, by `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WantedPod {
    namespace: String,
    name: String,
}

/// Somebody at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WantedPeer {
    Address(IpAddr),
    Identity(Identity),
    /// A pod, or the workload that it is of.
    Named(WantedPod),
    /// A service that was asked for.
    Hostname(String),
}

/// What names no pod.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?} is no pod: write namespace/name, as `ztunnel pods` shows it")]
pub struct BadPod(String);

/// What names nobody.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{0:?} is nobody who could be at the other end: write an address, namespace/name of a pod or a workload, a SPIFFE \
     id, or the full hostname of a service"
)]
pub struct BadPeer(String);

impl FromStr for WantedPod {
    type Err = BadPod;

    fn from_str(text: &str) -> Result<Self, BadPod> {
        let parts = text.split_once('/');
        let named = parts.filter(|(namespace, name)| {
            !namespace.is_empty() && !name.is_empty() && !name.contains('/')
        });
        let (namespace, name) = named.ok_or_else(|| BadPod(text.to_owned()))?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl FromStr for WantedPeer {
    type Err = BadPeer;

    fn from_str(text: &str) -> Result<Self, BadPeer> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address(ip.to_canonical()));
        }
        if let Ok(identity) = text.parse() {
            return Ok(Self::Identity(identity));
        }
        if let Ok(named) = text.parse() {
            return Ok(Self::Named(named));
        }
        match text.contains('.') && !text.contains(['/', ':']) {
            true => Ok(Self::Hostname(text.to_owned())),
            false => Err(BadPeer(text.to_owned())),
        }
    }
}

impl TryFrom<String> for WantedPod {
    type Error = BadPod;

    fn try_from(text: String) -> Result<Self, BadPod> {
        text.parse()
    }
}

impl From<WantedPod> for String {
    fn from(WantedPod { namespace, name }: WantedPod) -> Self {
        format!("{namespace}/{name}")
    }
}

impl TryFrom<String> for WantedPeer {
    type Error = BadPeer;

    fn try_from(text: String) -> Result<Self, BadPeer> {
        text.parse()
    }
}

impl From<WantedPeer> for String {
    fn from(peer: WantedPeer) -> Self {
        match peer {
            WantedPeer::Address(ip) => ip.to_string(),
            WantedPeer::Identity(identity) => identity.to_string(),
            WantedPeer::Named(pod) => pod.into(),
            WantedPeer::Hostname(hostname) => hostname,
        }
    }
}

/// One open connection. What it refers to is shared with whoever else knows it.
#[derive(Clone, Debug)]
pub struct OpenConnection {
    pub pod: PodName,
    pub direction: Direction,
    pub client: ClientAddr,
    pub src: Party,
    pub src_identity: Option<Identity>,
    pub dst: Party,
    pub dst_identity: Option<Identity>,
    pub service: Option<Arc<Service>>,
    pub told_service: Option<Box<str>>,
    pub dst_addr: Option<SocketAddr>,
    /// The tunnel port that it goes to or came in by, or where plain TCP goes to.
    pub via: Option<SocketAddr>,
    pub protocol: &'static str,
    /// Whether there is a second tunnel inside of the first.
    pub double: bool,
    pub tls_cipher: Option<&'static str>,
    pub tls_key_exchange: Option<&'static str>,
    /// By the app of the pod.
    pub sent: u64,
    /// By the app of the pod.
    pub received: u64,
    pub age: Duration,
    /// Whether both ends are known; before, it is on its way.
    pub opened: bool,
}

/// Those that were chosen, the first first, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub chosen: Vec<OpenConnection>,
    /// How many are as wanted.
    pub matched: usize,
    /// How many are open.
    pub open: usize,
}

impl Wanted {
    /// All of a node, in numbers only.
    #[must_use]
    pub const fn nothing_but_numbers() -> Self {
        Self {
            pod: None,
            peer: None,
            direction: None,
            sort: Sort::Age,
            limit: 0,
        }
    }

    /// What several workers have found, as one.
    #[must_use]
    pub fn merge(&self, found: Vec<Found>) -> Found {
        let mut all = Found::default();
        for one in found {
            all.matched += one.matched;
            all.open += one.open;
            all.chosen.extend(one.chosen);
        }
        all.chosen
            .sort_by_key(|one| Reverse(self.sort.rank(one.sent + one.received, one.age)));
        all.chosen.truncate(self.most());
        all
    }

    fn most(&self) -> usize {
        self.limit.min(MOST_LISTED)
    }

    fn wants(&self, connection: &Connection, facts: &Facts) -> bool {
        let direction = connection.direction;
        let as_wanted = |way| match way {
            Way::Outbound => direction == Direction::Outbound,
            Way::Inbound => direction != Direction::Outbound,
        };
        self.direction.is_none_or(as_wanted)
            && (self.peer.as_ref()).is_none_or(|peer| peer.is_at_the_far_end(connection, facts))
    }
}

impl Sort {
    fn rank(self, bytes: u64, age: Duration) -> u64 {
        match self {
            Self::Bytes => bytes,
            Self::Age => u64::try_from(age.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

impl WantedPod {
    fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }
}

impl WantedPeer {
    fn is_at_the_far_end(&self, connection: &Connection, facts: &Facts) -> bool {
        let outbound = connection.direction == Direction::Outbound;
        let (party, identity) = match outbound {
            true => (&facts.dst, &facts.dst_identity),
            false => (&facts.src, &facts.src_identity),
        };
        match self {
            Self::Address(ip) if outbound => {
                let ends = [facts.dst_addr, facts.via.addr()];
                ends.into_iter().flatten().any(|end| end.ip() == *ip)
            }
            Self::Address(ip) => connection.src.0.ip() == *ip,
            Self::Identity(wanted) => identity.as_ref() == Some(wanted),
            Self::Named(wanted) => {
                let named = party.named();
                wanted.is(named.namespace, named.name) || wanted.is(named.namespace, named.workload)
            }
            Self::Hostname(hostname) => {
                let service = facts.service.as_ref();
                service.is_some_and(|service| *service.key.hostname == **hostname)
                    || facts.told_service.as_deref() == Some(hostname)
            }
        }
    }
}

impl OpenConnection {
    pub(super) fn new(
        pod: &PodName,
        connection: &Connection,
        facts: &Facts,
        age: Duration,
    ) -> Self {
        Self {
            pod: pod.clone(),
            direction: connection.direction,
            client: connection.src,
            src: facts.src.clone(),
            src_identity: facts.src_identity.clone(),
            dst: facts.dst.clone(),
            dst_identity: facts.dst_identity.clone(),
            service: facts.service.clone(),
            told_service: facts.told_service.clone(),
            dst_addr: facts.dst_addr,
            via: facts.via.addr(),
            protocol: facts.protocol(),
            double: facts.double,
            tls_cipher: facts.tls_cipher,
            tls_key_exchange: facts.tls_key_exchange,
            sent: connection.traffic.sent(),
            received: connection.traffic.received(),
            age,
            opened: connection.traffic.is_counted(),
        }
    }
}

/// The last of the chosen is the first to go when a better one comes.
struct Chosen {
    rank: u64,
    connection: OpenConnection,
}

impl PartialEq for Chosen {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Chosen {}

impl PartialOrd for Chosen {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Chosen {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.rank.cmp(&self.rank)
    }
}

/// Chooses among the connections of all these pods, for as long as somebody wants to know.
pub(crate) async fn find(
    registries: &[Rc<Registry>],
    wanted: &Wanted,
    given_up: impl Fn() -> bool,
) -> Found {
    let mut found = Found::default();
    let mut chosen = BinaryHeap::new();
    for registry in registries {
        let pod = &registry.pod;
        let named = (wanted.pod.as_ref()).is_none_or(|name| name.is(&pod.namespace, &pod.name));
        if !named {
            found.open += registry.len();
            continue;
        }
        let mut batch = registry.all();
        loop {
            let more = registry.look(&mut batch, |connection| {
                found.open += 1;
                let facts = connection.facts.borrow();
                if !wanted.wants(connection, &facts) {
                    return;
                }
                found.matched += 1;
                let age = connection.accepted.elapsed();
                let bytes = connection.traffic.sent() + connection.traffic.received();
                let rank = wanted.sort.rank(bytes, age);
                let full = chosen.len() >= wanted.most();
                if full && chosen.peek().is_none_or(|last: &Chosen| last.rank >= rank) {
                    return;
                }
                if full {
                    chosen.pop();
                }
                let connection = OpenConnection::new(pod, connection, &facts, age);
                chosen.push(Chosen { rank, connection });
            });
            if given_up() {
                return found;
            }
            yield_now().await;
            if !more {
                break;
            }
        }
    }
    let sorted = chosen.into_sorted_vec().into_iter();
    found.chosen = sorted.map(|chosen| chosen.connection).collect();
    found
}
