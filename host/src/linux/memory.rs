//! The memory of this process.

/// What is kept at the end of the heap for the next calls, in bytes.
#[cfg(target_env = "gnu")]
const KEPT: usize = 256 << 10;

/// How much has to be free to be worth it, in bytes: what one call leaves behind the next one needs, and a page that was given
/// back costs it a fault.
#[cfg(target_env = "gnu")]
const WORTH_IT: usize = 2 << 20;

/// Gives the kernel back what is free of the heap, wherever in it that is (malloc_trim(3)), if that is much. glibc itself only
/// gives back what is free at its end, and after a crowd there is mostly something small left there.
pub(super) fn give_back() {
    // SAFETY: they take the allocator's own locks, and touch only memory that is free.
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "calls of the C library")]
    unsafe {
        if nix::libc::mallinfo2().fordblks >= WORTH_IT {
            nix::libc::malloc_trim(KEPT);
        }
    }
}
