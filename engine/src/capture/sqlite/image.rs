//! A full image of the database at one captured commit, read while the database goes on changing.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;

use super::kept::{ImageState, Kept};
use super::links;
use super::log::{LastFrames, LogFile};
use super::look::Look;
use super::{CaptureError, Result, SqliteSource, SqliteSourceError, Trouble};
use crate::capture::sink::{Image, Sink};
use crate::page::{PageNo, PageSize};
use crate::sqlite::lock_byte_page;
use crate::time::Timestamp;

/// The database as it was at one commit. What changes before it is read is kept for it; see [`Kept`].
pub(super) struct SqliteImage {
    /// Only its handle of the file is used: it never begins a transaction.
    connection: Connection,
    kept: Arc<Kept>,
}

impl Image for SqliteImage {
    fn page_size(&self) -> PageSize {
        self.kept.page_size()
    }

    fn page_count(&self) -> u32 {
        self.kept.page_count()
    }

    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<Option<()>> {
        if page.get() > self.page_count() || buffer.len() != self.page_size().bytes() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        if page == lock_byte_page(self.page_size()) {
            return Ok(None);
        }
        self.kept.read(page, &self.connection, buffer).map(Some)
    }

    fn pass(&mut self, page: PageNo) {
        self.kept.pass(page);
    }
}

impl SqliteSource {
    /// A full image at exactly the last captured commit, independent of later ones; the sink gets what was committed up
    /// to then first. After [`Attach::Unknown`](super::Attach::Unknown) the sink gets nothing: the image's state
    /// becomes the captured one.
    ///
    /// The image pins nothing: capture, checkpoints and resets of the log go on while it is read. What changes
    /// meanwhile is kept for it in a file without a name in the folder `scratch`, at most as many bytes as the image
    /// has. It can be read until the source lets go ([`SqliteSource::release`]).
    ///
    /// # Errors
    /// As for [`SqliteSource::poll`].
    pub fn image<S: Sink>(
        &mut self,
        sink: &mut S,
        scratch: &Path,
    ) -> std::result::Result<Box<dyn Image>, CaptureError<S::Error>> {
        if self.links.is_none() {
            return Err(SqliteSourceError::NotAttached { path: self.path.clone() }.into());
        }
        let connection = links::open_connection(&self.path)?;
        // What it opened by the path must be what we capture.
        if self.links.as_ref().map_or(Ok(None), links::Links::moved)?.is_some() {
            return Err(SqliteSourceError::Replaced { path: self.path.clone() }.into());
        }
        let look = self.capture_for_image(sink)?;
        let overlay =
            if look.is_backfilled() { LastFrames::default() } else { self.overlay(look.head.frames)? };
        let links =
            self.links.as_ref().ok_or_else(|| SqliteSourceError::NotAttached { path: self.path.clone() })?;
        let wal = links.wal.try_clone().map_err(|source| self.log_unreadable(source))?;
        let state = ImageState {
            page_size: self.page_size,
            page_count: self.image_pages,
            frame: look.head.frames,
            salts: look.head.salts,
            overlay,
        };
        let kept = Arc::new(Kept::new(state, wal, scratch.to_owned()));
        self.images.retain(|image| image.strong_count() > 0);
        self.images.push(Arc::downgrade(&kept));
        self.unplaced = false;
        Ok(Box::new(SqliteImage { connection, kept }))
    }

    /// Makes what is published now the captured state, by capturing it or, at an unknown place, by taking it as it is.
    fn capture_for_image<S: Sink>(
        &mut self,
        sink: &mut S,
    ) -> std::result::Result<Look, CaptureError<S::Error>> {
        let started = Instant::now();
        loop {
            let looked = Timestamp::now();
            let look = self.look_patiently()?;
            if self.unplaced {
                if look.head.salts != self.place.salts && !self.slot.may_be_zero() {
                    return Err(SqliteSourceError::Replaced { path: self.path.clone() }.into());
                }
                self.place_at(look.head, looked)?;
                return Ok(look);
            }
            match self.capture(sink, look.head, looked) {
                Ok(_) => {
                    self.away = false;
                    return Ok(look);
                }
                Err(Trouble::Source(error)) => return Err(error.into()),
                Err(Trouble::Sink(error)) => return Err(CaptureError::Sink(error)),
                Err(Trouble::Passing(_)) if started.elapsed() < self.options.patience => self.frames.forget(),
                Err(Trouble::Overwritten) => {
                    return Err(SqliteSourceError::Replaced { path: self.path.clone() }.into());
                }
                Err(Trouble::Passing(reason) | Trouble::Lost(reason)) => {
                    tracing::warn!(path = %self.path.display(), reason, "no image: the log is not what was published");
                    return Err(SqliteSourceError::Replaced { path: self.path.clone() }.into());
                }
            }
        }
    }

    /// Where each page is in the log up to a frame, without limit.
    fn overlay(&self, last: u32) -> Result<LastFrames> {
        if self.last_frames.is_complete() {
            return Ok(self.last_frames.clone());
        }
        let links =
            self.links.as_ref().ok_or_else(|| SqliteSourceError::NotAttached { path: self.path.clone() })?;
        let mut overlay = LastFrames::default();
        overlay
            .scan(LogFile { file: &links.wal, page_size: self.page_size }, 1, last, usize::MAX)
            .map_err(|source| self.log_unreadable(source))?;
        Ok(overlay)
    }

    /// The images that somebody still reads.
    pub(super) fn held_images(&self) -> impl Iterator<Item = Arc<Kept>> + '_ {
        self.images.iter().filter_map(std::sync::Weak::upgrade)
    }
}
