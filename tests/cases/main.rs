//! End-to-end cases: real daemons, real traffic, one lab for each case.

#![expect(clippy::unwrap_used, reason = "in a test a panic is how it fails")]

mod enrollment;
mod identity;
mod lifecycle;
mod mesh;
mod traffic;
