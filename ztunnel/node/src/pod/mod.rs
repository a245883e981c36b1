//! All sockets of one pod: opened in its namespace, served by the workers, drained, closed.

mod listeners;
mod worker;

pub use listeners::{Listeners, open_listeners};
pub use worker::{NodeContext, PodStart, Workers};
