//! What can be wrong with a segment, or happen while one is replayed.

use crate::error::{ErrorKind, Explain};
use crate::ids::{Digest, TxId};
use crate::page::{PageNo, PageSize};

/// A segment that cannot be read or replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The bytes are something else.
    #[error("not a segment: it begins with {found:02x?}")]
    NotASegment {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// It was written by a newer Everwhen.
    #[error("segment format {found} is not known, the newest known is {known}")]
    Version {
        /// The version it says.
        found: u16,
        /// The newest version this program reads.
        known: u16,
    },
    /// Bytes are missing at its end.
    #[error("the segment ends inside its {part}: expected {expected} bytes, found {found}")]
    Truncated {
        /// Where it ends.
        part: &'static str,
        /// Bytes that should be there.
        expected: u64,
        /// Bytes that are.
        found: u64,
    },
    /// Bytes were altered.
    #[error("the segment's {part} is damaged: expected checksum {expected:08x}, found {found:08x}")]
    Checksum {
        /// Which bytes.
        part: &'static str,
        /// CRC-32 as recorded.
        expected: u32,
        /// CRC-32 of what is there.
        found: u32,
    },
    /// A field has a value no encoder writes.
    #[error("the segment's {field} is not valid: found {found}, expected {expected}")]
    Field {
        /// The field in FORMAT.md's words.
        field: &'static str,
        /// Its value.
        found: u64,
        /// In words.
        expected: &'static str,
    },
    /// A list ends early, goes on too long or contradicts the header.
    #[error("the segment's list of {list} does not fit its header")]
    List {
        /// Of what.
        list: &'static str,
    },
    /// A compressed part does not decompress.
    #[error("the segment's {part} cannot be decompressed: {why}")]
    Compression {
        /// Which part.
        part: &'static str,
        /// In zstd's words.
        why: &'static str,
    },
    /// The content does not give the chain hash in the header.
    #[error("the segment's chain is broken: expected {expected}, found {found}")]
    Chain {
        /// As recorded.
        expected: Digest,
        /// As computed.
        found: Digest,
    },
    /// Two parts do not follow each other.
    #[error("parts do not join: {field} is {found}, expected {expected}")]
    Join {
        /// Which field.
        field: &'static str,
        /// Of the later part.
        found: String,
        /// By the earlier part.
        expected: String,
    },
    /// The image is at a transaction from which this segment does not go on.
    #[error("the segment holds {first} to {last} and cannot go on from {from}")]
    NotAdjacent {
        /// The image's transaction.
        from: TxId,
        /// The segment's first.
        first: TxId,
        /// The segment's last.
        last: TxId,
    },
    /// The log cannot be replayed across this transaction.
    #[error("the state of transaction {tx} is in its base only, the log does not lead to it")]
    NeedsBase {
        /// The transaction.
        tx: TxId,
    },
    /// The image has pages of another size.
    #[error("the image has pages of {found} bytes, the segment of {expected}")]
    PageSize {
        /// By the segment.
        expected: PageSize,
        /// Bytes in a page of the image.
        found: PageSize,
    },
    /// A page is said to have a previous version, and the image has no such page.
    #[error("page {page} has no previous version in an image of {image_pages} pages")]
    NoPrevious {
        /// The page.
        page: PageNo,
        /// Pages in the image.
        image_pages: u32,
    },
    /// Frames could not be fetched.
    #[error("fetch the frame at byte {offset} of the segment's frames")]
    Fetch {
        /// Bytes from the first frame.
        offset: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The image could not be read or written.
    #[error("read or write page {page} of the image")]
    Image {
        /// The page.
        page: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The image refused a transaction's end: it could not be resized, or a check of the state failed.
    #[error("end transaction {tx} on the image")]
    Commit {
        /// The transaction.
        tx: TxId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Explain for SegmentError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Fetch { .. } | Self::Image { .. } | Self::Commit { .. } => ErrorKind::Failed,
            _ => ErrorKind::Damaged,
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Version { .. } => Some("use a newer everwhen on this repository".into()),
            Self::Fetch { .. } | Self::Image { .. } | Self::Commit { .. } => None,
            _ => Some("run 'everwhen verify' to see what of the repository is intact".into()),
        }
    }
}
