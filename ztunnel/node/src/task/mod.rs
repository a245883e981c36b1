//! How tasks start, pause and stop; and what several rooms need to be told: changed files, sockets inside a pod.

mod backoff;
mod file_watch;
mod group;
mod pod_net;

pub use backoff::Backoff;
pub use file_watch::{FileWatch, Pace, read_bounded};
pub use group::{Shutdown, TaskGroup};
pub use pod_net::{PodNet, SourceAddress};
