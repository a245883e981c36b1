//! The brain: what the mesh looks like, and what follows from it for one connection.
//!
//! Data in, decision out. Nothing here does I/O, reads a clock or draws its own random numbers, and nothing
//! here panics on what the control plane says; `no_std` makes the compiler refuse most of that.
#![no_std]

extern crate alloc;

pub mod addr;
pub mod authorize;
mod balance;
pub mod decide;
#[cfg(test)]
mod fixture;
pub mod inbound;
mod listed;
pub mod name;
pub mod partial;
pub mod policy;
pub mod reason;
pub mod service;
mod shard;
mod snapshot;
pub mod workload;

pub use balance::Rng;
pub use policy::Policy;
pub use reason::Refusal;
pub use service::Service;
pub use snapshot::{Delta, Endpoint, Mesh, Removal, Upsert};
pub use workload::Workload;
