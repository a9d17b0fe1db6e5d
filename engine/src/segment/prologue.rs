//! Header and tables of a part, read and checked: everything about it but the page images.
#![warn(clippy::indexing_slicing)]

use bytes::Bytes;

use crate::compress::Decompressor;
use crate::digest::Hasher;
use crate::ids::Digest;
use crate::page::{PageNo, PageSize, StateChecksum};
use crate::segment::{FRAME_BYTES_MAX, HEADER_BYTES, SegmentError, SegmentHeader};
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};
use crate::wire::{Reader, unzigzag};

/// One page image in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageVersion {
    /// Which page.
    pub page: PageNo,
    /// Whether the page's version just before the frame is part of the frame's prefix.
    pub has_previous: bool,
}

/// How the images of a frame are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameCodec {
    /// As they are.
    Raw,
    /// As one zstd frame behind the prefix.
    Zstd,
}

/// Where a frame is and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Where it begins, in bytes from the first frame of the part.
    pub offset: u64,
    /// Bytes of it as stored.
    pub len: u32,
    /// The index of its first image among the part's page versions, from 0.
    pub first_version: u32,
    /// Images in it, at least one.
    pub images: u32,
    /// How they are stored.
    pub codec: FrameCodec,
    /// CRC-32 of its bytes as stored.
    pub crc: u32,
}

impl FrameEntry {
    /// Whether these are its bytes.
    ///
    /// # Errors
    /// [`SegmentError::Truncated`] or [`SegmentError::Checksum`].
    pub fn check(&self, bytes: &[u8]) -> Result<(), SegmentError> {
        if bytes.len() != self.len as usize {
            let (expected, found) = (self.len.into(), bytes.len() as u64);
            return Err(SegmentError::Truncated { part: "frame", expected, found });
        }
        let found = crc32fast::hash(bytes);
        if found != self.crc {
            return Err(SegmentError::Checksum { part: "frame", expected: self.crc, found });
        }
        Ok(())
    }
}

/// The page versions of a part in commit order. They stay encoded, a byte or two each.
#[derive(Clone, Debug)]
pub struct Versions<'a> {
    reader: Reader<'a>,
    page: u32,
}

impl Iterator for Versions<'_> {
    type Item = PageVersion;

    fn next(&mut self) -> Option<PageVersion> {
        let code = self.reader.varint()?;
        let number = i64::from(self.page).checked_add(unzigzag(code >> 1))?;
        let page = PageNo::new(u32::try_from(number).ok()?)?;
        self.page = page.get();
        Some(PageVersion { page, has_previous: code & 1 != 0 })
    }
}

/// Header and tables of a part, checked against their checksums, the limits and each other.
#[derive(Clone, Debug)]
pub struct Prologue {
    /// The header.
    pub header: SegmentHeader,
    /// The transactions, in order.
    pub transactions: Vec<Transaction>,
    /// The frames, in order.
    pub frames: Vec<FrameEntry>,
    versions: Bytes,
    tables: Digest,
}

impl Prologue {
    /// How many bytes from the start of a part [`Prologue::parse`] needs: [`HEADER_BYTES`] while fewer are there, then
    /// the exact number.
    ///
    /// # Errors
    /// [`SegmentError`] when the bytes are not the start of a part.
    pub fn needed(bytes: &[u8]) -> Result<usize, SegmentError> {
        if bytes.len() < HEADER_BYTES {
            return Ok(HEADER_BYTES);
        }
        SegmentHeader::decode(bytes).map(|header| header.prologue_len())
    }

