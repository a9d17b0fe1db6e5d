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
//! Who does what: `links` connections and pin, `log` reading frames, `cycle` letting the log be reset, `image` full
//! images, `resume` going on after a restart, `files` descriptors and identities of files.

mod cycle;
mod error;
mod files;
mod image;
mod links;
mod log;
mod resume;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::{CaptureError, SqliteSourceError};

use self::cycle::Pace;
use self::files::beside;
use self::image::SqliteImage;
use self::links::{Links, Moved};
use self::log::{Frames, HandOver, LastFrames, LogFile, Range, Span};
use self::resume::ResumePoint;
use super::sink::{Commit, Image, Sink};
use super::sqlite_ffi;
use super::watch::{Waker, Watcher, wait_for};
use crate::page::{PageNo, PageSize};
use crate::sqlite::index::{HEAD_LEN, IndexError, IndexHead};
use crate::sqlite::wal::{HEADER_LEN, RunningChecksum, Salts, WalHeader};
use crate::time::Timestamp;

type Result<T> = std::result::Result<T, SqliteSourceError>;

/// The first SQLite without the WAL-reset bug.
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// How long after a write to the log its publication is looked for closely.
const HOT: Duration = Duration::from_millis(20);
/// Between two looks at the index while hot.
const HOT_PAUSE: Duration = Duration::from_micros(50);
/// At the beginning of the hot time we do not sleep at all: most commits are published within microseconds.
const SPIN: Duration = Duration::from_micros(40);
/// Between two looks while commits are being backfilled, or nobody tells us of writes.
const COLD: Duration = Duration::from_millis(20);
/// Between two looks when all is quiet.
const IDLE: Duration = Duration::from_millis(250);
/// Between two looks at the names of the files.
const NAMES: Duration = Duration::from_millis(250);
/// How long published frames may fail their check before the log counts as broken.
const MISMATCH_MAX: Duration = Duration::from_secs(5);
/// Between two such checks.
const MISMATCH_PAUSE: Duration = Duration::from_millis(2);
/// Attempts to read an index that is being written.
const HEAD_ATTEMPTS: u32 = 200;
/// A commit seen later than this after the look before was not watched (the machine slept, or we did).
const WATCHED_MICROS: i64 = 2_000_000;

/// How a database is captured.
#[derive(Clone, Debug)]
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

/// Why the log does not go on from a resume point.
struct Break {
    reason: String,
    behind: bool,
}

impl Break {
    fn other(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), behind: false }
    }
}

/// Something that ends capture of the file that is open. The source has let go; attach again, which will find out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceEvent {
    /// The path leads to another file.
    Replaced,
    /// The path leads nowhere.
    Vanished,
    /// The log or its index was deleted or replaced under SQLite.
    LogReplaced,
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
    /// Whether the pin may be on slot 0, which allows a reset.
    maybe_slot_zero: bool,
    /// Attached at an unknown place, and nothing captured from it yet.
    unplaced: bool,
    /// Nothing was looked at since the attach: what is found first was committed while nobody watched.
    away: bool,
    /// Up to here the sink has been told to secure.
    secured: Option<Place>,
    /// The head of the index as it was read last, and when.
    seen: [u8; HEAD_LEN + 4],
    looked: Timestamp,
    pace: Pace,
    watcher: Watcher,
    hot_since: Option<Instant>,
    names_due: Instant,
    mismatch_since: Option<Instant>,
    held_images: Arc<()>,
}

/// A captured commit's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    salts: Salts,
    frame: u32,
    checksum: RunningChecksum,
}

/// A consistent reading of the index.
#[derive(Clone, Copy, Debug)]
struct Look {
    head: IndexHead,
    backfilled: u32,
}

