//! The manifest of a base.
#![warn(clippy::indexing_slicing)]

use crate::base::{BaseError, ChunkCodec, ChunkRef, MANIFEST_BYTES_MAX, chunk_pages};
use crate::compress::{Compressor, Decompressor, Setting};
use crate::ids::{DatabaseId, Digest, Position, TimelineId, TxId};
use crate::page::{PageSize, StateChecksum};
use crate::time::Timestamp;
use crate::wire::{Reader, put_varint};

const MAGIC: [u8; 4] = *b"EVWB";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 80;
const CHECKED_BYTES: usize = 76;

/// A pack named by a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRef {
    /// Its name: the digest of its bytes.
    pub digest: Digest,
    /// Its bytes.
    pub len: u64,
}

/// A full image at a position: which chunks make it up, and where they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose image.
    pub database: DatabaseId,
    /// The state it holds.
    pub position: Position,
    /// The commit time of that state.
    pub time: Timestamp,
    /// Bytes in a page.
    pub page_size: PageSize,
    /// Pages in the image.
    pub page_count: u32,
    /// The checksum of the image.
    pub state: StateChecksum,
    /// The packs in which the chunks lie.
    pub packs: Vec<PackRef>,
    /// The chunks in page order, each of [`Manifest::chunk_pages`] pages, the last one of what is left.
    pub chunks: Vec<ChunkRef>,
}

impl Manifest {
    /// Pages in every chunk but the last.
    #[must_use]
    pub fn chunk_pages(&self) -> u32 {
        chunk_pages(self.page_size)
    }

    /// Bytes of the chunk with this index before compression; 0 beyond the last.
    #[must_use]
    pub fn chunk_len(&self, index: usize) -> usize {
        let before = (index as u64).saturating_mul(self.chunk_pages().into());
        let pages = u64::from(self.page_count).saturating_sub(before).min(self.chunk_pages().into());
        pages as usize * self.page_size.bytes()
    }

    /// The manifest as an object.
    ///
    /// # Errors
    /// [`BaseError`] when it passes the limits or contradicts itself.
    pub fn encode(&self) -> Result<Vec<u8>, BaseError> {
        self.check()?;
        let lists = self.encode_lists();
        if lists.len() > MANIFEST_BYTES_MAX {
            return Err(BaseError::Field { field: "length of lists" });
        }
        let mut compressor = Compressor::new(Setting::Plain);
        let compressed = compressor.compress(&[], &lists);
        let stored = compressed.map_err(|why| BaseError::Compression { part: "manifest", why })?;
        let stored = stored.unwrap_or(&lists);
        let mut out = Vec::with_capacity(HEADER_BYTES + stored.len());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.push(self.page_size.get().trailing_zeros() as u8);
        out.push(0);
        out.extend(self.database.as_bytes());
        out.extend(self.position.timeline.get().to_le_bytes());
        out.extend(self.page_count.to_le_bytes());
        out.extend(self.position.tx.get().to_le_bytes());
        out.extend(self.time.as_micros().to_le_bytes());
        out.extend(self.state.get().to_le_bytes());
        out.extend((self.packs.len() as u32).to_le_bytes());
        out.extend((self.chunks.len() as u32).to_le_bytes());
        out.extend((stored.len() as u64).to_le_bytes());
        out.extend((lists.len() as u64).to_le_bytes());
        out.extend(crc32fast::hash(stored).to_le_bytes());
        let crc = crc32fast::hash(&out);
        out.extend(crc.to_le_bytes());
        out.extend(stored);
        Ok(out)
    }

