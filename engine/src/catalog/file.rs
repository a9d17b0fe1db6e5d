//! The file of the catalog: an SQLite database, each row with a checksum.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use crate::error::{ErrorKind, Explain};
use crate::history::{Seen, SegmentEntry};
use crate::ids::{DatabaseId, Position, RepositoryId, TimelineId, TxId};
use crate::page::StateChecksum;
use crate::store::keys::SegmentKey;
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};

/// The file in the state folder.
pub(super) const FILE: &str = "catalog.db";
/// A catalog of another version is thrown away.
const VERSION: i64 = 2;
/// Bytes of a transaction in the catalog.
const RECORD_BYTES: usize = 41;

const SCHEMA: &str = "
    CREATE TABLE segment (
        database TEXT NOT NULL, timeline INTEGER NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL,
        crc INTEGER NOT NULL, PRIMARY KEY (database, timeline, key)
    ) WITHOUT ROWID;
    CREATE TABLE listed (
        database TEXT NOT NULL, timeline INTEGER NOT NULL, segments INTEGER NOT NULL,
        PRIMARY KEY (database, timeline)
    ) WITHOUT ROWID;
    CREATE TABLE newest (
        database TEXT NOT NULL, timeline INTEGER NOT NULL, key TEXT NOT NULL, crc INTEGER NOT NULL,
        PRIMARY KEY (database, timeline)
    ) WITHOUT ROWID;
    CREATE TABLE transactions (key TEXT PRIMARY KEY, records BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
";

/// The catalog could not be read or written. It can always be done without.
#[derive(Debug, thiserror::Error)]
#[error("the catalog {path} cannot be used")]
pub struct CatalogError {
    /// Its file.
    pub path: String,
    /// Why.
    #[source]
    pub source: rusqlite::Error,
}

impl Explain for CatalogError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Failed
    }

    fn advice(&self) -> Option<String> {
        Some(format!("delete {}: it is made anew from the repository", self.path))
    }
}

/// The memory of one repository.
pub struct Catalog {
    connection: Connection,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}

impl Catalog {
    /// Runs a statement on the file as it is; gives how many rows it met.
    #[cfg(test)]
    pub(super) fn alter(&self, sql: &str) -> usize {
        self.connection.execute(sql, []).unwrap()
    }

