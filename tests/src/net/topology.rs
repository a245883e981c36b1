//! Addresses, links and routes of a lab.
//!
//! Everything is routed, nothing bridged. A pod has host addresses (/32, /128) and one default route to a
//! link-local gateway, the way most network plugins do it; its node routes each address to the pod's link. Nodes
//! are joined pairwise by one link, and each by one link to the outside. All of it is described as lines for
//! `ip -batch` and carried out by one `ip` process per namespace. Because namespaces are isolated, every lab uses
//! the same addresses.
//!
//! Absent on purpose: routes for service addresses. Without capture nothing answers there.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Namespace;
use super::ip_command::{ip_batch, ip_output};
use crate::error::{LabError, Result};
use crate::mesh_file::Workload;

/// Where the control plane listens.
pub const CONTROL_PLANE_V4: &str = "192.0.2.10";
/// Where the control plane listens, IPv6.
pub const CONTROL_PLANE_V6: &str = "2001:db8::10";
/// A host outside the mesh.
pub const OUTSIDE_HOST_V4: &str = "192.0.2.20";
/// A host outside the mesh, IPv6.
pub const OUTSIDE_HOST_V6: &str = "2001:db8::20";

/// The gateway that every pod sees, on the node's end of the pod's link.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";

/// Congestion control, the first that the kernel lets a namespace choose. The machine's default may be BBR, which
/// triples the CPU cost of a local hop. Cubic may be chosen unless the machine's `tcp_allowed_congestion_control`
/// leaves it out; Reno always may, and on links that lose nothing there is no difference.
const CONGESTION_CONTROL: [&str; 2] = ["cubic", "reno"];
/// What every namespace of the lab sets: `default` counts for interfaces made later. Loose reverse-path filtering
/// is what systemd sets on most distributions. Without duplicate address detection IPv6 works at once, not after
/// two seconds.
const EVERYWHERE: &[(&str, &str)] = &[
    ("net/ipv4/conf/default/rp_filter", "2"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
];
const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
];
const NO_IPV6: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

/// How long a link may take to come up.
const UP_TIMEOUT: Duration = Duration::from_secs(10);

/// The nodes and the outside.
pub(crate) struct Topology {
    pub(crate) outside: Arc<Namespace>,
    pub(crate) nodes: Vec<Arc<Namespace>>,
}

/// One pod on the network.
pub(crate) struct PodNet {
    pub(crate) ns: Arc<Namespace>,
    /// Its link, as the node calls it.
    pub(crate) link: String,
    /// Position of its node.
    pub(crate) node: usize,
    addresses: Vec<IpAddr>,
}

impl Topology {
    /// Makes the nodes and the outside, and joins them. No pods yet.
    pub(crate) fn build(nodes: &[String]) -> Result<Self> {
        let names = nodes.iter().map(String::as_str).chain(["outside"]);
        let mut nodes = make_namespaces(names, |ns| ns.set_sysctls(FORWARDING.iter().copied()))?;
        let outside = nodes
            .pop()
            .ok_or_else(|| LabError::new("the outside was not made"))?;
        let topology = Self { outside, nodes };
        topology.join()?;
        Ok(topology)
    }

    /// Makes pods and connects them. `first` is the number of the first one's link.
    pub(crate) fn add_pods(&self, first: usize, workloads: &[Workload]) -> Result<Vec<PodNet>> {
        let keys: Vec<String> = workloads.iter().map(Workload::key).collect();
        let namespaces = make_namespaces(keys.iter().map(String::as_str), |_| Ok(()))?;
        let mut pods = Vec::with_capacity(workloads.len());
        for (number, (workload, ns)) in (first..).zip(workloads.iter().zip(namespaces)) {
            if workload.disable_ipv6 {
                ns.set_sysctls(NO_IPV6.iter().copied())?;
            }
            pods.push(PodNet {
                ns,
                link: format!("pod{number}"),
                node: self.node_number(&workload.node)?,
                addresses: workload.addresses.clone(),
            });
        }

        let links: String = pods
            .iter()
            .map(|pod| {
                let node = &self.nodes[pod.node];
                format!(
                    "link add name {} netns {} type veth peer name eth0 netns {}\n",
                    pod.link,
                    node.path().display(),
                    pod.ns.path().display()
                )
            })
            .collect();
        ip_batch(&self.outside, &links)?;

        let mut batches: Vec<(&Namespace, String)> = Vec::new();
        for pod in &pods {
            batches.push((&pod.ns, pod.own_side()));
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let lines = pods.iter().map(|pod| {
                if pod.node == number {
                    pod.node_side()
                } else {
                    pod.routes("add", |family| way_from_node(number, pod.node, family))
                }
            });
            batches.push((node, lines.collect()));
        }
        let lines = pods
            .iter()
            .map(|pod| pod.routes("add", |family| way_from_outside(pod.node, family)));
        batches.push((&self.outside, lines.collect()));
        in_parallel(&batches)?;
        wait_until_up(pods.iter().map(|pod| &pod.ns).chain(&self.nodes))?;
        Ok(pods)
    }

