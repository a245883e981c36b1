//! What operators decide about inbound connections.

use crate::task::SourceAddress;

/// How connections reach the apps of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundSettings {
    /// Whose address apps see.
    pub source: SourceAddress,
    /// Whether apps behind a PROXY header are reached on loopback: what listens there can be reached by nobody else, so
    /// the header is believed only where it is true.
    pub localhost_app_tunnel: bool,
    /// Whether clients are told about the workload that they have reached.
    pub response_baggage: bool,
}

impl Default for InboundSettings {
    fn default() -> Self {
        Self {
            source: SourceAddress::default(),
            localhost_app_tunnel: true,
            response_baggage: true,
        }
    }
}

/// What of a pod clients of its tunnels may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Its apps.
    Apps,
    /// One port of the daemon itself, in the daemon's own namespace.
    OwnPort(u16),
}
