//! Packs of chunks, and the making of a base.
#![warn(clippy::indexing_slicing)]

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::{BaseError, CHUNK_BYTES, Manifest, PACK_BYTES, PackRef, chunk_pages};
use crate::compress::{Compressor, Decompressor, Setting};
use crate::digest::Hasher;
use crate::ids::{DatabaseId, Digest, Position};
use crate::page::{PageSize, StateChecksum};
use crate::time::Timestamp;

/// The first bytes of a pack; the chunks follow back to back.
const MAGIC: [u8; 8] = *b"EVWP\x01\0\0\0";

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkCodec {
    /// As it is.
    Raw,
    /// As one zstd frame.
    Zstd,
}

/// A chunk named by a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// The digest of its pages' bytes.
    pub digest: Digest,
    /// The index of its pack in the manifest.
    pub pack: u32,
    /// Where it begins in the pack, in bytes.
    pub offset: u64,
    /// Bytes of it as stored.
    pub len: u32,
    /// How it is stored.
    pub codec: ChunkCodec,
    /// CRC-32 of its bytes as stored.
    pub crc: u32,
}

/// A finished pack.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its name: the digest of its bytes.
    pub digest: Digest,
    /// The object.
    pub bytes: Vec<u8>,
}

/// Gives the pages of a chunk back, `raw_len` bytes ([`Manifest::chunk_len`]), checked against its name.
///
/// # Errors
/// [`BaseError`] when `stored` is not the chunk.
pub fn decode_chunk(
    hasher: &Hasher,
    chunk: &ChunkRef,
    raw_len: usize,
    stored: &[u8],
) -> Result<Vec<u8>, BaseError> {
    let mut raw = Vec::new();
    decode_chunk_into(hasher, chunk, raw_len, stored, &mut raw)?;
    Ok(raw)
}

/// [`decode_chunk`] in a buffer that serves for many chunks. After an error, what is in it means nothing.
///
/// # Errors
/// [`BaseError`] when `stored` is not the chunk.
pub fn decode_chunk_into(
    hasher: &Hasher,
    chunk: &ChunkRef,
    raw_len: usize,
    stored: &[u8],
    raw: &mut Vec<u8>,
) -> Result<(), BaseError> {
    decode_chunk_unnamed(chunk, raw_len, stored, raw)?;
    let found = hasher.digest(raw);
    if found != chunk.digest {
        return Err(BaseError::Digest { expected: chunk.digest, found });
    }
    Ok(())
}

/// As [`decode_chunk_into`], without comparing the pages with the chunk's name: for those who check the image as a whole.
/// Only the stored bytes are compared with their CRC.
///
/// # Errors
/// [`BaseError`] when `stored` cannot be the chunk.
pub(crate) fn decode_chunk_unnamed(
    chunk: &ChunkRef,
    raw_len: usize,
    stored: &[u8],
    raw: &mut Vec<u8>,
) -> Result<(), BaseError> {
    if stored.len() != chunk.len as usize {
        let (expected, found) = (chunk.len.into(), stored.len() as u64);
        return Err(BaseError::Length { part: "chunk", expected, found });
    }
    let crc = crc32fast::hash(stored);
    if crc != chunk.crc {
        return Err(BaseError::Checksum { part: "chunk", expected: chunk.crc, found: crc });
    }
    if raw_len > CHUNK_BYTES || chunk.codec == ChunkCodec::Raw && raw_len != stored.len() {
        let (expected, found) = (stored.len() as u64, raw_len as u64);
        return Err(BaseError::Length { part: "chunk", expected, found });
    }
    raw.resize(raw_len, 0);
    match chunk.codec {
        ChunkCodec::Raw => raw.copy_from_slice(stored),
        ChunkCodec::Zstd => Decompressor::with(|lent| lent.decompress(&[], stored, raw))
            .map_err(|why| BaseError::Compression { part: "chunk", why })?,
    }
    Ok(())
}

/// Whether an object begins as a pack of a known version does.
///
/// # Errors
/// [`BaseError::Magic`].
pub fn check_pack(bytes: &[u8]) -> Result<(), BaseError> {
    if bytes.starts_with(&MAGIC) {
        return Ok(());
    }
    let mut found = [0; 4];
    found.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    Err(BaseError::Magic { expected: "pack of format 1", found })
}