    /// Reads header and tables from the start of `bytes`; what follows them is not looked at.
    ///
    /// # Errors
    /// [`SegmentError`] for anything an encoder did not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, SegmentError> {
        let header = SegmentHeader::decode(bytes)?;
        let (expected, found) = (header.prologue_len() as u64, bytes.len() as u64);
        let short = || SegmentError::Truncated { part: "tables", expected, found };
        let tables = bytes.get(HEADER_BYTES..header.prologue_len()).ok_or_else(short)?;
        let crc = crc32fast::hash(tables);
        if crc != header.tables_crc {
            return Err(SegmentError::Checksum { part: "tables", expected: header.tables_crc, found: crc });
        }
        let mut reader = Reader::new(tables);
        let stored = reader.take(header.lists_len as usize).ok_or_else(short)?;
        let states = reader.take(8 * header.transactions() as usize).ok_or_else(short)?;
        let all = Bytes::from(decompress_lists(&header, stored)?);
        let mut lists = Reader::new(&all);
        let transactions = read_transactions(&header, &mut lists, states)?;
        let versions = all.slice_ref(read_versions(&header, &mut lists)?);
        let frames = read_frames(&header, &mut lists, reader.rest())?;
        if !lists.rest().is_empty() {
            return Err(SegmentError::List { list: "frames" });
        }
        Ok(Self { header, transactions, frames, versions, tables: Hasher::Plain.digest(tables) })
    }

    /// The page versions, in commit order.
    #[must_use]
    pub fn versions(&self) -> Versions<'_> {
        Versions { reader: Reader::new(&self.versions), page: 0 }
    }

    /// Checks the chain hash over the whole part, given the digest ([`Hasher::Plain`]) of all its frames' bytes.
    ///
    /// # Errors
    /// [`SegmentError::Chain`].
    pub fn check_chain(&self, frames: Digest) -> Result<(), SegmentError> {
        let found = self.header.chain(self.tables, frames);
        let expected = self.header.chain_after;
        if found == expected { Ok(()) } else { Err(SegmentError::Chain { expected, found }) }
    }
}

fn decompress_lists(header: &SegmentHeader, stored: &[u8]) -> Result<Vec<u8>, SegmentError> {
    if header.lists_len == header.lists_raw_len {
        return Ok(stored.to_vec());
    }
    let mut lists = vec![0; header.lists_raw_len as usize];
    Decompressor::with(|lent| lent.decompress(&[], stored, &mut lists))
        .map_err(|why| SegmentError::Compression { part: "lists", why })?;
    Ok(lists)
}

fn read_transactions(
    header: &SegmentHeader,
    lists: &mut Reader<'_>,
    states: &[u8],
) -> Result<Vec<Transaction>, SegmentError> {
    let unfit = || SegmentError::List { list: "transactions" };
    let mut transactions = Vec::with_capacity(header.transactions() as usize);
    let (mut tx, mut time, mut image_pages) = (header.range.first(), header.from, 0_u32);
    let mut states = Reader::new(states);
    let mut pages_left = header.page_versions;
    for _ in 0..header.transactions() {
        let pages = lists.varint().and_then(|pages| u32::try_from(pages).ok()).ok_or_else(unfit)?;
        pages_left = pages_left.checked_sub(pages).ok_or_else(unfit)?;
        let size = lists.signed_varint().and_then(|step| i64::from(image_pages).checked_add(step));
        image_pages = size.and_then(|size| u32::try_from(size).ok()).ok_or_else(unfit)?;
        let from = time;
        time = lists.varint().and_then(|step| later(time, step)).ok_or_else(unfit)?;
        let state = StateChecksum::from_raw(states.u64().ok_or_else(unfit)?);
        let first = transactions.is_empty();
        let flags = if first { header.flags } else { TxFlags::NONE };
        let not_before = if first { from } else { time };
        if !fits_flags(flags, not_before, time, pages) || flags.opens_window() && time != header.to {
            return Err(unfit());
        }
        transactions.push(Transaction { tx, time, not_before, flags, pages, image_pages, state });
        tx = tx.next();
    }
    if pages_left != 0 || time != header.to { Err(unfit()) } else { Ok(transactions) }
}

/// Times differ only where a flag says so, and what is in a base has no pages in the log.
pub(super) fn fits_flags(flags: TxFlags, not_before: Timestamp, time: Timestamp, pages: u32) -> bool {
    (flags.any() || not_before == time) && not_before <= time && (!flags.needs_base || pages == 0)
}

fn later(time: Timestamp, micros: u64) -> Option<Timestamp> {
    let micros = time.as_micros().checked_add(i64::try_from(micros).ok()?)?;
    let later = Timestamp::from_micros(micros);
    (later.as_micros() == micros).then_some(later)
}

fn read_versions<'a>(header: &SegmentHeader, lists: &mut Reader<'a>) -> Result<&'a [u8], SegmentError> {
    let all = lists.rest();
    let mut versions = Versions { reader: lists.clone(), page: 0 };
    for _ in 0..header.page_versions {
        versions.next().ok_or(SegmentError::List { list: "page versions" })?;
    }
    let read = all.len() - versions.reader.rest().len();
    *lists = versions.reader;
    Ok(all.get(..read).unwrap_or_default())
}

