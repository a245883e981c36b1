//! A lab to live in: nodes, pods and a control plane on one machine, for demo, tests and benchmarks.
//!
//! Nodes and pods are network namespaces without a name, joined by routed links; the control plane speaks the real
//! wire; applications are real programs. One mesh file says what there is. Everything ends with the process,
//! however it ends, and any number of labs can be up at the same time.
//!
//! ```no_run
//! # fn main() -> lab::Result<()> {
//! let lab = lab::Lab::from_yaml("
//! workloads:
//!   - {name: client, namespace: shop, node: node1, service_account: client, addresses: [10.244.1.10]}
//!   - {name: web, namespace: shop, node: node2, service_account: web, addresses: [10.244.2.10]}
//! services:
//!   - {name: web, namespace: shop, addresses: [10.96.0.10], ports: {80: 8080}, workloads: [web]}
//! ")?;
//! lab.start_daemons()?;
//! lab.enroll_all()?;
//! let nginx = lab.pod("shop/web").nginx(8080)?;
//! let link = lab.tap("node1", "node2", &["a marker"])?;
//! lab.pod("shop/client").run(["curl", "-s", "http://web.shop/?a%20marker"])?.success()?;
//! assert_eq!(nginx.client(0)?, lab.pod("shop/client").v4()?);
//! assert_eq!(link.stop()?.marker("a marker"), 0);
//! # Ok(())
//! # }
//! ```
//!
//! A black box tester: it knows the wire types and the command line of the daemon, and none of its crates.

mod binary;
mod browser;
mod control_plane;
mod daemon;
mod dir;
mod dns;
pub mod envoy;
mod error;
mod fingerprint;
pub mod hbone;
mod lab;
pub mod load;
mod mesh_file;
mod net;
mod nginx;
mod node;
mod place;
mod pod;
mod process;
mod sync;
mod tap;
pub mod tester;

pub use browser::{Browser, ColorScheme};
pub use control_plane::{
    Answer, Authority, CaMode, ControlPlane, Credential, Crowd, DiscoveryFault, Issued, Refused,
    Validity,
};
pub use daemon::{Daemon, DaemonOptions, binary as daemon_binary};
pub use dns::Dns;
pub use envoy::{Envoy, EnvoyProgram};
pub use error::{Doing, LabError, Result};
pub use fingerprint::Fingerprint;
pub use lab::Lab;
pub use mesh_file::{
    ApplicationProtocol, ApplicationTunnel, BalancingMode, Cidr, Gateway, Health, IpFamilies,
    LoadBalancing, Match, MeshFile, Policy, PolicyAction, PolicyScope, Protocol, Scope, Service,
    WeightedGateway, Workload,
};
pub use net::{CONTROL_PLANE_V4, CONTROL_PLANE_V6, Namespace, OUTSIDE_HOST_V4, OUTSIDE_HOST_V6};
pub use nginx::Nginx;
pub use node::Node;
pub use place::Place;
pub use pod::Pod;
pub use process::{Output, Process, Program};
pub use tap::{Seen, Tap};
