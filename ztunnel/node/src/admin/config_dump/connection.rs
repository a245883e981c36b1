//! Open connections of a pod, as `istioctl ztunnel-config connections` reads them.

use std::net::SocketAddr;

use serde::Serialize;

/// An open connection of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionEntry {
    /// Somebody is connected to an app of the pod.
    Inbound {
        /// The TCP peer: all streams of a tunnel have the same.
        client: SocketAddr,
        /// The hostname that the client asked for.
        hostname: Option<String>,
        app: SocketAddr,
        /// Whether the client has proved who it is.
        identified: bool,
    },
    /// An app of the pod is connected to somebody.
    Outbound {
        app: SocketAddr,
        /// Where it meant to connect.
        dialed: SocketAddr,
        next_hop: SocketAddr,
        /// Tunnels, one inside of the other.
        tunnels: u8,
    },
}

/// What one pod has, without what is the same twice.
#[derive(Serialize)]
pub(super) struct ShownConnections {
    inbound: Vec<Shown<String>>,
    outbound: Vec<Shown<SocketAddr>>,
}

/// The fields in the order of their names.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<Dst> {
    actual_dst: SocketAddr,
    original_dst: Option<Dst>,
    protocol: &'static str,
    src: SocketAddr,
}

impl From<Vec<ConnectionEntry>> for ShownConnections {
    fn from(mut entries: Vec<ConnectionEntry>) -> Self {
        entries.sort_unstable();
        entries.dedup();
        let mut shown = Self {
            inbound: Vec::new(),
            outbound: Vec::new(),
        };
        for entry in entries {
            match entry {
                ConnectionEntry::Inbound {
                    client,
                    hostname,
                    app,
                    identified,
                } => shown.inbound.push(Shown {
                    actual_dst: app,
                    original_dst: hostname,
                    protocol: if identified { "HBONE" } else { "TCP" },
                    src: client,
                }),
                ConnectionEntry::Outbound {
                    app,
                    dialed,
                    next_hop,
                    tunnels,
                } => shown.outbound.push(Shown {
                    actual_dst: next_hop,
                    original_dst: Some(dialed),
                    protocol: match tunnels {
                        0 => "TCP",
                        1 => "HBONE",
                        _ => "DOUBLEHBONE",
                    },
                    src: app,
                }),
            }
        }
        shown
    }
}
