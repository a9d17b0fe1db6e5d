//! Bases: full images of a database, as a manifest over packed chunks. Pure.
//!
//! A chunk is a run of pages, cut at multiples of [`CHUNK_BYTES`], named by the digest of its bytes. Chunks lie in packs
//! of about [`PACK_BYTES`]; a later base names the chunks of older packs and stores only what changed. A
//! [`BaseBuilder`] makes packs and the [`Manifest`]; [`decode_chunk`] gives a chunk back.
//!
//! The byte tables are in the segment format's document ([`crate::segment`]).

mod format;
mod pack;
#[cfg(test)]
mod tests;

pub use format::{Manifest, PackRef};
pub(crate) use pack::decode_chunk_unnamed;
pub use pack::{
    BaseBuilder, ChunkCodec, ChunkPreparer, ChunkRef, Pack, PreparedChunk, check_pack, decode_chunk,
    decode_chunk_into,
};

use crate::error::{ErrorKind, Explain};
use crate::ids::Digest;
use crate::page::PageSize;

/// Bytes of a whole chunk before compression.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes at which a pack is full; it may pass this by one chunk.
pub const PACK_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a manifest's lists before compression, at most: some 4 million chunks, an image of 1 TiB.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Pages in a whole chunk.
#[must_use]
pub fn chunk_pages(page_size: PageSize) -> u32 {
    CHUNK_BYTES as u32 / page_size.get()
}

/// A base that cannot be read or built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// The bytes are something else.
    #[error("not a {expected}: it begins with {found:02x?}")]
    Magic {
        /// What it was taken for.
        expected: &'static str,
        /// Its first bytes.
        found: [u8; 4],
    },
    /// It was written by a newer Everwhen.
    #[error("base format {found} is not known, the newest known is {known}")]
    Version {
        /// The version it says.
        found: u16,
        /// The newest version this program reads.
        known: u16,
    },
    /// Bytes are missing, or there are too many.
    #[error("the {part} has {found} bytes, expected {expected}")]
    Length {
        /// Of what.
        part: &'static str,
        /// As recorded.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Bytes were altered.
    #[error("the {part} is damaged: expected checksum {expected:08x}, found {found:08x}")]
    Checksum {
        /// Which bytes.
        part: &'static str,
        /// CRC-32 as recorded.
        expected: u32,
        /// CRC-32 of what is there.
        found: u32,
    },
    /// A chunk's content is not what its name says.
    #[error("the chunk is another one: expected {expected}, found {found}")]
    Digest {
        /// Its name.
        expected: Digest,
        /// The digest of what it holds.
        found: Digest,
    },
    /// A field has a value no builder writes.
    #[error("the manifest's {field} is not valid")]
    Field {
        /// The field in FORMAT.md's words.
        field: &'static str,
    },
    /// It does not compress or decompress.
    #[error("the {part} cannot be compressed or decompressed: {why}")]
    Compression {
        /// Which part.
        part: &'static str,
        /// In zstd's words.
        why: &'static str,
    },
    /// The chunks do not make up the image.
    #[error("the base has {found} chunks, expected {expected}")]
    Chunks {
        /// By the image's size.
        expected: u64,
        /// Given.
        found: u64,
    },
}

impl Explain for BaseError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Damaged
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Version { .. } => Some("use a newer everwhen on this repository".into()),
            _ => Some("run 'everwhen verify' to see what of the repository is intact".into()),
        }
    }
}
