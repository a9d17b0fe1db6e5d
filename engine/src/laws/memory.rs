//! How much memory a piece of work takes at most, counted where it is taken.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with a count for each thread. A test binary or fuzz target makes it its global one; without
/// it [`within`] measures nothing.
///
/// It does not see what C code takes: zstd's contexts (which take nothing by the word of their input) and SQLite.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

fn count(change: isize) {
    let now = NOW.get() + change;
    NOW.set(now);
    MOST.set(MOST.get().max(now));
}

#[expect(unsafe_code, reason = "an allocator is unsafe to implement; this one passes every call on as it is")]
// SAFETY: every call goes to the system's allocator unchanged. The counters are plain cells without destructor, made
// without allocating, so they can be used from here at any time of a thread's life.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        unsafe { System.dealloc(place, layout) }
    }
    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.cast_signed() - layout.size().cast_signed());
        unsafe { System.realloc(place, layout, size) }
    }
}

/// Runs `work` and makes sure that it never held more than `limit` bytes of new memory at once.
///
/// # Panics
/// When it did.
pub fn within<T>(limit: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.get();
    MOST.set(before);
    let result = work();
    let most = (MOST.get() - before).cast_unsigned();
    assert!(most <= limit, "{most} bytes of memory were taken, at most {limit} are allowed");
    result
}
