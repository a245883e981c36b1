//! How connections and streams break.

use std::io;
use std::sync::Arc;

use crate::ErrorCode;

/// What the peer has done that ends the whole connection: RFC 9113 section 5.4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer violates HTTP/2: {what} ({code})")]
pub struct Violation {
    pub code: ErrorCode,
    pub what: &'static str,
}

impl Violation {
    pub(crate) const fn new(code: ErrorCode, what: &'static str) -> Self {
        Self { code, what }
    }

    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self::new(ErrorCode::PROTOCOL_ERROR, what)
    }

    pub(crate) const fn size(what: &'static str) -> Self {
        Self::new(ErrorCode::FRAME_SIZE_ERROR, what)
    }

    pub(crate) const fn flow_control(what: &'static str) -> Self {
        Self::new(ErrorCode::FLOW_CONTROL_ERROR, what)
    }

    /// More than anybody needs.
    pub(crate) const fn excess(what: &'static str) -> Self {
        Self::new(ErrorCode::ENHANCE_YOUR_CALM, what)
    }
}

/// Why a connection is gone, for each of its streams to tell.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Lost {
    #[error(transparent)]
    Violation(Violation),
    #[error("the connection was ended with {0}")]
    Aborted(ErrorCode),
    #[error("the connection is closed")]
    Closed,
    #[error("the transport broke")]
    Transport(#[source] Arc<io::Error>),
}

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Closed => io::ErrorKind::BrokenPipe.into(),
            Lost::Transport(err) => Self::new(err.kind(), err),
            Lost::Violation(_) | Lost::Aborted(_) => Self::other(lost),
        }
    }
}

/// How a stream broke.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the peer reset the stream with {0}")]
    Reset(ErrorCode),
    /// And so it may be opened again elsewhere.
    #[error("the peer goes away and has not looked at the stream")]
    NotTaken,
    #[error(transparent)]
    Lost(Lost),
}
