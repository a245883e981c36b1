//! Network namespaces as machines, and the links and routes between them.

mod ip_command;
mod namespace;
mod topology;

pub(crate) use ip_command::ip_output;
pub use namespace::Namespace;
pub use topology::{CONTROL_PLANE_V4, CONTROL_PLANE_V6, OUTSIDE_HOST_V4, OUTSIDE_HOST_V6};
pub(crate) use topology::{PodNet, Topology, to};
