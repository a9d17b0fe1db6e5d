//! Databases and those who write to them.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row};

use crate::Outcome;
use crate::measure::{Sample, timed};
use crate::workload::{Steps, Workload, Writer};

/// Rows of a point-update database of about so many MiB.
#[must_use]
pub fn rows_of(mib: u64) -> u64 {
    mib * 2_250
}

/// About how many MiB a point-update database of so many rows takes.
#[must_use]
pub fn mib_of(rows: u64) -> u64 {
    rows / rows_of(1)
}

/// Makes a point-update database of about so many MiB, its log empty, on the disk.
///
/// Up to 256 MiB each row has a text of its own. What goes beyond repeats them under other keys, as fast as the disk
/// takes it: no compressor looks back so far, and no two pages are the same.
///
/// # Errors
/// SQLite's.
pub fn make_accounts(path: &Path, mib: u64) -> Outcome<()> {
    let (rows, mut made) = (rows_of(mib), rows_of(mib.min(256)));
    let mut connection = Connection::open(path)?;
    connection
        .execute_batch("PRAGMA journal_mode = off; PRAGMA synchronous = off; PRAGMA cache_size = -65536")?;
    Writer::new(Workload::PointUpdate, made, 1).prepare(&mut connection)?;
    while made < rows {
        let more = made.min(rows - made);
        let again =
            "INSERT INTO account SELECT id + ?1, owner, balance, changed, note FROM account WHERE id <= ?2";
        connection.execute(again, [i64::try_from(made)?, i64::try_from(more)?])?;
        made += more;
    }
    drop(connection);
    drop(connect(path)?);
    Ok(File::open(path)?.sync_all()?)
}

/// What `cp` and an fsync do: the limit of a restore.
///
/// # Errors
/// The file system's.
pub fn copy_synced(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(())
}

/// Opens a database as an application does.
///
/// # Errors
/// SQLite's.
pub fn connect(path: &Path) -> Outcome<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Makes the starting database of a workload, its log empty, and goes on writing to it.
///
/// # Errors
/// SQLite's.
pub fn prepared(path: &Path, workload: Workload, rows: u64) -> Outcome<(Connection, Writer)> {
    let mut connection = connect(path)?;
    let mut writer = Writer::new(workload, rows, 1);
    writer.prepare(&mut connection)?;
    checkpoint(&connection, "TRUNCATE")?.completed.then_some(()).ok_or("the log could not be emptied")?;
    Ok((connection, writer))
}

/// What came of a checkpoint by the application.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    /// Milliseconds until it returned.
    pub ms: f64,
    /// Whether it was not told busy, and the whole log is in the database.
    pub completed: bool,
}

/// Asks SQLite for a checkpoint, as an application that makes them itself does.
///
/// # Errors
/// SQLite's; being told busy is none.
pub fn checkpoint(connection: &Connection, mode: &str) -> Outcome<Checkpoint> {
    let ask = format!("PRAGMA wal_checkpoint({mode})");
    let answer = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    let (seconds, (busy, log, moved)) = timed(|| connection.query_row(&ask, [], answer))?;
    Ok(Checkpoint { ms: seconds * 1e3, completed: busy == 0 && log == moved })
}

/// What came of several checkpoints.
#[derive(Clone, Debug, Default)]
pub struct Checkpoints {
    /// Milliseconds of each, whether it completed or not.
    pub ms: Sample,
    /// Those that completed.
    pub completed: u64,
}

impl Checkpoints {
    /// Takes one in.
    pub fn push(&mut self, one: Checkpoint) {
        self.ms.push(one.ms);
        self.completed += u64::from(one.completed);
    }

    /// Takes in those of another.
    pub fn extend(&mut self, other: &Self) {
        self.ms.extend(&other.ms);
        self.completed += other.completed;
    }

    /// How many of them completed.
    #[must_use]
    pub fn share(&self) -> String {
        if self.ms.is_empty() { "-".into() } else { format!("{} of {}", self.completed, self.ms.len()) }
    }
}

/// Writes transactions at a pace (`None`: back to back) and gives the commit times in milliseconds. A paced writer that
/// falls behind catches up; its latency counts from when the transaction was due.
///
/// # Errors
/// SQLite's.
pub fn write(
    connection: &mut Connection,
    writer: &mut impl Steps,
    per_second: Option<f64>,
    until: impl Fn(u64, Duration) -> bool,
) -> Outcome<Written> {
    let mut written = Written::default();
    written.seconds = write_and_tell(connection, writer, per_second, until, |commit| {
        written.latency.push(commit.returned.saturating_duration_since(commit.since).as_secs_f64() * 1e3);
        written.busy += u64::from(commit.busy);
        written.transactions += 1;
    })?;
    Ok(written)
}

/// One commit of a writer.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// Its transaction began, or was due.
    pub since: Instant,
    /// It returned.
    pub returned: Instant,
    /// It was told `SQLITE_BUSY`, and tried again.
    pub busy: bool,
}

/// As [`write()`], telling of each commit as it returns; the seconds it all took.
///
/// # Errors
/// SQLite's.
pub fn write_and_tell(
    connection: &mut Connection,
    writer: &mut impl Steps,
    per_second: Option<f64>,
    until: impl Fn(u64, Duration) -> bool,
    mut tell: impl FnMut(Commit),
) -> Outcome<f64> {
    let (began, mut count) = (Instant::now(), 0_u64);
    while !until(count, began.elapsed()) {
        let since = match per_second {
            Some(rate) => wait_until_due(began + Duration::from_secs_f64(count as f64 / rate)),
            None => Instant::now(),
        };
        let mut busy = false;
        while let Err(error) = writer.step(connection) {
            match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseBusy) => busy = true,
                _ => return Err(error.into()),
            }
        }
        tell(Commit { since, returned: Instant::now(), busy });
        count += 1;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// From when a transaction counts: from when it was due if the writer is late, else from now, after the wait.
fn wait_until_due(due: Instant) -> Instant {
    let early = due.saturating_duration_since(Instant::now());
    std::thread::sleep(early);
    if early.is_zero() { due } else { Instant::now() }
}

/// What a writer saw.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Commits.
    pub transactions: u64,
    /// In so many seconds.
    pub seconds: f64,
    /// Commits that were told `SQLITE_BUSY` and tried again, by a busy timeout of 0.
    pub busy: u64,
    /// From begin, or from when it was due, to the return of commit, in milliseconds.
    pub latency: Sample,
}

impl Written {
    /// Takes in what was written after it.
    pub fn add(&mut self, next: &Self) {
        self.transactions += next.transactions;
        self.seconds += next.seconds;
        self.busy += next.busy;
        self.latency.extend(&next.latency);
    }
}
