//! The brain: what the mesh looks like, and what follows from it for one connection.
//!
//! Data in, decision out. Nothing here does I/O, reads a clock or draws its own random numbers, and nothing
//! here panics on what the control plane says; `no_std` makes the compiler refuse most of that.
#![no_std]

extern crate alloc;

pub mod addr;
pub mod name;
pub mod reason;
