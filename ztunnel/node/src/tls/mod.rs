//! Mutual TLS between nodes: who we are, who the peer is, and nothing that TLS could otherwise negotiate.
//!
//! Invariants: TLS 1.3 with the two AES-GCM suites, TLS 1.2 only where it is asked for; both sides show a certificate,
//! chained to the roots that the CA has told this node, and not revoked. A client accepts exactly the identities it
//! expects, a server any of its own trust domain: what they may do is policy. rustls contexts are built once per
//! certificate, and nothing but the peer's certificates is parsed for a connection. Absent on purpose: server names
//! (SNI and DNS checks), session resumption and tickets, early data, OCSP.

mod buffer;
mod chain;
mod context;
mod credential;
mod crl_file;
mod handshake;
mod live;
mod provider;
mod record;
mod revocation;
mod session;
mod shaking;
mod stream;
mod trust;
mod verified;
mod verify;

pub(crate) use buffer::give_back;
pub use chain::ChainError;
pub use context::Context;
pub use credential::{Credential, PrivateKey};
pub use crl_file::CrlFile;
pub use handshake::{
    Established, HandshakeError, Negotiated, accept, connect, failure_reason, is_rejection,
};
pub use live::RevocationWatch;
pub use provider::Options;
pub(crate) use provider::provider;
pub use revocation::{RevocationListError, RevocationLists};
pub use stream::TlsStream;
pub use verify::{WrongIdentity, peer_identity};

#[cfg(test)]
pub(crate) mod test_ca;
#[cfg(test)]
mod tests;
