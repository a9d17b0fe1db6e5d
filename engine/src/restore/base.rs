//! Brings a base into a file: few, large ranged reads, decoded, written and read back on all cores as they come.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;

use crate::base::{ChunkRef, Manifest, decode_chunk_into, decode_chunk_unnamed};
use crate::cores::cores;
use crate::digest::Hasher;
use crate::page::PageNo;
use crate::restore::progress::{Cancel, Tracker};
use crate::restore::prove::hash_pages;
use crate::restore::sums::Sums;
use crate::restore::target::io_error;
use crate::restore::{Objects, ReadError, RestoreError};
use crate::store::keys::{BaseKey, pack_key};

/// Bytes of one read, at most (but for a single larger chunk).
const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes of no use between two chunks that are cheaper to read than to ask twice.
const GAP_BYTES_MAX: u64 = 64 * 1024;
/// Places of one chunk that a read brings: an image may be all zeros, and each place is written by itself.
const PLACES_MAX: usize = 64;
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
    let (mut before, mut places) = (None, 0_usize);
    for (index, chunk) in order {
        places = if before == Some(chunk) { places + 1 } else { 0 };
        before = Some(chunk);
        let end = chunk.offset.saturating_add(chunk.len.into());
        match reads.last_mut() {
            Some(read)
                if read.pack == chunk.pack
                    && (places == 0 || !places.is_multiple_of(PLACES_MAX))
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

/// Writes the image of a base to a file of its length that holds zeros, reads it back, and gives its checksums: they are
/// those of the manifest.
pub(crate) async fn write_base<O: Objects>(
    objects: &O,
    base: &BaseKey,
    manifest: &Arc<Manifest>,
    to: &Destination<'_>,
    cancel: &Cancel,
) -> Result<Sums, RestoreError> {
    let base_file = Arc::new(BaseFile {
        file: Arc::clone(to.file),
        path: to.path.to_owned(),
        turn: Mutex::new(()),
        sums: Mutex::new(Sums::to_be_added(manifest.page_size, to.left_out, manifest.page_count)),
    });
    let (writing, stop, tracker) = (Arc::clone(&base_file), cancel.clone(), Arc::clone(to.tracker));
    for_each_read(objects, manifest, cancel, move |manifest, read, bytes| {
        writing.write_chunks(manifest, read, bytes, &stop)?;
        tracker.read(bytes.len() as u64);
        Ok(())
    })
    .await?;
    let sums = std::mem::replace(&mut *locked(&base_file.sums), Sums::unknown(manifest.page_size));
    let found = sums.total();
    if found != manifest.state {
        find_damage(objects, manifest, cancel).await?;
        return Err(RestoreError::NotProven { position: base.position, expected: manifest.state, found });
    }
    Ok(sums)
}

/// The file that a base is to be written to.
pub(crate) struct Destination<'a> {
    pub(crate) file: &'a Arc<File>,
    pub(crate) path: &'a Path,
    /// The page that is in no checksum.
    pub(crate) left_out: Option<PageNo>,
    pub(crate) tracker: &'a Arc<Tracker>,
}

/// Does blocking work with each read of a base, on all cores.
async fn for_each_read<O: Objects>(
    objects: &O,
    manifest: &Arc<Manifest>,
    cancel: &Cancel,
    work: impl Fn(&Manifest, &PackRead, &Bytes) -> Result<(), RestoreError> + Clone + Send + 'static,
) -> Result<(), RestoreError> {
    // One of them waits for its turn to write. More would only push each other out of the cores' caches.
    let working = &Semaphore::new(cores(2) + 1);
    let tasks = reads_of(manifest).into_iter().map(|read| {
        let (manifest, work) = (Arc::clone(manifest), work.clone());
        async move {
            cancel.check()?;
            let Some(pack) = manifest.packs.get(read.pack as usize).copied() else { return Ok(()) };
            let bytes = objects.pack_range(manifest.database, pack.digest, read.range.clone()).await?;
            let _core = working.acquire().await.map_err(|_| RestoreError::Stopped)?;
            let done = tokio::task::spawn_blocking(move || work(&manifest, &read, &bytes)).await;
            done.map_err(|_| RestoreError::Stopped)?
        }
    });
    let mut done = futures::stream::iter(tasks).buffer_unordered(READS_AT_A_TIME);
    while let Some(result) = done.next().await {
        result?;
    }
    Ok(())
}

/// What the threads share that write a base.
struct BaseFile {
    file: Arc<File>,
    path: PathBuf,
    /// Whose turn it is to write: file systems let one write to a file at a time, and others spin meanwhile.
    turn: Mutex<()>,
    sums: Mutex<Sums>,
}

impl BaseFile {
    /// Writes the chunks of a read and reads them back. Their names are not checked: the sum of all pages is, which
    /// costs a third and covers the writing, too. Blocks.
    fn write_chunks(
        &self,
        manifest: &Manifest,
        read: &PackRead,
        bytes: &Bytes,
        cancel: &Cancel,
    ) -> Result<(), RestoreError> {
        let (mut back, mut hashes) = (Vec::new(), Vec::new());
        decode_read(manifest, None, read, bytes, |index, raw| {
            cancel.check()?;
            let before = u32::try_from(index).unwrap_or(u32::MAX).saturating_mul(manifest.chunk_pages());
            let at = u64::from(before) * u64::from(manifest.page_size.get());
            if raw.iter().any(|byte| *byte != 0) {
                let _turn = locked(&self.turn);
                let written = self.file.write_all_at(raw, at);
                written.map_err(|error| io_error("write", &self.path, error))?;
            }
            back.resize(raw.len(), 0);
            let read_back = self.file.read_exact_at(&mut back, at);
            read_back.map_err(|error| io_error("read back", &self.path, error))?;
            hashes.clear();
            hash_pages(before, &back, manifest.page_size, &mut hashes);
            locked(&self.sums).add(before, &hashes);
            Ok(())
        })
    }
}

/// The image is not the one that the manifest tells: reads all again, and compares each chunk with its name.
///
/// # Errors
/// What is damaged, if it is a chunk. A store that fails now does not hide that there is damage.
async fn find_damage<O: Objects>(
    objects: &O,
    manifest: &Arc<Manifest>,
    cancel: &Cancel,
) -> Result<(), RestoreError> {
    let hasher = objects.hasher(manifest.database).await?;
    let compared = for_each_read(objects, manifest, cancel, move |manifest, read, bytes| {
        decode_read(manifest, Some(&hasher), read, bytes, |_, _| Ok(()))
    });
    match compared.await {
        Err(error) if error.lost_object().is_none() && !matches!(error, RestoreError::Cancelled) => {
            tracing::warn!(%error, "which object is damaged could not be found");
            Ok(())
        }
        other => other,
    }
}

/// Gives every chunk of a read to `each`, with its index in the manifest. Compared with its name if there is a `hasher`.
/// Blocks.
pub(crate) fn decode_read(
    manifest: &Manifest,
    hasher: Option<&Hasher>,
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
            match hasher {
                Some(hasher) => decode_chunk_into(hasher, chunk, len, stored, &mut raw),
                None => decode_chunk_unnamed(chunk, len, stored, &mut raw),
            }
            .map_err(|error| damaged(manifest, chunk, &error))?;
            decoded = Some(chunk);
        }
        each(*index, &raw)?;
    }
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn damaged(manifest: &Manifest, chunk: &ChunkRef, error: &crate::base::BaseError) -> ReadError {
    let pack = manifest.packs.get(chunk.pack as usize);
    let object = pack.map_or_else(String::new, |pack| pack_key(manifest.database, pack.digest));
    ReadError::Damaged { object, what: format!("chunk at byte {}: {error}", chunk.offset) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BaseBuilder, CHUNK_BYTES};
    use crate::ids::{DatabaseId, Position, TimelineId, TxId};
    use crate::page::{PageSize, StateChecksum};
    use crate::time::Timestamp;

    #[test]
    fn an_image_of_the_same_over_and_over_is_still_work_for_several() {
        let (position, time) = (Position::new(TimelineId::FIRST, TxId::FIRST), Timestamp::from_micros(1));
        let database = DatabaseId::from_bytes([1; 8]);
        let mut builder = BaseBuilder::new(Hasher::Plain, database, position, time, PageSize::MAX);
        for _ in 0..200 {
            builder.chunk(&[0; CHUNK_BYTES]).unwrap();
        }
        builder.chunk(&[1; CHUNK_BYTES]).unwrap();
        let (_, manifest) = builder.finish(201 * 4, StateChecksum::EMPTY).unwrap();
        let reads = reads_of(&manifest);
        assert_eq!(reads.iter().map(|read| read.chunks.len()).collect::<Vec<_>>(), [64, 64, 64, 9]);
        let mut places: Vec<usize> = reads.into_iter().flat_map(|read| read.chunks).collect();
        places.sort_unstable();
        assert_eq!(places, (0..201).collect::<Vec<_>>());
    }
}