    fn encode_lists(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for pack in &self.packs {
            put_varint(&mut out, pack.len);
        }
        for chunk in &self.chunks {
            put_varint(&mut out, chunk.pack.into());
            put_varint(&mut out, chunk.offset);
            put_varint(&mut out, u64::from(chunk.len) << 1 | u64::from(chunk.codec == ChunkCodec::Zstd));
        }
        for chunk in &self.chunks {
            out.extend(chunk.crc.to_le_bytes());
        }
        for pack in &self.packs {
            out.extend(pack.digest.as_bytes());
        }
        for chunk in &self.chunks {
            out.extend(chunk.digest.as_bytes());
        }
        out
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`BaseError`] for anything [`Manifest::encode`] did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, BaseError> {
        let found = bytes.len() as u64;
        let short = || BaseError::Length { part: "manifest", expected: HEADER_BYTES as u64, found };
        let (header, stored) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(short)?;
        let mut reader = Reader::new(header);
        let magic = reader.array().ok_or_else(short)?;
        if magic != MAGIC {
            return Err(BaseError::Magic { expected: "base manifest", found: magic });
        }
        let version = reader.u16().ok_or_else(short)?;
        if version != VERSION {
            return Err(BaseError::Version { found: version, known: VERSION });
        }
        let (checked, recorded) = header.split_at_checked(CHECKED_BYTES).ok_or_else(short)?;
        check_crc("manifest's header", Reader::new(recorded).u32().ok_or_else(short)?, checked)?;
        let fields = Fields::read(&mut reader).ok_or_else(short)?;
        let expected = fields.stored_len;
        if stored.len() as u64 != expected {
            return Err(BaseError::Length { part: "manifest's list", expected, found: stored.len() as u64 });
        }
        check_crc("manifest's list", fields.crc, stored)?;
        let lists = decompress_lists(stored, fields.raw_len)?;
        let manifest = fields.manifest(&lists)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// What holds for every manifest, checked before it is written and after it is read.
    fn check(&self) -> Result<(), BaseError> {
        let expected = u64::from(self.page_count.div_ceil(self.chunk_pages()));
        if self.chunks.len() as u64 != expected {
            return Err(BaseError::Chunks { expected, found: self.chunks.len() as u64 });
        }
        for (index, chunk) in self.chunks.iter().enumerate() {
            let raw = self.chunk_len(index);
            let len = chunk.len as usize;
            let fits = if chunk.codec == ChunkCodec::Raw { len == raw } else { len > 0 && len < raw };
            let end = chunk.offset.checked_add(chunk.len.into());
            let pack = self.packs.get(chunk.pack as usize);
            if !fits || pack.zip(end).is_none_or(|(pack, end)| end > pack.len) {
                return Err(BaseError::Field { field: "chunk" });
            }
        }
        Ok(())
    }
}

fn check_crc(part: &'static str, expected: u32, bytes: &[u8]) -> Result<(), BaseError> {
    let found = crc32fast::hash(bytes);
    if found == expected { Ok(()) } else { Err(BaseError::Checksum { part, expected, found }) }
}

fn decompress_lists(stored: &[u8], raw_len: u64) -> Result<Vec<u8>, BaseError> {
    if stored.len() as u64 == raw_len {
        return Ok(stored.to_vec());
    }
    let within = usize::try_from(raw_len).ok().filter(|len| *len <= MANIFEST_BYTES_MAX);
    let mut lists = vec![0; within.ok_or(BaseError::Field { field: "length of lists" })?];
    Decompressor::with(|lent| lent.decompress(&[], stored, &mut lists))
        .map_err(|why| BaseError::Compression { part: "manifest", why })?;
    Ok(lists)
}

/// The header after its magic and version.
struct Fields {
    page_size_log: u8,
    reserved: u8,
    database: [u8; 8],
    timeline: u32,
    page_count: u32,
    tx: u64,
    time: i64,
    state: u64,
    packs: u32,
    chunks: u32,
    stored_len: u64,
    raw_len: u64,
    crc: u32,
}

impl Fields {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            page_size_log: reader.u8()?,
            reserved: reader.u8()?,
            database: reader.array()?,
            timeline: reader.u32()?,
            page_count: reader.u32()?,
            tx: reader.u64()?,
            time: reader.i64()?,
            state: reader.u64()?,
            packs: reader.u32()?,
            chunks: reader.u32()?,
            stored_len: reader.u64()?,
            raw_len: reader.u64()?,
            crc: reader.u32()?,
        })
    }

    fn manifest(&self, lists: &[u8]) -> Result<Manifest, BaseError> {
        let invalid = |field| BaseError::Field { field };
        let time = Timestamp::from_micros(self.time);
        if self.reserved != 0 || time.as_micros() != self.time {
            return Err(invalid("reserved byte or time"));
        }
        // Each pack takes 33 bytes of the lists at least, each chunk 39: no more memory than the lists warrant.
        let least = u64::from(self.packs) * 33 + u64::from(self.chunks) * 39;
        if least > lists.len() as u64 {
            return Err(invalid("number of packs or chunks"));
        }
        let page_size = 1_u32.checked_shl(self.page_size_log.into()).and_then(PageSize::new);
        let (packs, chunks) = self.read_lists(&mut Reader::new(lists)).ok_or(invalid("list"))?;
        Ok(Manifest {
            database: DatabaseId::from_bytes(self.database),
            position: Position::new(
                TimelineId::new(self.timeline).ok_or(invalid("timeline"))?,
                TxId::new(self.tx).ok_or(invalid("transaction"))?,
            ),
            time,
            page_size: page_size.ok_or(invalid("page size"))?,
            page_count: self.page_count,
            state: StateChecksum::from_raw(self.state),
            packs,
            chunks,
        })
    }

    fn read_lists(&self, lists: &mut Reader<'_>) -> Option<(Vec<PackRef>, Vec<ChunkRef>)> {
        let nothing = Digest::from_bytes([0; 32]);
        let mut packs = Vec::with_capacity(self.packs as usize);
        for _ in 0..self.packs {
            packs.push(PackRef { digest: nothing, len: lists.varint()? });
        }
        let mut chunks = Vec::with_capacity(self.chunks as usize);
        for _ in 0..self.chunks {
            let pack = u32::try_from(lists.varint()?).ok()?;
            let (offset, code) = (lists.varint()?, lists.varint()?);
            let codec = if code & 1 == 0 { ChunkCodec::Raw } else { ChunkCodec::Zstd };
            let len = u32::try_from(code >> 1).ok()?;
            chunks.push(ChunkRef { digest: nothing, pack, offset, len, codec, crc: 0 });
        }
        for chunk in &mut chunks {
            chunk.crc = lists.u32()?;
        }
        for pack in &mut packs {
            pack.digest = Digest::from_bytes(lists.array()?);
        }
        for chunk in &mut chunks {
            chunk.digest = Digest::from_bytes(lists.array()?);
        }
        lists.rest().is_empty().then_some((packs, chunks))
    }
}
