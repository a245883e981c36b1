//! HBONE spoken by hand: a client that does what a node proxy would never do, and a server that is not one.
//!
//! Both take any certificate of the other side and tell whose it was, so that it is always the daemon that refuses.

mod client;
mod forward;
mod gateway;
mod server;
mod tls;

pub use client::{Answer, Client, Refusal, Stage};
pub use gateway::Passed;
pub use server::{Connect, Server};

/// The port that node proxies listen on in every enrolled pod.
pub const PORT: u16 = 15008;