    /// Opens the catalog in a state folder. One that is damaged, of another version or of another repository is
    /// thrown away first.
    ///
    /// # Errors
    /// [`CatalogError`] when it can neither be opened nor made.
    pub fn open(folder: &Path, repository: RepositoryId) -> Result<Self, CatalogError> {
        let path = folder.join(FILE);
        let failed = |source| CatalogError { path: path.display().to_string(), source };
        match Self::open_as_it_is(&path, repository) {
            Ok(Some(catalog)) => return Ok(catalog),
            Ok(None) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "making the catalog anew"),
        }
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            // What is not there need not be removed; what cannot be removed shows when the catalog is made.
            let _ = std::fs::remove_file(name);
        }
        Self::create(&path, repository).map_err(failed)
    }

    /// A catalog that is gone with the process.
    ///
    /// # Errors
    /// [`CatalogError`] when there is no memory for it.
    pub fn in_memory() -> Result<Self, CatalogError> {
        let make = || {
            let connection = Connection::open_in_memory()?;
            connection.execute_batch(SCHEMA)?;
            Ok(Self { connection })
        };
        make().map_err(|source| CatalogError { path: "in memory".to_owned(), source })
    }

    fn open_as_it_is(path: &Path, repository: RepositoryId) -> rusqlite::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = connect(path)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let of: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let same = version == VERSION && of == application_id(repository);
        Ok((same && has_our_schema(&connection)?).then_some(Self { connection }))
    }

    fn create(path: &Path, repository: RepositoryId) -> rusqlite::Result<Self> {
        let connection = connect(path)?;
        connection.execute_batch(SCHEMA)?;
        connection.pragma_update(None, "application_id", application_id(repository))?;
        connection.pragma_update(None, "user_version", VERSION)?;
        Ok(Self { connection })
    }

    /// The known segments of a timeline; `None` when there are none, or they cannot be trusted.
    pub(super) fn segments(
        &self,
        database: DatabaseId,
        timeline: TimelineId,
    ) -> rusqlite::Result<Option<Vec<SegmentEntry>>> {
        let (db, tl) = (database.to_string(), timeline.get());
        let expected: Option<i64> = self
            .connection
            .prepare_cached("SELECT segments FROM listed WHERE database = ?1 AND timeline = ?2")?
            .query_row(params![db, tl], |row| row.get(0))
            .optional()?;
        let Some(expected) = expected else { return Ok(None) };
        let mut statement = self.connection.prepare_cached(
            "SELECT key, size, crc FROM segment WHERE database = ?1 AND timeline = ?2 ORDER BY key",
        )?;
        let mut rows = statement.query(params![db, tl])?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            let (key, size, crc): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let parsed = SegmentKey::parse(&key).ok().zip(u64::try_from(size).ok());
            let fits = parsed.filter(|(parsed, size)| {
                parsed.database == database && parsed.timeline == timeline && crc == row_crc(&key, *size)
            });
            let Some((key, size)) = fits else { return Ok(None) };
            entries.push(SegmentEntry { key, size });
        }
        Ok((i64::try_from(entries.len()) == Ok(expected)).then_some(entries))
    }

    /// Takes the place of what is known of a timeline: also of a row that nothing else would meet again, because its key
    /// was altered.
    pub(super) fn set_segments(
        &mut self,
        database: DatabaseId,
        timeline: TimelineId,
        entries: &[SegmentEntry],
    ) -> rusqlite::Result<()> {
        let delete = "DELETE FROM segment WHERE database = ?1 AND timeline = ?2";
        self.connection.execute(delete, params![database.to_string(), timeline.get()])?;
        self.add_segments(database, timeline, entries)
    }

    pub(super) fn add_segments(
        &mut self,
        database: DatabaseId,
        timeline: TimelineId,
        entries: &[SegmentEntry],
    ) -> rusqlite::Result<()> {
        self.remember_newest(database, timeline, entries)?;
        let (db, tl) = (database.to_string(), timeline.get());
        let transaction = self.connection.transaction()?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT OR REPLACE INTO segment VALUES (?1, ?2, ?3, ?4, ?5)")?;
            for entry in entries {
                let key = entry.key.to_string();
                let size = i64::try_from(entry.size).unwrap_or(i64::MAX);
                insert.execute(params![db, tl, key, size, row_crc(&key, entry.size)])?;
            }
            let count = "INSERT OR REPLACE INTO listed VALUES (?1, ?2,
                (SELECT COUNT(*) FROM segment WHERE database = ?1 AND timeline = ?2))";
            transaction.prepare_cached(count)?.execute(params![db, tl])?;
        }
        transaction.commit()
    }

    /// Notes how far a timeline reached.
    fn remember_newest(
        &self,
        database: DatabaseId,
        timeline: TimelineId,
        entries: &[SegmentEntry],
    ) -> rusqlite::Result<()> {
        let newest = entries.iter().map(|entry| entry.key).max_by_key(|key| key.range.last());
        let Some(newest) = newest else { return Ok(()) };
        let known = self.newest(database)?.into_iter().find(|seen| seen.position.timeline == timeline);
        if known.is_some_and(|known| known.position.tx >= newest.range.last()) {
            return Ok(());
        }
        let (db, tl, key) = (database.to_string(), timeline.get(), newest.to_string());
        let insert = "INSERT OR REPLACE INTO newest VALUES (?1, ?2, ?3, ?4)";
        let crc = row_crc(&key, 0);
        self.connection.prepare_cached(insert)?.execute(params![db, tl, key, crc]).map(drop)
    }

    /// The newest transaction that was ever listed of each timeline, as a mark that says no more than that.
    pub(super) fn newest(&self, database: DatabaseId) -> rusqlite::Result<Vec<Seen>> {
        let select = "SELECT key, crc FROM newest WHERE database = ?1";
        let mut statement = self.connection.prepare_cached(select)?;
        let mut rows = statement.query(params![database.to_string()])?;
        let mut newest = Vec::new();
        while let Some(row) = rows.next()? {
            let (key, crc): (String, i64) = (row.get(0)?, row.get(1)?);
            let parsed = SegmentKey::parse(&key).ok().filter(|parsed| parsed.database == database);
            let sound = parsed.filter(|_| crc == row_crc(&key, 0));
            newest.extend(
                sound.map(|key| Seen {
                    position: Position::new(key.timeline, key.range.last()),
                    time: key.to,
                }),
            );
        }
        Ok(newest)
    }

    /// Forgets what is known of a database, but not how far its timelines reached.
    pub(super) fn forget(&mut self, database: DatabaseId) -> rusqlite::Result<()> {
        let db = database.to_string();
        let prefix = format!("db/{db}/*");
        let transaction = self.connection.transaction()?;
        transaction.execute("DELETE FROM segment WHERE database = ?1", params![db])?;
        transaction.execute("DELETE FROM listed WHERE database = ?1", params![db])?;
        transaction.execute("DELETE FROM transactions WHERE key GLOB ?1", params![prefix])?;
        transaction.commit()
    }

    pub(super) fn transactions(&self, key: &SegmentKey) -> rusqlite::Result<Option<Vec<Transaction>>> {
        let text = key.to_string();
        let row: Option<(Vec<u8>, i64)> = self
            .connection
            .prepare_cached("SELECT records, crc FROM transactions WHERE key = ?1")?
            .query_row(params![text], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let sound = row.filter(|(records, crc)| *crc == i64::from(records_crc(&text, records)));
        Ok(sound.and_then(|(records, _)| read_records(key, &records)))
    }

    pub(super) fn add_transactions(
        &mut self,
        key: &SegmentKey,
        transactions: &[Transaction],
    ) -> rusqlite::Result<()> {
        let (text, records) = (key.to_string(), write_records(transactions));
        let crc = i64::from(records_crc(&text, &records));
        let insert = "INSERT OR REPLACE INTO transactions VALUES (?1, ?2, ?3)";
        self.connection.prepare_cached(insert)?.execute(params![text, records, crc]).map(drop)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(2))?;
    // It can be made anew: no need to wait for the disk.
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "off")?;
    Ok(connection)
}

