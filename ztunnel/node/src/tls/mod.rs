//! Mutual TLS between nodes: who we are, who the peer is, and nothing that TLS could otherwise negotiate.
//!
//! Invariants: TLS 1.3 with the two AES-GCM suites; both sides show a certificate, chained to the roots that came
//! with our own. A client accepts exactly the identities it expects, a server any of its own trust domain: what
//! they may do is policy. rustls contexts are built once per certificate. Absent on purpose: server names (SNI
//! and DNS checks), session resumption and tickets, early data, TLS 1.2, revocation lists.

mod chain;
mod credential;
mod handshake;
mod provider;
mod verify;

pub use chain::ChainError;
pub use credential::{Credential, PrivateKey};
pub use handshake::{HandshakeError, Negotiated, accept, connect, failure_reason, negotiated};
pub use provider::Options;
pub(crate) use provider::provider;
pub use verify::{WrongIdentity, peer_identity};

#[cfg(test)]
pub(crate) mod test_ca;
#[cfg(test)]
mod tests;
