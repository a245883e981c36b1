//! Tunnels whose peers lose their certificates.

use std::future::poll_fn;

use rcgen::SerialNumber;
use tokio::sync::oneshot;
use ztunnel_mesh::reason::Reason;

use super::*;
use crate::relay::{Far as _, FarError};
use crate::tls::{Context, Options, RevocationLists};

const WEB_SERIAL: u64 = 1;
const DB_SERIAL: u64 = 2;

fn lists(ca: &TestCa, serial: u64) -> RevocationLists {
    RevocationLists::parse(&ca.revoke(&[SerialNumber::from(serial)])).unwrap()
}

/// Why the stream gives no more data.
async fn end(mut stream: Stream) -> FarError {
    poll_fn(|cx| stream.poll_data(cx)).await.unwrap_err()
}

#[test]
fn streams_of_a_revoked_client_end_and_say_why() {
    run(async {
        let ca = TestCa::new("mesh");
        let checking = Context::with_revocation(Options::default());
        let (tell, ended) = oneshot::channel();
        let tell = RefCell::new(Some(tell));
        let server = Server::start(
            ca.credential_in(&checking, DB),
            TunnelSettings::default(),
            move |request| {
                let tell = tell.borrow_mut().take().unwrap();
                async move { tell.send(end(open(request)).await).unwrap() }
            },
        )
        .await;
        let mut client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        client.to.credential = Arc::new(ca.numbered(&Context::default(), WEB, WEB_SERIAL));
        let opened = client.open().await.unwrap();

        assert_eq!(checking.set_revocation_lists(lists(&ca, DB_SERIAL)), 0);
        assert_eq!(checking.set_revocation_lists(lists(&ca, WEB_SERIAL)), 1);
        let theirs = ended.await.unwrap();
        assert!(
            matches!(theirs, FarError::Cut(Reason::PeerRevoked)),
            "{theirs:?}"
        );
        // To the client it is a tunnel that is gone.
        let ours = end(opened.stream).await;
        assert_eq!(ours.reason(), Reason::PeerLost, "{ours:?}");
        until(|| !server.ended.borrow().is_empty()).await;
        assert_eq!(
            *server.ended.borrow(),
            ["the client's certificate was revoked"]
        );
        until(|| client.pool.is_empty()).await;
        client.open().await.map(drop).unwrap_err();
        until(|| server.ended.borrow().len() == 2).await;
        assert_eq!(server.ended.borrow()[1], "PEER_REVOKED");
    });
}

#[test]
fn streams_to_a_revoked_server_end_and_nobody_gets_its_tunnel_again() {
    run(async {
        let ca = TestCa::new("mesh");
        let server = Server::start(
            ca.numbered(&Context::default(), DB, DB_SERIAL),
            TunnelSettings::default(),
            |request| async move { drop(end(open(request)).await) },
        )
        .await;
        let checking = Context::with_revocation(Options::default());
        let mut client = Client::new(&ca, server.addr, DB, TunnelSettings::default());
        client.to.credential = Arc::new(ca.credential_in(&checking, WEB));
        let (one, two) = (client.open().await.unwrap(), client.open().await.unwrap());
        assert_eq!(client.connects.get(), 1);

        assert_eq!(checking.set_revocation_lists(lists(&ca, DB_SERIAL)), 1);
        for opened in [one, two] {
            let ended = end(opened.stream).await;
            assert!(
                matches!(ended, FarError::Cut(Reason::PeerRevoked)),
                "{ended:?}"
            );
        }
        assert!(client.pool.is_empty());
        let refused = client.open().await.map(drop).unwrap_err();
        assert_eq!(refused.reason(), Reason::PeerRevoked, "{refused}");
        assert_eq!(client.connects.get(), 2);

        checking.set_revocation_lists(RevocationLists::default());
        client.open().await.unwrap();
    });
}

/// A client that was revoked and does not read: the GOAWAY cannot be delivered, and nobody waits for it for long.
#[test]
fn revoked_client_that_takes_nothing_is_cut_off_all_the_same() {
    run(async {
        let ca = TestCa::new("mesh");
        let checking = Context::with_revocation(Options::default());
        let server = Server::start(
            ca.credential_in(&checking, DB),
            TunnelSettings::default(),
            |request| async move {
                let mut stream = open(request);
                // Fills every buffer on the way.
                loop {
                    let room = poll_fn(|cx| stream.poll_capacity(cx, 1 << 16)).await;
                    let Ok(room) = room else { return };
                    if stream.send(vec![0; room].into()).is_err() {
                        return;
                    }
                }
            },
        )
        .await;
        let tcp = TcpStream::connect(server.addr).await.unwrap();
        let credential = ca.numbered(&Context::default(), WEB, WEB_SERIAL);
        let config = credential.client_config([DB.parse::<Identity>().unwrap()].into());
        let tls = crate::tls::connect(config, tcp, SOON).await.unwrap();
        let (mut requests, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 30)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, bytes::Bytes>(tls.stream)
            .await
            .unwrap();
        let mut connection = std::pin::pin!(connection);
        let request = http::Request::connect("10.0.0.9:80").body(()).unwrap();
        let (response, _send) = requests.send_request(request, false).unwrap();
        tokio::select! {
            response = response => assert_eq!(response.unwrap().status(), 200),
            _ = connection.as_mut() => panic!("the tunnel ended"),
        }
        // From here on it reads nothing more, and keeps its socket.
        assert_eq!(checking.set_revocation_lists(lists(&ca, WEB_SERIAL)), 1);
        until(|| !server.ended.borrow().is_empty()).await;
        assert_eq!(
            *server.ended.borrow(),
            ["the client's certificate was revoked"]
        );
    });
}
