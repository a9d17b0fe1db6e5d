//! How a process that runs for months, beside many databases, stays small: what C libraries keep is bounded here. A
//! command that ends soon is faster without.
//!
//! glibc maps large blocks one by one and unmaps them when they are freed, but raises its idea of "large" to the size
//! of each block that is freed, up to 32 MiB, and what it trims with it. A base takes packs of 8 MiB, so after the
//! first one every arena keeps tens of megabytes that nobody uses, and each base leaves a little more. A bound that is
//! set stays.
//!
//! SQLite gives each connection memory ahead of its need: 48 KB for small objects, 20 pages for its cache. There are four
//! connections to a database, and all they ever read is its first page.

use std::ffi::{c_int, c_void};

use rusqlite::ffi;

/// Blocks from this size are mapped: more than a chunk's buffers need, less than any pack.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: i32 = 256 * 1024;

/// Makes this process keep little. To be called before anything in it uses SQLite.
pub(crate) fn keep_little() {
    give_back();
    no_memory_ahead();
}

/// Has SQLite's connections take memory when they need it.
#[expect(unsafe_code, reason = "SQLite takes settings of the process only through its C interface")]
fn no_memory_ahead() {
    const NO_BUFFER: *mut c_void = std::ptr::null_mut();
    const NONE: c_int = 0;
    // SAFETY: SQLite is not in use yet (the caller's part), so no thread reads what is set. The arguments are of the types
    // that sqlite3.h gives for the two verbs: (int size, int count), and (void* buffer, int size, int count); "no buffer, 0
    // of 0 bytes" is its way to say that nothing is taken ahead.
    let taken = unsafe {
        [
            ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, NONE, NONE),
            ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, NO_BUFFER, NONE, NONE),
        ]
    };
    if taken != [ffi::SQLITE_OK; 2] {
        tracing::debug!("SQLite did not take the settings ({taken:?}); connections are larger");
    }
}

/// Makes the allocator give back what was freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc takes the setting only through its C interface or the environment")]
fn give_back() {
    // SAFETY: mallopt(3) takes two numbers and no pointers, and is safe to call from any thread (MT-Safe init).
    let taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) };
    if taken == 0 {
        tracing::debug!("the allocator did not take the setting; more memory stays resident");
    }
}

/// Other C libraries have no such habit, or no such setting.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}
