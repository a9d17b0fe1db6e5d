//! Where to go on after a commit, in a form that survives this process.
//!
//! Little-endian: version (1 byte), inode (8), page size (4), salts (4, 4), frame (4), checksum (4, 4), image pages (4),
//! time of the look in µs (8), CRC-32 of all before (4).

use super::Place;
use crate::page::PageSize;
use crate::sqlite::wal::{RunningChecksum, Salts};
use crate::time::Timestamp;

const LEN: usize = 1 + 8 + 7 * 4 + 8 + 4;
const VERSION: u8 = 1;

/// A captured commit's place in the log of one file. It is continued from only if every part matches what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResumePoint {
    pub(super) inode: u64,
    pub(super) page_size: PageSize,
    pub(super) salts: Salts,
    pub(super) frame: u32,
    pub(super) checksum: RunningChecksum,
    pub(super) image_pages: u32,
    pub(super) looked: Timestamp,
}

impl ResumePoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LEN);
        bytes.push(VERSION);
        bytes.extend(self.inode.to_le_bytes());
        for value in [
            self.page_size.get(),
            self.salts.0,
            self.salts.1,
            self.frame,
            self.checksum.0,
            self.checksum.1,
            self.image_pages,
        ] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(self.looked.as_micros().to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    pub(super) fn place(&self) -> Place {
        Place { salts: self.salts, frame: self.frame, checksum: self.checksum }
    }

    /// `None` for anything that [`ResumePoint::encode`] of this version did not write.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let (version, rest) = body.split_first()?;
        if *version != VERSION || crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (inode, rest) = rest.split_first_chunk::<8>()?;
        let (words, looked) = rest.split_last_chunk::<8>()?;
        let mut words = words.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next();
        let micros = i64::from_le_bytes(*looked);
        let looked = Some(Timestamp::from_micros(micros)).filter(|looked| looked.as_micros() == micros)?;
        Some(Self {
            inode: u64::from_le_bytes(*inode),
            page_size: PageSize::new(next()?)?,
            salts: Salts(next()?, next()?),
            frame: next()?,
            checksum: RunningChecksum(next()?, next()?),
            image_pages: next()?,
            looked,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_resume_point_is_read_back_and_a_flipped_bit_is_refused(
            inode: u64, frame: u32, one: u32, two: u32, micros in -1_000_000i64..4_000_000_000_000_000, bit in 0usize..LEN * 8,
        ) {
            let point = ResumePoint {
                inode, page_size: PageSize::MIN, salts: Salts(one, two), frame, checksum: RunningChecksum(two, one),
                image_pages: frame, looked: Timestamp::from_micros(micros),
            };
            let mut bytes = point.encode();
            prop_assert_eq!(ResumePoint::decode(&bytes), Some(point));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(ResumePoint::decode(&bytes), None);
        }

        #[test]
        fn any_bytes_give_a_value_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = ResumePoint::decode(&bytes);
        }
    }
}
