//! The connections to one database, and the pin: the read transaction that keeps its log from being reset.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::error::SqliteSourceError;
use super::files::{FileId, beside};
use super::indexes::{self, Stray};
use super::{Result, SqliteOptions};
use crate::capture::sqlite_ffi;
use crate::sqlite::header::{self, DatabaseHeader, DatabaseHeaderError, JournalKind};

/// Everything that is open on one database. The connections come first: they are closed before the files.
pub(super) struct Links {
    /// The two that take turns in holding the pin.
    pins: [Connection; 2],
    /// Which of them holds it.
    current: usize,
    /// Runs checkpoints.
    pub(super) checkpointer: Connection,
    /// Takes the write lock when the log is past its hard limit.
    pub(super) locker: Connection,
    /// The log, by its own descriptor.
    pub(super) wal: File,
    /// The wal-index, by the process's one descriptor.
    pub(super) index: Arc<File>,
    /// Whether this user may only read: then others checkpoint.
    pub(super) read_only: bool,
    path: PathBuf,
    database_id: FileId,
    wal_id: FileId,
    index_id: FileId,
}

/// How a file of the database no longer is what we have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    Vanished,
    Replaced,
    Log,
}

impl Links {
    /// Opens the connections and takes the first pin.
    pub(super) fn open(path: &Path, options: &SqliteOptions) -> Result<(Self, DatabaseHeader)> {
        let database_id = identify(path)?;
        require_no_stray(path, database_id)?;
        let pin = open_connection(path)?;
        let mut header = read_header(path, &pin)?;
        if header.journal == JournalKind::Rollback && options.convert_to_wal {
            convert(path, &pin)?;
            header = read_header(path, &pin)?;
        }
        require_wal(path, header)?;
        begin_patiently(path, &pin, options.patience)?;
        // It may have left WAL mode between the look and the pin; a read transaction would then block its writers.
        header = read_header(path, &pin)?;
        require_wal(path, header)?;

        let (other, checkpointer, locker) =
            (open_connection(path)?, open_connection(path)?, open_connection(path)?);
        for connection in [&other, &checkpointer, &locker] {
            begin_patiently(path, connection, options.patience)?;
            end(path, connection)?;
        }
        let io = |doing| move |source| SqliteSourceError::Io { path: path.to_owned(), doing, source };
        let (index_id, index) =
            indexes::shared(&beside(path, "-shm")).map_err(io("open its shared index (-shm)"))?;
        let wal = File::open(beside(path, "-wal")).map_err(io("open its log (-wal)"))?;
        let wal_id = FileId::of(&wal.metadata().map_err(io("look at its log (-wal)"))?);
        let read_only = pin.is_readonly("main").map_err(|source| SqliteSourceError::Sqlite {
            path: path.to_owned(),
            doing: "tell whether it may write",
            source,
        })?;
        let path = path.to_owned();
        let pins = [pin, other];
        let links = Self {
            pins,
            current: 0,
            checkpointer,
            locker,
            wal,
            index,
            read_only,
            path,
            database_id,
            wal_id,
            index_id,
        };
        match links.moved()? {
            None => Ok((links, header)),
            Some(_) => Err(SqliteSourceError::Replaced { path: links.path }),
        }
    }

    /// The connection that holds the pin.
    pub(super) fn pinned(&self) -> &Connection {
        &self.pins[self.current]
    }

    /// Begins a read transaction on the free connection, beside the pin. `false` when SQLite says busy.
    pub(super) fn begin_free(&self) -> Result<bool> {
        begin(&self.path, &self.pins[1 - self.current])
    }

    /// Gives up what [`Links::begin_free`] began.
    pub(super) fn end_free(&self) -> Result<()> {
        end(&self.path, &self.pins[1 - self.current])
    }

    /// The pin passes to the connection that [`Links::begin_free`] began on; the old one ends.
    pub(super) fn exchange(&mut self) -> Result<()> {
        let old = self.current;
        self.current = 1 - old;
        end(&self.path, &self.pins[old])
    }

