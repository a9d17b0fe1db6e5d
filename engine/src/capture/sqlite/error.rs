//! What can keep a SQLite database from being captured, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::error::{ErrorKind, Explain};
use crate::sqlite::header::DatabaseHeaderError;
use crate::sqlite::index::IndexError;

/// Why a database cannot be captured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqliteSourceError {
    /// There is no such file. It may come: ask again.
    #[error("{}: there is no such file", path.display())]
    NotThere {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A folder, device or the like.
    #[error("{}: it is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is empty: no application has created its database yet.
    #[error("{}: the file is empty, there is no database in it yet", path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// The database has no write-ahead log.
    #[error("{}: it uses a rollback journal, which cannot be followed; a write-ahead log is needed", path.display())]
    RollbackJournal {
        /// The path.
        path: PathBuf,
    },
    /// Not a database, an encrypted one, or a damaged one.
    #[error("{}: it is not a SQLite database that can be read (encrypted or damaged databases look like this)", path.display())]
    NotADatabase {
        /// The path.
        path: PathBuf,
        /// What its header says, when that is the trouble.
        #[source]
        source: Option<DatabaseHeaderError>,
    },
    /// A file system that does not share memory and locks between machines as SQLite's log needs it.
    #[error("{}: it lies on {kind}, where SQLite's write-ahead log is not safe and cannot be followed", path.display())]
    NetworkFileSystem {
        /// The path.
        path: PathBuf,
        /// The kind of file system.
        kind: &'static str,
    },
    /// An application keeps the database for itself.
    #[error("{}: an application holds it in locking_mode=EXCLUSIVE, so nobody else can read it", path.display())]
    ExclusiveLocking {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else held a lock for too long.
    #[error("{}: it was locked by another process for {waited_ms} ms", path.display())]
    Busy {
        /// The path.
        path: PathBuf,
        /// How long we tried, in milliseconds.
        waited_ms: u64,
    },
    /// The user this process runs as may not use the log.
    #[error("{}: this user may not write beside it, and no application has it open", path.display())]
    ReadOnlyUser {
        /// The path.
        path: PathBuf,
    },
    /// It was replaced by another file while it was being opened. Ask again.
    #[error("{}: it was replaced while it was being opened", path.display())]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// The shared index was deleted while another process is on it: a second one must not be begun.
    #[error("{}: its shared index (-shm) was deleted while an application has the database open", path.display())]
    IndexDeleted {
        /// The path.
        path: PathBuf,
    },
    /// The log was deleted or replaced while another process is on it.
    #[error("{}: its log (-wal) was deleted or replaced while an application has the database open", path.display())]
    LogDeleted {
        /// The path.
        path: PathBuf,
    },
    /// The file was replaced, and the log beside it is that of the file before.
    #[error("{}: the log beside it (-wal) belongs to the file that was replaced, and must not get into this one", path.display())]
    LogOfReplaced {
        /// The path.
        path: PathBuf,
    },
    /// The wal-index is not one we know.
    #[error("{}: its shared index (-shm) cannot be used", path.display())]
    Index {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: IndexError,
    },
    /// This program was built with a SQLite that has the WAL-reset bug.
    #[error(
        "this program was built with SQLite {found}, expected 3.51.3 or newer (older ones can lose commits)"
    )]
    OldSqlite {
        /// Its version.
        found: &'static str,
    },
    /// The source is not attached: it was never, or it has let go.
    #[error("{}: the source is not attached", path.display())]
    NotAttached {
        /// The path.
        path: PathBuf,
    },
    /// SQLite refused.
    #[error("{}: sqlite could not {doing}", path.display())]
    Sqlite {
        /// The path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// SQLite's answer.
        #[source]
        source: rusqlite::Error,
    },
    /// The operating system refused.
    #[error("{}: could not {doing}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl Explain for SqliteSourceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotThere { .. }
            | Self::NotAFile { .. }
            | Self::Empty { .. }
            | Self::RollbackJournal { .. }
            | Self::NotADatabase { .. }
            | Self::NetworkFileSystem { .. }
            | Self::ExclusiveLocking { .. }
            | Self::ReadOnlyUser { .. } => ErrorKind::TargetUnfit,
            _ => ErrorKind::Failed,
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::NotThere { path } => {
                format!("protection begins as soon as {} exists; check the path if it should exist now", path.display())
            }
            Self::Empty { .. } => "protection begins with the application's first commit".to_owned(),
            Self::RollbackJournal { path } => format!(
                "run `sqlite3 {} 'PRAGMA journal_mode=WAL'` once (applications need no change), or allow Everwhen to \
                 convert it",
                path.display()
            ),
            Self::NotADatabase { path, .. } => format!(
                "check with `sqlite3 {} 'PRAGMA integrity_check'`; encrypted databases are not supported",
                path.display()
            ),
            Self::NetworkFileSystem { .. } => {
                "run Everwhen on the machine whose disk it is, or allow it if all users are on this machine".to_owned()
            }
            Self::ExclusiveLocking { .. } => {
                "set `PRAGMA locking_mode=NORMAL` in the application and let it open the database anew".to_owned()
            }
            Self::ReadOnlyUser { .. } => {
                "give this user write permission on the database and its folder (no page of it is ever written), or \
                 start the application first"
                    .to_owned()
            }
            Self::IndexDeleted { .. } | Self::LogDeleted { .. } => {
                "restart the application; protection goes on by itself then. Until it has closed the database, nobody \
                 else may open it"
                    .to_owned()
            }
            Self::LogOfReplaced { path } => format!(
                "stop the application; if {0}-wal and {0}-shm are still there then, remove them: they belong to the file \
                 that was replaced. Then start it again",
                path.display()
            ),
            _ => return None,
        })
    }
}

/// What ended a look at the source: the source itself, or the pipeline behind it.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError<E: std::error::Error + 'static> {
    /// The database.
    #[error(transparent)]
    Source(#[from] SqliteSourceError),
    /// The pipeline did not take what was captured.
    #[error("the captured transaction was not taken")]
    Sink(#[source] E),
}

impl<E: Explain + 'static> Explain for CaptureError<E> {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(source) => source.kind(),
            Self::Sink(sink) => sink.kind(),
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Source(source) => source.advice(),
            Self::Sink(sink) => sink.advice(),
        }
    }
}
