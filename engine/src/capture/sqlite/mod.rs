//! Captures every commit of a SQLite database in WAL mode, from beside the application.
//!
//! We read; SQLite decides. A read transaction of our own, the *pin*, keeps SQLite from resetting the log before we have
//! read it. Two connections take turns in holding it, and it only ever moves by `advance`: begin on the free connection,
//! *then* read the published frame count, capture up to it, secure, end the old transaction. At every instant at least
//! one is open. From that it follows, without looking at salts or read marks, that no committed frame is lost:
//!
//! - a pin with a mark forbids any reset of the log;
//! - a pin on slot 0 (taken when all is backfilled) allows one reset, but no backfilling of what follows, so no second;
//! - what the log held when the new pin began has been captured before the old one ends.
//!
//! A frame is captured when the wal-index has published it and the running checksum up to there is the published one.
//! A valid commit frame in the file alone is not a commit: its writer may have died before telling anyone.
//!
//! Who does what: `attach` where capture begins, `look` what is published, `commits` handing it over, `wait` until
//! there is more; `links` connections and pin, `log` reading frames, `cycle` letting the log be reset, `image` full
//! images, `kept` what changes before an image has read it, `resume` going on after a restart, `stamp` a file that
//! somebody else has written to, `leave` letting go of it, `files` what files are and say, `indexes` the descriptors of
//! indexes and what was left behind on them.

mod attach;
mod chain;
mod commits;
mod cycle;
mod error;
mod files;
mod image;
mod indexes;
mod kept;
#[cfg(feature = "test-util")]
pub(crate) mod laws;
mod leave;
mod links;
mod log;
mod look;
mod resume;
mod sightings;
mod stamp;
#[cfg(test)]
mod tests;
mod wait;

use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::{Duration, Instant};

pub use error::{CaptureError, SqliteSourceError};

use self::cycle::Pace;
use self::kept::Kept;
use self::links::Links;
use self::log::{Frames, LastFrames};
use self::sightings::Sightings;
use self::stamp::Stamp;
use super::sink::Sink;
use super::watch::Watcher;
use crate::page::PageSize;
use crate::sqlite::index::{HEAD_LEN, IndexHead};
use crate::sqlite::wal::{RunningChecksum, Salts, frame_offset};
use crate::time::Timestamp;

type Result<T> = std::result::Result<T, SqliteSourceError>;

/// Between two looks at the names of the files.
const NAMES: Duration = Duration::from_millis(250);
/// How long published frames may fail their check before the log counts as broken.
const MISMATCH_MAX: Duration = Duration::from_secs(5);

/// How a database is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// From this many frames on the log is led to a reset at the next quiet moment. Below SQLite's own 1000, so that
    /// the application never has to checkpoint.
    pub soft_frames: u32,
    /// From this many frames on a reset is forced with the write lock, for about a millisecond. `None`: never; then the
    /// log grows for as long as commits come back to back. A user who may only read cannot take the write lock; it then
    /// lets go of its pin for up to 30 ms instead, at the risk of a gap, and with `None` the log may grow for ever.
    pub hard_frames: Option<u32>,
    /// How long nothing must have been committed for a moment to be quiet. A log half again as long as
    /// `soft_frames` no longer waits for one.
    pub quiet: Duration,
    /// How long nothing must have been committed for the log to be backfilled even when it is short.
    pub idle: Duration,
    /// How long to try when the database is locked while attaching.
    pub patience: Duration,
    /// Convert a database with a rollback journal to WAL mode. It stays so: the one lasting change ever made.
    pub convert_to_wal: bool,
    /// Capture from network file systems too: all users of the file must be on this machine.
    pub allow_network_file_system: bool,
    /// Use inotify where there is one. Without it everything goes by the timer.
    pub notify: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            soft_frames: 800,
            hard_frames: Some(8_000),
            quiet: Duration::from_millis(2),
            idle: Duration::from_millis(500),
            patience: Duration::from_secs(2),
            convert_to_wal: false,
            allow_network_file_system: false,
            notify: true,
        }
    }
}

/// Where capture begins after attaching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Right after the resume point: nothing is missing.
    Continue,
    /// The log does not reach back to the resume point (or there was none). Take [`SqliteSource::image`] next: its state
    /// is the one that capture continues from.
    Unknown {
        /// Why, for the operator.
        reason: String,
        /// The log is the same one, with less in it than was captured: the source has lost commits (a power cut).
        behind: bool,
    },
}

/// Something that ends capture of the file that is open. The source has let go, of an overwritten file perhaps not
/// before it is dropped; attach again, which will find out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceEvent {
    /// The path leads to another file.
    Replaced,
    /// The path leads nowhere.
    Vanished,
    /// The log or its index was deleted or replaced under SQLite.
    LogReplaced,
    /// Somebody else than SQLite has written to the file: what was captured may not be what it holds. The sink was told
    /// ([`Sink::distrust`]).
    Overwritten,
    /// The log is not what was published, or was reset under the pin: commits may be missing.
    LogLost {
        /// What was found.
        reason: String,
    },
}

