//! The write-ahead log: a 32-byte header, then frames of 24 bytes and a page each, chained by a running checksum.
//!
//! A frame belongs to the WAL's present generation when it carries the header's salts and continues the checksum of the
//! frame before it. That makes it well-formed, not committed: what is committed only the wal-index says
//! ([`super::index`]). A writer killed at its fsync leaves a perfect commit frame of a transaction that never was.

use super::be32;
use crate::page::{PageNo, PageSize};

/// Bytes of the header.
pub const HEADER_LEN: usize = 32;
/// Bytes before the page in each frame.
pub const FRAME_HEADER_LEN: usize = 24;

const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// The two random numbers that name one generation of a WAL, its life between two resets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salts(pub u32, pub u32);

/// Which way round the checksum reads its words: the machine that created the WAL decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

/// SQLite's running checksum: two sums over pairs of 32-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RunningChecksum(pub u32, pub u32);

impl RunningChecksum {
    /// Goes on over `bytes`, whose length is a multiple of 8 (a rest is left out).
    #[must_use]
    pub fn over(self, bytes: &[u8], order: WordOrder) -> Self {
        match order {
            WordOrder::Little => self.sum(bytes, u32::from_le_bytes),
            WordOrder::Big => self.sum(bytes, u32::from_be_bytes),
        }
    }

    #[inline]
    fn sum(self, bytes: &[u8], word: impl Fn([u8; 4]) -> u32) -> Self {
        let (pairs, _) = bytes.as_chunks::<8>();
        let (mut one, mut two) = (self.0, self.1);
        for &[a, b, c, d, e, f, g, h] in pairs {
            one = one.wrapping_add(word([a, b, c, d])).wrapping_add(two);
            two = two.wrapping_add(word([e, f, g, h])).wrapping_add(one);
        }
        Self(one, two)
    }

    /// What it was before it went on over `bytes`: the inverse of [`RunningChecksum::over`].
    #[must_use]
    pub fn before(self, bytes: &[u8], order: WordOrder) -> Self {
        let word = |bytes| match order {
            WordOrder::Little => u32::from_le_bytes(bytes),
            WordOrder::Big => u32::from_be_bytes(bytes),
        };
        let (pairs, _) = bytes.as_chunks::<8>();
        let (mut one, mut two) = (self.0, self.1);
        for &[a, b, c, d, e, f, g, h] in pairs.iter().rev() {
            two = two.wrapping_sub(word([e, f, g, h])).wrapping_sub(one);
            one = one.wrapping_sub(word([a, b, c, d])).wrapping_sub(two);
        }
        Self(one, two)
    }
}

/// The header of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Bytes in a page.
    pub page_size: PageSize,
    /// The generation.
    pub salts: Salts,
    /// How the checksums of this file are computed.
    pub order: WordOrder,
    /// The checksum the first frame goes on from.
    pub checksum: RunningChecksum,
}

/// Why 32 bytes are not the header of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalHeaderError {
    /// The file ends before the header does.
    #[error("it has {found} bytes, a header has 32")]
    Short {
        /// Bytes found.
        found: usize,
    },
    /// Not a WAL.
    #[error("it begins with {found:08x}, not 377f0682 or 377f0683")]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// A format of the future.
    #[error("its format version is {found}, expected 3007000")]
    Version {
        /// The field's value.
        found: u32,
    },
    /// A size that SQLite does not have.
    #[error("its page size field is {found}, which is no page size")]
    PageSize {
        /// The field's value.
        found: u32,
    },
    /// Torn or altered.
    #[error("its checksum does not match its bytes")]
    Checksum,
}

