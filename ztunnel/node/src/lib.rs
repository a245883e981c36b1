//! Everything asynchronous of the node daemon, in rooms; a room imports rooms of lower rows only.
//!
//! ```text
//! 0  task           task groups, shutdown, backoff, budgets, sockets in a pod's namespace
//! 1  telemetry      what is counted and told about connections
//! 2  state   tls    snapshot publication (one writer) · rustls contexts, SPIFFE verifier, credentials
//! 3  admin   relay   connections   control_plane    HTTP endpoints, readiness · joining two streams · the open
//!                connections, their records · authenticated gRPC channel
//! 4  tunnel  capture    HBONE client, pool, server · eBPF load, attach
//! 5  identity  discovery  own_pod  outbound  inbound  explain    own_pod: who a connection's pod is · explain: why what is decided
//! 6  pod            all sockets of one pod: bind in its namespace, start, drain, stop
//! 7  inspect  prove    what the node knows and does, for those who look at it · a connection, and what is on the wire
//! 8  enroll         pods table and its sources
//! 9  overview       the node as its page shows it
//! ```

pub mod admin;
pub mod capture;
pub mod connections;
pub mod control_plane;
pub mod discovery;
pub mod enroll;
pub mod explain;
pub mod identity;
pub mod inbound;
pub mod inspect;
pub mod outbound;
pub mod overview;
pub mod own_pod;
pub mod pod;
pub mod prove;
pub mod relay;
pub mod state;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
