//! What an image shares with the capture: the old versions of pages that change before the image has read them.
//!
//! An image holds no pin. It reads the file while the log goes on into it, and is exact because of one rule: before a
//! captured frame may get into the file, the version it replaces is kept here, unless the image has passed that page.
//!
//! Let the image be the state at frame `H`. A page that no captured frame after `H` has changed is, for the image, in
//! its last frame up to `H` (the overlay), or else in the file. The capture calls [`Kept::keep`] while it hands a frame
//! over, when our pin still stands before that frame, so SQLite cannot have copied it. Frames of the overlay lie in the
//! log until it is reset, which takes a pin on slot 0; that one exists only when all is backfilled, and before it
//! replaces the pin before it, [`Kept::log_may_be_reset`] has the image read the file instead.
//!
//! A last safeguard is not here: whoever takes an image knows the checksum of its state, and compares.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::log::{LastFrames, LogFile, read_frame};
use super::look::Look;
use crate::capture::sqlite_ffi;
use crate::disk;
use crate::page::{PageNo, PageSize};
use crate::sqlite::wal::Salts;

/// Bytes that are left on the disk for those who need them more: the spool and the journal. When more than that is kept,
/// the disk's whole reserve is left, which is the application's.
const ROOM_LEFT: u64 = 64 << 20;
/// After so many pages the disk is asked for its room again.
const ROOM_EVERY: usize = 256;

/// What one image and the capture share.
pub(super) struct Kept {
    page_size: PageSize,
    page_count: u32,
    /// The last frame of the image, and the generation of the log it is in.
    frame: u32,
    salts: Salts,
    wal: File,
    /// Where the file of kept pages is made.
    scratch: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Where pages are in the log; empty when the file has everything.
    overlay: LastFrames,
    /// Pages up to here are no longer needed.
    passed: u32,
    /// Which slot of the file of kept pages holds a page.
    slots: HashMap<PageNo, u32>,
    file: Option<File>,
    /// Why the image cannot be read any more.
    lost: Option<String>,
}

/// The state that an image is of.
pub(super) struct ImageState {
    pub(super) page_size: PageSize,
    pub(super) page_count: u32,
    pub(super) frame: u32,
    pub(super) salts: Salts,
    pub(super) overlay: LastFrames,
}

