//! What each decoder of bytes from outside owes, whatever the bytes: a value or an error, never a panic; no more memory
//! than its input warrants; what it reads is written again as the same; what was altered under a checksum is refused.
//!
//! Each law is one function that takes any bytes and panics when it is broken. It stands here, or beside the private
//! decoder it is about, once, and is run twice: by the ordinary tests on kept, drawn and altered inputs
//! (`tests/tests/laws.rs`) and by a fuzz target (`tests/fuzz`).
//!
//! Checksums catch damage long before the code behind them sees it, so laws also try each input with its checksums made
//! right: as somebody who forges it would.
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a law that does not hold panics: that is what it is for"
)]

mod base;
pub mod memory;
mod names;
mod segment;

pub use crate::capture::sqlite::laws::sqlite_files;
pub use crate::catalog::laws::catalog;
pub use crate::protect::laws::journal;
pub use crate::repository::laws::{envelope, records};
pub use base::{base_manifest, pack_chunk};
pub use names::{names, times};
pub use segment::{segment_prologue, segment_replay};

use crate::{capture, catalog as catalog_module, protect, repository};

/// Memory that any decoder may take besides what its law says: for errors, texts and buffers of a fixed size.
pub const SLACK: usize = 64 * 1024;

/// A law and where to begin looking for a breach of it.
#[derive(Clone, Copy, Debug)]
pub struct Law {
    /// The name of its fuzz target and of its folder in `tests/fuzz/corpus`.
    pub name: &'static str,
    /// Panics when the law does not hold for these bytes.
    pub check: fn(&[u8]),
    /// Valid inputs, made anew.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// The laws of the engine's decoders.
pub const ALL: [Law; 11] = [
    Law { name: "base_manifest", check: base_manifest, seeds: base::manifests },
    Law { name: "catalog", check: catalog, seeds: catalog_module::laws::catalogs },
    Law { name: "envelope", check: envelope, seeds: repository::laws::envelopes },
    Law { name: "journal", check: journal, seeds: protect::laws::journals },
    Law { name: "names", check: names, seeds: names::some_names },
    Law { name: "pack_chunk", check: pack_chunk, seeds: base::chunks },
    Law { name: "records", check: records, seeds: repository::laws::some_records },
    Law { name: "segment_prologue", check: segment_prologue, seeds: segment::segments },
    Law { name: "segment_replay", check: segment_replay, seeds: segment::segments },
    Law { name: "sqlite_files", check: sqlite_files, seeds: capture::sqlite::laws::files },
    Law { name: "times", check: times, seeds: names::some_times },
];

/// Puts the CRC-32 of a range at `at`, as far as both are there.
pub(crate) fn mend(bytes: &mut [u8], at: usize, range: std::ops::Range<usize>) {
    let range = range.start.min(bytes.len())..range.end.min(bytes.len());
    let crc = crc32fast::hash(bytes.get(range).unwrap_or_default()).to_le_bytes();
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&crc);
    }
}

/// The first `N` bytes off the front, or fewer with zeros behind them.
pub(crate) fn take<const N: usize>(input: &mut &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    let (front, rest) = input.split_at(N.min(input.len()));
    taken.iter_mut().zip(front).for_each(|(to, from)| *to = *from);
    *input = rest;
    taken
}