impl WalHeader {
    /// Reads the header from the beginning of the file.
    ///
    /// # Errors
    /// [`WalHeaderError`] says what is not right.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalHeaderError> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(WalHeaderError::Short { found: bytes.len() });
        };
        let order = match be32(header, 0) {
            MAGIC => WordOrder::Little,
            magic if magic == MAGIC | 1 => WordOrder::Big,
            found => return Err(WalHeaderError::Magic { found }),
        };
        let version = be32(header, 4);
        if version != VERSION {
            return Err(WalHeaderError::Version { found: version });
        }
        let checksum = RunningChecksum::default().over(&header[..24], order);
        if checksum != RunningChecksum(be32(header, 24), be32(header, 28)) {
            return Err(WalHeaderError::Checksum);
        }
        let stored = be32(header, 8);
        let page_size = PageSize::new(stored).ok_or(WalHeaderError::PageSize { found: stored })?;
        Ok(Self { page_size, salts: Salts(be32(header, 16), be32(header, 20)), order, checksum })
    }

    /// Writes the header as SQLite does; its checksum is computed. For tests that build a WAL by hand.
    #[must_use]
    pub fn encode(page_size: PageSize, salts: Salts, order: WordOrder) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let magic = if order == WordOrder::Big { MAGIC | 1 } else { MAGIC };
        for (place, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip([
            magic,
            VERSION,
            page_size.get(),
            0,
            salts.0,
            salts.1,
        ]) {
            *place = value.to_be_bytes();
        }
        let (body, sums) = bytes.split_at_mut(24);
        let checksum = RunningChecksum::default().over(body, order);
        sums.copy_from_slice(&be_pair(checksum.0, checksum.1));
        bytes
    }
}

/// What stands before the page in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page the frame holds.
    pub page: PageNo,
    /// The size of the image in pages after the transaction, in its last frame; `None` in the others.
    pub commit: Option<PageNo>,
    /// The generation the frame was written in.
    pub salts: Salts,
    /// The running checksum after this frame.
    pub checksum: RunningChecksum,
}

impl FrameHeader {
    /// Reads the header of a frame. `None` when the bytes are too few or name page 0, which is never a frame.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<FRAME_HEADER_LEN>()?;
        Some(Self {
            page: PageNo::new(be32(header, 0))?,
            commit: PageNo::new(be32(header, 4)),
            salts: Salts(be32(header, 8), be32(header, 12)),
            checksum: RunningChecksum(be32(header, 16), be32(header, 20)),
        })
    }

    /// Whether SQLite has put off the salts and the checksum: it does where it overwrites frames of the transaction under
    /// way, and fills them in at the commit. Releases before the one that mends `sqlite3WalSavepointUndo` (3.40 is one
    /// before) forget to for some frames after a cache spill and a rollback to a savepoint.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.salts == Salts(0, 0) && self.checksum == RunningChecksum(0, 0)
    }
}

/// Checks that a frame (header and page) belongs to the generation and continues the chain from `before`.
/// `None` when it does not.
#[must_use]
pub fn check_frame(
    frame: &[u8],
    salts: Salts,
    before: RunningChecksum,
    order: WordOrder,
) -> Option<FrameHeader> {
    let header = FrameHeader::parse(frame)?;
    let after = before.over(frame.get(..8)?, order).over(frame.get(FRAME_HEADER_LEN..)?, order);
    (header.salts == salts && header.checksum == after).then_some(header)
}

/// The checksum that a frame (header and page) continues if its own is right.
#[must_use]
pub fn continued_by(frame: &[u8], order: WordOrder) -> Option<RunningChecksum> {
    let header = FrameHeader::parse(frame)?;
    Some(header.checksum.before(frame.get(FRAME_HEADER_LEN..)?, order).before(frame.get(..8)?, order))
}

/// Appends a frame as SQLite writes it and gives the checksum after it. For tests that build a WAL by hand.
pub fn push_frame(
    wal: &mut Vec<u8>,
    page: PageNo,
    commit: Option<PageNo>,
    image: &[u8],
    salts: Salts,
    before: RunningChecksum,
    order: WordOrder,
) -> RunningChecksum {
    let head = be_pair(page.get(), commit.map_or(0, PageNo::get));
    let after = before.over(&head, order).over(image, order);
    wal.extend_from_slice(&head);
    wal.extend_from_slice(&be_pair(salts.0, salts.1));
    wal.extend_from_slice(&be_pair(after.0, after.1));
    wal.extend_from_slice(image);
    after
}

