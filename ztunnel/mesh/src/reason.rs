//! Why a connection ended or was refused: one closed list for logs, metrics and explanations.
//!
//! Invariants: every reason has a cause and a next step, in an operator's words; what is fixed in different ways has
//! different reasons. Nothing else in the daemon makes up a code. "Here" and "this node" are those of the daemon that
//! logs the line.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// One row for each reason; a row that lacks something does not compile.
macro_rules! reasons {
    ($($reason:ident $code:literal $flags:ident: $cause:literal, next: $next:literal;)*) => {
        /// The single reason of an ended connection. Every variant has a code, a cause and a next step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $cause] $reason,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$reason),*];

            /// Stable code for machines.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$reason => $code,)*
                }
            }

            /// What has happened, in one sentence.
            #[must_use]
            pub const fn cause(self) -> &'static str {
                match self {
                    $(Self::$reason => $cause,)*
                }
            }

            /// What to do, or to look at, next.
            #[must_use]
            pub const fn next_step(self) -> &'static str {
                match self {
                    $(Self::$reason => $next,)*
                }
            }

            /// What dashboards of Istio's ztunnel know it as.
            #[must_use]
            pub const fn response_flags(self) -> ResponseFlags {
                match self {
                    $(Self::$reason => ResponseFlags::$flags,)*
                }
            }
        }
    };
}