/// A chunk that only has to be given its place.
#[derive(Debug)]
pub struct PreparedChunk {
    digest: Digest,
    raw_len: usize,
    codec: ChunkCodec,
    crc: u32,
    /// As it will lie in a pack; empty when an earlier base has it.
    stored: Vec<u8>,
}

/// Does the costly part of making a base, for which the order of chunks does not matter: names them and compresses
/// those that no earlier base has.
pub struct ChunkPreparer {
    hasher: Hasher,
    stored: Arc<HashMap<Digest, (ChunkRef, PackRef)>>,
    compressor: Compressor,
}

impl ChunkPreparer {
    /// Prepares one chunk.
    ///
    /// # Errors
    /// [`BaseError::Compression`].
    pub fn prepare(&mut self, raw: &[u8]) -> Result<PreparedChunk, BaseError> {
        let digest = self.hasher.digest(raw);
        let (raw_len, codec) = (raw.len(), ChunkCodec::Raw);
        let known = PreparedChunk { digest, raw_len, codec, crc: 0, stored: Vec::new() };
        if self.stored.contains_key(&digest) {
            return Ok(known);
        }
        let compressed = self.compressor.compress(&[], raw);
        let compressed = compressed.map_err(|why| BaseError::Compression { part: "chunk", why })?;
        let codec = if compressed.is_some() { ChunkCodec::Zstd } else { ChunkCodec::Raw };
        let stored = compressed.unwrap_or(raw).to_vec();
        Ok(PreparedChunk { codec, crc: crc32fast::hash(&stored), stored, ..known })
    }
}

/// Makes a base: takes the image chunk by chunk, gives packs as they fill, and at last the manifest.
///
/// In memory are one pack and, for each chunk of this base and of the one before, about 100 bytes.
#[derive(Debug)]
pub struct BaseBuilder {
    hasher: Hasher,
    manifest: Manifest,
    /// Chunks that lie in packs of earlier bases: their place there, and the pack.
    stored: Arc<HashMap<Digest, (ChunkRef, PackRef)>>,
    /// Chunks that lie in packs of this base, or were taken from earlier ones.
    taken: HashMap<Digest, ChunkRef>,
    /// Earlier packs named by this manifest already.
    reused: HashMap<Digest, u32>,
    pack: Vec<u8>,
    /// Chunks in the open pack, which is named only when it is full: their indices in the manifest.
    open: Vec<usize>,
    pages: u32,
}

/// With room for all it will hold: one that doubles as it grows would end with twice its size in memory.
fn empty_pack() -> Vec<u8> {
    let mut pack = Vec::with_capacity(PACK_BYTES + CHUNK_BYTES);
    pack.extend_from_slice(&MAGIC);
    pack
}

/// Stands for the open pack until it has its place in the manifest.
const OPEN_PACK: u32 = u32::MAX;

impl BaseBuilder {
    /// Begins the base of a state with this many pages.
    #[must_use]
    pub fn new(
        hasher: Hasher,
        database: DatabaseId,
        position: Position,
        time: Timestamp,
        page_size: PageSize,
    ) -> Self {
        let manifest = Manifest {
            database,
            position,
            time,
            page_size,
            page_count: 0,
            state: StateChecksum::EMPTY,
            packs: Vec::new(),
            chunks: Vec::new(),
        };
        Self {
            hasher,
            manifest,
            stored: Arc::default(),
            taken: HashMap::new(),
            reused: HashMap::new(),
            pack: empty_pack(),
            open: Vec::new(),
            pages: 0,
        }
    }

    /// Chunks of this earlier base need not be stored again. Its packs must stay as long as the new base does.
    pub fn reuse(&mut self, earlier: &Manifest) {
        let stored = Arc::make_mut(&mut self.stored);
        for chunk in &earlier.chunks {
            if let Some(pack) = earlier.packs.get(chunk.pack as usize) {
                stored.insert(chunk.digest, (*chunk, *pack));
            }
        }
    }

    /// Prepares chunks for this builder, one for each thread that does. After every [`BaseBuilder::reuse`].
    #[must_use]
    pub fn preparer(&self) -> ChunkPreparer {
        let compressor = Compressor::new(Setting::Plain);
        ChunkPreparer { hasher: self.hasher.clone(), stored: Arc::clone(&self.stored), compressor }
    }

