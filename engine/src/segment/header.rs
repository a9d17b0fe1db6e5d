//! The fixed-size header of a part.
#![warn(clippy::indexing_slicing)]

use crate::digest::Hasher;
use crate::ids::{DatabaseId, Digest, TimelineId, TxId, TxRange};
use crate::page::PageSize;
use crate::segment::{FRAMES_MAX, LISTS_BYTES_MAX, SegmentError, TRANSACTIONS_MAX};
use crate::time::Timestamp;
use crate::transaction::TxFlags;
use crate::wire::Reader;

/// Bytes in the header of a part.
pub const HEADER_BYTES: usize = 144;
/// The header's bytes before its last two fields: what the chain covers of it.
const CHAINED_BYTES: usize = 108;
const CHECKED_BYTES: usize = 140;
const MAGIC: [u8; 4] = *b"EVWS";
const VERSION: u16 = 1;

/// What a part says about itself. Everything but the lengths is known from the object's key too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose history.
    pub database: DatabaseId,
    /// On which line.
    pub timeline: TimelineId,
    /// Bytes in a page.
    pub page_size: PageSize,
    /// Its transactions.
    pub range: TxRange,
    /// `not_before` of its first transaction.
    pub from: Timestamp,
    /// The time of its last transaction.
    pub to: Timestamp,
    /// The flags of its first transaction; no other has any.
    pub flags: TxFlags,
    /// Page images in it.
    pub page_versions: u32,
    /// Frames in it.
    pub frames: u32,
    /// Bytes of the lists as stored.
    pub lists_len: u32,
    /// Bytes of the lists before compression; equal to `lists_len` when they are stored as they are.
    pub lists_raw_len: u32,
    /// Bytes of all frames.
    pub frames_len: u64,
    /// CRC-32 of the tables as stored.
    pub tables_crc: u32,
    /// The chain hash of the history before its first transaction.
    pub chain_before: Digest,
    /// The chain hash after its last one.
    pub chain_after: Digest,
}

/// The chain hash before the first transaction of a timeline that has no parent.
#[must_use]
pub fn chain_start(database: DatabaseId, timeline: TimelineId) -> Digest {
    let mut hashing = Hasher::Plain.start();
    hashing.update(b"everwhen chain 1");
    hashing.update(database.as_bytes());
    hashing.update(&timeline.get().to_le_bytes());
    hashing.finish()
}

