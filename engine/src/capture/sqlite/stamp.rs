//! Notices a database file that was overwritten in place, by `cp` or `rsync --inplace` say.
//!
//! In WAL mode nothing but a checkpoint writes to the file, and while we hold it open nothing can take it out of that
//! mode. A checkpoint raises the number of frames it attempts to backfill before its first write, and the number of
//! backfilled ones after its last. So a file that was modified while the index says the same, and no checkpoint was or
//! is under way, was written to by somebody else: the pages in it may not be the captured ones.
//!
//! It is a suspicion, no proof (the time alone can be set), and it is only raised: whoever captures compares the
//! states. A recovery of the index breaks the rule (it begins with nothing backfilled), so what was known before it is
//! forgotten. It comes in time: what is committed on top of such a file cannot be backfilled before our pin moves,
//! which it does only after a look.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use super::files::{Backfill, BackfillState};
use super::look::Look;
use super::{Result, SqliteSource, Trouble, files};
use crate::sqlite::wal::Salts;

/// The file, and how far the log was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    backfill: Backfill,
    /// The index's count of commits.
    change: u32,
    file: FileStamp,
}

impl Stamp {
    /// Whether a recovery has begun the index anew since: then all of the log is put into the file once more, and its
    /// number of backfilled frames comes back to what it was.
    fn is_before_recovery(self, now: Self) -> bool {
        let went_back = now.change.wrapping_sub(self.change) > u32::MAX / 2;
        went_back || now.backfill.salts == self.backfill.salts && now.backfill.frames < self.backfill.frames
    }
}

/// What the index and the file say together.
enum Sight {
    Stamp(Stamp),
    /// Nobody checkpoints, and yet nobody knows how much is in the file: the index was recovered, or a checkpoint was
    /// broken off.
    Unknown,
    /// Not to be told at this moment.
    Passing,
}

/// What changes when a file is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    bytes: u64,
    modified: (i64, i64),
}

impl FileStamp {
    fn of(metadata: &Metadata) -> Self {
        Self { bytes: metadata.size(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl SqliteSource {
    /// Whether somebody else than SQLite has written to the file since the last time that was asked.
    pub(super) fn is_overwritten(&mut self) -> Result<bool> {
        let now = match self.stamp()? {
            Sight::Stamp(now) => now,
            Sight::Passing => return Ok(false),
            Sight::Unknown => {
                self.stamp = None;
                return Ok(false);
            }
        };
        match self.stamp.filter(|before| !before.is_before_recovery(now)) {
            Some(before) if before.file != now.file && self.wrote_nothing(before.backfill, now.backfill) => {
                Ok(true)
            }
            _ => {
                self.stamp = Some(now);
                Ok(false)
            }
        }
    }

    /// Whether SQLite has put nothing into the file between the two. A reset alone writes nothing to it; and under a pin
    /// it is one of a log that was captured whole, with empty ones after it at most.
    fn wrote_nothing(&self, before: Backfill, now: Backfill) -> bool {
        let captured = Backfill { salts: self.place.salts, frames: self.place.frame };
        before == now || before == captured && now.frames == 0 && !self.unpinned
    }

    /// The captured log was reset to this one.
    pub(super) fn carry_stamp_over(&mut self, salts: Salts) {
        let next = Backfill { salts, frames: 0 };
        self.stamp = self
            .stamp
            .filter(|before| self.wrote_nothing(before.backfill, next))
            .map(|before| Stamp { backfill: next, ..before });
    }

    /// Nothing more is to be captured from a file that was overwritten, or put into it.
    pub(super) fn require_own_file<E>(&mut self) -> std::result::Result<(), Trouble<E>> {
        if self.is_overwritten()? { Err(Trouble::Overwritten) } else { Ok(()) }
    }

    fn stamp(&self) -> Result<Sight> {
        let Some(links) = self.links.as_ref().filter(|_| self.tells_times) else { return Ok(Sight::Passing) };
        let read = || files::read_backfill(&links.index).map_err(|source| self.index_unreadable(source));
        let state = read()?;
        // When it is another file by now, or none, the look at the names will tell.
        let Ok(metadata) = std::fs::metadata(&self.path) else { return Ok(Sight::Passing) };
        if !links.is_database(&metadata) {
            return Ok(Sight::Passing);
        }
        // Old versions of SQLite do not tell of an attempt, but hold the lock until they have told of its end.
        if files::others_checkpoint(&links.index) || read()? != state {
            return Ok(Sight::Passing);
        }
        Ok(match state {
            BackfillState::Known(backfill, change) => {
                Sight::Stamp(Stamp { backfill, change, file: FileStamp::of(&metadata) })
            }
            BackfillState::Attempted => Sight::Unknown,
            BackfillState::Torn => Sight::Passing,
        })
    }

    /// Lets go of a file that was overwritten.
    ///
    /// The log still holds pages of the old file, and the index its size. While the index lasts, all backfilled frames
    /// are passed over, but a larger file looks malformed; and once everybody has closed the database, the next to open
    /// it recovers the index and lays the whole log over the new file. Where all was backfilled the log is of no use
    /// any more: it is emptied, and the index ends with its last user. Else only the index says which frames count, and
    /// is kept until somebody else has opened the database: this source stays open.
    pub(super) fn leave_overwritten(&mut self) -> Result<()> {
        if !self.look()?.is_some_and(Look::is_backfilled) {
            return Ok(());
        }
        self.give_up_images("the database was overwritten");
        let Some(links) = &self.links else { return Ok(()) };
        self.unpinned = true;
        links.unpin()?;
        // Nothing is written to the file: there is nothing to backfill but what is committed on top of it just now.
        let emptied = links.truncate_log();
        if emptied.is_ok() && self.look()?.is_some_and(|look| look.head.frames == 0) {
            self.release();
        }
        Ok(())
    }
}
