//! Everything that touches the kernel by number or pointer: network namespaces, socket options, netlink,
//! cgroups. The only user-space crate with `unsafe` in it; no async, no knowledge of the mesh.

#![expect(unsafe_code, reason = "this crate is the place for it")]

pub mod bpffs;
pub mod cgroup;
pub mod heap;
pub mod interface;
pub mod memory;
mod netlink;
pub mod netns;
pub mod packet;
pub mod policy_routing;
pub mod socket;
pub mod sysctl;