    /// Takes a pod off the network at once. Its namespace goes when its last handle does, which may be later: by
    /// then its addresses may be in use again.
    pub(crate) fn remove_pod(&self, pod: &PodNet) -> Result<()> {
        let mut batches: Vec<(&Namespace, String)> = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let lines = if number == pod.node {
                format!("link del {}\n", pod.link)
            } else {
                pod.routes("del", |family| way_from_node(number, pod.node, family))
            };
            batches.push((node, lines));
        }
        let lines = pod.routes("del", |family| way_from_outside(pod.node, family));
        batches.push((&self.outside, lines));
        in_parallel(&batches)
    }

    /// Position of a node, from its name.
    pub(crate) fn node_number(&self, name: &str) -> Result<usize> {
        self.nodes
            .iter()
            .position(|node| node.name() == name)
            .ok_or_else(|| LabError::new(format!("there is no node `{name}` in this lab")))
    }

    fn join(&self) -> Result<()> {
        let mut links = String::new();
        for (a, node) in self.nodes.iter().enumerate() {
            links += &veth((node, "to-outside"), (&self.outside, &to(node)));
            for other in &self.nodes[a + 1..] {
                links += &veth((node, &to(other)), (other, &to(node)));
            }
        }
        ip_batch(&self.outside, &links)?;

        let mut outside = format!(
            "addr add {CONTROL_PLANE_V4}/32 dev lo\naddr add {CONTROL_PLANE_V6}/128 dev lo nodad\n\
             addr add {OUTSIDE_HOST_V4}/32 dev lo\naddr add {OUTSIDE_HOST_V6}/128 dev lo nodad\n"
        );
        let mut batches: Vec<(&Namespace, String)> = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let (own_v4, own_v6) = (
                node_address(number, Family::V4),
                node_address(number, Family::V6),
            );
            let mut lines =
                format!("addr add {own_v4}/32 dev lo\naddr add {own_v6}/128 dev lo nodad\n");
            for (family, length) in [(Family::V4, 30), (Family::V6, 64)] {
                let near = address_to_outside(number, false, family);
                let far = address_to_outside(number, true, family);
                let own = node_address(number, family);
                lines += &format!(
                    "addr add {near}/{length} dev to-outside{}\n",
                    family.nodad()
                );
                outside += &format!(
                    "addr add {far}/{length} dev {}{}\n",
                    to(node),
                    family.nodad()
                );
                lines += "link set to-outside up\n";
                outside += &format!("link set {} up\n", to(node));
                lines += &format!("route add default via {far} src {own}\n");
                outside += &format!("route add {own} {}\n", way_from_outside(number, family));
                for (other_number, other) in self.nodes.iter().enumerate() {
                    if other_number == number {
                        continue;
                    }
                    let near = address_on_link(number, other_number, number, family);
                    let theirs = node_address(other_number, family);
                    lines += &format!(
                        "addr add {near}/{length} dev {}{}\n",
                        to(other),
                        family.nodad()
                    );
                    lines += &format!("link set {} up\n", to(other));
                    lines += &format!(
                        "route add {theirs} {}\n",
                        way_from_node(number, other_number, family)
                    );
                }
            }
            batches.push((node, lines));
        }
        batches.push((&self.outside, outside));
        in_parallel(&batches)?;
        wait_until_up([&self.outside].into_iter())
    }
}

impl PodNet {
    /// What is set up inside the pod.
    fn own_side(&self) -> String {
        let mut lines = "link set eth0 up\n".to_owned();
        for address in &self.addresses {
            let family = Family::of(address);
            lines += &format!(
                "addr add {address}/{} dev eth0{}\n",
                family.bits(),
                family.nodad()
            );
        }
        if self.addresses.iter().any(IpAddr::is_ipv4) {
            lines += &format!("route add default via {GATEWAY_V4} dev eth0 onlink\n");
        }
        if self.addresses.iter().any(IpAddr::is_ipv6) {
            lines += &format!("route add default via {GATEWAY_V6} dev eth0\n");
        }
        lines
    }

    /// What is set up on its node.
    fn node_side(&self) -> String {
        let link = &self.link;
        let mut lines = format!(
            "link set {link} up alias {}\naddr add {GATEWAY_V4}/32 dev {link} scope link\n\
             addr add {GATEWAY_V6}/64 dev {link} nodad\n",
            self.ns.name()
        );
        for address in &self.addresses {
            let family = Family::of(address);
            let source = node_address(self.node, family);
            lines += &format!("route add {address} dev {link} src {source}\n",);
        }
        lines
    }

