//! Holds the source's log while protection cannot begin: the store is away, so nobody can say where the history ends.
//!
//! An open source keeps its log from being reset. So nothing is lost meanwhile, but the log grows, and an application
//! that empties its log itself would wait for us with all writers behind it. Past a limit, or for such an application,
//! the log is let go of: its disk must not fill and its commits must not stand still. What is lost then will be a gap.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::capture::sqlite::{SqliteOptions, SqliteSource, SqliteSourceError};

/// Between two looks at a log that is held.
pub(super) const CHECK_EVERY: Duration = Duration::from_millis(20);

/// A checkpoint seen at every look for so long is no passing one.
const WAITED_FOR_MAX: Duration = Duration::from_millis(100);

/// A log that cannot be looked at for so long may be past every limit.
const UNLOOKED_MAX: Duration = Duration::from_secs(2);

/// Tells an application's checkpoint that waits for us, with all writers behind it, from one that passes.
#[derive(Debug, Default)]
pub(super) struct WaitedFor {
    since: Option<Instant>,
}

impl WaitedFor {
    /// Looks once more, a few times in 100 ms at least; whether it lasts.
    pub(super) fn look(&mut self, source: &SqliteSource) -> bool {
        if !source.checkpoint_waits() {
            self.since = None;
        } else if self.since.get_or_insert_with(Instant::now).elapsed() >= WAITED_FOR_MAX {
            return true;
        }
        false
    }
}

/// One source whose log is held, if it can be.
pub(super) struct Held {
    path: PathBuf,
    options: SqliteOptions,
    bytes_max: u64,
    source: Option<SqliteSource>,
    waited_for: WaitedFor,
    /// Since when nobody can say how long the log is.
    unlooked_since: Option<Instant>,
    /// It is not held again until protection begins.
    let_go: bool,
}

impl Held {
    pub(super) fn new(
        path: PathBuf,
        options: SqliteOptions,
        bytes_max: u64,
        source: Option<SqliteSource>,
    ) -> Self {
        Self {
            path,
            options,
            bytes_max,
            source,
            waited_for: WaitedFor::default(),
            unlooked_since: None,
            let_go: false,
        }
    }

    /// Opens the source, unless it is open or was let go of.
    pub(super) fn hold(&mut self) -> Result<(), SqliteSourceError> {
        if self.source.is_none() && !self.let_go {
            self.source = Some(SqliteSource::open(&self.path, self.options.clone())?);
        }
        Ok(())
    }

    pub(super) fn is_held(&self) -> bool {
        self.source.is_some()
    }

    /// The path, with symbolic links resolved if the source is open.
    pub(super) fn path(&self) -> &Path {
        self.source.as_ref().map_or(&self.path, SqliteSource::path)
    }

    /// Keeps the log, or lets go of one that has grown too long or that the application waits for.
    pub(super) fn check(&mut self) {
        let Some(source) = &mut self.source else { return };
        let bytes = source.hold().and_then(|()| source.log_bytes());
        let since = self.unlooked_since.filter(|_| bytes.is_err());
        self.unlooked_since = since.or_else(|| bytes.is_err().then(Instant::now));
        let unlooked = since.is_some_and(|since| since.elapsed() >= UNLOOKED_MAX);
        let bytes = bytes.unwrap_or(0);
        let reason = if bytes > self.bytes_max {
            "the log grew too long"
        } else if self.waited_for.look(source) {
            "the application waits to empty the log"
        } else if unlooked {
            // Whoever begins will find out why.
            "nobody can say how long the log is"
        } else {
            return;
        };
        let path = self.path.display();
        tracing::warn!(%path, bytes, "protection cannot begin and {reason}: it is let go of, which makes a gap");
        (self.source, self.let_go, self.unlooked_since) = (None, true, None);
    }

    /// The source, opened if it is not, for protection to begin.
    pub(super) fn take(&mut self) -> Result<SqliteSource, SqliteSourceError> {
        self.let_go = false;
        self.hold()?;
        self.source.take().ok_or_else(|| SqliteSourceError::NotAttached { path: self.path.clone() })
    }
}

/// Holds the logs of some databases before there is even a repository to protect them into. Ends when dropped.
#[derive(Debug)]
pub struct Hold {
    stop: Sender<()>,
    thread: JoinHandle<Vec<(PathBuf, SqliteSource)>>,
}

impl Hold {
    /// Begins to hold the logs of those databases that can be opened; each up to `log_bytes_max`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn begin(databases: Vec<(PathBuf, SqliteOptions)>, log_bytes_max: u64) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let hold = move || {
            let new = |(path, options)| Held::new(path, options, log_bytes_max, None);
            let mut held: Vec<Held> = databases.into_iter().map(new).collect();
            for one in &mut held {
                if let Err(error) = one.hold() {
                    tracing::debug!(path = %one.path.display(), %error, "its log is not held");
                }
            }
            while stopped.recv_timeout(CHECK_EVERY) == Err(RecvTimeoutError::Timeout) {
                held.iter_mut().for_each(Held::check);
            }
            held.into_iter().filter_map(|held| Some((held.path, held.source?))).collect()
        };
        let thread = std::thread::Builder::new().name("hold".into()).spawn(hold)?;
        Ok(Self { stop, thread })
    }

    /// The sources, still held, by the paths they were named by: each is for
    /// [`Protection::start_with`](crate::protect::Protection::start_with). Blocks for a moment.
    #[must_use]
    pub fn end(self) -> Vec<(PathBuf, SqliteSource)> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}
