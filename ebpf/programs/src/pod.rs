//! The program of a pod: one instance per pod, attached to its network namespace.
#![no_std]
#![no_main]

mod object;
mod sk_lookup;
