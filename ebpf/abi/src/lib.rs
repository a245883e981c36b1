//! What the eBPF programs and the daemon agree on.
#![no_std]

/// Set by the connect hook on an app's socket: take the packet round to `lo`, to the outbound listener.
pub const CAPTURE_MARK: u32 = 0x7a74_0001;
/// Set by the daemon on its connections to an app, and carried back by the app's answers.
pub const DELIVERY_MARK: u32 = 0x7a74_0002;
