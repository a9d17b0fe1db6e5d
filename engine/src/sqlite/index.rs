//! The head of the wal-index (the `-shm` file): the one place that says which frames are committed.
//!
//! SQLite writes the 48-byte header twice, the second copy first. Two equal copies with a right checksum are a state
//! that was published; anything else is a writer at work (or one that died at it) and is read again. All numbers are
//! in the machine's own order, but for the salts, which are kept as the WAL has them.

use super::wal::{RunningChecksum, Salts, WordOrder};
use super::{be32, page_size_from_u16};
use crate::page::PageSize;

/// Bytes of the two copies of the header.
pub const HEAD_LEN: usize = 96;
/// Where the number of backfilled frames stands.
pub const BACKFILL_OFFSET: u64 = 96;
/// Where stands how many frames were, or may have been, written to the database file. Old versions of SQLite leave it 0.
pub const BACKFILL_ATTEMPTED_OFFSET: u64 = 128;
/// The byte whose lock makes a connection the one writer.
pub const WRITE_LOCK_OFFSET: u64 = 120;
/// The byte that every connection holds shared while it has the database open.
pub const OPEN_LOCK_OFFSET: u64 = 128;
/// The byte whose lock makes a connection the one checkpointer.
pub const CHECKPOINT_LOCK_OFFSET: u64 = 121;

/// The bytes whose locks are those of readers, slot 0 first.
pub const READ_LOCKS_OFFSET: u64 = 123;
/// How many there are.
pub const READ_LOCKS: u64 = 5;

const COPY_LEN: usize = 48;
const VERSION: u32 = 3_007_000;

/// What a wal-index publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHead {
    /// Counts up with every transaction (and wraps).
    pub change: u32,
    /// Bytes in a page; `None` in an index that no transaction has been written to yet.
    pub page_size: Option<PageSize>,
    /// The number of committed frames, called `mx` in SQLite.
    pub frames: u32,
    /// The size of the image in pages.
    pub image_pages: u32,
    /// The running checksum at the last committed frame. Means nothing while `frames` is 0.
    pub checksum: RunningChecksum,
    /// The generation.
    pub salts: Salts,
    /// How the WAL's checksums are computed.
    pub order: WordOrder,
}

/// Why the head of a wal-index could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// A writer is at work: the copies differ or the checksum does not match. Read again.
    #[error("it is being written")]
    Torn,
    /// Nobody has set it up yet.
    #[error("it is not set up yet")]
    NotSetUp,
    /// A format of the future.
    #[error("its format version is {found}, expected 3007000")]
    Version {
        /// The field's value.
        found: u32,
    },
}

impl IndexHead {
    /// Reads the two copies of the header.
    ///
    /// # Errors
    /// [`IndexError`]; [`IndexError::Torn`] is ordinary and passes.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let Some(head) = bytes.first_chunk::<HEAD_LEN>() else { return Err(IndexError::NotSetUp) };
        let (first, second) = head.split_at(COPY_LEN);
        if first != second {
            return Err(IndexError::Torn);
        }
        if first.iter().all(|&byte| byte == 0) || first.get(12) == Some(&0) {
            return Err(IndexError::NotSetUp);
        }
        let sums = RunningChecksum(native32(first, 40), native32(first, 44));
        if RunningChecksum::default().over(first.get(..40).unwrap_or_default(), native_order()) != sums {
            return Err(IndexError::Torn);
        }
        let version = native32(first, 0);
        if version != VERSION {
            return Err(IndexError::Version { found: version });
        }
        Ok(Self {
            change: native32(first, 8),
            page_size: page_size_from_u16((native32(first, 12) >> page_size_shift()) as u16),
            frames: native32(first, 16),
            image_pages: native32(first, 20),
            checksum: RunningChecksum(native32(first, 24), native32(first, 28)),
            salts: Salts(be32(first, 32), be32(first, 36)),
            order: if first.get(13) == Some(&0) { WordOrder::Little } else { WordOrder::Big },
        })
    }
}

/// Reads a number as this machine's SQLite wrote it into shared memory.
#[must_use]
pub fn native32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Of the four bytes from 12 on, the page size is the last two, in the machine's order.
const fn page_size_shift() -> u32 {
    if cfg!(target_endian = "little") { 16 } else { 0 }
}

const fn native_order() -> WordOrder {
    if cfg!(target_endian = "little") { WordOrder::Little } else { WordOrder::Big }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own byte order")]
    fn sample(frames: u32, salts: Salts) -> Vec<u8> {
        let mut copy = Vec::new();
        for value in [VERSION, 0, 77] {
            copy.extend(value.to_ne_bytes());
        }
        copy.extend([1, 0]);
        copy.extend(4096u16.to_ne_bytes());
        for value in [frames, 5, 11, 12] {
            copy.extend(value.to_ne_bytes());
        }
        copy.extend(salts.0.to_be_bytes());
        copy.extend(salts.1.to_be_bytes());
        let sums = RunningChecksum::default().over(&copy, native_order());
        copy.extend(sums.0.to_ne_bytes());
        copy.extend(sums.1.to_ne_bytes());
        [copy.clone(), copy].concat()
    }

    #[test]
    fn a_published_head_is_read() {
        let head = IndexHead::parse(&sample(9, Salts(1, 2))).unwrap();
        assert_eq!((head.frames, head.image_pages, head.change), (9, 5, 77));
        assert_eq!(head.page_size, PageSize::new(4096));
        assert_eq!((head.salts, head.checksum), (Salts(1, 2), RunningChecksum(11, 12)));
    }

    #[test]
    fn a_head_that_is_all_zero_is_not_set_up() {
        assert_eq!(IndexHead::parse(&[0; HEAD_LEN]), Err(IndexError::NotSetUp));
        assert_eq!(IndexHead::parse(&[]), Err(IndexError::NotSetUp));
    }

    proptest! {
        #[test]
        fn a_head_with_a_flipped_bit_is_not_used(bit in 0usize..HEAD_LEN * 8) {
            let mut bytes = sample(3, Salts(8, 9));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(IndexHead::parse(&bytes), Err(IndexError::Torn));
        }

        #[test]
        fn a_bit_flipped_in_both_copies_is_not_used_either(bit in 0usize..COPY_LEN * 8) {
            let mut bytes = sample(3, Salts(8, 9));
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes[COPY_LEN + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(IndexHead::parse(&bytes).is_err());
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            let _ = IndexHead::parse(&bytes);
        }
    }
}
