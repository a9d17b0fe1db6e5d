//! One database under the daemon's care: protected, waiting until it can be, or left alone by its class.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use everwhen_engine::capture::sqlite::{SqliteSource, SqliteSourceError};
use everwhen_engine::error::ErrorKind;
use everwhen_engine::protect::{self, ProtectError, ProtectOptions, Protection, ProtectionStatus};
use everwhen_proto::v1;

use super::home::Home;
use crate::config::{Class, DatabaseEntry, Flush};
use crate::failure::Failure;
use crate::wire::{point_out, time_out};

/// A stop that takes longer is worth a word.
const SOON: Duration = Duration::from_millis(500);

/// What became of a database.
#[derive(Clone)]
enum Watch {
    /// Captured.
    Running(Arc<Protection>),
    /// It could not be captured; tried again from time to time.
    Waiting(Failure),
    /// Its class is not captured.
    LeftAlone,
    /// It was removed.
    Removed,
}

/// See the module.
pub(crate) struct Guard {
    /// What was asked for. Its name may change while it is watched.
    entry: RwLock<DatabaseEntry>,
    /// Whether it was added by a call, so that a call may remove it.
    pub(crate) added: bool,
    /// The repository and state it belongs to.
    pub(crate) home: Arc<Home>,
    watch: RwLock<Watch>,
    /// Held while it is started, or removed: what is removed meanwhile does not begin afterwards.
    turning: tokio::sync::Mutex<()>,
    /// Whether the repository knows it by its path.
    pub(crate) settled: AtomicBool,
    captured_class: bool,
    options: ProtectOptions,
}

impl Guard {
    /// Prepares; [`Guard::start`] begins.
    pub(crate) fn new(
        entry: DatabaseEntry,
        class: Option<Class>,
        added: bool,
        home: Arc<Home>,
        flush: &Flush,
    ) -> Self {
        let mut options = home.options_for(&entry, flush);
        // So that expiry never takes the only base of what must stay.
        options.base.age = class.map(|class| class.retention / 2);
        let captured_class = class.is_none_or(|class| class.captured);
        let watch = if captured_class {
            Watch::Waiting(Failure::new(ErrorKind::Failed, "protection has not begun"))
        } else {
            Watch::LeftAlone
        };
        Self {
            entry: RwLock::new(entry),
            added,
            home,
            watch: RwLock::new(watch),
            turning: tokio::sync::Mutex::new(()),
            settled: AtomicBool::new(false),
            captured_class,
            options,
        }
    }