impl Look {
    fn is_backfilled(self) -> bool {
        self.backfilled >= self.head.frames
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
}

impl<E> From<SqliteSourceError> for Trouble<E> {
    fn from(error: SqliteSourceError) -> Self {
        Self::Source(error)
    }
}

impl SqliteSource {
    /// Opens a database. Symbolic links are resolved: the log lies beside the file itself.
    ///
    /// # Errors
    /// When there is nothing there, or nothing that can be captured; each case has its own error and advice.
    pub fn open(path: &Path, options: SqliteOptions) -> Result<Self> {
        require_sqlite_version()?;
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SqliteSourceError::NotThere { path: path.to_owned() });
            }
            Err(source) => {
                return Err(SqliteSourceError::Io {
                    path: path.to_owned(),
                    doing: "resolve the path",
                    source,
                });
            }
        };
        links::identify(&path)?;
        if let Some(kind) = files::network_file_system(&path).filter(|_| !options.allow_network_file_system) {
            return Err(SqliteSourceError::NetworkFileSystem { path, kind });
        }
        let now = Instant::now();
        let mut source = Self {
            path,
            options,
            links: None,
            place: Place { salts: Salts::default(), frame: 0, checksum: RunningChecksum::default() },
            page_size: PageSize::MIN,
            image_pages: 0,
            last_frames: LastFrames::default(),
            frames: Frames::default(),
            maybe_slot_zero: true,
            unplaced: true,
            away: true,
            secured: None,
            seen: [0; HEAD_LEN + 4],
            looked: Timestamp::MIN,
            pace: Pace::new(now),
            watcher: Watcher::polling(),
            hot_since: None,
            names_due: now,
            mismatch_since: None,
            held_images: Arc::new(()),
        };
        source.connect()?;
        Ok(source)
    }

    /// Opens everything and takes the first pin.
    fn connect(&mut self) -> Result<()> {
        let (links, header) = Links::open(&self.path, &self.options)?;
        self.watcher =
            if self.options.notify { Watcher::new(&beside(&self.path, "-wal")) } else { Watcher::polling() };
        self.page_size = header.page_size;
        self.links = Some(links);
        self.maybe_slot_zero = true;
        self.mismatch_since = None;
        self.secured = None;
        self.frames.forget();
        self.seen = [0; HEAD_LEN + 4];
        self.pace = Pace::new(Instant::now());
        self.hot_since = None;
        Ok(())
    }

    /// Decides where capture begins: right after `resume` if inode, page size, salts, frame and running checksum all
    /// match what is found under the pin, else at the present state.
    ///
    /// # Errors
    /// When the database cannot be opened or read.
    pub fn attach(&mut self, resume: Option<&[u8]>) -> Result<Attach> {
        if self.links.is_none() {
            self.connect()?;
        }
        self.names_due = Instant::now() + NAMES;
        let look = self.look_patiently()?;
        if let Some(page_size) = look.head.page_size.filter(|_| look.head.frames > 0) {
            self.page_size = page_size;
        }
        let decision = match resume.map(ResumePoint::decode) {
            None => Err(Break::other("there is no resume point")),
            Some(None) => Err(Break::other("the resume point cannot be read")),
            Some(Some(point)) => self.continues(&point, look.head).map(|()| point),
        };
        match decision {
            Ok(point) => {
                self.place = Place { salts: point.salts, frame: point.frame, checksum: point.checksum };
                self.image_pages = point.image_pages;
                self.looked = point.looked;
                (self.unplaced, self.away) = (false, true);
                self.remember_frames()?;
                Ok(Attach::Continue)
            }
            Err(Break { reason, behind }) => {
                self.place_at(look.head)?;
                (self.unplaced, self.away) = (true, false);
                Ok(Attach::Unknown { reason, behind })
            }
        }
    }

    /// Whether the log goes on from the resume point; if not, why.
    fn continues(&self, point: &ResumePoint, head: IndexHead) -> std::result::Result<(), Break> {
        let links = self.links.as_ref().ok_or_else(|| Break::other("the source is not attached"))?;
        if point.inode != links.inode() {
            let inode = links.inode();
            return Err(Break::other(format!(
                "the database is another file (inode {inode}, was {})",
                point.inode
            )));
        }
        if point.page_size != self.page_size {
            return Err(Break::other(format!(
                "the page size is {}, was {}",
                self.page_size, point.page_size
            )));
        }
        if point.salts != head.salts {
            return Err(Break::other("the log was reset since"));
        }
        if point.frame > head.frames {
            let reason = format!("the log ends at frame {}, {} had been captured", head.frames, point.frame);
            return Err(Break { reason, behind: true });
        }
        if point.frame == 0 && point.salts == Salts::default() {
            // An index set up over an empty log: it looks the same after any number of commits in between.
            return Err(Break::other("the log was empty, which says nothing of what came since"));
        }
        let found = if point.frame == head.frames && point.frame > 0 {
            Some(head.checksum)
        } else if point.frame > 0 {
            let log = LogFile { file: &links.wal, page_size: self.page_size };
            log::read_frame_header(log, point.frame)
                .ok()
                .flatten()
                .filter(|header| header.salts == point.salts && header.commit.is_some())
                .map(|header| header.checksum)
        } else {
            return Ok(());
        };
        if found == Some(point.checksum) {
            Ok(())
        } else {
            let reason = format!("the log was written anew: frame {} is not the captured one", point.frame);
            Err(Break { reason, behind: true })
        }
    }

    /// Makes the published state the captured one, without handing anything over.
    fn place_at(&mut self, head: IndexHead) -> Result<()> {
        self.place = Place { salts: head.salts, frame: head.frames, checksum: head.checksum };
        self.image_pages = self.image_pages_at(head)?;
        self.looked = Timestamp::now();
        self.frames.forget();
        self.remember_frames()
    }

    /// The size of the image. An index that was set up over an empty log does not say; then the file is all there is.
    fn image_pages_at(&self, head: IndexHead) -> Result<u32> {
        let Some(links) = self.links.as_ref().filter(|_| head.image_pages == 0) else {
            return Ok(head.image_pages);
        };
        let size = sqlite_ffi::database_size(links.pinned()).map_err(|source| SqliteSourceError::Io {
            path: self.path.clone(),
            doing: "tell its size",
            source,
        })?;
        Ok(u32::try_from(size / u64::from(self.page_size.get())).unwrap_or(u32::MAX))
    }

    fn remember_frames(&mut self) -> Result<()> {
        self.last_frames.clear();
        let Some(links) = &self.links else { return Ok(()) };
        let log = LogFile { file: &links.wal, page_size: self.page_size };
        self.last_frames.scan(log, 1, self.place.frame, log::remembered_pages()).map_err(|source| {
            SqliteSourceError::Io { path: self.path.clone(), doing: "read its log (-wal)", source }
        })
    }

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
        let event = match outcome {
            Ok(()) => {
                self.mismatch_since = None;
                None
            }
            Err(Trouble::Source(error)) => return Err(error.into()),
            Err(Trouble::Sink(error)) => return Err(CaptureError::Sink(error)),
            Err(Trouble::Passing(reason)) => self.pass_over(reason),
            Err(Trouble::Lost(reason)) => Some(SourceEvent::LogLost { reason }),
        };
        let event = match self.moved()? {
            Some(moved) => Some(moved),
            None => event,
        };
        if event.is_some() {
            self.release();
        }
        let idle = transactions == 0 && event.is_none() && self.is_at_rest() && self.hot_since.is_none();
        Ok(Polled { transactions, idle, event })
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
        if !self.nothing_published()? {
            *transactions += self.capture_published(sink)?;
        }
        self.away = false;
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

    /// Whether the paths still lead to the open files; looked at now and then.
    fn moved(&mut self) -> Result<Option<SourceEvent>> {
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

    /// Whether the raw head is still the one seen last. That is a look, too: what is committed later is later than it.
    fn nothing_published(&mut self) -> Result<bool> {
        let looked = Timestamp::now();
        let Some(links) = &self.links else { return Ok(true) };
        let same =
            files::read_head(&links.index).map_err(|source| self.index_unreadable(source))? == self.seen;
        if same && !self.away {
            self.looked = looked;
        }
        Ok(same)
    }

    fn index_unreadable(&self, source: std::io::Error) -> SqliteSourceError {
        SqliteSourceError::Io { path: self.path.clone(), doing: "read its shared index (-shm)", source }
    }

    /// A published head and the number of backfilled frames of the same generation; `None` while a writer is at it.
    ///
    /// The number stands outside of the checksummed header and is reset after it, so it is read between two readings of
    /// the header with equal salts. Within a generation it only grows.
    fn look(&self) -> Result<Option<Look>> {
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

    fn look_patiently(&self) -> Result<Look> {
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

    /// Reads the published head and captures up to it; gives the number of transactions.
    fn capture_published<S: Sink>(&mut self, sink: &mut S) -> std::result::Result<u64, Trouble<S::Error>> {
        let looked = Timestamp::now();
        let Some(links) = &self.links else { return Ok(0) };
        let raw = files::read_head(&links.index).map_err(|source| self.index_unreadable(source))?;
        let head = match IndexHead::parse(&raw) {
            Ok(head) => head,
            Err(source @ IndexError::Version { .. }) => {
                return Err(SqliteSourceError::Index { path: self.path.clone(), source }.into());
            }
            // A writer died while publishing, perhaps: whoever begins to read next repairs it. `maintain` will.
            Err(_) => {
                self.seen = raw;
                return Ok(0);
            }
        };
        let transactions = self.capture(sink, head, looked)?;
        self.seen = raw;
        Ok(transactions)
    }

    /// Hands over everything up to the published head.
    fn capture<S: Sink>(
        &mut self,
        sink: &mut S,
        head: IndexHead,
        looked: Timestamp,
    ) -> std::result::Result<u64, Trouble<S::Error>> {
        if head.salts != self.place.salts {
            self.begin_generation(head)?;
        }
        if head.frames < self.place.frame {
            return Err(Trouble::Lost(format!(
                "the log ends at frame {}, {} had been captured",
                head.frames, self.place.frame
            )));
        }
        if head.frames == self.place.frame {
            self.looked = looked;
            return if head.frames == 0 || head.checksum == self.place.checksum {
                Ok(0)
            } else {
                Err(Trouble::Lost(format!("frame {} was written anew after its capture", head.frames)))
            };
        }
        let spans = self.survey(head)?;
        let (time, time_of_last) = self.commit_times(head, looked);
        for (at, span) in spans.iter().enumerate() {
            let last = at + 1 == spans.len();
            self.hand_over(sink, *span, if last { time_of_last } else { time })?;
        }
        self.looked = looked;
        self.pace.committed(Instant::now());
        self.settle();
        Ok(spans.len() as u64)
    }

    /// The log was reset: legal only under a pin on slot 0, when all of the old one had been captured.
    fn begin_generation<E>(&mut self, head: IndexHead) -> std::result::Result<(), Trouble<E>> {
        if !self.maybe_slot_zero {
            return Err(Trouble::Lost("the log was reset while that was not expected".to_owned()));
        }
        tracing::trace!(path = %self.path.display(), before = ?self.place.salts, after = ?head.salts, "the log was reset");
        self.place = Place { salts: head.salts, frame: 0, checksum: RunningChecksum::default() };
        self.last_frames.clear();
        self.frames.forget();
        Ok(())
    }

    /// Checks the frames after the captured place up to the head; gives their transactions.
    fn survey<E>(&mut self, head: IndexHead) -> std::result::Result<Vec<Span>, Trouble<E>> {
        let Some(links) = &self.links else { return Ok(Vec::new()) };
        let before = if self.place.frame == 0 {
            let header = read_wal_header(links).map_err(Trouble::Passing)?;
            if header.salts != head.salts || header.page_size != self.page_size || header.order != head.order
            {
                return Err(Trouble::Passing(format!(
                    "the header of the log ({header:?}) is not that of its index"
                )));
            }
            header.checksum
        } else {
            self.place.checksum
        };
        let range = Range {
            file: &links.wal,
            page_size: self.page_size,
            salts: head.salts,
            order: head.order,
            first: self.place.frame + 1,
            last: head.frames,
            before,
            published: head.checksum,
        };
        self.frames.survey(&range).map_err(|mismatch| Trouble::Passing(mismatch.0))
    }

    /// The times of the commits found by one look: of the last one, and of those before it.
    ///
    /// All of them lie after the look before and not after this one. The last one's is the log's modification time, if
    /// nobody has written since. For the others only the lower bound is never later than the moment their writer was
    /// told; while we watch it is some 50 µs off. What was committed before we watched gets the upper bound.
    fn commit_times(&self, head: IndexHead, looked: Timestamp) -> (Timestamp, Timestamp) {
        let modified = self
            .links
            .as_ref()
            .and_then(|links| links.wal.metadata().ok())
            .and_then(|metadata| metadata.modified().ok())
            .and_then(|time| jiff::Timestamp::try_from(time).ok())
            .map_or(looked, Timestamp::from);
        let lower = self.looked.plus_micros(1).min(looked);
        let upper = modified.max(lower).min(looked);
        if self.away {
            (upper, upper)
        } else if self.written_beyond(head.frames, head.salts) {
            (lower, lower)
        } else {
            (lower, upper)
        }
    }

    /// Hands one transaction over and makes it the captured place.
    fn hand_over<S: Sink>(
        &mut self,
        sink: &mut S,
        span: Span,
        time: Timestamp,
    ) -> std::result::Result<(), Trouble<S::Error>> {
        let Some(links) = &self.links else { return Ok(()) };
        let log = LogFile { file: &links.wal, page_size: self.page_size };
        let (last_frames, known_pages) = (&mut self.last_frames, self.image_pages);
        let outcome = self.frames.hand_over(log, span, |page, frame, image| {
            let mut previous = |buffer: &mut Vec<u8>| {
                page.get() <= known_pages && read_previous(links, log, last_frames, page, buffer)
            };
            sink.page(page, image, &mut previous)?;
            last_frames.insert(page, frame);
            Ok(())
        });
        let outcome = outcome.and_then(|checksum| {
            let place = Place { salts: self.place.salts, frame: span.last, checksum };
            let resume = ResumePoint {
                inode: links.inode(),
                page_size: self.page_size,
                salts: place.salts,
                frame: place.frame,
                checksum,
                image_pages: span.image_pages,
                looked: time,
            };
            let commit = Commit {
                image_pages: span.image_pages,
                time,
                not_before: self.looked.min(time),
                observed: !self.away && time.micros_since(self.looked) <= WATCHED_MICROS,
                resume: resume.encode(),
            };
            sink.commit(commit).map_err(HandOver::Sink)?;
            (self.place, self.image_pages) = (place, span.image_pages);
            Ok(())
        });
        outcome.map_err(|error| {
            sink.rollback();
            // The pages handed over so far are in the map with frames of the transaction that was given up.
            if self.remember_frames().is_err() {
                self.last_frames.spoil();
            }
            match error {
                HandOver::Log(error) => Trouble::Passing(format!("the log cannot be read: {error}")),
                HandOver::Sink(error) => Trouble::Sink(error),
            }
        })
    }

    /// After a capture: unless a further transaction is already on its way into the log, its next write will tell.
    /// The events are taken first: whatever they told of is then to be seen in the file.
    fn settle(&mut self) {
        let seen = self.watcher.drain();
        if seen.folder {
            self.names_due = Instant::now();
        }
        self.hot_since =
            if self.written_beyond(self.place.frame, self.place.salts) { Some(Instant::now()) } else { None };
    }

    /// Whether a further transaction is on its way into the log, behind a frame or into a new generation. (What is left
    /// of one that was rolled back looks the same.)
    fn written_beyond(&self, frame: u32, salts: Salts) -> bool {
        let Some(links) = &self.links else { return false };
        let log = LogFile { file: &links.wal, page_size: self.page_size };
        let next = log::read_frame_header(log, frame.saturating_add(1)).ok().flatten();
        next.is_some_and(|header| header.salts == salts)
            || read_wal_header(links).map_or(true, |header| header.salts != salts)
    }

    /// Blocks until there may be something to do: a write to the log, a due maintenance, a ring of `wake`, or `max`.
    /// After a failed [`SqliteSource::poll`] there is something to do at once: the caller paces its own attempts.
    pub fn wait(&mut self, wake: &Waker, max: Duration) {
        let until = Instant::now() + max;
        if self.links.is_none() {
            wake.wait(max);
            let _ = wake.take();
            return;
        }
        loop {
            if wake.take() {
                return;
            }
            let seen = self.watcher.drain();
            let now = Instant::now();
            if seen.folder {
                self.names_due = now;
                return;
            }
            if seen.log {
                self.hot_since = Some(now);
            }
            if self.mismatch_since.is_some() {
                self.sleep(wake, MISMATCH_PAUSE.min(until - now), false);
                return;
            }
            if !self.nothing_published().unwrap_or(false) {
                return;
            }
            self.hot_since = self.hot_since.filter(|since| now.duration_since(*since) < HOT);
            let due = self.next_due(now).min(until);
            if due <= now {
                return;
            }
            match self.hot_since {
                Some(since) if now.duration_since(since) < SPIN => std::thread::yield_now(),
                Some(_) => {
                    self.sleep(wake, HOT_PAUSE.min(due - now), false);
                }
                None => {
                    if !self.sleep(wake, self.cold_pause().min(due - now), true) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether something happened before the time was over.
    fn sleep(&self, wake: &Waker, time: Duration, listen: bool) -> bool {
        use std::os::fd::AsFd;
        match self.watcher.descriptor().filter(|_| listen) {
            Some(descriptor) => wait_for(&[wake.as_fd(), descriptor], time),
            None => wait_for(&[wake.as_fd()], time),
        }
    }

    fn cold_pause(&self) -> Duration {
        if self.watcher.descriptor().is_some() && self.is_at_rest() { IDLE } else { COLD }
    }

    /// All captured, all backfilled, and the pin does not keep the log from being reset.
    fn is_at_rest(&self) -> bool {
        let Some(_) = &self.links else { return true };
        let (head, _) = self.seen.split_at(HEAD_LEN);
        self.maybe_slot_zero
            && IndexHead::parse(head).is_ok_and(|head| {
                head.salts == self.place.salts
                    && head.frames == self.place.frame
                    && self.seen_backfilled() == head.frames
            })
    }

    fn seen_backfilled(&self) -> u32 {
        crate::sqlite::index::native32(&self.seen, HEAD_LEN)
    }

    /// A full image at exactly the last captured commit, independent of later ones; the sink gets what was committed up
    /// to then first. After [`Attach::Unknown`] the sink gets nothing: the image's state becomes the captured one.
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

    fn log_unreadable(&self, source: std::io::Error) -> SqliteSourceError {
        SqliteSourceError::Io { path: self.path.clone(), doing: "read its log (-wal)", source }
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

    /// The path, with symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where to go on after the last captured commit; empty when the source is not attached.
    #[must_use]
    pub fn resume(&self) -> Vec<u8> {
        let Some(links) = &self.links else { return Vec::new() };
        ResumePoint {
            inode: links.inode(),
            page_size: self.page_size,
            salts: self.place.salts,
            frame: self.place.frame,
            checksum: self.place.checksum,
            image_pages: self.image_pages,
            looked: self.looked,
        }
        .encode()
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

    /// Lets go of the pin and closes all connections; the log stays where it is. From now on commits may be missed,
    /// until the next attach finds out.
    pub fn release(&mut self) {
        self.links = None;
        self.watcher = Watcher::polling();
        self.last_frames.clear();
        self.frames.forget();
    }
}

/// The version of a page before the transaction under way: its last captured frame, or the database file, into which
/// the pin lets nothing newer.
fn read_previous(
    links: &Links,
    log: LogFile<'_>,
    last_frames: &LastFrames,
    page: PageNo,
    buffer: &mut Vec<u8>,
) -> bool {
    buffer.resize(log.page_size.bytes(), 0);
    match last_frames.get(page) {
        Ok(Some(frame)) => log::read_frame(log, frame, page, buffer).is_ok(),
        Ok(None) => sqlite_ffi::read_database(links.pinned(), page.offset(log.page_size), buffer)
            .is_ok_and(|complete| complete),
        Err(()) => false,
    }
}

fn read_wal_header(links: &Links) -> std::result::Result<WalHeader, String> {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; HEADER_LEN];
    links.wal.read_exact_at(&mut bytes, 0).map_err(|error| format!("the header of the log: {error}"))?;
    WalHeader::parse(&bytes).map_err(|error| format!("the header of the log: {error}"))
}

fn require_sqlite_version() -> Result<()> {
    if rusqlite::version_number() >= SQLITE_VERSION_MIN {
        Ok(())
    } else {
        Err(SqliteSourceError::OldSqlite { found: rusqlite::version() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_sqlite_has_no_wal_reset_bug() {
        require_sqlite_version().unwrap();
    }
}
