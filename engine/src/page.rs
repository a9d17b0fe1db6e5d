//! Pages: the fixed-size blocks a database image is made of, and the checksum of a whole image.
//!
//! The state checksum is the wrapping sum of the page hashes of all pages of the image, so one commit updates it by
//! its changed pages alone: subtract the old hashes, add the new. The page number is part of each hash: two pages
//! that trade places change the sum. It guards against accidents; against forgery stand the BLAKE3 names and chains, which
//! `verify` compares in full, and encryption, which every read checks.

use std::fmt;
use std::num::NonZeroU32;

/// The number of a page in its image, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(NonZeroU32);

impl PageNo {
    /// The first page.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The page with this number; `None` for 0.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number, at least 1.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Its place in a table that begins with page 1.
    #[must_use]
    pub fn index(self) -> usize {
        self.get() as usize - 1
    }

    /// Where it begins in an image file, in bytes.
    #[must_use]
    pub fn offset(self, size: PageSize) -> u64 {
        self.index() as u64 * u64::from(size.get())
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes in a page: a power of two from 512 to 65 536. An invalid one cannot exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The smallest.
    pub const MIN: Self = Self(512);
    /// The largest.
    pub const MAX: Self = Self(65_536);

    /// This many bytes, if that is a valid page size.
    #[must_use]
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (512..=65_536).contains(&bytes)).then_some(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// In bytes, for slices.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// XXH3-64 of a page's bytes, seeded with its page number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageHash(u64);

impl PageHash {
    /// Hashes one page.
    #[must_use]
    pub fn of(page: PageNo, image: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(image, u64::from(page.get())))
    }

    /// The raw value, for tables kept on disk.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// Wraps a value read from a table.
    #[must_use]
    pub fn from_raw(value: u64) -> Self {
        Self(value)
    }
}

/// The checksum of a whole image: the wrapping sum of its page hashes. The empty image has 0. Text: 16 hex digits.
///
/// Pages that a source never stores (SQLite's lock-byte page) are left out of the sum on every side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StateChecksum(u64);

impl StateChecksum {
    /// Of the image without pages.
    pub const EMPTY: Self = Self(0);

    /// Takes a page into the sum.
    #[must_use]
    pub fn with(self, hash: PageHash) -> Self {
        Self(self.0.wrapping_add(hash.0))
    }

    /// Takes a page out of the sum.
    #[must_use]
    pub fn without(self, hash: PageHash) -> Self {
        Self(self.0.wrapping_sub(hash.0))
    }

    /// Joins the sums of two disjoint sets of pages.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The raw value, for records.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// Wraps a value read from a record.
    #[must_use]
    pub fn from_raw(value: u64) -> Self {
        Self(value)
    }
}

impl fmt::Display for StateChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_does_not_depend_on_the_order_but_on_the_place() {
        let (one, two) = (PageNo::FIRST, PageNo::new(2).unwrap());
        let (a, b) = ([1u8; 512], [2u8; 512]);
        let sum = StateChecksum::EMPTY.with(PageHash::of(one, &a)).with(PageHash::of(two, &b));
        assert_eq!(sum, StateChecksum::EMPTY.with(PageHash::of(two, &b)).with(PageHash::of(one, &a)));
        assert_ne!(sum, StateChecksum::EMPTY.with(PageHash::of(one, &b)).with(PageHash::of(two, &a)));
        assert_eq!(sum.without(PageHash::of(two, &b)), StateChecksum::EMPTY.with(PageHash::of(one, &a)));
    }

    #[test]
    fn only_valid_page_sizes_exist() {
        assert!(PageSize::new(4096).is_some());
        for bytes in [0, 1, 256, 513, 131_072, u32::MAX] {
            assert!(PageSize::new(bytes).is_none(), "{bytes}");
        }
    }
}
