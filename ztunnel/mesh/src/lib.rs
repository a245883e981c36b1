//! The brain: what the mesh looks like, and what follows from it for one connection.
//!
//! Data in, decision out. Nothing here does I/O, reads a clock or draws its own random numbers, and nothing
//! here panics on what the control plane says; `no_std` makes the compiler refuse most of that.
#![no_std]

extern crate alloc;

pub mod addr;
pub mod authorize;
pub mod balance;
pub mod decide;
mod endpoints;
#[cfg(test)]
mod fixture;
mod flow;
pub mod inbound;
pub mod name;
pub mod partial;
mod policies;
pub mod policy;
mod policy_set;
mod ranges;
pub mod reason;
pub mod service;
mod snapshot;
pub mod step;
mod trie;
pub mod workload;

pub use balance::Rng;
pub use endpoints::Endpoint;
pub use policy::Policy;
pub use reason::Refusal;
pub use service::Service;
pub use snapshot::{Delta, Mesh, Removal, Upsert};
pub use step::Step;
pub use workload::Workload;
