//! How tasks start, pause, rest and stop, and let others have the processor; what they may have together; and what several
//! rooms need to be told: changed files, sockets inside a pod.

mod backoff;
pub mod breath;
mod budget;
mod file_watch;
mod group;
mod limit;
mod local;
mod pod_net;
mod rest;

pub use backoff::Backoff;
pub use budget::{Budget, Share};
pub use file_watch::{FileWatch, Pace, read_bounded};
pub use group::{Shutdown, TaskGroup};
pub use limit::{Late, limit};
pub use local::LocalTasks;
pub use pod_net::{Follows, PodNet, SourceAddress};
pub use rest::give_back_at_rest;
pub(crate) use rest::note_use;
