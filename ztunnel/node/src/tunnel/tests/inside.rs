//! Tunnels inside of tunnels, through a gateway that passes the bytes on.

use std::future::poll_fn;

use rcgen::SerialNumber;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ztunnel_hbone::ErrorCode;
use ztunnel_mesh::name::Principal;
use ztunnel_mesh::reason::Reason;

use super::*;
use crate::relay::test_bulk::{LEN, exchange};
use crate::relay::{self, Far as _, FarError, ResetOnDrop};
use crate::telemetry::Traffic;
use crate::tls::{Context, Options, RevocationLists};

const GATEWAY: &str = "spiffe://cluster.local/ns/infra/sa/gateway";
const GATEWAY_SERIAL: u64 = 7;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// How an app's side of a relayed connection ended.
fn relay(app: TcpStream, stream: Stream) -> JoinHandle<bool> {
    let mut app = ResetOnDrop::new(app);
    spawn_local(async move {
        let joined = relay::join(&mut app.split(), stream, &Traffic::default()).await;
        if joined.is_ok() {
            app.close();
        }
        joined.is_ok()
    })
}

/// A client, a gateway, and someone at a place that the gateway leads to.
struct Way {
    client: Client,
    gateway: Server,
    /// Whether the streams through the gateway ended in order.
    passed: Rc<RefCell<Vec<bool>>>,
    ca: TestCa,
}

async fn way(to: SocketAddr, ca: TestCa, settings: TunnelSettings) -> Way {
    let passed = Rc::<RefCell<Vec<bool>>>::default();
    let serve = {
        let passed = Rc::clone(&passed);
        move |request: Box<Request>| {
            let passed = Rc::clone(&passed);
            async move {
                let tcp = TcpStream::connect(to).await.unwrap();
                let end = relay(tcp, open(request)).await.unwrap();
                passed.borrow_mut().push(end);
            }
        }
    };
    let credential = ca.numbered(&Context::default(), GATEWAY, GATEWAY_SERIAL);
    let gateway = Server::start(credential, TunnelSettings::default(), serve).await;
    let client = Client::new(&ca, gateway.addr, GATEWAY, settings);
    Way {
        client,
        gateway,
        passed,
        ca,
    }
}

impl Way {
    async fn open(&self) -> Result<Opened, OpenError> {
        let outer = self.client.open().await.unwrap().stream;
        self.open_in(outer, DB).await
    }

    async fn open_in(&self, outer: Stream, expected: &str) -> Result<Opened, OpenError> {
        let client = &self.client;
        let to = Destination {
            expected: Arc::new([expected.parse::<Identity>().unwrap()]),
            ..client.to.clone()
        };
        client.pool.open_inside(outer, &to, &client.request()).await
    }

    async fn all_passed(&self, expected: &[bool]) {
        until(|| self.passed.borrow().len() == expected.len()).await;
        assert_eq!(*self.passed.borrow(), expected);
    }
}

/// An app behind a server with the identity `DB`: the far sides of its connections.
async fn app(ca: &TestCa) -> (Server, Rc<RefCell<Vec<TcpStream>>>) {
    let far = Rc::<RefCell<Vec<TcpStream>>>::default();
    let serve = {
        let far = Rc::clone(&far);
        move |request: Box<Request>| {
            let far = Rc::clone(&far);
            async move {
                let (app, side) = pair().await;
                let relayed = relay(side, open(request));
                far.borrow_mut().push(app);
                relayed.await.unwrap();
            }
        }
    };
    let server = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
    (server, far)
}

async fn read_to_end(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    tcp.read_to_end(&mut data).await.map(|_| data)
}

#[test]
fn each_direction_ends_on_its_own_and_all_of_it_in_order() {
    run(async {
        let ca = TestCa::new("mesh");
        let (end, far) = app(&ca).await;
        let w = way(end.addr, ca, TunnelSettings::default()).await;
        for count in 1..=3 {
            let opened = w.open().await.unwrap();
            let identity = opened.tunnel.peer.map(Principal::into_identity);
            assert_eq!(identity.unwrap().to_string(), DB);
            let (mut near, side) = pair().await;
            let ended = relay(side, opened.stream);
            let mut far = far.borrow_mut().pop().unwrap();
            near.write_all(b"question").await.unwrap();
            near.shutdown().await.unwrap();
            assert_eq!(read_to_end(&mut far).await.unwrap(), b"question");
            far.write_all(b"answer").await.unwrap();
            drop(far);
            assert_eq!(read_to_end(&mut near).await.unwrap(), b"answer");
            assert!(ended.await.unwrap());
            w.all_passed(&vec![true; count]).await;
            // One tunnel to the gateway for all, one inside for each.
            assert_eq!((w.gateway.accepted.get(), end.accepted.get()), (1, count));
            until(|| end.ended.borrow().len() == count).await;
            assert_eq!(*end.ended.borrow(), vec!["closed"; count]);
            assert_eq!(w.client.pool.len(), 1);
        }
        // Of the tasks only the one of the tunnel to the gateway is left.
        until(|| w.client.tasks.len() == 1).await;
    });
}

