//! A full image of the database at one captured commit, under a pin of its own.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;

use super::links;
use super::log::{LastFrames, LogFile, read_frame};
use super::{CaptureError, Result, SqliteSource, SqliteSourceError, Trouble};
use crate::capture::sink::{Image, Sink};
use crate::capture::sqlite_ffi;
use crate::page::{PageNo, PageSize};
use crate::sqlite::lock_byte_page;
use crate::time::Timestamp;

/// The database as it was at frame `H` of the log: pages from their last frame up to `H`, the others from the file.
///
/// `H` was read after the image's own pin began, which makes the pair of file and log stable for as long as it is held:
/// a marked pin is at or before `H`, so nothing newer gets into the file and the log is not reset; a pin on slot 0
/// keeps everything of the present log out of the file, and what was there at the time is complete in it.
pub(super) struct SqliteImage {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) wal: File,
    pub(super) page_size: PageSize,
    pub(super) page_count: u32,
    /// Where pages are in the log; empty when the file has everything.
    pub(super) overlay: LastFrames,
    /// Counts the images that are held.
    pub(super) _held: Arc<()>,
}

impl Image for SqliteImage {
    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn page_count(&self) -> u32 {
        self.page_count
    }

    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<Option<()>> {
        if page.get() > self.page_count || buffer.len() != self.page_size.bytes() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        if page == lock_byte_page(self.page_size) {
            return Ok(None);
        }
        match self.overlay.get(page) {
            Ok(Some(frame)) => {
                read_frame(LogFile { file: &self.wal, page_size: self.page_size }, frame, page, buffer)?;
            }
            Ok(None) => {
                // A page that was never written reads as zeros, for SQLite as for us.
                sqlite_ffi::read_database(&self.connection, page.offset(self.page_size), buffer)?;
            }
            Err(()) => return Err(io::Error::other("the image does not know where its pages are")),
        }
        Ok(Some(()))
    }
}

impl Drop for SqliteImage {
    fn drop(&mut self) {
        if let Err(error) = links::end(&self.path, &self.connection) {
            tracing::warn!(path = %self.path.display(), %error, "an image did not let go of its pin");
        }
    }
}

impl SqliteSource {
    /// A full image at exactly the last captured commit, independent of later ones; the sink gets what was committed up
    /// to then first. After [`Attach::Unknown`](super::Attach::Unknown) the sink gets nothing: the image's state becomes the captured one.
    ///
    /// The image holds a pin of its own. As long as it lives the log is not led to a reset.
    ///
    /// # Errors
    /// As for [`SqliteSource::poll`].
    pub fn image<S: Sink>(
        &mut self,
        sink: &mut S,
    ) -> std::result::Result<Box<dyn Image>, CaptureError<S::Error>> {
        if self.links.is_none() {
            return Err(SqliteSourceError::NotAttached { path: self.path.clone() }.into());
        }
        let connection = links::open_connection(&self.path)?;
        links::begin_patiently(&self.path, &connection, self.options.patience)?;
        let started = Instant::now();
        let look = loop {
            let looked = Timestamp::now();
            let look = self.look_patiently()?;
            if self.unplaced {
                if look.head.salts != self.place.salts && !self.maybe_slot_zero {
                    return Err(SqliteSourceError::Replaced { path: self.path.clone() }.into());
                }
                self.place_at(look.head)?;
                break look;
            }
            match self.capture(sink, look.head, looked) {
                Ok(_) => {
                    self.away = false;
                    break look;
                }
                Err(Trouble::Source(error)) => return Err(error.into()),
                Err(Trouble::Sink(error)) => return Err(CaptureError::Sink(error)),
                Err(Trouble::Passing(_)) if started.elapsed() < self.options.patience => self.frames.forget(),
                Err(Trouble::Passing(reason) | Trouble::Lost(reason)) => {
                    tracing::warn!(path = %self.path.display(), reason, "no image: the log is not what was published");
                    return Err(SqliteSourceError::Replaced { path: self.path.clone() }.into());
                }
            }
        };
        let overlay =
            if look.is_backfilled() { LastFrames::default() } else { self.overlay(look.head.frames)? };
        let links =
            self.links.as_ref().ok_or_else(|| SqliteSourceError::NotAttached { path: self.path.clone() })?;
        let wal = links.wal.try_clone().map_err(|source| self.log_unreadable(source))?;
        self.unplaced = false;
        Ok(Box::new(SqliteImage {
            connection,
            path: self.path.clone(),
            wal,
            page_size: self.page_size,
            page_count: self.image_pages,
            overlay,
            _held: self.held_images.clone(),
        }))
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
}