/// Where frame `number` (from 1) begins in the file, in bytes.
#[must_use]
pub fn frame_offset(number: u32, page_size: PageSize) -> u64 {
    HEADER_LEN as u64
        + u64::from(number.saturating_sub(1)) * (FRAME_HEADER_LEN as u64 + u64::from(page_size.get()))
}

fn be_pair(one: u32, two: u32) -> [u8; 8] {
    (u64::from(one) << 32 | u64::from(two)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(number: u32) -> PageNo {
        PageNo::new(number).unwrap()
    }

    #[test]
    fn the_first_bytes_of_a_real_wal_are_read() {
        // `sqlite3 x.db 'pragma page_size=512; pragma journal_mode=wal; create table t(a)'` on a little-endian machine
        // gives this layout; the salts were drawn by SQLite.
        let bytes = WalHeader::encode(PageSize::MIN, Salts(0x3cc0_9f8c, 0x11a1_9e9b), WordOrder::Little);
        let header = WalHeader::parse(&bytes).unwrap();
        assert_eq!(header.salts, Salts(0x3cc0_9f8c, 0x11a1_9e9b));
        assert_eq!(header.page_size, PageSize::MIN);
    }

    #[test]
    fn a_frame_of_another_generation_is_refused() {
        let mut wal = Vec::new();
        let start = RunningChecksum(1, 2);
        push_frame(&mut wal, page(3), None, &[9; 512], Salts(5, 6), start, WordOrder::Big);
        assert!(check_frame(&wal, Salts(5, 6), start, WordOrder::Big).is_some());
        assert!(check_frame(&wal, Salts(6, 6), start, WordOrder::Big).is_none());
        assert!(check_frame(&wal, Salts(5, 6), start, WordOrder::Little).is_none());
        assert!(check_frame(&wal, Salts(5, 6), RunningChecksum(2, 2), WordOrder::Big).is_none());
    }

    proptest! {
        #[test]
        fn a_header_is_read_back_in_both_word_orders(one: u32, two: u32, shift in 9u32..=16, big: bool) {
            let order = if big { WordOrder::Big } else { WordOrder::Little };
            let size = PageSize::new(1 << shift).unwrap();
            let bytes = WalHeader::encode(size, Salts(one, two), order);
            let header = WalHeader::parse(&bytes).unwrap();
            prop_assert_eq!((header.page_size, header.salts, header.order), (size, Salts(one, two), order));
        }

        #[test]
        fn a_header_with_a_flipped_bit_is_refused(bit in 0usize..256, one: u32, big: bool) {
            let order = if big { WordOrder::Big } else { WordOrder::Little };
            let mut bytes = WalHeader::encode(PageSize::MIN, Salts(one, 7), order);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(WalHeader::parse(&bytes).is_err());
        }

        #[test]
        fn a_frame_with_a_flipped_bit_is_refused(bit in 0usize..(24 + 512) * 8, seed: u8, big: bool) {
            let order = if big { WordOrder::Big } else { WordOrder::Little };
            let (salts, start) = (Salts(1, 2), RunningChecksum(3, 4));
            let mut frame = Vec::new();
            push_frame(&mut frame, page(8), Some(page(9)), &[seed; 512], salts, start, order);
            prop_assert!(check_frame(&frame, salts, start, order).is_some());
            prop_assert_eq!(continued_by(&frame, order), Some(start));
            frame[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(check_frame(&frame, salts, start, order).is_none());
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = WalHeader::parse(&bytes);
            let _ = FrameHeader::parse(&bytes);
            let _ = check_frame(&bytes, Salts(0, 0), RunningChecksum(0, 0), WordOrder::Little);
        }
    }
}
