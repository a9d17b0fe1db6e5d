//! Looking at the index: what is published, what is backfilled, and whether the names still lead to the open files.

use std::time::{Duration, Instant};

use super::links::Moved;
use super::{NAMES, Result, Slot, SourceEvent, SqliteSource, SqliteSourceError, files};
use crate::sqlite::index::{HEAD_LEN, IndexError, IndexHead};
use crate::time::Timestamp;

/// Attempts to read an index that is being written.
const HEAD_ATTEMPTS: u32 = 200;

/// A consistent reading of the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) head: IndexHead,
    pub(super) backfilled: u32,
}

impl Look {
    pub(super) fn is_backfilled(self) -> bool {
        self.backfilled >= self.head.frames
    }
}

impl SqliteSource {
    /// Whether the raw head is still the one seen last. That is a look, too: what is committed later is later than it.
    pub(super) fn nothing_published(&mut self) -> Result<bool> {
        let looked = Timestamp::now();
        let Some(links) = &self.links else { return Ok(true) };
        let same =
            files::read_head(&links.index).map_err(|source| self.index_unreadable(source))? == self.seen;
        if same && !self.away && self.has_seen() {
            self.looked = looked;
        }
        Ok(same)
    }

    /// Whether what was seen last was whole: while the index is torn, nobody knows what is published.
    pub(super) fn has_seen(&self) -> bool {
        IndexHead::parse(self.seen.split_at(HEAD_LEN).0).is_ok()
    }

    /// A published head and the number of backfilled frames of the same generation; `None` while a writer is at it.
    ///
    /// The number stands outside of the checksummed header and is reset after it, so it is read between two readings of
    /// the header with equal salts. Within a generation it only grows.
    pub(super) fn look(&self) -> Result<Option<Look>> {
        let links =
            self.links.as_ref().ok_or_else(|| SqliteSourceError::NotAttached { path: self.path.clone() })?;
        for attempt in 0..HEAD_ATTEMPTS {
            let head = |index| files::read_head(index).map(|bytes| IndexHead::parse(&bytes));
            let first = head(&links.index).map_err(|source| self.index_unreadable(source))?;
            let backfilled =
                files::read_backfilled(&links.index).map_err(|source| self.index_unreadable(source))?;
            let second = head(&links.index).map_err(|source| self.index_unreadable(source))?;
            match (first, second) {
                (Ok(first), Ok(second))
                    if first.salts == second.salts
                        && first.frames == second.frames
                        && backfilled <= first.frames =>
                {
                    return Ok(Some(Look { head: first, backfilled }));
                }
                (_, Err(source @ IndexError::Version { .. })) => {
                    return Err(SqliteSourceError::Index { path: self.path.clone(), source });
                }
                _ if attempt < 8 => std::hint::spin_loop(),
                _ => std::thread::yield_now(),
            }
        }
        Ok(None)
    }

    pub(super) fn look_patiently(&self) -> Result<Look> {
        let started = Instant::now();
        loop {
            if let Some(look) = self.look()? {
                return Ok(look);
            }
            if started.elapsed() >= self.options.patience {
                return Err(SqliteSourceError::Index { path: self.path.clone(), source: IndexError::Torn });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn index_unreadable(&self, source: std::io::Error) -> SqliteSourceError {
        SqliteSourceError::Io { path: self.path.clone(), doing: "read its shared index (-shm)", source }
    }

    /// Whether the paths still lead to the open files; looked at now and then.
    pub(super) fn moved(&mut self) -> Result<Option<SourceEvent>> {
        let now = Instant::now();
        if now < self.names_due {
            return Ok(None);
        }
        self.names_due = now + NAMES;
        let Some(links) = &self.links else { return Ok(None) };
        Ok(links.moved()?.map(|moved| match moved {
            Moved::Vanished => SourceEvent::Vanished,
            Moved::Replaced => SourceEvent::Replaced,
            Moved::Log => SourceEvent::LogReplaced,
        }))
    }

    /// All captured, all backfilled, and the pin does not keep the log from being reset: it certainly does not, for
    /// nobody looks any more whether it is waited for.
    pub(super) fn is_at_rest(&self) -> bool {
        let Some(_) = &self.links else { return true };
        let (head, _) = self.seen.split_at(HEAD_LEN);
        self.slot == Slot::Zero
            && IndexHead::parse(head).is_ok_and(|head| {
                head.salts == self.place.salts
                    && head.frames == self.place.frame
                    && self.seen_backfilled() == head.frames
            })
    }

    pub(super) fn seen_backfilled(&self) -> u32 {
        crate::sqlite::index::native32(&self.seen, HEAD_LEN)
    }
}