/// What one look brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Polled {
    /// Transactions handed to the sink.
    pub transactions: u64,
    /// Everything that was published when the look began has been handed over. Not so while a writer is between the two
    /// copies of the index's head: what others committed before it may not be told from nothing then. Look again.
    pub complete: bool,
    /// Nothing is going on: all is captured and backfilled.
    pub idle: bool,
    /// Capture of this file has ended.
    pub event: Option<SourceEvent>,
}

/// Figures for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// Frames in the log.
    pub frames: u32,
    /// How many of them are in the database file too.
    pub backfilled: u32,
    /// Whether this user may only read, so that the application itself must checkpoint.
    pub read_only: bool,
}

/// One SQLite database under capture. See the module.
pub struct SqliteSource {
    path: PathBuf,
    options: SqliteOptions,
    links: Option<Links>,
    /// The last captured commit.
    place: Place,
    page_size: PageSize,
    image_pages: u32,
    last_frames: LastFrames,
    frames: Frames,
    /// On slot 0 it allows a reset.
    slot: Slot,
    /// The end of the log when the first pin had begun; `None` when it could not be read.
    opening: Option<Place>,
    /// The end of the log when capture began: up to there it may have been put into the file before it is captured.
    found: Place,
    /// The index's count of commits at the captured place; `None` when it is not known.
    change: Option<u32>,
    /// The file when that was looked at last; and whether its file system tells at once when it was modified.
    stamp: Option<Stamp>,
    tells_times: bool,
    /// Nothing is pinned: only that count can show that a reset lost nothing.
    unpinned: bool,
    /// The count before a reset that has not been shown to have lost nothing.
    unproven: Option<u32>,
    /// The log was begun anew, and the sink has not taken note of it.
    anew_untold: bool,
    /// The generation of the log before this one.
    before_reset: Option<Salts>,
    /// Attached at an unknown place, and nothing captured from it yet.
    unplaced: bool,
    /// Nothing was looked at since the attach: what is found first was committed while nobody watched.
    away: bool,
    /// Up to here the sink has been told to secure.
    secured: Option<Place>,
    /// The head of the index as it was read last, and when.
    seen: [u8; HEAD_LEN + 4],
    looked: Timestamp,
    /// What was published when, during the last long capture.
    sightings: Sightings,
    pace: Pace,
    watcher: Watcher,
    hot_since: Option<Instant>,
    /// When the log was written to last, as far as we were told.
    stirred: Instant,
    /// Commits come faster than we look: several were found at once.
    crowded: bool,
    names_due: Instant,
    mismatch_since: Option<Instant>,
    /// Images that may still be read.
    images: Vec<Weak<Kept>>,
}

/// A commit's place in the log. The default is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    salts: Salts,
    frame: u32,
    /// What the frames after it continue.
    checksum: RunningChecksum,
}

impl Place {
    fn of(head: IndexHead) -> Self {
        Self { salts: head.salts, frame: head.frames, checksum: head.checksum }
    }
}

/// Where the pin stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// With a mark: the log is not reset.
    Marked,
    /// On slot 0: it may be reset once.
    Zero,
    /// On one of them.
    Either,
}

impl Slot {
    fn may_be_zero(self) -> bool {
        self != Self::Marked
    }
}

/// Why a look did not end well.
enum Trouble<E> {
    Source(SqliteSourceError),
    Sink(E),
    /// Try again soon.
    Passing(String),
    /// Commits may be missing.
    Lost(String),
    /// Somebody else has written to the file.
    Overwritten,
}

impl<E> From<SqliteSourceError> for Trouble<E> {
    fn from(error: SqliteSourceError) -> Self {
        Self::Source(error)
    }
}

impl SqliteSource {
    /// Captures everything published, then does what is due so that the log can be reset.
    ///
    /// After [`Attach::Unknown`], [`SqliteSource::image`] comes first; without it capture goes on from the state at the
    /// attach.
    ///
    /// # Errors
    /// [`CaptureError::Source`] when the database cannot be read, [`CaptureError::Sink`] when the sink refused; in both
    /// cases nothing is lost, and the next call goes on after the last commit the sink took.
    pub fn poll<S: Sink>(&mut self, sink: &mut S) -> std::result::Result<Polled, CaptureError<S::Error>> {
        self.unplaced = false;
        let mut transactions = 0;
        let outcome = self.step(sink, &mut transactions);
        self.crowded = transactions > 1;
        // What was seen last is kept only when all of it was captured, or when nobody could read it.
        let complete = outcome.is_ok() && self.has_seen();
        // Whatever came of it: a sink that refuses must not keep a replaced file from being noticed.
        let event = match (self.moved()?, outcome) {
            (Some(moved), _) => Some(moved),
            (None, Ok(())) => {
                self.mismatch_since = None;
                None
            }
            (None, Err(Trouble::Source(error))) => return Err(error.into()),
            (None, Err(Trouble::Sink(error))) => return Err(CaptureError::Sink(error)),
            (None, Err(Trouble::Passing(reason))) => self.pass_over(reason),
            (None, Err(Trouble::Lost(reason))) => Some(SourceEvent::LogLost { reason }),
            (None, Err(Trouble::Overwritten)) => Some(SourceEvent::Overwritten),
        };
        match event {
            None => {}
            Some(SourceEvent::Overwritten) => {
                sink.distrust();
                self.leave_overwritten()?;
            }
            Some(SourceEvent::Replaced | SourceEvent::Vanished) => self.leave_moved(),
            Some(SourceEvent::LogReplaced) => self.leave_log(),
            Some(SourceEvent::LogLost { .. }) => {
                // The next run would go on at the same place, and find the same log.
                sink.distrust();
                self.release();
            }
        }
        let idle = transactions == 0 && event.is_none() && self.is_at_rest() && self.hot_since.is_none();
        Ok(Polled { transactions, complete: complete && event.is_none(), idle, event })
    }