reasons! {
    Complete "COMPLETE" Unflagged:
        "Both sides ended the connection in order.",
        next: "Nothing: this is how a connection should end.";
    Drained "DRAINED" Unflagged:
        "The connection was cut because its pod was stopped or unenrolled, or the daemon ended, and the time to finish was over.",
        next: "Expected when something is stopped. If connections need longer, raise CONNECTION_TERMINATION_DEADLINE; if nothing was to be stopped, see when and why: `ztunnel pods`, `kubectl get events`, the daemon's log.";
    Reset "RESET" Connect:
        "The app at one end, or the destination, broke the connection off.",
        next: "Look at the logs of both applications at that time; the error in the line says which end it was, and the bytes say how far it came.";
    PeerLost "PEER_LOST" Connect:
        "The connection to the other node, or to the host it goes to, broke while it was in use.",
        next: "See whether that node, its ztunnel or its pod restarted at that time: `kubectl get pods -A -o wide`, `kubectl get nodes`, and the log of the ztunnel there.";
    Loop "LOOP" Connect:
        "The connection would come back to the proxy: it is for one of the proxy's own ports (15001, 15006, 15008), for a loopback address, or for the pod itself.",
        next: "Correct the address or port that the app is configured with: a targetPort of a service, or an address in its environment. `ztunnel explain --from NAMESPACE/POD --to ADDRESS` shows where it goes.";
    WorkloadUnknown "WORKLOAD_UNKNOWN" Connect:
        "The pod is enrolled here, but the control plane does not know it under this name and service account on this node.",
        next: "Compare `ztunnel pods` with `istioctl ztunnel-config workload --node NODE`; check that NODE_NAME is the node's name in Kubernetes and that the daemon is connected (`discovery stream lost` in its log).";
    LookupTimeout "LOOKUP_TIMEOUT" Connect:
        "The control plane is asked on demand (XDS_ON_DEMAND), and did not say in time whether it knows the destination.",
        next: "Look for `discovery stream lost` in the daemon's log, and whether istiod is up and reachable from this node: `kubectl get pods -n istio-system`.";
    NoSuchPort "NO_SUCH_PORT" Connect:
        "The service exists and does not have the port that was connected to.",
        next: "Compare the port with `kubectl get service NAME -o yaml`; the app, or the service, has the wrong one.";
    NoHealthyEndpoint "NO_HEALTHY_ENDPOINT" Connect:
        "The service has the port, and no endpoint that may take the connection: none is ready, near enough for its traffic distribution, or has that port.",
        next: "`kubectl get endpointslices -l kubernetes.io/service-name=NAME` shows who is ready; `ztunnel explain --from NAMESPACE/POD --to ADDRESS` shows which endpoints were left out and why.";
    NoWaypoint "NO_WAYPOINT" Connect:
        "The destination is to be reached through a waypoint, and the waypoint is not there or has no ready endpoint; nothing goes past it.",
        next: "`istioctl waypoint list -A` and `kubectl get gateways -A`: bring the waypoint up, or take the label `istio.io/use-waypoint` off the service, pod or namespace.";
    NoGateway "NO_GATEWAY" Connect:
        "The destination is on another network, and no gateway leads there for this connection.",
        next: "Check the east-west gateway of that network (`kubectl get gateways -A -l topology.istio.io/network`), and that the app addresses a service: connections to addresses of pods do not cross networks.";
    NameUnresolved "NAME_UNRESOLVED" Connect:
        "The destination is known by its name only, and the name has no address that may be used.",
        next: "Resolve it on this node: `getent ahosts NAME`; correct the address of the WorkloadEntry or ServiceEntry if the name is wrong.";
    NoRoute "NO_ROUTE" Connect:
        "What the control plane says about the destination leads to no way to carry the connection.",
        next: "The error in the line names what is missing; `ztunnel explain` shows the steps up to there. Compare with `istioctl ztunnel-config service` and `istioctl ztunnel-config workload`.";
    IdentityUnavailable "IDENTITY_UNAVAILABLE" IdentityError:
        "The pod has no certificate, because the CA could not be reached or did not answer in time.",
        next: "Check that the CA is up and reachable from this node (CA_ADDRESS; `kubectl get pods -n istio-system`); the error in the line says what failed, and when the next try is.";
    IdentityRefused "IDENTITY_REFUSED" IdentityError:
        "The pod has no certificate, because the CA refused to sign one or sent one that is not usable.",
        next: "The error in the line has the CA's words. Check this node's token (AUTH_TOKEN) and cluster id, that the CA trusts ztunnel's service account, and that a pod with that identity runs on this node.";
    PeerTimeout "PEER_TIMEOUT" NetworkPolicy:
        "Port 15008 of the other side did not answer at all: its packets, or ours, are dropped.",
        next: "Allow TCP 15008 to the pod: `kubectl get networkpolicy -A`, and the firewall between the nodes. If that is right, see whether the node and the pod are up: `kubectl get pods -A -o wide`.";
    PeerUnreachable "PEER_UNREACHABLE" Connect:
        "The other side does not take tunnels now: connecting to its port 15008 was refused or failed, or its tunnel is closing.",
        next: "The pod is gone, or the ztunnel of its node does not serve it: `kubectl get pods -A -o wide`, then `ztunnel pods` on that node.";
    PeerSilent "PEER_SILENT" Connect:
        "The other side took the tunnel, and then did not answer any more.",
        next: "See whether that node is overloaded, frozen or cut off (`kubectl get nodes`), whether the app there accepts connections, and the log of the ztunnel there.";
    PeerTlsFailed "PEER_TLS_FAILED" TlsFailure:
        "TLS between the two sides failed: a certificate is expired or of another root, the clock is wrong, or the other side does not speak TLS as required.",
        next: "The error in the line says which. Compare `istioctl ztunnel-config certificates` of both nodes, their clocks, and TLS12_ENABLED and COMPLIANCE_POLICY of both.";
    PeerIdentityMismatch "PEER_IDENTITY_MISMATCH" TlsFailure:
        "The other side proved another identity than the one that the control plane says is there.",
        next: "An address has changed hands, or somebody pretends: compare `istioctl ztunnel-config workload` for that address with `kubectl get pods -A -o wide`. If it stays so, treat it as an attack.";
    PeerRevoked "PEER_REVOKED" CertRevoked:
        "The certificate of the other side, or one above it, is on a revocation list.",
        next: "If that is wrong, correct the list (CRL_PATH); if it is right, the pod there needs a new certificate: restart it, or the ztunnel of its node.";
    PeerProtocol "PEER_PROTOCOL" H2HandshakeFailure:
        "The other side broke the tunnel protocol (HTTP/2 CONNECT), or reset the stream instead of answering.",
        next: "See what listens on port 15008 there, its version, and its log at that time: it should be a ztunnel, a waypoint or a gateway.";
    PeerDenied "PEER_DENIED" Connect:
        "The other side refused the connection by policy (401 or 403).",
        next: "On the destination's node: `ztunnel explain --to ADDRESS --as IDENTITY` names the policy, and so does the log there (POLICY_DENIED). For a waypoint: `kubectl get authorizationpolicies -A`.";
    PeerRefused "PEER_REFUSED" Connect:
        "The other side answered the request for the connection with an error: it cannot reach the app, or does not know it.",
        next: "See the line of the same trace in the log on the destination's node, which has the reason; most often the app does not listen on that port, or not yet.";
    BadRequest "BAD_REQUEST" Connect:
        "The other side asked this pod for something that is not here, or in a form that is not understood.",
        next: "Its ztunnel or waypoint has an old or wrong view of the mesh: see its version and log, and whether an address went from one pod to another.";
    PolicyDenied "POLICY_DENIED" Deny:
        "A policy does not allow the connection, or no longer.",
        next: "The error in the line names the policy. `ztunnel explain --to ADDRESS --as IDENTITY` on this node shows all that apply; `kubectl get authorizationpolicies,peerauthentications -A` has their sources.";
    PolicyMissing "POLICY_MISSING" Deny:
        "A policy that applies to the pod has not arrived from the control plane; until it does, nobody may connect.",
        next: "It lasts moments. If not, the policy was rejected: look for `resource rejected` in the daemon's log, and `discovery stream lost`.";
    AppUnreachable "APP_UNREACHABLE" Connect:
        "The connection arrived at its pod, and the app there did not accept it.",
        next: "See whether the app listens on that port and on the pod's address, not on 127.0.0.1 alone: `kubectl exec POD -- ss -ltn`, `kubectl get pods`, its log.";
    DestinationUnreachable "DESTINATION_UNREACHABLE" Connect:
        "A destination that is reached without a tunnel refused the connection, or there is no way to it.",
        next: "See whether something listens there, from the pod's own network: `nsenter --net=NETNS nc -vz ADDRESS PORT` (`ztunnel pods --output json` has NETNS). Is it meant to be in the mesh: `istioctl ztunnel-config workload`.";
    DestinationTimeout "DESTINATION_TIMEOUT" Connect:
        "A destination that is reached without a tunnel did not answer.",
        next: "Look for a NetworkPolicy or firewall on the way (`kubectl get networkpolicy -A`), and whether the host is up.";
    Overloaded "OVERLOADED" Connect:
        "A limit of this node was reached.",
        next: "The error in the line says which. See how many connections the pod has and who makes them; if that is as it should be, raise the limit (deploy/settings.md).";
}

