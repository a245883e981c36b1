//! How tasks start, pause and stop; and the one thing every room needs from a pod: sockets inside it.

mod backoff;
mod group;
mod pod_net;

pub use backoff::Backoff;
pub use group::{Shutdown, TaskGroup};
pub use pod_net::PodNet;
