//! The laws every decoder keeps for any bytes whatever. Shared by the corpus test and the fuzz targets in `tests/fuzz`.
//!
//! Damage is caught by checksums long before the code behind them sees it, so each law also runs on the input with its
//! checksums made right.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "test code, included in two crates")]

use std::io;

use bytes::Bytes;
use everwhen_engine::base::{ChunkCodec, ChunkRef, Manifest, decode_chunk};
use everwhen_engine::digest::Hasher;
use everwhen_engine::ids::{Digest, TxId};
use everwhen_engine::page::{PageNo, PageSize};
use everwhen_engine::segment::{
    FRAME_BYTES_MAX, HEADER_BYTES, PageStore, Prologue, Replayer, SegmentHeader, parts,
};

/// Any bytes are a prologue that keeps the format's invariants, or an error.
pub fn segment_prologue(input: &[u8]) {
    for bytes in [input.to_vec(), mended(input)] {
        let needed = Prologue::needed(&bytes);
        let Ok(prologue) = Prologue::parse(&bytes) else { continue };
        let header = &prologue.header;
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

/// Any bytes replay onto an image, or are an error; an image of so many pages stays within what it was told.
pub fn segment_replay(input: &[u8]) {
    for bytes in [input.to_vec(), mended(input)] {
        let Ok(parts) = parts(&Bytes::from(bytes)) else { continue };
        let Some(first) = parts.first() else { continue };
        let mut image = Sparse { page_size: first.prologue.header.page_size, pages: 64 };
        let mut replayer = Replayer::new();
        let mut at = first.prologue.header.range.first().previous().unwrap_or(TxId::FIRST);
        for part in &parts {
            let _ = part.check();
            match replayer.replay_part(part, at, part.prologue.header.range.last(), &mut image) {
                Ok(reached) => at = reached,
                Err(_) => break,
            }
            assert_eq!(at, part.prologue.header.range.last());
        }
    }
}

/// Any bytes are a manifest that encodes to one that decodes to the same, or an error.
pub fn base_manifest(input: &[u8]) {
    let mut mended = input.to_vec();
    if mended.len() >= 80 {
        mend(&mut mended, 72, 80..usize::MAX);
        mend(&mut mended, 76, 0..76);
    }
    for bytes in [input.to_vec(), mended] {
        let Ok(manifest) = Manifest::decode(&bytes) else { continue };
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
    }
}

/// Any bytes are the chunk that was named, or an error. The first five bytes say how it is stored and how long it is.
pub fn pack_chunk(input: &[u8]) {
    let Some((head, stored)) = input.split_at_checked(5) else { return };
    let codec = if head[0] & 1 == 0 { ChunkCodec::Raw } else { ChunkCodec::Zstd };
    let raw_len = u32::from_le_bytes(head[1..].try_into().unwrap()) as usize;
    let (crc, len) = (crc32fast::hash(stored), stored.len() as u32);
    let name = Digest::from_bytes([0; 32]);
    let chunk = ChunkRef { digest: name, pack: 0, offset: 0, len, codec, crc };
    assert!(decode_chunk(&Hasher::Plain, &chunk, raw_len, stored).is_err());
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

fn mend_tables(bytes: &mut [u8], end: usize) -> Result<Prologue, everwhen_engine::segment::SegmentError> {
    mend(bytes, 72, HEADER_BYTES..end);
    mend(bytes, 140, 0..140);
    Prologue::parse(bytes)
}

fn mend(bytes: &mut [u8], at: usize, range: std::ops::Range<usize>) {
    let range = range.start.min(bytes.len())..range.end.min(bytes.len());
    let crc = crc32fast::hash(&bytes[range]).to_le_bytes();
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&crc);
    }
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
