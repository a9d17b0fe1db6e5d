//! Reads a finished image back and computes its checksum, on all cores.

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
use crate::restore::target::io_error;

/// Bytes that one task hashes.
const STRETCH_BYTES: u32 = 16 * 1024 * 1024;
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

/// Gives the page hashes of an image, in order, to `each`, stretch by stretch, and the checksum of all.
pub(crate) async fn hash_image(
    image: &Finished,
    path: &Path,
    tracker: &Arc<Tracker>,
    cancel: &Cancel,
    mut each: impl FnMut(&[PageHash]),
) -> Result<StateChecksum, RestoreError> {
    let stretch = STRETCH_BYTES / image.page_size.get();
    let page_bytes = image.page_size.get();
    let starts = (0..image.pages).step_by(stretch as usize);
    let tasks = starts.map(|before| {
        let (image, count) = (image.clone(), stretch.min(image.pages - before));
        async move {
            cancel.check()?;
            let hashes = tokio::task::spawn_blocking(move || hash_stretch(&image, before, count)).await;
            let hashes = hashes.map_err(|_| RestoreError::Stopped)?;
            let hashes = hashes.map_err(|error| io_error("read back", path, error))?;
            tracker.proven(u64::from(count) * u64::from(page_bytes));
            Ok::<_, RestoreError>((before, hashes))
        }
    });
    let mut done = futures::stream::iter(tasks).buffered(cores(2));
    let mut state = StateChecksum::EMPTY;
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
fn hash_stretch(image: &Finished, before: u32, count: u32) -> io::Result<Vec<PageHash>> {
    let page_bytes = image.page_size.bytes();
    let mut hashes = Vec::with_capacity(count as usize);
    let mut buffer = vec![0; BUFFER_BYTES.min(count as usize * page_bytes)];
    let mut pages = (before + 1..=before + count).map_while(PageNo::new).peekable();
    while let Some(first) = pages.peek() {
        let left = (count as usize - hashes.len()) * page_bytes;
        let len = buffer.len().min(left);
        let part = buffer.get_mut(..len).unwrap_or_default();
        image.file.read_exact_at(part, first.offset(image.page_size))?;
        let images = part.chunks_exact(page_bytes);
        hashes.extend(images.zip(pages.by_ref()).map(|(bytes, page)| PageHash::of(page, bytes)));
    }
    Ok(hashes)
}
