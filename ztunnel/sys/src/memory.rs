//! What the allocator keeps of what was freed.

/// Gives memory that was freed back to the kernel. The allocator does that by itself for large blocks only, so what
/// a passing peak left in small ones would stay with the process for good. Takes milliseconds, during which threads
/// that share an arena with freed blocks wait to allocate: for after a peak.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes no pointer, and locks each arena while it works on it, so it may run beside any
    // allocation of any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