    fn step<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
    ) -> std::result::Result<(), Trouble<S::Error>> {
        let now = Instant::now();
        if self.links.is_none() {
            return Err(SqliteSourceError::NotAttached { path: self.path.clone() }.into());
        }
        if self.unpinned {
            // An error came between the loss of the pin and the capture under the next.
            self.follow_pinned_anew(sink, transactions)?;
        }
        self.require_own_file()?;
        if !self.nothing_published()? {
            *transactions += self.capture_published(sink)?;
        }
        self.away &= !self.has_seen();
        self.maintain(sink, now, transactions)
    }

    /// A mismatch passes, unless it lasts.
    fn pass_over(&mut self, reason: String) -> Option<SourceEvent> {
        let since = *self.mismatch_since.get_or_insert_with(Instant::now);
        // Read everything anew next time.
        self.frames.forget();
        self.seen = [0; HEAD_LEN + 4];
        if since.elapsed() < MISMATCH_MAX {
            tracing::debug!(path = %self.path.display(), reason, "a look at the log failed, it is tried again");
            return None;
        }
        Some(SourceEvent::LogLost { reason })
    }

    fn log_unreadable(&self, source: std::io::Error) -> SqliteSourceError {
        SqliteSourceError::Io { path: self.path.clone(), doing: "read its log (-wal)", source }
    }

    /// Bytes in a page.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages in the image at the last captured commit; 0 before the first attach.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.image_pages
    }

    /// When the last look was made that captured all there was.
    #[must_use]
    pub fn looked(&self) -> Timestamp {
        self.looked
    }

    /// The path, with symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the log, as it is now.
    ///
    /// # Errors
    /// When the source is not attached or its index cannot be read.
    pub fn log_bytes(&self) -> Result<u64> {
        let frames = self.look()?.map_or(0, |look| look.head.frames);
        Ok(frame_offset(frames.saturating_add(1), self.page_size))
    }

    /// Keeps the log while capture cannot begin yet; to be called a few times a second from [`SqliteSource::open`] to
    /// [`SqliteSource::attach`]. The log grows meanwhile.
    ///
    /// The first pin keeps all there is. But on slot 0 it makes every commit of the application try a checkpoint in
    /// vain, so it is exchanged for a marked one as soon as there is something to mark. Both keep every frame that is
    /// not in the file, and a marked pin allows no reset. A file that was moved is left; the attach opens what is there
    /// then.
    ///
    /// # Errors
    /// When the source is not attached or its index cannot be read.
    pub fn hold(&mut self) -> Result<()> {
        match self.moved()? {
            Some(SourceEvent::Replaced | SourceEvent::Vanished) => self.leave_moved(),
            Some(_) => self.leave_log(),
            None => {}
        }
        let Some(before) = self.look()?.filter(|look| self.slot.may_be_zero() && !look.is_backfilled())
        else {
            return Ok(());
        };
        let begun = match &self.links {
            Some(links) => links.begin_free()?,
            None => false,
        };
        if !begun {
            return Ok(());
        }
        let after = self.look()?;
        let Some(links) = &mut self.links else { return Ok(()) };
        // As in `catch_up`: fewer backfilled now than there were frames before, so the new pin is not on slot 0.
        let marked = after.is_some_and(|after| {
            after.head.salts == before.head.salts && after.backfilled < before.head.frames
        });
        if marked {
            self.slot = Slot::Marked;
            links.exchange()
        } else {
            links.end_free()
        }
    }

    /// Whether an application's checkpoint keeps all writers out at this moment: if it lasts, it waits for our pin.
    #[must_use]
    pub fn checkpoint_waits(&self) -> bool {
        self.links.as_ref().is_some_and(|links| files::checkpoint_blocks_writers(&links.index))
    }

    /// What is wrong with the database, as far as a look at its schema shows: capture keeps what there is.
    #[must_use]
    pub fn damage(&self) -> Option<String> {
        self.links.as_ref().and_then(Links::schema_damage)
    }

    /// Figures of the log, as it is now.
    ///
    /// # Errors
    /// When the source is not attached or its index cannot be read.
    pub fn log_status(&self) -> Result<LogStatus> {
        let look = self.look_patiently()?;
        Ok(LogStatus {
            frames: look.head.frames,
            backfilled: look.backfilled,
            read_only: self.links.as_ref().is_some_and(|links| links.read_only),
        })
    }
}
