//! What goes wrong with the discovery service when a test says so.
//!
//! Everything else goes on: certificates are signed, the mesh changes, and what a client did can be asked for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tonic::codegen::Service;
use tonic::server::NamedService;
use ztunnel_proto::istio::workload;

use super::shared::Shared;
use super::snapshot::Entry;
use super::wire;

/// How the discovery service behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DiscoveryFault {
    /// As it should.
    #[default]
    None,
    /// Takes calls and does not answer them, until it behaves otherwise.
    Silent,
    /// Ends each stream, in order, when it has been open for so long.
    EndAfter(Duration),
    /// Answers each call with these bytes where a gRPC stream should be, and ends neither.
    Raw(Bytes),
}

impl DiscoveryFault {
    /// A message on the stream that is `content`.
    #[must_use]
    pub fn message(content: &[u8]) -> Self {
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        Self::Raw([&[0][..], &length.to_be_bytes(), content].concat().into())
    }

    /// The beginning of a message of `length` bytes.
    #[must_use]
    pub fn beginning_of(length: u32) -> Self {
        let some = [0; 64 * 1024];
        Self::Raw([&[0][..], &length.to_be_bytes(), &some].concat().into())
    }
}

impl Shared {
    /// Returns when calls are to be answered.
    pub(super) async fn silence(&self) {
        let mut fault = self.fault.subscribe();
        drop(
            fault
                .wait_for(|fault| *fault != DiscoveryFault::Silent)
                .await,
        );
    }

    /// Returns when a stream that begins now is to be ended.
    pub(super) async fn end_of_stream(&self) {
        let fault = self.fault.borrow().clone();
        match fault {
            DiscoveryFault::EndAfter(while_open) => tokio::time::sleep(while_open).await,
            DiscoveryFault::None | DiscoveryFault::Silent | DiscoveryFault::Raw(_) => {
                std::future::pending().await
            }
        }
    }
}

/// A service in front of which a fault may stand.
#[derive(Clone)]
pub(super) struct Faulty<S> {
    pub(super) inner: S,
    pub(super) shared: Arc<Shared>,
}

impl<S: NamedService> NamedService for Faulty<S> {
    const NAME: &'static str = S::NAME;
}

type Request = http::Request<tonic::body::Body>;
type Response = http::Response<tonic::body::Body>;

impl<S> Service<Request> for Faulty<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let fault = self.shared.fault.borrow().clone();
        let DiscoveryFault::Raw(bytes) = fault else {
            return Box::pin(self.inner.call(request));
        };
        self.shared.log("discovery: answered with raw bytes");
        let mut response = Response::new(tonic::body::Body::new(Stuck {
            bytes: Some(bytes),
            _request: request,
        }));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert("content-type", grpc);
        Box::pin(async { Ok(response) })
    }
}

/// Bytes, and after them nothing for as long as the client waits.
struct Stuck {
    bytes: Option<Bytes>,
    /// Were it dropped, the client's side of the stream would be reset.
    _request: Request,
}

impl Body for Stuck {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None => Poll::Pending,
        }
    }
}

/// Workloads that nobody has heard of, each with a field of `size` bytes that nobody knows.
pub(super) fn giants(count: usize, size: usize) -> BTreeMap<String, Arc<Entry>> {
    let giant = |number| {
        let uid = format!("Kubernetes//Pod/giants/giant{number}");
        let workload = workload::Workload {
            uid: uid.clone(),
            name: format!("giant{number}"),
            namespace: "giants".to_owned(),
            ..workload::Workload::default()
        };
        let body = wire::Body::Padded(
            Box::new(workload::Address {
                r#type: Some(workload::address::Type::Workload(workload)),
            }),
            size,
        );
        (uid, Arc::new(Entry::new(body)))
    };
    (0..count).map(giant).collect()
}