    /// Routes to it elsewhere, each by the way of its family.
    fn routes(&self, verb: &str, way: impl Fn(Family) -> String) -> String {
        let route = |address: &IpAddr| {
            let family = Family::of(address);
            format!("route {verb} {address} {}\n", way(family))
        };
        self.addresses.iter().map(route).collect()
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn nodad(self) -> &'static str {
        match self {
            Self::V4 => "",
            Self::V6 => " nodad",
        }
    }
}

/// Name of an interface that leads to `node`. Node names are short enough, the mesh file checks it.
pub(crate) fn to(node: &Namespace) -> String {
    format!("to-{}", node.name())
}

/// The address a node goes by.
fn node_address(node: usize, family: Family) -> String {
    match family {
        Family::V4 => format!("172.18.0.{}", node + 1),
        Family::V6 => format!("fd00:18::{:x}", node + 1),
    }
}

/// The address of `end`, one of `a` and `b`, on the link between the two.
fn address_on_link(a: usize, b: usize, end: usize, family: Family) -> String {
    let (low, high) = (a.min(b), a.max(b));
    let host = if end == low { 1 } else { 2 };
    match family {
        Family::V4 => format!("10.255.{}.{}", low * 16 + high, host),
        Family::V6 => format!("fd00:255:{low:x}:{high:x}::{host}"),
    }
}

/// The address of a node, or of the outside, on the link between the two.
fn address_to_outside(node: usize, outside: bool, family: Family) -> String {
    let host = if outside { 1 } else { 2 };
    match family {
        Family::V4 => format!("10.254.{node}.{host}"),
        Family::V6 => format!("fd00:254:0:{node:x}::{host}"),
    }
}

/// How a node reaches what is on another, and by which own address.
fn way_from_node(node: usize, other: usize, family: Family) -> String {
    let gateway = address_on_link(node, other, other, family);
    format!("via {gateway} src {}", node_address(node, family))
}

/// How the outside reaches what is on a node, and by which own address.
fn way_from_outside(node: usize, family: Family) -> String {
    let own = match family {
        Family::V4 => OUTSIDE_HOST_V4,
        Family::V6 => OUTSIDE_HOST_V6,
    };
    format!("via {} src {own}", address_to_outside(node, false, family))
}

fn veth(a: (&Namespace, &str), b: (&Namespace, &str)) -> String {
    format!(
        "link add name {} netns {} type veth peer name {} netns {}\n",
        a.1,
        a.0.path().display(),
        b.1,
        b.0.path().display()
    )
}

fn make_namespaces<'a>(
    names: impl Iterator<Item = &'a str>,
    prepare: impl Fn(&Namespace) -> Result<()> + Sync,
) -> Result<Vec<Arc<Namespace>>> {
    let prepare = &prepare;
    thread::scope(|scope| {
        let made: Vec<_> = names
            .map(|name| {
                scope.spawn(move || {
                    let ns = Namespace::new(name)?;
                    ns.set_sysctls(EVERYWHERE.iter().copied())?;
                    CONGESTION_CONTROL
                        .iter()
                        .map(|&name| ns.set_sysctls([("net/ipv4/tcp_congestion_control", name)]))
                        .find(Result::is_ok)
                        .ok_or_else(|| LabError::new("no congestion control can be chosen"))??;
                    prepare(&ns)?;
                    ip_batch(&ns, "link set lo up\n")?;
                    Ok(Arc::new(ns))
                })
            })
            .collect();
        made.into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| LabError::new("making a namespace panicked"))?
            })
            .collect()
    })
}

fn in_parallel(batches: &[(&Namespace, String)]) -> Result<()> {
    let batches = batches
        .iter()
        .map(|(ns, lines)| move || ip_batch(ns, lines));
    all_of(batches)
}

/// Waits until every link carries packets. The kernel switches a link on some time after it was told to, and drops
/// what is sent before: a first SYN would be lost, and a second gone until it is sent again.
fn wait_until_up<'a>(namespaces: impl Iterator<Item = &'a Arc<Namespace>>) -> Result<()> {
    all_of(namespaces.map(|ns| move || links_up(ns)))
}

fn links_up(ns: &Namespace) -> Result<()> {
    let deadline = Instant::now() + UP_TIMEOUT;
    loop {
        let links = ip_output(ns, &["-oneline", "link", "show", "up"])?;
        let not_yet = |link: &&str| link.contains(" noop ") || link.contains("NO-CARRIER");
        let Some(link) = links.lines().find(not_yet) else {
            return Ok(());
        };
        if Instant::now() > deadline {
            return Err(LabError::new(format!(
                "a link in {} does not come up: {link}",
                ns.name()
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn all_of(jobs: impl Iterator<Item = impl FnOnce() -> Result<()> + Send>) -> Result<()> {
    thread::scope(|scope| {
        let running: Vec<_> = jobs.map(|job| scope.spawn(job)).collect();
        running.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| LabError::new("setting up the network panicked"))?
        })
    })
}