/// Whether it has our tables and nothing else: in a view or behind a trigger could be work and memory without end.
fn has_our_schema(connection: &Connection) -> rusqlite::Result<bool> {
    let ours: Vec<&str> = SCHEMA.split(';').map(str::trim).filter(|sql| !sql.is_empty()).collect();
    let mut statement = connection.prepare("SELECT sql FROM sqlite_schema ORDER BY rowid")?;
    let found = statement.query_map([], |row| row.get::<_, Option<String>>(0))?;
    let found: Vec<_> = found.take(ours.len() + 1).collect::<Result<_, _>>()?;
    Ok(found.iter().map(Option::as_deref).eq(ours.into_iter().map(Some)))
}

/// The repository's id, as far as it fits into SQLite's field for it.
fn application_id(repository: RepositoryId) -> i64 {
    i64::from(crc32fast::hash(repository.as_bytes()) & 0x7fff_ffff)
}

fn row_crc(key: &str, size: u64) -> i64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(&size.to_le_bytes());
    i64::from(hasher.finalize())
}

fn records_crc(key: &str, records: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key.as_bytes());
    hasher.update(records);
    hasher.finalize()
}

pub(super) fn write_records(transactions: &[Transaction]) -> Vec<u8> {
    let mut out = Vec::with_capacity(transactions.len() * RECORD_BYTES);
    for transaction in transactions {
        out.extend(transaction.tx.get().to_le_bytes());
        out.extend(transaction.time.as_micros().to_le_bytes());
        out.extend(transaction.not_before.as_micros().to_le_bytes());
        out.push(transaction.flags.bits());
        out.extend(transaction.pages.to_le_bytes());
        out.extend(transaction.image_pages.to_le_bytes());
        out.extend(transaction.state.get().to_le_bytes());
    }
    out
}

/// `None` unless they are exactly the transactions of this segment.
pub(super) fn read_records(key: &SegmentKey, records: &[u8]) -> Option<Vec<Transaction>> {
    let (records, rest) = records.as_chunks::<RECORD_BYTES>();
    if !rest.is_empty() || records.len() as u64 != key.range.count() {
        return None;
    }
    let transactions: Vec<Transaction> =
        records.iter().map(|record| read_record(record)).collect::<Option<_>>()?;
    let mut numbered = transactions.iter().zip(key.range.first().get()..);
    let in_order = numbered.all(|(transaction, number)| transaction.tx.get() == number)
        && transactions.is_sorted_by_key(|transaction| transaction.time);
    in_order.then_some(transactions)
}

fn read_record(record: &[u8]) -> Option<Transaction> {
    let (tx, rest) = record.split_first_chunk::<8>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (not_before, rest) = rest.split_first_chunk::<8>()?;
    let (flags, rest) = rest.split_first()?;
    let (pages, rest) = rest.split_first_chunk::<4>()?;
    let (image_pages, rest) = rest.split_first_chunk::<4>()?;
    let (state, _) = rest.split_first_chunk::<8>()?;
    Some(Transaction {
        tx: TxId::new(u64::from_le_bytes(*tx))?,
        time: exact_time(*time)?,
        not_before: exact_time(*not_before)?,
        flags: TxFlags::from_bits(*flags)?,
        pages: u32::from_le_bytes(*pages),
        image_pages: u32::from_le_bytes(*image_pages),
        state: StateChecksum::from_raw(u64::from_le_bytes(*state)),
    })
}

fn exact_time(bytes: [u8; 8]) -> Option<Timestamp> {
    let micros = i64::from_le_bytes(bytes);
    Some(Timestamp::from_micros(micros)).filter(|time| time.as_micros() == micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PageSize;
    use crate::restore::testing::World;

    #[test]
    fn records_are_read_back_or_refused() {
        let mut world = World::new(PageSize::MIN, 8);
        for step in 0..3 {
            world.commit(8, &[(2, 50 + step), (3, 90 + step)]);
        }
        world.cut();
        let entry = *world.findings.segments.last().unwrap();
        let all: Vec<Transaction> = world
            .images
            .values()
            .map(|(transaction, _)| *transaction)
            .filter(|t| entry.key.range.contains(t.tx))
            .collect();
        let records = write_records(&all);
        assert_eq!(records.len(), all.len() * RECORD_BYTES);
        assert_eq!(read_records(&entry.key, &records), Some(all));
        assert_eq!(read_records(&entry.key, &records[1..]), None);
        assert_eq!(read_records(&entry.key, &records[RECORD_BYTES..]), None);
        assert_eq!(read_records(&entry.key, &[]), None);
    }
}
