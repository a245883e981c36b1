//! A control plane that speaks the real wire: delta discovery and certificates, gRPC over TLS, with tokens.
//!
//! It stands in for Istio's, and is as strict: what a client may not do there it may not do here. It says what
//! the mesh file says; the file may be edited while it runs, and what is wrong with an edit is logged while the
//! last good state stays. Everything a client did can be asked for afterwards.

mod ads;
mod authority;
mod ca;
mod crowd;
mod faults;
mod handle;
mod server;
mod session;
mod shared;
mod snapshot;
mod wire;

pub use authority::{Authority, Credential, Validity};
pub use ca::{CaMode, Issued, Refused};
pub use crowd::Crowd;
pub use faults::DiscoveryFault;
pub use handle::ControlPlane;
pub use session::Answer;

/// Namespace and service account that the nodes' tokens are for.
pub(crate) const PROXY_NAMESPACE: &str = "istio-system";
pub(crate) const PROXY_ACCOUNT: &str = "ztunnel";
/// The host name that the certificate of the control plane is for, besides its addresses.
pub(crate) const HOSTNAME: &str = "istiod.istio-system.svc";
/// The port it listens on.
pub(crate) const PORT: u16 = 15012;
/// The cluster that clients have to say they are in.
pub(crate) use wire::CLUSTER;
