//! Laws of [`crate::segment`].

use std::io;

use bytes::Bytes;

use super::{SLACK, memory, mend};
use crate::ids::{DatabaseId, TimelineId, TxId};
use crate::page::{PageNo, PageSize, StateChecksum};
use crate::segment::{
    Effort, Encoder, EncoderParams, FRAME_BYTES_MAX, HEADER_BYTES, LISTS_BYTES_MAX, PageStore, Prologue,
    Replayer, SegmentError, SegmentHeader, chain_start, parts,
};
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};

/// The lists of one part, and for each 8 bytes of a state 48 of a transaction, for each 4 of a CRC 32 of a frame.
fn tables(input: usize) -> usize {
    LISTS_BYTES_MAX + 8 * input + SLACK
}

/// Any bytes are a prologue that keeps the format's invariants, or an error.
pub fn segment_prologue(input: &[u8]) {
    for bytes in [input.to_vec(), mended(input)] {
        let needed = Prologue::needed(&bytes);
        let parsed = memory::within(tables(bytes.len()), || Prologue::parse(&bytes));
        let Ok(prologue) = parsed else { continue };
        let header = &prologue.header;
        assert_eq!(header.encode(), bytes[..HEADER_BYTES]);
        assert_eq!(needed.unwrap(), header.prologue_len());
        assert!(Prologue::parse(&bytes[..header.prologue_len() - 1]).is_err());
        assert_eq!(prologue.transactions.len() as u64, header.transactions());
        assert_eq!(prologue.versions().count(), header.page_versions as usize);
        let pages: u64 = prologue.transactions.iter().map(|tx| u64::from(tx.pages)).sum();
        assert_eq!(pages, u64::from(header.page_versions));
        assert!(prologue.transactions.is_sorted_by_key(|tx| (tx.tx, tx.time)));
        for frame in &prologue.frames {
            assert!(frame.images as usize * header.page_size.bytes() <= FRAME_BYTES_MAX);
            assert!(frame.len as usize <= FRAME_BYTES_MAX);
        }
    }
}

/// Any bytes replay onto an image, or are an error; an image of so many pages stays within what it was told. One part
/// after another takes no more memory than the largest of them, a prefix and a frame.
pub fn segment_replay(input: &[u8]) {
    for bytes in [input.to_vec(), mended(input)] {
        let bytes = Bytes::from(bytes);
        memory::within(tables(bytes.len()) + 4 * FRAME_BYTES_MAX, || replay(&bytes));
    }
}

fn replay(bytes: &Bytes) {
    let mut replayer = Replayer::new();
    let mut under_way: Option<(Sparse, TxId)> = None;
    for part in parts(bytes) {
        let Ok(part) = part else { break };
        let _ = part.check();
        let header = &part.prologue.header;
        let (mut image, at) = under_way.unwrap_or((
            Sparse { page_size: header.page_size, pages: 64 },
            header.range.first().previous().unwrap_or(TxId::FIRST),
        ));
        match replayer.replay_part(&part, at, header.range.last(), &mut image) {
            Ok(reached) => assert_eq!(reached, header.range.last()),
            Err(_) => break,
        }
        under_way = Some((image, header.range.last()));
    }
}

/// The input with the checksums of its first part made right.
fn mended(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if bytes.len() < HEADER_BYTES {
        return bytes;
    }
    mend(&mut bytes, 140, 0..140);
    let Ok(header) = SegmentHeader::decode(&bytes) else { return bytes };
    let end = header.prologue_len();
    if let Ok(prologue) = mend_tables(&mut bytes, end) {
        let crcs = end - 4 * prologue.frames.len();
        for (index, frame) in prologue.frames.iter().enumerate() {
            let start = end + frame.offset as usize;
            mend(&mut bytes, crcs + 4 * index, start..start.saturating_add(frame.len as usize));
        }
        let _ = mend_tables(&mut bytes, end);
    }
    bytes
}

fn mend_tables(bytes: &mut [u8], end: usize) -> Result<Prologue, SegmentError> {
    mend(bytes, 72, HEADER_BYTES..end);
    mend(bytes, 140, 0..140);
    Prologue::parse(bytes)
}

/// An image of any length that takes no memory.
struct Sparse {
    page_size: PageSize,
    pages: u32,
}

impl PageStore for Sparse {
    fn page_size(&self) -> PageSize {
        self.page_size
    }
    fn page_count(&self) -> u32 {
        self.pages
    }
    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<()> {
        assert!(page.get() <= self.pages);
        buffer.fill(page.get() as u8);
        Ok(())
    }
    fn write(&mut self, page: PageNo, image: &[u8]) -> io::Result<()> {
        assert!(page.get() <= self.pages);
        assert_eq!(image.len(), self.page_size.bytes());
        Ok(())
    }
    fn resize(&mut self, pages: u32) -> io::Result<()> {
        self.pages = pages;
        Ok(())
    }
}

/// One part, two joined ones, and one of the largest pages.
pub(super) fn segments() -> Vec<Vec<u8>> {
    let start = chain_start(DatabaseId::from_bytes(*b"database"), TimelineId::FIRST);
    let (mut joined, chain) = part(PageSize::MIN, 2, TxFlags { held_clock: true, ..TxFlags::NONE }, start);
    joined.extend(part(PageSize::MIN, 5, TxFlags::NONE, chain).0);
    vec![
        part(PageSize::MIN, 2, TxFlags::NONE, start).0,
        joined,
        part(PageSize::MAX, 2, TxFlags { uncertain_time: true, ..TxFlags::NONE }, start).0,
    ]
}

/// Three transactions of two pages each, the second of them a little different each time.
fn part(
    page_size: PageSize,
    first: u64,
    flags: TxFlags,
    chain_before: crate::ids::Digest,
) -> (Vec<u8>, crate::ids::Digest) {
    let params = EncoderParams {
        database: DatabaseId::from_bytes(*b"database"),
        timeline: TimelineId::FIRST,
        page_size,
        first: TxId::new(first).unwrap(),
        image_pages: 64,
        chain_before,
        effort: Effort::Hot,
    };
    let mut encoder = Encoder::new(params, Vec::new());
    let time = Timestamp::from_micros(1_795_219_200_000_000);
    for tx in first..first + 3 {
        for page in [PageNo::new(3).unwrap(), PageNo::new(7 + tx as u32).unwrap()] {
            let previous = vec![page.get() as u8; page_size.bytes()];
            let mut image = previous.clone();
            image[100] = tx as u8;
            let wanted = encoder.wants_previous(page);
            encoder.page(page, &image, wanted.then_some(&previous)).unwrap();
        }
        let flags = if tx == first { flags } else { TxFlags::NONE };
        let transaction = Transaction {
            tx: TxId::new(tx).unwrap(),
            time,
            not_before: if flags.any() { time.plus_micros(-1_000) } else { time },
            flags,
            pages: 2,
            image_pages: 62 + tx as u32,
            state: StateChecksum::from_raw(tx),
        };
        encoder.commit(&transaction).unwrap();
    }
    let finished = encoder.finish().unwrap();
    ([finished.prologue, finished.frames].concat(), finished.header.chain_after)
}