    /// Ends the pin without another: whoever does has to prove afterwards that nothing was lost meanwhile.
    pub(super) fn unpin(&self) -> Result<()> {
        end(&self.path, self.pinned())
    }

    /// Pins anew after [`Links::unpin`], unless that was done.
    pub(super) fn pin_again(&self, patience: Duration) -> Result<()> {
        if !self.pinned().is_autocommit() {
            return Ok(());
        }
        begin_patiently(&self.path, self.pinned(), patience)
    }

    /// Empties the log, if all of it is, or can be put, in the file and nobody reads it.
    pub(super) fn truncate_log(&self) -> Result<()> {
        let emptied = self.checkpointer.wal_checkpoint_v2(Some("main"), CheckpointMode::TRUNCATE);
        emptied.map(|_| ()).map_err(|error| explain(&self.path, "empty its log", error))
    }

    /// Closes everything as an application does: the last one to close puts the log into the file and deletes it.
    pub(super) fn close(self) -> Result<()> {
        self.unpin()?;
        let Self { pins, checkpointer, locker, path, .. } = self;
        drop((pins, locker));
        let closed = checkpointer
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
            .and_then(|_| checkpointer.close().map_err(|(_, error)| error));
        closed.map_err(|error| explain(&path, "close it", error))
    }

    /// The files are left as no longer those of the path.
    pub(super) fn leave(&self) {
        indexes::leave(self.index_id, self.database_id, &self.wal);
    }

    /// What SQLite finds wrong with the schema. One that only the application understands is not wrong.
    pub(super) fn schema_damage(&self) -> Option<String> {
        let read = self.checkpointer.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
        let code = read.as_ref().err().and_then(rusqlite::Error::sqlite_error_code);
        let damaged = matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase));
        read.err().filter(|_| damaged).map(|error| error.to_string())
    }

    /// Whether the paths still lead to what is open.
    pub(super) fn moved(&self) -> Result<Option<Moved>> {
        let at = |path: &Path| {
            FileId::at(path).map_err(|source| SqliteSourceError::Io {
                path: path.to_owned(),
                doing: "look at the file",
                source,
            })
        };
        Ok(match at(&self.path)? {
            None => Some(Moved::Vanished),
            Some(id) if id != self.database_id => Some(Moved::Replaced),
            Some(_) if at(&beside(&self.path, "-wal"))? != Some(self.wal_id) => Some(Moved::Log),
            Some(_) if at(&beside(&self.path, "-shm"))? != Some(self.index_id) => Some(Moved::Log),
            Some(_) => None,
        })
    }

    /// Whether it is the file that is open.
    pub(super) fn is_database(&self, metadata: &Metadata) -> bool {
        FileId::of(metadata) == self.database_id
    }

    pub(super) fn inode(&self) -> u64 {
        self.database_id.inode
    }
}

/// Which file it is, if it is one.
pub(super) fn identify(path: &Path) -> Result<FileId> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(FileId::of(&metadata)),
        Ok(_) => Err(SqliteSourceError::NotAFile { path: path.to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(SqliteSourceError::NotThere { path: path.to_owned() })
        }
        Err(source) => {
            Err(SqliteSourceError::Io { path: path.to_owned(), doing: "look at the file", source })
        }
    }
}

/// Nothing is opened beside what an earlier source had to leave.
fn require_no_stray(path: &Path, database: FileId) -> Result<()> {
    let stray = indexes::stray(path, database).map_err(|source| SqliteSourceError::Io {
        path: path.to_owned(),
        doing: "look at its log",
        source,
    })?;
    let path = path.to_owned();
    match stray {
        None => Ok(()),
        Some(Stray::Index) => Err(SqliteSourceError::IndexDeleted { path }),
        Some(Stray::Log) => Err(SqliteSourceError::LogDeleted { path }),
        Some(Stray::Database) => Err(SqliteSourceError::LogOfReplaced { path }),
    }
}

