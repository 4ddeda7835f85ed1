//! The memory of this process.

/// What is kept at the end of the heap for the next calls, in bytes.
#[cfg(target_env = "gnu")]
const KEPT: usize = 256 << 10;

/// Gives the kernel back what is free of the heap, wherever in it that is (malloc_trim(3)). glibc itself only gives back what is
/// free at its end, and after a crowd there is mostly something small left there.
pub(super) fn give_back() {
    // SAFETY: it takes the allocator's own locks, and touches only memory that is free.
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "a call of the C library")]
    unsafe {
        nix::libc::malloc_trim(KEPT);
    }
}