impl Kept {
    pub(super) fn new(state: ImageState, wal: File, scratch: PathBuf) -> Self {
        let ImageState { page_size, page_count, frame, salts, overlay } = state;
        let inner = Inner { overlay, passed: 0, slots: HashMap::new(), file: None, lost: None };
        Self { page_size, page_count, frame, salts, wal, scratch, inner: Mutex::new(inner) }
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    pub(super) fn page_count(&self) -> u32 {
        self.page_count
    }

    /// Reads a page of the image; `database` is any connection to it.
    pub(super) fn read(&self, page: PageNo, database: &Connection, buffer: &mut [u8]) -> io::Result<()> {
        let inner = self.lock();
        if let Some(reason) = &inner.lost {
            return Err(io::Error::other(format!("the image was given up: {reason}")));
        }
        match (inner.slots.get(&page), &inner.file) {
            (Some(slot), Some(file)) => file.read_exact_at(buffer, self.slot_offset(*slot)),
            // Under the lock: else the page could change between the question and the reading.
            _ => self.read_in_place(&inner, page, database, buffer),
        }
    }

    /// The image will not be asked for pages up to this one again.
    pub(super) fn pass(&self, page: PageNo) {
        let mut inner = self.lock();
        inner.passed = inner.passed.max(page.get());
    }

    /// A transaction that was captured changes this page: keeps what it was. To be called before the pin moves on.
    pub(super) fn keep(&self, page: PageNo, database: &Connection) {
        let mut inner = self.lock();
        let needed = page.get() > inner.passed && page.get() <= self.page_count;
        if !needed || inner.lost.is_some() || inner.slots.contains_key(&page) {
            return;
        }
        if let Err(error) = self.store(&mut inner, page, database) {
            inner.give_up(format!("page {page} could not be kept: {error}"));
        }
    }

    /// A transaction that was captured cuts the database from `known` pages to fewer: keeps those that the file will
    /// lose. (What is beyond `known` was kept when it was lost, or was never the image's.)
    pub(super) fn keep_beyond(&self, pages: u32, known: u32, database: &Connection) {
        for page in (pages.saturating_add(1)..=known.min(self.page_count)).filter_map(PageNo::new) {
            self.keep(page, database);
        }
    }

    /// The next pin may be on slot 0. To be called with a look made after it began, before the old pin ends.
    ///
    /// A pin is on slot 0 only if all frames were backfilled when it began. So if now fewer are than the image needs,
    /// the new pin has a mark, or no reset is possible under it; the log stays. If they are, the file has every page of
    /// the overlay but those with a newest frame beyond what was backfilled; and those were captured, and kept, before
    /// this call.
    pub(super) fn log_may_be_reset(&self, look: Look) {
        if look.head.salts != self.salts || look.backfilled >= self.frame {
            self.lock().overlay.clear();
        }
    }

    /// The log may be reset at any time from now on: keeps what the image would read there.
    pub(super) fn leave_log(&self, database: &Connection) {
        let pages: Vec<PageNo> = self.lock().overlay.pages().collect();
        pages.into_iter().for_each(|page| self.keep(page, database));
        self.lock().overlay.clear();
    }

    /// The log was reset.
    pub(super) fn log_was_reset(&self) {
        let mut inner = self.lock();
        if !inner.overlay.is_empty() {
            inner.give_up("the log it needs was reset".to_owned());
        }
    }

    /// The image cannot be read any more: nobody keeps its pages from now on.
    pub(super) fn give_up(&self, reason: &str) {
        self.lock().give_up(reason.to_owned());
    }

    fn store(&self, inner: &mut Inner, page: PageNo, database: &Connection) -> io::Result<()> {
        if inner.slots.len().is_multiple_of(ROOM_EVERY) {
            let kept = inner.slots.len() as u64 * u64::from(self.page_size.get());
            let free = disk::free_bytes(&self.scratch)?;
            if free < ROOM_LEFT || kept > ROOM_LEFT && !disk::has_room(&self.scratch, 0) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let mut image = vec![0; self.page_size.bytes()];
        self.read_in_place(inner, page, database, &mut image)?;
        let slot = u32::try_from(inner.slots.len()).map_err(io::Error::other)?;
        let file = match &mut inner.file {
            Some(file) => file,
            // Without a name, so that nothing is left of it whatever happens.
            none => none.insert(tempfile::tempfile_in(&self.scratch)?),
        };
        file.write_all_at(&image, self.slot_offset(slot))?;
        inner.slots.insert(page, slot);
        Ok(())
    }

    /// Reads a page that was not changed since: from the log as long as that is needed, or the file.
    fn read_in_place(
        &self,
        inner: &Inner,
        page: PageNo,
        database: &Connection,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        match inner.overlay.get(page) {
            Ok(Some(frame)) => {
                read_frame(LogFile { file: &self.wal, page_size: self.page_size }, frame, page, buffer)
            }
            // A page that was never written reads as zeros, for SQLite as for us.
            Ok(None) => sqlite_ffi::read_database(database, page.offset(self.page_size), buffer).map(|_| ()),
            Err(()) => Err(io::Error::other("the image does not know where its pages are")),
        }
    }

    fn slot_offset(&self, slot: u32) -> u64 {
        u64::from(slot) * u64::from(self.page_size.get())
    }

    /// A thread that panicked has left nothing half done: every change is one step.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Frees what was kept.
    fn give_up(&mut self, reason: String) {
        self.lost.get_or_insert(reason);
        (self.slots, self.file) = (HashMap::new(), None);
    }
}
