//! Whom a node believes: the roots of the mesh and of the control plane as they change, revoked certificates, the
//! cryptography on offer; and that nobody gets to see what is secret.

mod control_plane;
mod negotiation;
mod revocation;
mod rotation;
mod secrets;
