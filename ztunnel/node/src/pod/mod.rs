//! All sockets of one pod: opened in its namespace, served by the workers, drained, closed.

mod listeners;
mod own;
mod worker;

pub use listeners::{Listeners, open_listeners};
pub use own::DaemonPod;
pub use ztunnel_mesh::name::PodName;

pub use worker::{Busy, NodeContext, PodStart, Workers};