impl SegmentHeader {
    /// Transactions in it.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.range.count()
    }

    /// Bytes of header and tables: where the frames begin in the part.
    #[must_use]
    pub fn prologue_len(&self) -> usize {
        HEADER_BYTES + self.tables_len()
    }

    /// Bytes of the whole part.
    #[must_use]
    pub fn part_len(&self) -> u64 {
        (self.prologue_len() as u64).saturating_add(self.frames_len)
    }

    /// Bytes of the tables: lists, states, frame checksums.
    pub(super) fn tables_len(&self) -> usize {
        self.lists_len as usize + 8 * self.transactions() as usize + 4 * self.frames as usize
    }

    /// The chain hash after this part, from its own fields and the digests of its tables and its frames as stored.
    #[must_use]
    pub fn chain(&self, tables: Digest, frames: Digest) -> Digest {
        let bytes = self.encode();
        let mut hashing = Hasher::Plain.start();
        hashing.update(bytes.get(..CHAINED_BYTES).unwrap_or_default());
        hashing.update(tables.as_bytes());
        hashing.update(frames.as_bytes());
        hashing.finish()
    }

    /// Whether `next` goes on where this part ends.
    ///
    /// # Errors
    /// [`SegmentError::Join`] names the field that does not fit.
    pub fn joins(&self, next: &Self) -> Result<(), SegmentError> {
        let check = |field, fits: bool, found: &dyn ToString, expected: &dyn ToString| {
            let mismatch =
                || SegmentError::Join { field, found: found.to_string(), expected: expected.to_string() };
            fits.then_some(()).ok_or_else(mismatch)
        };
        check("database", self.database == next.database, &next.database, &self.database)?;
        check("timeline", self.timeline == next.timeline, &next.timeline, &self.timeline)?;
        check("page size", self.page_size == next.page_size, &next.page_size, &self.page_size)?;
        let (found, expected) = (next.range.first(), self.range.last().next());
        check("first transaction", self.range.touches(next.range), &found, &expected)?;
        check("first time", self.to <= next.from, &next.from, &self.to)?;
        check("chain", self.chain_after == next.chain_before, &next.chain_before, &self.chain_after)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.push(self.flags.bits());
        out.push(self.page_size.get().trailing_zeros() as u8);
        out.extend(self.database.as_bytes());
        out.extend(self.timeline.get().to_le_bytes());
        out.extend((self.transactions() as u32).to_le_bytes());
        out.extend(self.range.first().get().to_le_bytes());
        out.extend(self.from.as_micros().to_le_bytes());
        out.extend(self.to.as_micros().to_le_bytes());
        for count in [self.page_versions, self.frames, self.lists_len, self.lists_raw_len] {
            out.extend(count.to_le_bytes());
        }
        out.extend(self.frames_len.to_le_bytes());
        out.extend(self.tables_crc.to_le_bytes());
        out.extend(self.chain_before.as_bytes());
        out.extend(self.chain_after.as_bytes());
        let crc = crc32fast::hash(&out);
        out.extend(crc.to_le_bytes());
        out
    }

    /// Reads the header at the front of `bytes`, checked against its checksum and the limits.
    ///
    /// # Errors
    /// [`SegmentError`] when it is not the header of a part.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentError> {
        let found = bytes.len() as u64;
        let short = || SegmentError::Truncated { part: "header", expected: HEADER_BYTES as u64, found };
        let checked = bytes.get(..CHECKED_BYTES).ok_or_else(short)?;
        let mut reader = Reader::new(bytes.get(..HEADER_BYTES).ok_or_else(short)?);
        let magic = reader.array().ok_or_else(short)?;
        if magic != MAGIC {
            return Err(SegmentError::NotASegment { found: magic });
        }
        let version = reader.u16().ok_or_else(short)?;
        if version != VERSION {
            return Err(SegmentError::Version { found: version, known: VERSION });
        }
        let mut crc = Reader::new(bytes.get(CHECKED_BYTES..).ok_or_else(short)?);
        let (expected, found) = (crc.u32().ok_or_else(short)?, crc32fast::hash(checked));
        if expected != found {
            return Err(SegmentError::Checksum { part: "header", expected, found });
        }
        Self::decode_fields(&mut reader).ok_or_else(short)?
    }

    /// `None` when the bytes end, which 144 of them do not.
    fn decode_fields(reader: &mut Reader<'_>) -> Option<Result<Self, SegmentError>> {
        let (flags, page_size_log) = (reader.u8()?, reader.u8()?);
        let database = DatabaseId::from_bytes(reader.array()?);
        let (timeline, transactions, first) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let (from, to) = (reader.i64()?, reader.i64()?);
        let (page_versions, frames) = (reader.u32()?, reader.u32()?);
        let (lists_len, lists_raw_len) = (reader.u32()?, reader.u32()?);
        let (frames_len, tables_crc) = (reader.u64()?, reader.u32()?);
        let (chain_before, chain_after) = (reader.array()?, reader.array()?);
        let fields = || {
            Ok(Self {
                database,
                timeline: valid("timeline", timeline.into(), "1 or more", TimelineId::new(timeline))?,
                page_size: valid("page size", page_size_log.into(), "a power from 9 to 16", {
                    1_u32.checked_shl(page_size_log.into()).and_then(PageSize::new)
                })?,
                range: range(first, transactions)?,
                from: time("first time", from)?,
                to: time("last time", to)?,
                flags: valid("flags", flags.into(), "bits below 16", TxFlags::from_bits(flags))?,
                page_versions,
                frames: at_most("number of frames", frames, FRAMES_MAX)?,
                lists_len: at_most("length of lists", lists_len, lists_raw_len)?,
                lists_raw_len: at_most("raw length of lists", lists_raw_len, LISTS_BYTES_MAX as u32)?,
                frames_len,
                tables_crc,
                chain_before: Digest::from_bytes(chain_before),
                chain_after: Digest::from_bytes(chain_after),
            })
        };
        Some(fields())
    }
}

fn valid<T>(
    field: &'static str,
    found: u64,
    expected: &'static str,
    value: Option<T>,
) -> Result<T, SegmentError> {
    value.ok_or(SegmentError::Field { field, found, expected })
}

fn at_most(field: &'static str, found: u32, limit: u32) -> Result<u32, SegmentError> {
    valid(field, found.into(), "a number within the limits", (found <= limit).then_some(found))
}

fn range(first: u64, transactions: u32) -> Result<TxRange, SegmentError> {
    at_most("number of transactions", transactions, TRANSACTIONS_MAX)?;
    let last = first.checked_add(transactions.into()).and_then(|end| end.checked_sub(1));
    let range = TxId::new(first).zip(last.and_then(TxId::new)).and_then(|(a, b)| TxRange::new(a, b));
    valid("range of transactions", first, "at least one transaction from 1", range)
}

fn time(field: &'static str, micros: i64) -> Result<Timestamp, SegmentError> {
    let time = Timestamp::from_micros(micros);
    let exact = (time.as_micros() == micros).then_some(time);
    valid(field, micros.cast_unsigned(), "a time from year 0 to 9998", exact)
}
