//! What applications notice of the mesh: nothing, except that it works.

mod clients;
mod endings;
mod families;
mod payload;
mod ports;
mod reach;
mod reuse;
mod strangers;
mod tunnels;
mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lab::tester::{Check, Event, Outcome, Report, Server};
use lab::{Lab, OUTSIDE_HOST_V4, OUTSIDE_HOST_V6, Place};

use crate::mesh::enrolled;

/// Services of the mesh of all cases.
const FAR_SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NEAR_SERVICE: [&str; 2] = ["10.96.0.11", "fd00:96::11"];
const CLIENT_SERVICE: [&str; 2] = ["10.96.0.12", "fd00:96::12"];
const OUTSIDE_HOST: [&str; 2] = [OUTSIDE_HOST_V4, OUTSIDE_HOST_V6];

/// An address that the case made up: it must be right.
fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Makes a check that must go right.
fn good(from: &Place, to: SocketAddr, check: &Check) -> Report {
    let report = from.check_at(to, check).unwrap();
    let from = from.name();
    assert_eq!(
        report.outcome,
        Outcome::Good,
        "{from} to {to} by {check:?}: {report:?}"
    );
    report
}

/// The address of `place` that has the family of `like`.
fn own_address(place: &[IpAddr], like: IpAddr) -> IpAddr {
    let same_family = |ip: &IpAddr| ip.is_ipv4() == like.is_ipv4();
    place.iter().copied().find(same_family).unwrap()
}

/// One way for bytes to take.
struct Path {
    what: &'static str,
    from: Place,
    /// Where the tester is that answers.
    server: &'static str,
    to: IpAddr,
}

/// A lab with a tester in every place.
struct Everywhere {
    servers: BTreeMap<&'static str, Server>,
    lab: Lab,
}

impl Everywhere {
    fn enrolled() -> Self {
        let lab = enrolled().unwrap();
        let pods = ["shop/client", "shop/near", "shop/far"];
        let mut servers: BTreeMap<_, _> =
            pods.map(|pod| (pod, lab.pod(pod).serve().unwrap())).into();
        servers.insert("outside", lab.outside().serve().unwrap());
        Self { servers, lab }
    }

    /// Every way that differs: through one or two tunnels' ends on one or two nodes, in plaintext in and out.
    fn paths(&self) -> Vec<Path> {
        let client = self.lab.pod("shop/client");
        let (near, far) = (self.lab.pod("shop/near"), self.lab.pod("shop/far"));
        let mut paths = Vec::new();
        for family in 0..2 {
            let mut add = |what, from: &Place, server, to| {
                let from = from.clone();
                paths.push(Path {
                    what,
                    from,
                    server,
                    to,
                });
            };
            let outside = self.lab.outside();
            add("to the other node", &client, "shop/far", far.ips()[family]);
            add("to a service", &client, "shop/far", ip(FAR_SERVICE[family]));
            add("on one node", &client, "shop/near", near.ips()[family]);
            add("to itself", &client, "shop/client", client.ips()[family]);
            let own = ip(CLIENT_SERVICE[family]);
            add("to its own service", &client, "shop/client", own);
            add("from outside", outside, "shop/far", far.ips()[family]);
            add("to outside", &client, "outside", ip(OUTSIDE_HOST[family]));
        }
        paths
    }

    /// Makes a check that must go right, and says what the server noticed of it.
    fn good(&mut self, path: &Path, check: &Check) -> (Report, Event) {
        let report = path.from.check(path.to, check).unwrap();
        let what = format!("{} ({}) by {check:?}", path.what, path.to);
        assert_eq!(report.outcome, Outcome::Good, "{what}: {report:?}");
        (report, self.event(path))
    }

    /// What the server of `path` noticed next.
    fn event(&mut self, path: &Path) -> Event {
        let server = self.servers.get_mut(path.server).unwrap();
        let event = server.event();
        event.unwrap_or_else(|err| panic!("{} ({}): {err}", path.what, path.to))
    }
}
