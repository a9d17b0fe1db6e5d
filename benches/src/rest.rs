//! The machine at rest, as each measurement is to find it: nothing left to write, and free memory that is really there.

use std::hint::black_box;
use std::time::Duration;

use crate::world::Scale;

/// A virtual machine hands memory that was freed back to its host after two seconds (Linux, `mm/page_reporting.c`).
const UNTIL_HANDED_BACK: Duration = Duration::from_millis(2500);
/// Bytes of a page of memory, or a part of one.
const PAGE: usize = 4096;

/// Writes to the disk what is still to be written. Then has the host give back what memory the next measurement may fill
/// files with: whoever is first to touch memory pays for that, up to a second a GiB, and in rounds it would always be the
/// same one, since it depends on how long the one before took.
pub fn rest(scale: Scale) {
    rustix::fs::sync();
    std::thread::sleep(scale.pick(Duration::ZERO, Duration::from_millis(500), UNTIL_HANDED_BACK));
    touch(scale.pick(1, 256, 2560).min(free_mib() / 2));
}

/// Fills so many MiB of memory, and frees them.
fn touch(mib: usize) {
    let mut memory = vec![0_u8; mib << 20];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    black_box(&memory);
}

/// Memory that can be had without taking it from a program, in MiB; 0 where that is not told.
fn free_mib() -> usize {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.unwrap_or(0) / 1024
}
