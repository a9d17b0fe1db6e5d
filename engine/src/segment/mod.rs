//! The segment format: runs of whole transactions, each page image compressed behind its own previous version. Pure.
//!
//! An [`Encoder`] takes captured transactions and gives one *part*: a prologue (header and tables) and frames. A
//! segment object is one part, or several back to back when it was repacked. A [`Replayer`] takes an image from one
//! transaction to a later one, by a [`Prologue`] and frames fetched one at a time.
//!
//! Every frame is decompressed again and compared while it is made. Decoders are total: any byte string gives a value
//! or a [`SegmentError`], in memory bounded by the limits below.
//!
//! Elsewhere: object digests and encryption (`repository`), which segment to read (`plan`), when to cut (`protect`).
#![doc = include_str!("FORMAT.md")]

mod encode;
mod error;
mod header;
mod image;
mod prologue;
mod replay;
mod tables;
#[cfg(test)]
mod tests;

pub use encode::{Effort, EncodeError, Encoder, EncoderParams, Finished, FrameSink};
pub use error::SegmentError;
pub use header::{HEADER_BYTES, SegmentHeader, chain_start};
pub use image::{MemoryImage, PageStore};
pub use prologue::{FrameCodec, FrameEntry, PageVersion, Part, Parts, Prologue, Versions, parts};
pub use replay::Replayer;

/// Bytes of page images at which a frame is full when pages with a previous version prevail in it.
pub const FRAME_BYTES: usize = 256 * 1024;
/// Bytes of page images at which a frame of mostly new pages is full. No frame has more.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Transactions in one part, at most.
pub const TRANSACTIONS_MAX: u32 = 1 << 20;
/// Frames in one part, at most.
pub const FRAMES_MAX: u32 = 1 << 20;
/// Bytes of the lists in one part before compression, at most: 12 to 60 million page versions.
pub const LISTS_BYTES_MAX: usize = 64 * 1024 * 1024;

const _: () = assert!(FRAME_BYTES_MAX.is_multiple_of(65_536) && FRAME_BYTES.is_multiple_of(65_536));
