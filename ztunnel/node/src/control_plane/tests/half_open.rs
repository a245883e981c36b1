//! A connection on which nothing comes any more, and nobody says so: a cable that was pulled, a firewall that forgot.

use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::*;
use crate::task::TaskGroup;

/// Carries one connection to `to`, and from `cut` on nothing: both ends stay open.
async fn carry(listener: TcpListener, to: std::net::SocketAddr, cut: Arc<Notify>) {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut server = TcpStream::connect(to).await.unwrap();
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        () = cut.notified() => {}
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_connection_that_is_silently_dead_is_noticed_by_pings() {
    let ca = TestCa::new("control plane");
    let mut setup = Setup::new(&ca);
    setup.delay = Duration::from_secs(3600);
    let server = setup.start().await;
    let authority = server.endpoint.address.authority().unwrap().as_str();
    let to = authority.parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut endpoint = server.endpoint.clone();
    let between = listener.local_addr().unwrap();
    endpoint.address = format!("https://{between}").parse().unwrap();
    let (cut, tasks) = (Arc::new(Notify::new()), TaskGroup::default());
    tasks.spawn(carry(listener, to, cut.clone()));

    let called = async {
        while server.calls.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        cut.notify_one();
        // From here on time passes whenever nothing else is to be done.
        tokio::time::pause();
        Instant::now()
    };
    let calling = tokio::time::timeout(Duration::from_secs(600), call(&endpoint));
    let (refused, since) = tokio::join!(calling, called);
    let error = explain(&refused.unwrap().unwrap_err());
    assert!(error.contains("keep-alive timed out"), "{error}");
    let noticed = since.elapsed();
    let limit = PING_INTERVAL + PING_DEADLINE + Duration::from_secs(1);
    assert!(noticed <= limit, "noticed after {noticed:?}");
}
