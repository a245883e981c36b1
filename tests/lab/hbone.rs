//! HBONE by hand: client and server against each other, without a daemon.

use lab::hbone::{Client, PORT, Server, Stage};
use lab::{Authority, Lab, Validity};
use std::net::SocketAddr;
use std::time::Duration;

use crate::SHOP;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn client_and_server_agree_on_a_tunnel_and_know_each_other() {
    let lab = Lab::from_yaml(SHOP).unwrap();
    let (client, web) = (lab.pod("shop/client"), lab.pod("shop/web"));
    let authority = Authority::new("anybody").unwrap();
    let issue = |id| authority.issue(id, Validity::of(HOUR)).unwrap();
    let (ours, theirs) = (issue("spiffe://a/ns/b/sa/c"), issue("spiffe://d/ns/e/sa/f"));
    let on = SocketAddr::new(web.v4().unwrap(), PORT);
    let server = Server::start(&web, on, &theirs, 200).unwrap();

    let tunnel = Client::from(&client)
        .with(&ours)
        .header("baggage", "x=y")
        .payload("hello");
    let answer = tunnel.connect(on, "10.244.2.10:80").unwrap().unwrap();
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (200, b"hello".as_slice())
    );
    assert_eq!(answer.server.as_deref(), Some("spiffe://d/ns/e/sa/f"));
    assert!(answer.tls.contains("TLSv1_3"), "{}", answer.tls);
    let connect = server.connect(0).unwrap();
    assert_eq!(connect.authority, "10.244.2.10:80");
    assert_eq!(connect.headers["baggage"], "x=y");
    assert_eq!(connect.client.as_deref(), Some("spiffe://a/ns/b/sa/c"));
    assert_eq!(connect.from.ip(), client.v4().unwrap());

    let nobody = Client::from(&client).connect(on, "h:1").unwrap().unwrap();
    assert_eq!(nobody.status, 200);
    assert_eq!(server.connect(1).unwrap().client, None);
    drop(server);

    let busy = Server::start(&web, on, &theirs, 503).unwrap();
    assert_eq!(tunnel.connect(on, "h:1").unwrap().unwrap().status, 503);
    let old = Client::from(&client).tls12().connect(on, "h:1").unwrap();
    assert_eq!(old.unwrap_err().stage, Stage::Tls);
    let other = Client::from(&client)
        .alpn(&["http/1.1"])
        .connect(on, "h:1")
        .unwrap();
    assert_eq!(other.unwrap_err().stage, Stage::Tls);
    assert_eq!((busy.connections(), busy.handshakes()), (3, 1));
    drop(busy);
    let gone = Client::from(&client).connect(on, "h:1").unwrap();
    assert_eq!(gone.unwrap_err().stage, Stage::Tcp);
}
