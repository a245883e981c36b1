//! Why a connection ended or was refused: one closed list for logs, metrics and explanations.

use alloc::string::String;
use core::fmt;

/// The single reason of an ended connection. Every variant has a code, a cause and a next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Both sides closed in order.
    Complete,
    /// The app or its peer reset the connection.
    Reset,
    /// The destination is one of the proxy's own ports or the proxied connection would come back to itself.
    Loop,
    /// The pod is enrolled, but the control plane does not know it.
    WorkloadUnknown,
    /// The control plane is asked on demand, and did not say in time whether it knows the destination.
    LookupTimeout,
    /// The service exists, but none of its endpoints can take the connection.
    NoHealthyEndpoint,
    /// The destination needs a path that cannot be built (waypoint or gateway missing).
    NoRoute,
    /// The destination, or the gateway to it, has only a name, and no address that may be used could be found for it.
    /// Look the name up on the node, as the daemon does: by the name servers of its `/etc/resolv.conf`.
    NameUnresolved,
    /// No certificate for this pod in time.
    IdentityUnavailable,
    /// The peer's 15008 did not answer.
    PeerUnreachable,
    /// TLS with the peer failed.
    PeerTlsFailed,
    /// The peer proved another identity than the expected one.
    PeerIdentityMismatch,
    /// The peer's CA has taken its certificate, or one above it, back. If that is wrong, correct the revocation list
    /// (`CRL_PATH`); if it is right, the pod needs a new certificate: restart it or its node's daemon.
    PeerRevoked,
    /// The peer broke the tunnel protocol.
    PeerProtocol,
    /// The peer answered the CONNECT with something other than 200.
    PeerRefused,
    /// The CONNECT asks for something that is not here.
    BadRequest,
    /// Policy denies it.
    PolicyDenied,
    /// The destination (an app, or a host outside the mesh) did not accept the connection.
    DestinationUnreachable,
    /// The pod was unenrolled or the daemon stopped before the connection ended.
    Drained,
    /// A limit of this node was reached.
    Overloaded,
}

impl Reason {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Complete => "COMPLETE",
            Self::Reset => "RESET",
            Self::Loop => "LOOP",
            Self::WorkloadUnknown => "WORKLOAD_UNKNOWN",
            Self::LookupTimeout => "LOOKUP_TIMEOUT",
            Self::NoHealthyEndpoint => "NO_HEALTHY_ENDPOINT",
            Self::NoRoute => "NO_ROUTE",
            Self::NameUnresolved => "NAME_UNRESOLVED",
            Self::IdentityUnavailable => "IDENTITY_UNAVAILABLE",
            Self::PeerUnreachable => "PEER_UNREACHABLE",
            Self::PeerTlsFailed => "PEER_TLS_FAILED",
            Self::PeerIdentityMismatch => "PEER_IDENTITY_MISMATCH",
            Self::PeerRevoked => "PEER_REVOKED",
            Self::PeerProtocol => "PEER_PROTOCOL",
            Self::PeerRefused => "PEER_REFUSED",
            Self::BadRequest => "BAD_REQUEST",
            Self::PolicyDenied => "POLICY_DENIED",
            Self::DestinationUnreachable => "DESTINATION_UNREACHABLE",
            Self::Drained => "DRAINED",
            Self::Overloaded => "OVERLOADED",
        }
    }

    /// Whether the connection ended as both sides wanted.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Complete)
    }
}

/// A decision not to let a connection go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    pub reason: Reason,
    /// For people: what was asked for, what is missing, what to do.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: String) -> Self {
        Self { reason, detail }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
