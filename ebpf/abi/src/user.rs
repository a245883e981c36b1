//! Lets the daemon read and write the shared types in maps.

#![expect(
    unsafe_code,
    reason = "the layout promise of shared types is made here"
)]

use crate::connect::PodEntry;
use crate::lookup::PodSettings;

// SAFETY: `repr(C)`, only `u32` in it, no padding (asserted beside the type): any bytes are a valid value.
unsafe impl aya::Pod for PodEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for PodSettings {}