/// A connection that never waits, never checkpoints by itself and leaves the log in place when it is closed.
pub(super) fn open_connection(path: &Path) -> Result<Connection> {
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))?;
        Ok(connection)
    };
    open().map_err(|error| explain(path, "open it", error))
}

/// Begins a read transaction; `false` when SQLite says busy.
///
/// A bare BEGIN reads nothing yet. The schema version is the cheapest thing to read: one page, and no need to
/// understand the schema, which may use what only the application has.
pub(super) fn begin(path: &Path, connection: &Connection) -> Result<bool> {
    let read = || -> rusqlite::Result<()> {
        connection.prepare_cached("BEGIN")?.execute([])?;
        connection.prepare_cached("PRAGMA schema_version")?.query_row([], |_| Ok(()))
    };
    match read() {
        Ok(()) => Ok(true),
        Err(error) => {
            end(path, connection)?;
            match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed) => Ok(false),
                _ => Err(explain(path, "begin to read", error)),
            }
        }
    }
}

/// Ends the transaction of a connection, if there is one.
pub(super) fn end(path: &Path, connection: &Connection) -> Result<()> {
    if connection.is_autocommit() {
        return Ok(());
    }
    connection
        .prepare_cached("ROLLBACK")
        .and_then(|mut statement| statement.execute([]))
        .map(|_| ())
        .map_err(|error| explain(path, "end a read transaction", error))
}

/// [`begin`], tried until `patience` is over.
pub(super) fn begin_patiently(path: &Path, connection: &Connection, patience: Duration) -> Result<()> {
    let started = Instant::now();
    while !begin(path, connection)? {
        if started.elapsed() >= patience {
            // An application in exclusive mode keeps the index in its own memory.
            let path = path.to_owned();
            return Err(if FileId::at(&beside(&path, "-shm")).ok().flatten().is_none() {
                SqliteSourceError::ExclusiveLocking { path }
            } else {
                SqliteSourceError::Busy { path, waited_ms: patience.as_millis() as u64 }
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn read_header(path: &Path, connection: &Connection) -> Result<DatabaseHeader> {
    let io = |source| SqliteSourceError::Io { path: path.to_owned(), doing: "read its header", source };
    let size = sqlite_ffi::database_size(connection).map_err(io)?;
    let mut bytes = [0; header::LEN];
    sqlite_ffi::read_database(connection, 0, &mut bytes).map_err(io)?;
    let there = usize::try_from(size).map_or(header::LEN, |size| size.min(header::LEN));
    match DatabaseHeader::parse(bytes.get(..there).unwrap_or_default()) {
        Ok(header) => Ok(header),
        Err(DatabaseHeaderError::Empty) => Err(SqliteSourceError::Empty { path: path.to_owned() }),
        Err(error) => Err(SqliteSourceError::NotADatabase { path: path.to_owned(), source: Some(error) }),
    }
}

fn require_wal(path: &Path, header: DatabaseHeader) -> Result<()> {
    match header.journal {
        JournalKind::Wal => Ok(()),
        JournalKind::Rollback => Err(SqliteSourceError::RollbackJournal { path: path.to_owned() }),
    }
}

/// Only when the operator asked for it: the one lasting change we ever make to a database.
fn convert(path: &Path, connection: &Connection) -> Result<()> {
    connection
        .query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))
        .map_err(|error| explain(path, "convert it to a write-ahead log", error))
}

/// Puts SQLite's answers that have a clear meaning into our words.
fn explain(path: &Path, doing: &'static str, source: rusqlite::Error) -> SqliteSourceError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            SqliteSourceError::NotADatabase { path, source: None }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) if doing == "begin to read" => {
            SqliteSourceError::ReadOnlyUser { path }
        }
        _ => SqliteSourceError::Sqlite { path, doing, source },
    }
}
