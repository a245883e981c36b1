//! Opening one stream of a tunnel: a CONNECT and the answer to it.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use ztunnel_hbone::http2::StreamError;
use ztunnel_hbone::{Answer, Connect, ErrorCode, NotAHeader};
use ztunnel_mesh::addr::HboneAddr;
use ztunnel_mesh::reason::Reason;

use super::client::{DialError, Slot, TunnelFacts};
use super::early::Early;
use super::flow::Arrivals;
use super::lane::{Lane, io_error};
use super::settings::TunnelSettings;
use super::stream::Stream;
use crate::relay;
use crate::task::limit;

/// A stream that the peer has accepted.
pub struct Opened {
    pub stream: Stream,
    pub tunnel: TunnelFacts,
}

/// Why the pool gives no stream.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Shared by everybody who waited for the tunnel.
    #[error(transparent)]
    Dial(Arc<DialError>),
    #[error("the CONNECT for {peer} cannot be written")]
    Request {
        peer: HboneAddr,
        #[source]
        source: NotAHeader,
    },
    #[error("{peer} did not answer the CONNECT within {after:?}")]
    NoAnswer { peer: HboneAddr, after: Duration },
    #[error("{peer} refused the CONNECT with {status}")]
    Refused { peer: HboneAddr, status: StatusCode },
    #[error("{peer} reset the stream with {code} instead of answering")]
    Reset { peer: HboneAddr, code: ErrorCode },
    #[error("the tunnel to {peer} is closing")]
    Closing { peer: HboneAddr },
    #[error("the tunnel to {peer} fell silent: no PONG within {after:?}")]
    Silent { peer: HboneAddr, after: Duration },
    #[error("the tunnel to {peer} was cut before the answer to the CONNECT: {reason}")]
    Cut { peer: HboneAddr, reason: Reason },
    #[error("the tunnel to {peer} broke before the answer to the CONNECT")]
    Broken {
        peer: HboneAddr,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Dial(err) => err.reason(),
            Self::Request { .. } => Reason::NoRoute,
            Self::NoAnswer { .. } | Self::Silent { .. } => Reason::PeerSilent,
            Self::Closing { .. } => Reason::PeerUnreachable,
            Self::Cut { reason, .. } => *reason,
            Self::Refused { status, .. } => match *status {
                // Waypoints that are Envoys say 403.
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::PeerDenied,
                _ => Reason::PeerRefused,
            },
            Self::Reset { .. } => Reason::PeerProtocol,
            Self::Broken { source, .. } => match source.kind() {
                // In TLS 1.3 a server looks at the client's certificate when the client is done: its alert comes late.
                io::ErrorKind::InvalidData => Reason::PeerTlsFailed,
                io::ErrorKind::Other => Reason::PeerProtocol,
                _ => Reason::PeerUnreachable,
            },
        }
    }

    /// Whether the peer says that it has done nothing with the stream.
    fn is_no(&self) -> bool {
        matches!(self, Self::Closing { .. } | Self::Refused { .. })
    }
}

/// A stream that is to be opened, wherever there is a place for it.
pub(super) struct Opening<'a> {
    pub(super) settings: &'a TunnelSettings,
    pub(super) peer: HboneAddr,
    pub(super) request: &'a Connect<'a>,
    pub(super) early: &'a Early<'a>,
}

impl Opening<'_> {
    /// Opens it in its place in a tunnel. What the app says meanwhile may go along.
    pub(super) async fn connect(&self, slot: Slot) -> Result<Opened, OpenError> {
        let opened = self.open(slot).await;
        opened.inspect_err(|err| {
            if err.is_no() {
                self.early.refused();
            }
        })
    }

    async fn open(&self, slot: Slot) -> Result<Opened, OpenError> {
        let &Self {
            settings,
            peer,
            request,
            early,
        } = self;
        let cut = slot.0.cut.clone();
        let failed = |err| match cut.reason() {
            Some(reason) => OpenError::Cut { peer, reason },
            None => failure(peer, err),
        };
        let connection = slot.0.connection();
        let after = settings.answer_timeout;
        // There mostly is room: the pool asks for no more streams than the peer allows.
        let room = poll_fn(|cx| connection.borrow_mut().poll_open(cx));
        limit(after, room)
            .await
            .map_err(|_| OpenError::NoAnswer { peer, after })?
            .map_err(failed)?;
        let key = request
            .head(|head| connection.borrow_mut().open(head))
            .map_err(|source| OpenError::Request { peer, source })?
            .map_err(failed)?;
        let mut lane = Lane::new(Rc::clone(connection), key);
        if connection.borrow().takes_early_data() && slot.0.is_lively() {
            say_early(&mut lane, early);
        }
        let answer = async {
            match limit(settings.ask_after, poll_fn(|cx| lane.poll_answer(cx))).await {
                Ok(answer) => Ok(answer),
                Err(_) => {
                    slot.0.ask();
                    let left = after.saturating_sub(settings.ask_after);
                    limit(left, poll_fn(|cx| lane.poll_answer(cx))).await
                }
            }
        };
        let head = tokio::select! {
            biased;
            answer = answer => answer
                .map_err(|_| OpenError::NoAnswer { peer, after })?
                .map_err(failed)?,
            () = slot.0.doubted() => {
                let after = settings.doubt_after;
                return Err(OpenError::Silent { peer, after });
            }
        };
        match Answer::classify(&head) {
            Answer::Open => Ok(Opened {
                tunnel: slot.0.facts.clone(),
                stream: {
                    let (arrivals, cut) =
                        (Arrivals::new(lane, &slot.0.backlog), slot.0.cut.clone());
                    Stream::new(arrivals, cut, Some(slot), early.is_out())
                },
            }),
            Answer::Refused(status) => Err(OpenError::Refused { peer, status }),
        }
    }
}

/// Sends what the app has said by now along with the CONNECT.
fn say_early(lane: &mut Lane, early: &Early<'_>) {
    if lane.room() < relay::MOST_NOW {
        return;
    }
    let words = early.read();
    // Should it fail, then the answer does, too, and says why.
    if !words.is_empty() && lane.send(words, false).is_ok() {
        early.sent();
    }
}

pub(super) fn failure(peer: HboneAddr, err: StreamError) -> OpenError {
    match err {
        StreamError::NotTaken | StreamError::Reset(ErrorCode::REFUSED_STREAM) => {
            OpenError::Closing { peer }
        }
        StreamError::Reset(code) => OpenError::Reset { peer, code },
        StreamError::Lost(_) => OpenError::Broken {
            peer,
            source: io_error(err),
        },
    }
}
