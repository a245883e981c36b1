//! End-to-end cases: real daemons, real traffic, one lab for each case.

#![expect(clippy::unwrap_used, reason = "in a test a panic is how it fails")]

mod access;
mod admin;
mod bench;
mod cli;
mod control_plane;
mod demo;
mod enrollment;
mod envoy;
mod explain;
mod hostile;
mod identity;
mod inbound;
mod lifecycle;
mod live_policy;
mod local_api;
mod mesh;
mod metrics;
mod monitoring;
mod names;
mod networks;
mod no_way;
mod on_demand;
mod outages;
mod own_ports;
mod page;
mod policy;
mod prove;
mod readiness;
mod reference;
mod refusals;
mod rolling;
mod routes;
mod spans;
mod traffic;
mod trust;
mod tunnels;
mod waypoint;