fn read_frames(
    header: &SegmentHeader,
    lists: &mut Reader<'_>,
    crcs: &[u8],
) -> Result<Vec<FrameEntry>, SegmentError> {
    let unfit = || SegmentError::List { list: "frames" };
    let mut crcs = Reader::new(crcs);
    let mut frames = Vec::with_capacity(header.frames as usize);
    let (mut offset, mut first_version) = (0_u64, 0_u32);
    for _ in 0..header.frames {
        let (code, len) = lists.varint().zip(lists.varint()).ok_or_else(unfit)?;
        let codec = if code & 1 == 0 { FrameCodec::Raw } else { FrameCodec::Zstd };
        let (images, raw) = frame_size(code >> 1, header.page_size).ok_or_else(unfit)?;
        let len = u32::try_from(len).ok().filter(|len| *len as usize <= raw && *len > 0).ok_or_else(unfit)?;
        if (codec == FrameCodec::Raw) != (len as usize == raw) {
            return Err(unfit());
        }
        let crc = crcs.u32().ok_or_else(unfit)?;
        frames.push(FrameEntry { offset, len, first_version, images, codec, crc });
        offset += u64::from(len);
        first_version = first_version.checked_add(images).ok_or_else(unfit)?;
    }
    let whole = offset == header.frames_len && first_version == header.page_versions;
    if whole { Ok(frames) } else { Err(unfit()) }
}

/// So many images and their bytes, when that is within the limits.
fn frame_size(images: u64, page_size: PageSize) -> Option<(u32, usize)> {
    let images = u32::try_from(images).ok().filter(|images| *images > 0)?;
    let raw = (images as usize).checked_mul(page_size.bytes())?;
    (raw <= FRAME_BYTES_MAX).then_some((images, raw))
}

/// One part of a segment object: its prologue and the bytes of its frames.
#[derive(Clone, Debug)]
pub struct Part {
    /// Header and tables.
    pub prologue: Prologue,
    /// All frames, back to back.
    pub frames: Bytes,
}

impl Part {
    /// The bytes of one frame, not yet checked.
    ///
    /// # Errors
    /// When the frame is not in it, as an IO error for [`crate::segment::Replayer::replay`].
    pub fn frame(&self, entry: &FrameEntry) -> std::io::Result<Bytes> {
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(entry.len as usize);
        if end > self.frames.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.frames.slice(start..end))
    }

    /// Checks everything that can be checked without the image before it: every frame's checksum, and the chain.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn check(&self) -> Result<(), SegmentError> {
        for entry in &self.prologue.frames {
            let bytes = self.frame(entry);
            entry.check(&bytes.map_err(|source| SegmentError::Fetch { offset: entry.offset, source })?)?;
        }
        self.prologue.check_chain(Hasher::Plain.digest(&self.frames))
    }
}

/// Takes a whole segment object apart, a part at a time, and checks that its parts join. [`Part::check`] is left to the
/// caller. An object that is empty gives an error, and nothing comes after one.
///
/// A part's tables may take many times the bytes it has as stored, so whoever reads objects from outside lets go of
/// each part before the next.
#[must_use]
pub fn parts(object: &Bytes) -> Parts {
    Parts { rest: object.clone(), before: None, done: false }
}

/// See [`parts`].
#[derive(Clone, Debug)]
pub struct Parts {
    rest: Bytes,
    before: Option<SegmentHeader>,
    done: bool,
}

impl Parts {
    /// The part at the front of what is left.
    fn read(&mut self) -> Result<Part, SegmentError> {
        let prologue = Prologue::parse(&self.rest)?;
        if let Some(before) = &self.before {
            before.joins(&prologue.header)?;
            let flags = prologue.header.flags;
            if flags.any() {
                let expected = "none, as in any part but the first";
                return Err(SegmentError::Field { field: "flags", found: flags.bits().into(), expected });
            }
        }
        let (expected, found) = (prologue.header.part_len(), self.rest.len() as u64);
        if found < expected {
            return Err(SegmentError::Truncated { part: "frames", expected, found });
        }
        let _ = self.rest.split_to(prologue.header.prologue_len());
        let frames = self.rest.split_to(prologue.header.frames_len as usize);
        self.before = Some(prologue.header.clone());
        Ok(Part { prologue, frames })
    }
}

impl Iterator for Parts {
    type Item = Result<Part, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done || self.before.is_some() && self.rest.is_empty() {
            return None;
        }
        let part = self.read();
        self.done = part.is_err();
        Some(part)
    }
}
