//! The programs of the node: attached once, at the root of the cgroup hierarchy.
#![no_std]
#![no_main]

mod connect;
mod connect4;
mod connect6;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Lets the programs use helpers that the kernel keeps for GPL-compatible ones.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