#[test]
fn large_transfers_both_ways_arrive_whole() {
    run(async {
        let ca = TestCa::new("mesh");
        let (end, far) = app(&ca).await;
        let w = way(end.addr, ca, TunnelSettings::default()).await;
        let (near, side) = pair().await;
        let ended = relay(side, w.open().await.unwrap().stream);
        let far = far.borrow_mut().pop().unwrap();
        exchange(near, far).await;
        assert!(ended.await.unwrap(), "{LEN} bytes each way");
        w.all_passed(&[true]).await;
    });
}

#[test]
fn nobody_but_the_expected_is_talked_to_inside() {
    run(async {
        let ca = TestCa::new("mesh");
        let (end, far) = app(&ca).await;
        let w = way(end.addr, ca, TunnelSettings::default()).await;
        // The gateway's own identity is good for the outer tunnel only.
        for expected in [GATEWAY, WEB] {
            let outer = w.client.open().await.unwrap().stream;
            let refused = w.open_in(outer, expected).await.map(drop).unwrap_err();
            assert_eq!(refused.reason(), Reason::PeerIdentityMismatch, "{refused}");
        }
        w.all_passed(&[false, false]).await;
        assert!(far.borrow().is_empty());
    });
}

#[test]
fn an_app_that_goes_away_takes_the_inner_tunnel_along() {
    run(async {
        let ca = TestCa::new("mesh");
        let (tell, told) = tokio::sync::oneshot::channel();
        let tell = RefCell::new(Some(tell));
        let serve = move |request| {
            let tell = tell.borrow_mut().take().unwrap();
            async move {
                let mut stream = open(request);
                let end = poll_fn(|cx| stream.poll_data(cx)).await.unwrap_err();
                tell.send(end).unwrap();
            }
        };
        let end = Server::start(ca.credential(DB), TunnelSettings::default(), serve).await;
        let w = way(end.addr, ca, TunnelSettings::default()).await;
        drop(w.open().await.unwrap());
        let end = told.await.unwrap();
        assert!(
            matches!(end, FarError::Reset(ErrorCode::CONNECT_ERROR)),
            "{end:?}"
        );
        // The connection broke, not the tunnel.
        w.all_passed(&[true]).await;
        until(|| w.client.tasks.len() == 1).await;
    });
}

#[test]
fn what_cuts_the_outer_tunnel_cuts_the_inner_one_for_the_same_reason() {
    run(async {
        let ca = TestCa::new("mesh");
        let (end, _far) = app(&ca).await;
        let mut w = way(end.addr, ca, TunnelSettings::default()).await;
        let checking = Context::with_revocation(Options::default());
        w.client.to.credential = Arc::new(w.ca.credential_in(&checking, WEB));
        let mut opened = w.open().await.unwrap();
        let lists = w.ca.revoke(&[SerialNumber::from(GATEWAY_SERIAL)]);
        let lists = RevocationLists::parse(&lists).unwrap();
        assert_eq!(checking.set_revocation_lists(lists), 1);
        let end = poll_fn(|cx| opened.stream.poll_data(cx)).await.unwrap_err();
        assert!(matches!(end, FarError::Cut(Reason::PeerRevoked)), "{end:?}");
    });
}

#[test]
fn a_way_that_leads_nowhere_ends_in_time() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = TunnelSettings {
            handshake_timeout: Duration::from_millis(300),
            ..TunnelSettings::default()
        };
        let ca = TestCa::new("mesh");
        let w = way(listener.local_addr().unwrap(), ca, settings).await;
        // Someone who says nothing.
        let refused = w.open().await.map(drop).unwrap_err();
        assert_eq!(refused.reason(), Reason::PeerTlsFailed, "{refused}");
        let (_silent, _) = listener.accept().await.unwrap();
        // Someone who hangs up: it is the gateway's way that breaks, whatever lies behind.
        let outer = w.client.open().await.unwrap().stream;
        let (hangs_up, _) = listener.accept().await.unwrap();
        drop(ResetOnDrop::new(hangs_up));
        let refused = w.open_in(outer, DB).await.map(drop).unwrap_err();
        assert_eq!(refused.reason(), Reason::PeerUnreachable, "{refused}");
        w.all_passed(&[false, false]).await;
        until(|| w.client.tasks.len() == 1).await;
    });
}