    /// Takes the next chunk: [`chunk_pages`] pages, or fewer at the end of the image. Gives a pack when one is full.
    ///
    /// # Errors
    /// [`BaseError`] when it is not a run of pages or follows a short one.
    pub fn chunk(&mut self, raw: &[u8]) -> Result<Option<Pack>, BaseError> {
        self.prepared(&self.preparer().prepare(raw)?)
    }

    /// [`BaseBuilder::chunk`] for a chunk that was prepared, by another thread perhaps; in the order of the image.
    ///
    /// # Errors
    /// [`BaseError`] when it is not a run of pages or follows a short one.
    pub fn prepared(&mut self, chunk: &PreparedChunk) -> Result<Option<Pack>, BaseError> {
        let page_size = self.manifest.page_size;
        let raw_len = chunk.raw_len;
        let whole = raw_len.is_multiple_of(page_size.bytes()) && raw_len > 0 && raw_len <= CHUNK_BYTES;
        if !whole || !self.pages.is_multiple_of(chunk_pages(page_size)) {
            let (expected, found) = (CHUNK_BYTES as u64, raw_len as u64);
            return Err(BaseError::Length { part: "chunk", expected, found });
        }
        let pages = (raw_len / page_size.bytes()) as u32;
        self.pages = self.pages.checked_add(pages).ok_or(BaseError::Field { field: "page count" })?;
        if let Some(known) = self.taken.get(&chunk.digest).copied().or_else(|| self.reused(chunk.digest)) {
            if known.pack == OPEN_PACK {
                self.open.push(self.manifest.chunks.len());
            }
            self.manifest.chunks.push(known);
            return Ok(None);
        }
        self.store(chunk);
        Ok(if self.pack.len() >= PACK_BYTES { self.close_pack() } else { None })
    }

    /// Ends the base: the last pack, if there is one, and the manifest. Put all packs before the manifest.
    ///
    /// # Errors
    /// [`BaseError`] when the chunks do not make up `page_count` pages.
    pub fn finish(
        mut self,
        page_count: u32,
        state: StateChecksum,
    ) -> Result<(Option<Pack>, Manifest), BaseError> {
        if self.pages != page_count {
            let (expected, found) = (page_count.into(), self.pages.into());
            return Err(BaseError::Length { part: "image in pages", expected, found });
        }
        let last = self.close_pack();
        self.manifest.page_count = page_count;
        self.manifest.state = state;
        Ok((last, self.manifest))
    }

    /// The chunk in an earlier pack, which gets its place in this manifest.
    fn reused(&mut self, digest: Digest) -> Option<ChunkRef> {
        let (mut chunk, pack) = *self.stored.get(&digest)?;
        let packs = &mut self.manifest.packs;
        chunk.pack = *self.reused.entry(pack.digest).or_insert_with(|| {
            packs.push(pack);
            packs.len() as u32 - 1
        });
        self.taken.insert(digest, chunk);
        Some(chunk)
    }

    fn store(&mut self, prepared: &PreparedChunk) {
        let stored = &prepared.stored;
        let chunk = ChunkRef {
            digest: prepared.digest,
            pack: OPEN_PACK,
            offset: self.pack.len() as u64,
            len: stored.len() as u32,
            codec: prepared.codec,
            crc: prepared.crc,
        };
        self.pack.extend_from_slice(stored);
        self.open.push(self.manifest.chunks.len());
        self.manifest.chunks.push(chunk);
        self.taken.insert(chunk.digest, chunk);
    }

    fn close_pack(&mut self) -> Option<Pack> {
        if self.open.is_empty() {
            return None;
        }
        let bytes = std::mem::replace(&mut self.pack, empty_pack());
        let digest = self.hasher.digest(&bytes);
        let index = self.manifest.packs.len() as u32;
        self.manifest.packs.push(PackRef { digest, len: bytes.len() as u64 });
        for place in self.open.drain(..) {
            if let Some(chunk) = self.manifest.chunks.get_mut(place) {
                chunk.pack = index;
                self.taken.insert(chunk.digest, *chunk);
            }
        }
        Some(Pack { digest, bytes })
    }
}
