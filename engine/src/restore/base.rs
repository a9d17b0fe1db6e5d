//! Brings a base into a file: few, large ranged reads, decoded and written on all cores as they come.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;

use crate::base::{ChunkRef, Manifest, decode_chunk_into};
use crate::cores::cores;
use crate::digest::Hasher;
use crate::restore::progress::{Cancel, Tracker};
use crate::restore::target::io_error;
use crate::restore::{Objects, ReadError, RestoreError};
use crate::store::keys::pack_key;

/// Bytes of one read, at most (but for a single larger chunk).
const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of no use between two chunks that are cheaper to read than to ask twice.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// Reads under way at a time. With their decoded chunks they take four times as much memory at most.
const READS_AT_A_TIME: usize = 12;

/// One ranged read of a pack, and the chunks that come with it: indices in the manifest, in order of the pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackRead {
    /// Index in the manifest.
    pub(crate) pack: u32,
    pub(crate) range: Range<u64>,
    pub(crate) chunks: Vec<usize>,
}

/// Bytes of a read.
pub(crate) fn bytes_of(read: &PackRead) -> u64 {
    read.range.end - read.range.start
}

/// The reads that bring all chunks of a base.
pub(crate) fn reads_of(manifest: &Manifest) -> Vec<PackRead> {
    let mut order: Vec<(usize, &ChunkRef)> = manifest.chunks.iter().enumerate().collect();
    order.sort_by_key(|(index, chunk)| (chunk.pack, chunk.offset, *index));
    let mut reads: Vec<PackRead> = Vec::new();
    for (index, chunk) in order {
        let end = chunk.offset.saturating_add(chunk.len.into());
        match reads.last_mut() {
            Some(read)
                if read.pack == chunk.pack
                    && chunk.offset <= read.range.end.saturating_add(GAP_BYTES_MAX)
                    && end.max(read.range.end) - read.range.start <= READ_BYTES_MAX =>
            {
                read.range.end = read.range.end.max(end);
                read.chunks.push(index);
            }
            _ => reads.push(PackRead { pack: chunk.pack, range: chunk.offset..end, chunks: vec![index] }),
        }
    }
    reads
}

/// Writes the image of a base to a file of its length that holds zeros.
pub(crate) async fn write_base<O: Objects>(
    objects: &O,
    manifest: Arc<Manifest>,
    file: &Arc<File>,
    path: &Path,
    tracker: &Arc<Tracker>,
    cancel: &Cancel,
) -> Result<(), RestoreError> {
    let hasher = objects.hasher(manifest.database).await?;
    // More than one at a time on a core would only push each other out of its cache.
    let working = &Semaphore::new(cores(2));
    let tasks = reads_of(&manifest).into_iter().map(|read| {
        let (manifest, file, hasher) = (Arc::clone(&manifest), Arc::clone(file), hasher.clone());
        async move {
            cancel.check()?;
            let Some(pack) = manifest.packs.get(read.pack as usize).copied() else { return Ok(()) };
            let bytes = objects.pack_range(manifest.database, pack.digest, read.range.clone()).await?;
            let got = bytes.len() as u64;
            let path = path.to_owned();
            let _core = working.acquire().await.map_err(|_| RestoreError::Stopped)?;
            let write = move || write_chunks(&manifest, &hasher, &read, &bytes, &file, &path);
            tokio::task::spawn_blocking(write).await.map_err(|_| RestoreError::Stopped)??;
            tracker.read(got);
            Ok::<(), RestoreError>(())
        }
    });
    let mut done = futures::stream::iter(tasks).buffer_unordered(READS_AT_A_TIME);
    while let Some(result) = done.next().await {
        result?;
    }
    Ok(())
}

fn write_chunks(
    manifest: &Manifest,
    hasher: &Hasher,
    read: &PackRead,
    bytes: &Bytes,
    file: &File,
    path: &Path,
) -> Result<(), RestoreError> {
    decode_read(manifest, hasher, read, bytes, |index, raw| {
        if raw.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let chunk_bytes = u64::from(manifest.chunk_pages()) * u64::from(manifest.page_size.get());
        let at = index as u64 * chunk_bytes;
        file.write_all_at(raw, at).map_err(|error| io_error("write", path, error))
    })
}

/// Gives every chunk of a read to `each`, with its index in the manifest. Blocks.
pub(crate) fn decode_read(
    manifest: &Manifest,
    hasher: &Hasher,
    read: &PackRead,
    bytes: &Bytes,
    mut each: impl FnMut(usize, &[u8]) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    // A chunk that occurs several times in the image is in the read once: its places follow each other.
    let mut raw = Vec::new();
    let mut decoded: Option<&ChunkRef> = None;
    for index in &read.chunks {
        let Some(chunk) = manifest.chunks.get(*index) else { continue };
        let len = manifest.chunk_len(*index);
        if decoded != Some(chunk) || raw.len() != len {
            let start = usize::try_from(chunk.offset.saturating_sub(read.range.start)).unwrap_or(usize::MAX);
            let end = start.saturating_add(chunk.len as usize);
            let stored = bytes.get(start..end).unwrap_or_default();
            decode_chunk_into(hasher, chunk, len, stored, &mut raw)
                .map_err(|error| damaged(manifest, chunk, &error))?;
            decoded = Some(chunk);
        }
        each(*index, &raw)?;
    }
    Ok(())
}

fn damaged(manifest: &Manifest, chunk: &ChunkRef, error: &crate::base::BaseError) -> ReadError {
    let pack = manifest.packs.get(chunk.pack as usize);
    let object = pack.map_or_else(String::new, |pack| pack_key(manifest.database, pack.digest));
    ReadError::Damaged { object, what: format!("chunk at byte {}: {error}", chunk.offset) }
}
