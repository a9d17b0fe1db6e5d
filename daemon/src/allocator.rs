//! What the C library's allocator gives back to the system.
//!
//! glibc maps large blocks one by one and unmaps them when they are freed, but raises its idea of "large" to the size
//! of each block that is freed, up to 32 MiB, and what it trims with it. A base takes packs of 8 MiB, so after the
//! first one every arena keeps tens of megabytes that nobody uses, and each base leaves a little more. A bound that is
//! set stays.

/// Blocks from this size are mapped: more than a chunk's buffers need, less than any pack.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: i32 = 256 * 1024;

/// Makes a process that runs for months give back what it has freed. For the daemon: a command that ends soon is faster
/// without.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc takes the setting only through its C interface or the environment")]
pub(crate) fn give_back() {
    // SAFETY: mallopt(3) takes two numbers and no pointers, and is safe to call from any thread (MT-Safe init).
    let taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
    if taken == 0 {
        tracing::debug!("the allocator did not take the setting; more memory stays resident");
    }
}

/// Other C libraries have no such habit, or no such setting.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}