/// The flags of a connection in Istio's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// Ended well, or cut by a drain: not counted as failed there.
    Unflagged,
    Deny,
    Connect,
    TlsFailure,
    H2HandshakeFailure,
    NetworkPolicy,
    IdentityError,
    CertRevoked,
}

impl ResponseFlags {
    /// Every one there is, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Unflagged,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::H2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// As metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unflagged => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

impl Reason {
    /// Whether the connection ended as both sides wanted.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Complete)
    }
}

/// Not one of the codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no reason; `ztunnel reasons` lists them all")]
pub struct UnknownReason(pub String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(code: &str) -> Result<Self, UnknownReason> {
        let mut all = Self::ALL.iter().copied();
        all.find(|reason| reason.code().eq_ignore_ascii_case(code))
            .ok_or_else(|| UnknownReason(code.into()))
    }
}

/// `deploy/reasons.md`.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Reasons\n\n\
         Generated by `ztunnel reasons`; a test fails when this file is stale. Every connection ends with one line in the log\n\
         (target `access`) that has one of these codes in `reason`, and the particulars in `error`. All but `COMPLETE` are\n\
         failures. \"This node\" is the one whose daemon has logged the line. `ztunnel reasons CODE` prints one row. The last\n\
         column is what Istio's metrics have in `response_flags`.\n\n\
         | Reason | What has happened | What to do next | Flags |\n|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let (code, cause, next) = (reason.code(), reason.cause(), reason.next_step());
        let flags = reason.response_flags().as_str();
        text += &format!("| `{code}` | {cause} | {next} | `{flags}` |\n");
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn every_reason_says_what_happened_and_what_to_do() {
        let mut codes = BTreeSet::new();
        for reason in Reason::ALL {
            let code = reason.code();
            assert!(codes.insert(code), "{code} is there twice");
            assert_eq!(code.parse(), Ok(*reason));
            let plain = |c: char| c.is_ascii_uppercase() || c == '_';
            assert!(code.chars().all(plain), "{code}");
            for text in [reason.cause(), reason.next_step()] {
                assert!(text.len() > 30 && text.ends_with('.'), "{code}: {text}");
                assert!(!text.contains('|'), "{code}: breaks the table");
            }
        }
        assert!("NOT_A_REASON".parse::<Reason>().is_err());
    }

    #[test]
    fn only_a_connection_that_did_what_it_should_is_a_success() {
        let good = Reason::ALL.iter().filter(|reason| reason.is_success());
        assert_eq!(good.collect::<alloc::vec::Vec<_>>(), [&Reason::Complete]);
    }
}
