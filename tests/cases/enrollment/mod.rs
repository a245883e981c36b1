//! Pods come into the mesh and leave it: what is accepted, what is refused, and that nothing is left behind.

mod mesh_pods;
mod refusals;
mod repeated;
mod status;
mod traces;