    fn watch(&self) -> Watch {
        self.watch.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set(&self, watch: Watch) {
        *self.watch.write().unwrap_or_else(std::sync::PoisonError::into_inner) = watch;
    }

    /// What was asked for.
    pub(crate) fn entry(&self) -> DatabaseEntry {
        self.entry.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Takes a new name or class into the entry.
    pub(crate) fn rename(&self, change: impl FnOnce(&mut DatabaseEntry)) {
        change(&mut self.entry.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// The protection, while it runs.
    pub(crate) fn protection(&self) -> Result<Arc<Protection>, Failure> {
        match self.watch() {
            Watch::Running(protection) => Ok(protection),
            Watch::Waiting(failure) => Err(failure),
            Watch::LeftAlone => Err(Failure::new(
                ErrorKind::Refused,
                format!(
                    "'{}' is of class '{}', which is not captured",
                    self.entry().name(),
                    self.entry().class
                ),
            )
            .advise("give it another class with `everwhen databases set`")),
            Watch::Removed => Err(self.removed()),
        }
    }

    fn removed(&self) -> Failure {
        Failure::new(ErrorKind::Refused, format!("'{}' was removed", self.entry().name()))
            .advise("`everwhen databases add` protects it again")
    }

    /// Whether it should run and does not.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.watch(), Watch::Waiting(_))
    }

    /// Looks whether the database can be captured at all, before anything is made for it. One that does not exist yet
    /// can: it is waited for, if its folder is there.
    pub(crate) async fn check(entry: &DatabaseEntry) -> Result<(), Failure> {
        let cannot = || format!("cannot protect {}", entry.path.display());
        let folder = entry.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            let missing = format!("{}: there is no folder {}", cannot(), folder.display());
            return Err(Failure::new(ErrorKind::TargetUnfit, missing)
                .advise("check the path: the file need not exist yet, its folder must"));
        }
        let path = entry.path.clone();
        let options = entry.sqlite.clone();
        let opened = tokio::task::spawn_blocking(move || SqliteSource::open(&path, options).map(drop)).await;
        let opened = opened.map_err(|died| Failure::new(ErrorKind::Failed, cannot()).caused_by(&died))?;
        match opened {
            Ok(()) | Err(SqliteSourceError::NotThere { .. } | SqliteSourceError::Empty { .. }) => Ok(()),
            Err(error) => Err(unfit(&error).while_(cannot())),
        }
    }

    /// Begins, or tries again; with the open source, if the log was held until now.
    pub(crate) async fn start(&self, held: Option<SqliteSource>) -> Result<(), Failure> {
        if !self.captured_class {
            return Ok(());
        }
        let _alone = self.turning.lock().await;
        if matches!(self.watch(), Watch::Removed) {
            return Err(self.removed());
        }
        let repository = self.home.records.repository.clone();
        match Protection::start_with(repository, self.options.clone(), held).await {
            Ok(protection) => {
                self.set(Watch::Running(Arc::new(protection)));
                Ok(())
            }
            Err(error) => {
                let failure = match &error {
                    ProtectError::Source(error) => unfit(error),
                    error => Failure::of(error),
                };
                let failure = failure.while_(format!("cannot protect {}", self.options.source.display()));
                self.set(Watch::Waiting(failure.clone()));
                Err(failure)
            }
        }
    }

    /// Ends for good.
    pub(crate) async fn remove(&self) {
        let _alone = self.turning.lock().await;
        self.stop().await;
        self.set(Watch::Removed);
    }

    /// Ends in order: what is captured becomes durable if the store lets it. Says so if not.
    pub(crate) async fn stop(&self) {
        let Watch::Running(protection) = self.watch() else { return };
        let name = self.entry().name();
        let stopping = protection.stop();
        tokio::pin!(stopping);
        let stopped = match tokio::time::timeout(SOON, &mut stopping).await {
            Ok(stopped) => stopped,
            Err(_) => {
                self.tell_what_is_waited_for(&protection.status());
                stopping.await
            }
        };
        match stopped {
            Ok(status) if status.captured.is_none() => {}
            Ok(status) if is_all_durable(&status) => tracing::info!("{name}: everything is durable"),
            Ok(status) if status.spool_bytes == 0 => tracing::warn!(
                "{name}: the last commits could not be stored, nor kept in the spool; the next start takes them from the \
                 database's log, if it is still there"
            ),
            Ok(status) => tracing::warn!(
                "{name}: {} bytes could not be stored; they lie in the spool and go on with the next start",
                status.spool_bytes
            ),
            Err(error) => tracing::error!("{name}: {}", Failure::of(&error).message()),
        }
    }

    /// What is captured is in the store or in the spool by now: whoever is in a hurry may know.
    fn tell_what_is_waited_for(&self, status: &ProtectionStatus) {
        let why = status.reasons.first().map(|why| format!(" ({why})")).unwrap_or_default();
        tracing::warn!(
            "{}: waiting up to {} s for the store to take {} bytes; what it does not take stays in the spool for the next \
             start, also if a second signal stops this at once{why}",
            self.entry().name(),
            self.options.stop_patience.as_secs(),
            status.queue_bytes + status.spool_bytes,
        );
    }

    /// The status, as far as memory knows it.
    pub(crate) fn status(&self) -> v1::DatabaseStatus {
        let entry = self.entry();
        let database = v1::Database {
            name: entry.name(),
            path: self.options.source.to_string_lossy().into_owned(),
            class: entry.class.clone(),
            store: self.home.url(),
            protected: false,
            ..v1::Database::default()
        };
        match self.watch() {
            Watch::Running(protection) => running(protection.status(), database),
            Watch::Waiting(failure) => v1::DatabaseStatus {
                database: Some(database),
                health: v1::Health::Failing.into(),
                reasons: vec![failure.message()],
                ..v1::DatabaseStatus::default()
            },
            Watch::Removed => v1::DatabaseStatus {
                reasons: vec![self.removed().message()],
                database: Some(database),
                ..v1::DatabaseStatus::default()
            },
            Watch::LeftAlone => v1::DatabaseStatus {
                reasons: vec![format!("unprotected by choice: class '{}' is not captured", entry.class)],
                database: Some(database),
                health: v1::Health::Ok.into(),
                ..v1::DatabaseStatus::default()
            },
        }
    }
}

/// Whether the last captured commit is in the store.
fn is_all_durable(status: &ProtectionStatus) -> bool {
    status.captured.map(|point| point.position) == status.durable.map(|point| point.position)
}

/// Why a source cannot be captured: what the engine cannot name more closely is the source's trouble all the same. Where
/// this program has an option for it, the advice names it.
fn unfit(error: &SqliteSourceError) -> Failure {
    let failure = Failure::of(error);
    match error {
        SqliteSourceError::RollbackJournal { path } => {
            let advice = format!(
                "let Everwhen switch it to WAL mode: `everwhen run {path} --convert-to-wal`, or convert_to_wal = true in \
                 its [[database]] table; or do it yourself: `sqlite3 {path} 'PRAGMA journal_mode=WAL'`. Applications need \
                 no change",
                path = path.display()
            );
            Failure { advice: Some(advice), ..failure }
        }
        SqliteSourceError::NetworkFileSystem { .. } => failure.advise(
            "run Everwhen on the machine whose disk it is, or set allow_network_file_system = true in its [[database]] \
             table if all its users are on this machine",
        ),
        SqliteSourceError::NotAFile { .. } => failure.advise("give the path of the database's file"),
        SqliteSourceError::Busy { .. } | SqliteSourceError::Sqlite { .. } | SqliteSourceError::Io { .. } => {
            let advice = "look who has the database open (`fuser`) and whether this user may read and write it, and what \
                          is in its folder; then try again";
            Failure { kind: ErrorKind::TargetUnfit, ..failure }.advise(advice)
        }
        _ => failure,
    }
}

fn running(status: ProtectionStatus, database: v1::Database) -> v1::DatabaseStatus {
    let point = |point: protect::Point| point_out(point.position, Some(point.time));
    let page_bytes = |pages: Option<u32>| u64::from(pages.unwrap_or(0));
    v1::DatabaseStatus {
        database: Some(v1::Database {
            id: status.database.map(|id| id.to_string()).unwrap_or_default(),
            path: status.path.to_string_lossy().into_owned(),
            protected: true,
            ..database
        }),
        health: match status.health {
            protect::Health::Ok => v1::Health::Ok,
            protect::Health::Attention => v1::Health::Attention,
            protect::Health::Failing => v1::Health::Failing,
        }
        .into(),
        reasons: status.reasons,
        captured: status.captured.map(point),
        durable: status.durable.map(point),
        lag_ms: status.lag_ms,
        window: None,
        covered_through: status.covered_through.map(time_out),
        gaps: status.gaps_total,
        spool_bytes: status.spool_bytes,
        queue_bytes: status.queue_bytes,
        transactions_total: status.transactions_total,
        segments_total: status.segments_total,
        stored_bytes_total: status.stored_bytes_total,
        base: status.base.pages_total.map(|total| v1::BaseProgress {
            done_pages: page_bytes(status.base.pages_done),
            total_pages: u64::from(total),
        }),
    }
}
