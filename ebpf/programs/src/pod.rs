//! The program of a pod: one instance per pod, attached to its network namespace.
#![no_std]
#![no_main]

mod sk_lookup;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Lets the programs use helpers that the kernel keeps for GPL-compatible ones.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
