//! A full image of the database at one captured commit, under a pin of its own.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;

use super::links;
use super::log::{LastFrames, LogFile, read_frame};
use crate::capture::sink::Image;
use crate::capture::sqlite_ffi;
use crate::page::{PageNo, PageSize};
use crate::sqlite::lock_byte_page;

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
