//! The last step into a pod: where the bytes of a stream go, who the app takes its client for, and what a client that
//! asks for something else is told.

mod app_tunnel;
mod daemon_pod;
mod sandwich;
mod target;

use std::net::SocketAddr;
use std::time::Duration;

use lab::hbone::{self, Answer, Client};
use lab::{Lab, Node, Place, Validity};

use crate::access;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// A client outside of every node, with what the mesh's own authority gives to `identity`.
fn client(lab: &Lab, identity: &str) -> Client {
    client_in(lab, lab.outside(), identity)
}

fn client_in(lab: &Lab, place: &Place, identity: &str) -> Client {
    let authority = lab.control_plane().authority();
    let validity = Validity::of(Duration::from_secs(60));
    Client::from(place).with(&authority.issue(identity, validity).unwrap())
}

/// Asks 15008 at `ip` for `authority`, and says hello if that is granted.
fn ask(client: &Client, ip: &str, authority: &str) -> Answer {
    let to = SocketAddr::new(ip.parse().unwrap(), hbone::PORT);
    let client = client.clone().payload("hello");
    client.connect(to, authority).unwrap().unwrap()
}

/// What came of it, on the wire and in the log of the node that was asked: one more line with that reason.
fn refused(node: &Node, client: &Client, ip: &str, authority: &str, status: u16, reason: &str) {
    let told = || access::lines(node, &[("direction", "inbound"), ("reason", reason)]).len();
    let before = told();
    let answer = ask(client, ip, authority);
    assert_eq!(
        (answer.status, &*answer.body),
        (status, &b""[..]),
        "{authority}: {answer:?}"
    );
    access::eventually(authority, || told() == before + 1);
}

fn text(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    String::from_utf8(answer.body.clone()).unwrap()
}
