//! Protection of one database: capture → encode → put → acknowledge.
//!
//! ```text
//!   source ──capture thread──▶ recorder ──closed parts──▶ outbox ──shipping task──▶ repository
//!            (thread, begin)   (table, journal)           (spool)                   (segments)
//!                  └── image ──────────────────────────▶ base job ───────────────▶ (packs, manifest)
//! ```
//! The capture thread owns the source and never waits for the store. What is captured and not yet stored is in memory or
//! in the spool, both bounded. A commit is *durable* when its segment, all before it, and a base to replay them on are in
//! the store.

mod base;
mod begin;
mod claims;
mod commands;
mod driver;
mod error;
mod fork;
mod found;
mod frames;
mod held;
mod journal;
mod known;
#[cfg(feature = "test-util")]
pub(crate) mod laws;
mod outbox;
mod packing;
mod recorder;
mod rival;
mod run;
mod scan;
mod ship;
mod spool;
mod spooled;
mod status;
mod table;
mod thread;
mod wiring;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio::sync::{oneshot, watch};

use crate::capture::sqlite::{SqliteOptions, SqliteSource, SqliteSourceError};
use crate::capture::watch::Waker;
use crate::ids::{DatabaseId, HostId, Position};
use crate::repository::Repository;

pub use crate::history::Point;
pub use base::BaseRule;
pub use error::ProtectError;
pub use held::Hold;
pub use status::{BaseProgress, Health, ProtectionStatus};

use commands::{Command, Commands};
use driver::Driver;
use status::Board;

/// The default of [`ProtectOptions::source_log_bytes`].
pub const SOURCE_LOG_BYTES: u64 = 256 << 20;

/// What to protect, and how.
#[derive(Clone, Debug)]
pub struct ProtectOptions {
    /// The database file.
    pub source: PathBuf,
    /// Its name in the repository.
    pub name: String,
    /// Its class.
    pub class: String,
    /// The local state of this database: journal, spool. Created if missing. One process at a time.
    pub state: PathBuf,
    /// This installation.
    pub host: HostId,
    /// This machine, as people call it.
    pub host_name: String,
    /// Under load, one segment per interval; the first commit after quiet ships at once.
    pub flush_interval: Duration,
    /// A segment is shipped early at this size, in bytes.
    pub segment_bytes: u64,
    /// Bytes that may wait for the store in memory.
    pub memory_queue_bytes: u64,
    /// Bytes of the log that may wait for the store on the local disk, and as many of a base.
    pub spool_bytes: u64,
    /// With a full spool, the source's log may grow to this many bytes before it is let go of, which makes a gap.
    pub source_log_bytes: u64,
    /// When a new base is made.
    pub base: BaseRule,
    /// The source's own limits and manners.
    pub sqlite: SqliteOptions,
    /// How long the newer timeline of another daemon may be without what this one has stored, before this one takes the
    /// line back.
    pub rival_silence: Duration,
    /// How long a stop waits for the store before the rest is left in the spool.
    pub stop_patience: Duration,
}

impl ProtectOptions {
    /// Everything but the names at its default.
    #[must_use]
    pub fn new(source: PathBuf, name: String, state: PathBuf, host: HostId, host_name: String) -> Self {
        Self {
            source,
            name,
            class: "production".into(),
            state,
            host,
            host_name,
            flush_interval: Duration::from_secs(1),
            segment_bytes: 1 << 20,
            memory_queue_bytes: 16 << 20,
            spool_bytes: 1 << 30,
            source_log_bytes: SOURCE_LOG_BYTES,
            base: BaseRule::default(),
            sqlite: SqliteOptions::default(),
            rival_silence: Duration::from_secs(30),
            stop_patience: Duration::from_secs(20),
        }
    }
}

/// A running protection. Dropping it stops the capture without waiting; [`Protection::stop`] is the orderly way.
#[derive(Debug)]
pub struct Protection {
    name: String,
    board: Board,
    commands: mpsc::Sender<Command>,
    waker: Waker,
    ended: watch::Receiver<bool>,
    repository: Repository,
}

impl Protection {
    /// Begins to protect a database, and returns when capture runs or has a reason to wait that is shown in the status.
    ///
    /// # Errors
    /// When the state folder is held by another process or cannot be used, or the source is not fit to be captured.
    pub async fn start(repository: Repository, options: ProtectOptions) -> Result<Self, ProtectError> {
        Self::start_with(repository, options, None).await
    }

    /// The same with a source that is open already, so that its log was held until now (see [`Hold`]).
    ///
    /// # Errors
    /// As for [`Protection::start`].
    pub async fn start_with(
        repository: Repository,
        options: ProtectOptions,
        held: Option<SqliteSource>,
    ) -> Result<Self, ProtectError> {
        let lock = lock_state(&options)?;
        let source = match held {
            Some(source) => Some(source),
            None => open_source(&options).await?,
        };
        let path = source.as_ref().map_or(options.source.as_path(), SqliteSource::path);
        let board = Board::new(&options.name, path.to_owned());
        board.expect_interval(options.flush_interval);
        let waker = Waker::new().map_err(ProtectError::state(&options.state))?;
        let (sender, commands) = mpsc::channel();
        let name = options.name.clone();
        let driver = Driver {
            repository: repository.clone(),
            options,
            board: board.clone(),
            runtime: tokio::runtime::Handle::current(),
            commands: Commands::new(commands),
            waker: waker.clone(),
            manifest: None,
            unused_claim: RefCell::default(),
            rival: Arc::default(),
            wants_image: false,
        };
        let (end, ended) = watch::channel(false);
        std::thread::Builder::new()
            .name(format!("capture {name}"))
            .spawn(move || {
                driver.run(source);
                drop(lock);
                let _ = end.send(true);
            })
            .map_err(|source| ProtectError::TaskDied { what: source.to_string() })?;
        Ok(Self { name, board, commands: sender, waker, ended, repository })
    }

