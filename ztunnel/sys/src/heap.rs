//! What the allocator, jemalloc, can tell about the heap, and what it and that of the C library give back when asked.
//!
//! In a program with another allocator there is nothing to tell: these calls find an allocator that nobody uses.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::ptr::null_mut;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tikv_jemalloc_ctl::raw;
use tikv_jemalloc_sys::mallctl;

/// Whether the allocator was built and started so that it can take samples.
#[must_use]
pub fn can_sample() -> bool {
    flag(b"opt.prof\0")
}

/// Whether allocations are sampled now.
#[must_use]
pub fn is_sampling() -> bool {
    flag(b"prof.active\0")
}

/// Samples allocations from now on, or no more.
///
/// # Errors
/// When the allocator cannot.
pub fn sample(active: bool) -> io::Result<()> {
    // SAFETY: `prof.active` is a C `bool`, whose values are those of `bool`.
    unsafe { raw::write(b"prof.active\0", active) }.map_err(failed)
}

/// The samples whose memory is still in use, in the text format of jemalloc (`heap_v2`).
///
/// # Errors
/// When the allocator cannot tell, or there is no memory for the answer.
pub fn samples() -> io::Result<String> {
    let mut file = File::from(memfd_create(c"heap", MFdFlags::MFD_CLOEXEC)?);
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    // SAFETY: `prof.dump` is a pointer to a path that ends with a zero; `path` lives until the call is over, which is when
    // jemalloc has written the file.
    unsafe { raw::write(b"prof.dump\0", path.as_ptr()) }.map_err(failed)?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Gives back what this thread keeps of freed memory for its next allocations. It fills again as it is used.
pub fn give_back_thread_cache() {
    let name = c"thread.tcache.flush";
    // SAFETY: this control takes no value and gives none, so all pointers but that to its name are null.
    // It fails only where there is no such cache.
    unsafe { mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
}

/// Gives back what libraries in C (that for cryptography) have freed: they allocate from the C library, which keeps
/// whatever it once had.
pub fn give_back_of_c() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function takes no pointer, and locks each arena while it works on it, so it may run beside any
    // allocation of any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn flag(name: &[u8]) -> bool {
    // SAFETY: the names given here are C `bool`s, whose values are those of `bool`.
    unsafe { raw::read(name) }.unwrap_or(false)
}

fn failed(err: tikv_jemalloc_ctl::Error) -> io::Error {
    io::Error::other(err.to_string())
}
