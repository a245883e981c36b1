//! What a waypoint does with a stream: it ends the tunnel of the client, looks at what was asked for, and makes a tunnel
//! of its own to the pod that shall have it. No policy, no HTTP inside: what counts here is who talks to whom.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::server::pass_on;
use super::{PORT, tls};
use crate::control_plane::Credential;
use crate::error::{LabError, Result};
use crate::place::Place;

/// How long the way to a pod may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Where streams go on to.
pub(super) struct Forward {
    place: Place,
    tls: TlsConnector,
    routes: BTreeMap<String, SocketAddr>,
}

/// A stream to a pod that was answered with 200.
struct Opened {
    sender: SendStream<Bytes>,
    body: RecvStream,
}

impl Forward {
    pub(super) fn new(
        place: &Place,
        credential: &Credential,
        routes: BTreeMap<String, SocketAddr>,
    ) -> Result<Self> {
        let h2 = [b"h2".to_vec()];
        let config = tls::client(Some(credential), &h2, &rustls::version::TLS13, false)?;
        Ok(Self {
            place: place.clone(),
            tls: TlsConnector::from(Arc::new(config)),
            routes,
        })
    }

    /// Serves one stream to its end.
    pub(super) async fn stream(
        &self,
        request: Request<RecvStream>,
        mut response: SendResponse<Bytes>,
    ) {
        let authority = request.uri().authority().map(|name| name.as_str());
        let known = authority.and_then(|name| self.routes.get(name));
        let opened = match known.filter(|_| request.method() == Method::CONNECT) {
            None => Err(StatusCode::NOT_FOUND),
            Some(to) => match timeout(CONNECT, self.open(*to)).await {
                Ok(Ok(opened)) => Ok(opened),
                Ok(Err(_)) | Err(_) => Err(StatusCode::SERVICE_UNAVAILABLE),
            },
        };
        let mut head = Response::new(());
        match opened {
            Err(status) => {
                *head.status_mut() = status;
                drop(response.send_response(head, true));
            }
            Ok(opened) => {
                let Ok(mut back) = response.send_response(head, false) else {
                    return;
                };
                let Opened { mut sender, body } = opened;
                let there = pass_on(request.into_body(), &mut sender);
                if let Err(err) = tokio::try_join!(there, pass_on(body, &mut back)) {
                    // What breaks one half breaks both, on both sides.
                    let reason = err.reason().unwrap_or(Reason::INTERNAL_ERROR);
                    sender.send_reset(reason);
                    back.send_reset(reason);
                }
            }
        }
    }

    /// A tunnel to the pod at `to`, with one stream in it.
    async fn open(&self, to: SocketAddr) -> Result<Opened> {
        let because = |err: h2::Error| LabError::because(format!("open a stream to {to}"), err);
        let place = self.place.clone();
        let hbone = SocketAddr::new(to.ip(), PORT);
        let connect = move || place.connect(hbone, CONNECT);
        let failed = |err| LabError::because(format!("connect to {hbone}"), err);
        let tcp = tokio::task::spawn_blocking(connect)
            .await
            .map_err(|err| failed(std::io::Error::other(err)))?
            .map_err(failed)?;
        tcp.set_nonblocking(true).map_err(failed)?;
        let tcp = tokio::net::TcpStream::from_std(tcp).map_err(failed)?;
        let name = ServerName::IpAddress(to.ip().into());
        let stream = self.tls.connect(name, tcp).await.map_err(failed)?;
        let (requests, connection) = h2::client::handshake(stream).await.map_err(because)?;
        // Owned by the runtime, which ends with the server.
        tokio::spawn(connection);
        let mut requests = requests.ready().await.map_err(because)?;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(to.to_string())
            .body(())
            .map_err(|err| LabError::because(format!("ask for {to}"), err))?;
        let (response, sender) = requests.send_request(request, false).map_err(because)?;
        let response = response.await.map_err(because)?;
        match response.status() {
            StatusCode::OK => Ok(Opened {
                sender,
                body: response.into_body(),
            }),
            status => Err(LabError::new(format!("{to} was answered with {status}"))),
        }
    }
}