    /// What an operator sees of it now.
    #[must_use]
    pub fn status(&self) -> ProtectionStatus {
        self.board.now()
    }

    /// Captures what is committed now, sends it on its way, and returns the last captured point; `None` when there is no
    /// history yet. Does not wait for the store.
    ///
    /// # Errors
    /// When the protection has stopped or is interrupted.
    pub async fn flush(&self) -> Result<Option<Point>, ProtectError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Flush(reply)).map_err(|_| self.stopped())?;
        self.waker.wake();
        answer.await.map_err(|_| if *self.ended.borrow() { self.stopped() } else { self.interrupted() })
    }

    /// Waits until a position (default: everything committed before the call) is durable, and returns the durable
    /// position.
    ///
    /// # Errors
    /// [`ProtectError::NotDurable`] when `timeout` passes first, [`ProtectError::Interrupted`] when nothing can be
    /// captured all that time.
    pub async fn wait_durable(
        &self,
        wanted: Option<Position>,
        timeout: Duration,
    ) -> Result<Position, ProtectError> {
        let began = Instant::now();
        let mut moves = self.board.watch_durable();
        let flushed = self.flush_within(timeout).await?;
        let position = wanted.unwrap_or(flushed);
        let left = timeout.saturating_sub(began.elapsed());
        let reached = moves.wait_for(|durable| durable.is_some_and(|at| at >= position));
        let durable = match tokio::time::timeout(left, reached).await {
            Ok(Ok(durable)) => (*durable).unwrap_or(position),
            _ => return Err(self.not_durable(position, began)),
        };
        if let Some(database) = self.status().database {
            if durable.timeline != position.timeline && !self.is_stored(database, position).await? {
                return Err(self.not_durable(position, began));
            }
            ship::tell_newer_claim(&self.repository, &self.board, database, durable.timeline).await;
        }
        Ok(durable)
    }

    /// Whether the repository holds a position of a timeline that this protection has left.
    async fn is_stored(&self, database: DatabaseId, position: Position) -> Result<bool, ProtectError> {
        let segments = self.repository.segments(database, position.timeline, None).await?;
        Ok(segments.iter().any(|(key, _)| key.range.contains(position.tx)))
    }

    fn not_durable(&self, position: Position, began: Instant) -> ProtectError {
        let durable = self.status().durable;
        ProtectError::NotDurable {
            position,
            waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            durable: durable.map_or("nothing".into(), |point| point.position.to_string()),
        }
    }

    /// Flushes, through interruptions of the capture, until there is a captured position.
    async fn flush_within(&self, timeout: Duration) -> Result<Position, ProtectError> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.flush()).await {
                Ok(Ok(Some(point))) => return Ok(point.position),
                Ok(Err(error @ ProtectError::Stopped { .. })) => return Err(error),
                _ if Instant::now() >= end => return Err(self.interrupted()),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn interrupted(&self) -> ProtectError {
        let reasons = self.status().reasons;
        let reason = if reasons.is_empty() { "it is only beginning".to_owned() } else { reasons.join("; ") };
        ProtectError::Interrupted { name: self.name.clone(), reason }
    }

    /// Captures and stores what is committed, within the options' patience, and lets go of the source.
    ///
    /// # Errors
    /// When the capture thread died.
    pub async fn stop(&self) -> Result<ProtectionStatus, ProtectError> {
        let _ = self.commands.send(Command::Stop);
        self.waker.wake();
        let mut ended = self.ended.clone();
        ended
            .wait_for(|ended| *ended)
            .await
            .map_err(|_| ProtectError::TaskDied { what: "capture".into() })?;
        Ok(self.status())
    }

    fn stopped(&self) -> ProtectError {
        ProtectError::Stopped { name: self.name.clone() }
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        self.waker.wake();
    }
}

/// The source; `None` when its application has not created it yet: protection begins when it does.
async fn open_source(options: &ProtectOptions) -> Result<Option<SqliteSource>, ProtectError> {
    let (path, sqlite) = (options.source.clone(), options.sqlite.clone());
    let opened = tokio::task::spawn_blocking(move || SqliteSource::open(&path, sqlite)).await;
    match opened.map_err(|died| ProtectError::TaskDied { what: died.to_string() })? {
        Ok(source) => Ok(Some(source)),
        Err(SqliteSourceError::NotThere { .. } | SqliteSourceError::Empty { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn lock_state(options: &ProtectOptions) -> Result<std::fs::File, ProtectError> {
    let state_error = ProtectError::state(&options.state);
    std::fs::create_dir_all(&options.state).map_err(&state_error)?;
    let path = options.state.join("lock");
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(&state_error)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(ProtectError::AlreadyProtected { folder: options.state.clone() })
        }
        Err(error) => Err(state_error(error.into())),
    }
}
