//! SQLite's files as bytes: the database header, the write-ahead log (WAL) and the index of the WAL. No IO, no locks.
//!
//! Every parser is total: any bytes give a value or an error. What SQLite writes is described in its `fileformat2` and
//! `walformat` documents; the offsets here are theirs. Numbers in the database and the WAL are big-endian, numbers in
//! the wal-index are the machine's own (it is shared memory, never moved between machines).

#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod header;
pub mod index;
pub mod wal;

use crate::page::{PageNo, PageSize};

/// The page that holds the byte at 2^30: SQLite locks ranges of it on some systems and never stores anything there.
///
/// ```
/// use everwhen_engine::page::PageSize;
/// use everwhen_engine::sqlite::lock_byte_page;
/// assert_eq!(lock_byte_page(PageSize::new(4096).unwrap()).get(), 262_145);
/// ```
#[must_use]
pub fn lock_byte_page(size: PageSize) -> PageNo {
    PageNo::new((1 << 30) / size.get() + 1).unwrap_or(PageNo::FIRST)
}

/// The big-endian number at `offset`; 0 when the bytes end before it. Callers check the length first.
fn be32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The page size as SQLite writes it in two bytes: 1 stands for 65 536.
fn page_size_from_u16(stored: u16) -> Option<PageSize> {
    PageSize::new(if stored == 1 { 65_536 } else { u32::from(stored) })
}
