//! Reads back what of a finished image was written since it was last read, and computes its checksum, on all cores.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;

use crate::cores::cores;
use crate::page::{PageHash, PageNo, PageSize, StateChecksum};
use crate::restore::RestoreError;
use crate::restore::progress::{Cancel, Tracker};
use crate::restore::sums::Sums;
use crate::restore::target::io_error;

/// Bytes of one read.
const BUFFER_BYTES: usize = 256 * 1024;

/// An image file to be hashed.
#[derive(Clone)]
pub(crate) struct Finished {
    pub(crate) file: Arc<File>,
    pub(crate) page_size: PageSize,
    pub(crate) pages: u32,
    /// The page that the source never stores: it is in no checksum.
    pub(crate) left_out: Option<PageNo>,
}

/// The checksum of an image of which `sums` are known: the rest is read. Gives the hashes of that, in order, to `each`.
pub(crate) async fn hash_image(
    image: &Finished,
    sums: &Sums,
    path: &Path,
    tracker: &Arc<Tracker>,
    cancel: &Cancel,
    mut each: impl FnMut(&[PageHash]),
) -> Result<StateChecksum, RestoreError> {
    let page_bytes = u64::from(image.page_size.get());
    let runs = sums.unknown_runs(image.pages);
    let unknown: u64 = runs.iter().map(|run| u64::from(run.end - run.start)).sum();
    tracker.proven((u64::from(image.pages) - unknown) * page_bytes);
    let tasks = runs.into_iter().map(|run| {
        let image = image.clone();
        async move {
            cancel.check()?;
            let (before, count) = (run.start, run.end - run.start);
            let hashes = tokio::task::spawn_blocking(move || hash_run(&image, before, count)).await;
            let hashes = hashes.map_err(|_| RestoreError::Stopped)?;
            let hashes = hashes.map_err(|error| io_error("read back", path, error))?;
            tracker.proven(u64::from(count) * page_bytes);
            Ok::<_, RestoreError>((before, hashes))
        }
    });
    let mut done = futures::stream::iter(tasks).buffered(cores(2));
    let mut state = sums.total();
    while let Some(result) = done.next().await {
        let (before, hashes) = result?;
        let pages = (before + 1..).map_while(PageNo::new).zip(&hashes);
        let counted = pages.filter(|(page, _)| Some(*page) != image.left_out);
        state = counted.fold(state, |sum, (_, hash)| sum.with(*hash));
        each(&hashes);
    }
    Ok(state)
}

/// Hashes `count` pages after the first `before`. Blocks.
fn hash_run(image: &Finished, before: u32, count: u32) -> io::Result<Vec<PageHash>> {
    let page_bytes = image.page_size.bytes();
    let mut hashes = Vec::with_capacity(count as usize);
    let mut buffer = vec![0; BUFFER_BYTES.min(count as usize * page_bytes)];
    while hashes.len() < count as usize {
        let len = buffer.len().min((count as usize - hashes.len()) * page_bytes);
        let part = buffer.get_mut(..len).unwrap_or_default();
        let at = before + hashes.len() as u32;
        image.file.read_exact_at(part, u64::from(at) * page_bytes as u64)?;
        hash_pages(at, part, image.page_size, &mut hashes);
    }
    Ok(hashes)
}

/// Hashes the pages in `bytes`, which follow the first `before` of an image.
pub(crate) fn hash_pages(before: u32, bytes: &[u8], page_size: PageSize, hashes: &mut Vec<PageHash>) {
    let pages = (before.saturating_add(1)..).map_while(PageNo::new);
    hashes.extend(
        bytes.chunks_exact(page_size.bytes()).zip(pages).map(|(bytes, page)| PageHash::of(page, bytes)),
    );
}
