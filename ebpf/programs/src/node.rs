//! The programs of the node: attached once, at the root of the cgroup hierarchy.
#![no_std]
#![no_main]

mod connect;
mod connect4;
mod connect6;
mod object;
