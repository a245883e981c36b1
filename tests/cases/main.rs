//! End-to-end cases: real daemons, real traffic, one lab for each case.

mod enrollment;
mod identity;
mod lifecycle;
mod mesh;
mod traffic;
