//! Why an inbound connection is refused, and how the client is told.

use std::io;
use std::time::Duration;

use ztunnel_hbone::{self as hbone, BadConnect, IdentityTooLong};
use ztunnel_mesh::Refusal;
use ztunnel_mesh::addr::AppAddr;
use ztunnel_mesh::reason::Reason;

use crate::connections::Cut;
use crate::own_pod::WorkloadUnknown;
use crate::relay::{FarError, RelayError};
use crate::state::LookupTimeout;

/// Why a stream or a plain connection does not reach the app.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboundError {
    #[error(transparent)]
    BadConnect(BadConnect),
    #[error(transparent)]
    Unknown(#[from] WorkloadUnknown),
    #[error(transparent)]
    Lookup(#[from] LookupTimeout),
    #[error("{}", .0.detail)]
    Refused(Refusal),
    #[error(transparent)]
    Cut(#[from] Cut),
    #[error("{app} is a port of the proxy itself")]
    Loop { app: AppAddr },
    #[error("{app} was asked for, but only port {port} of the daemon may be")]
    NotOffered { app: AppAddr, port: u16 },
    #[error("the app cannot be told who its client is")]
    Header(#[from] IdentityTooLong),
    #[error("tell the app at {app} who its client is")]
    Introduce {
        app: AppAddr,
        #[source]
        source: io::Error,
    },
    #[error("connect to the app at {app} timed out after {after:?}")]
    AppTimeout { app: AppAddr, after: Duration },
    #[error("connect to the app at {app} failed")]
    App {
        app: AppAddr,
        #[source]
        source: io::Error,
    },
    #[error("the client gave up")]
    ClientGone(#[source] FarError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl From<Refusal> for InboundError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl InboundError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::BadConnect(_) | Self::NotOffered { .. } => Reason::BadRequest,
            Self::Unknown(_) => Reason::WorkloadUnknown,
            Self::Lookup(_) => Reason::LookupTimeout,
            Self::Refused(refusal) => refusal.reason,
            Self::Cut(cut) => cut.reason(),
            Self::Loop { .. } => Reason::Loop,
            Self::Header(_) => Reason::NoRoute,
            Self::AppTimeout { .. } | Self::App { .. } | Self::Introduce { .. } => {
                Reason::AppUnreachable
            }
            Self::ClientGone(err) => err.reason(),
            Self::Relay(err) => err.reason(),
        }
    }

    /// What to answer to a CONNECT.
    pub(super) fn answer(&self) -> hbone::Refusal {
        match self.reason() {
            Reason::BadRequest => hbone::Refusal::BadRequest,
            Reason::PolicyDenied | Reason::PolicyMissing => hbone::Refusal::Denied,
            _ => hbone::Refusal::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_of_the_contract() {
        let refused = |reason| {
            InboundError::Refused(Refusal {
                reason,
                detail: String::new(),
            })
        };
        let app = AppAddr(([10, 0, 0, 1], 80).into());
        for (error, status) in [
            (InboundError::BadConnect(BadConnect::NoAuthority), 400),
            (refused(Reason::BadRequest), 400),
            (refused(Reason::PolicyDenied), 401),
            (refused(Reason::PolicyMissing), 401),
            (InboundError::NotOffered { app, port: 15020 }, 400),
            (refused(Reason::Loop), 503),
            (refused(Reason::NoRoute), 503),
            (
                InboundError::AppTimeout {
                    app,
                    after: Duration::from_secs(10),
                },
                503,
            ),
        ] {
            assert_eq!(error.answer().status(), status, "{error}");
        }
    }
}
