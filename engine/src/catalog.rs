//! A local memory of what a repository holds, so that planning needs no full listing. Deleting it loses nothing.
//!
//! It keeps the keys and sizes of segments (a refresh lists only what came after) and the transactions of segments
//! that were looked into. Claims, bases and marks are few and always read anew.
//!
//! Nothing in it is believed blindly. Every row carries a checksum and every timeline its number of rows: when one does
//! not fit, the database is listed anew. A key that is gone from the repository, or a refusal of any kind, makes
//! [`Cataloged`] forget and list before it repeats the answer. What it never forgets is how far a timeline reached:
//! when its end is not there any more, that is damage, and an earlier state is not the latest. And a restore is proven
//! against the checksum that is recorded with the transaction, wherever the plan came from.

#[cfg(feature = "test-util")]
pub(crate) mod laws;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use crate::digest::Hasher;
use crate::error::{ErrorKind, Explain};
use crate::history::{BaseEntry, Findings, History, Seen, SegmentEntry, Timeline};
use crate::ids::{DatabaseId, Digest, Position, RepositoryId, TimelineId, TxId};
use crate::page::StateChecksum;
use crate::restore::{Inventory, Objects, ReadError, RestoreError};
use crate::store::keys::{BaseKey, SegmentKey};
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};

/// The file in the state folder.
const FILE: &str = "catalog.db";
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
    fn segments(
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
    fn set_segments(
        &mut self,
        database: DatabaseId,
        timeline: TimelineId,
        entries: &[SegmentEntry],
    ) -> rusqlite::Result<()> {
        let delete = "DELETE FROM segment WHERE database = ?1 AND timeline = ?2";
        self.connection.execute(delete, params![database.to_string(), timeline.get()])?;
        self.add_segments(database, timeline, entries)
    }

    fn add_segments(
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
    fn newest(&self, database: DatabaseId) -> rusqlite::Result<Vec<Seen>> {
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
    ///
    /// # Errors
    /// [`rusqlite::Error`].
    fn forget(&mut self, database: DatabaseId) -> rusqlite::Result<()> {
        let db = database.to_string();
        let prefix = format!("db/{db}/*");
        let transaction = self.connection.transaction()?;
        transaction.execute("DELETE FROM segment WHERE database = ?1", params![db])?;
        transaction.execute("DELETE FROM listed WHERE database = ?1", params![db])?;
        transaction.execute("DELETE FROM transactions WHERE key GLOB ?1", params![prefix])?;
        transaction.commit()
    }

    fn transactions(&self, key: &SegmentKey) -> rusqlite::Result<Option<Vec<Transaction>>> {
        let text = key.to_string();
        let row: Option<(Vec<u8>, i64)> = self
            .connection
            .prepare_cached("SELECT records, crc FROM transactions WHERE key = ?1")?
            .query_row(params![text], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let sound = row.filter(|(records, crc)| *crc == i64::from(records_crc(&text, records)));
        Ok(sound.and_then(|(records, _)| read_records(key, &records)))
    }

    fn add_transactions(&mut self, key: &SegmentKey, transactions: &[Transaction]) -> rusqlite::Result<()> {
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

fn write_records(transactions: &[Transaction]) -> Vec<u8> {
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
fn read_records(key: &SegmentKey, records: &[u8]) -> Option<Vec<Transaction>> {
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

/// A repository with a catalog in front of it.
#[derive(Clone, Debug)]
pub struct Cataloged<O> {
    inner: O,
    catalog: Arc<Mutex<Catalog>>,
}

impl<O: Inventory> Cataloged<O> {
    /// Puts a catalog before a repository.
    #[must_use]
    pub fn new(inner: O, catalog: Catalog) -> Self {
        Self { inner, catalog: Arc::new(Mutex::new(catalog)) }
    }

    /// Forgets what the catalog knows of a database: the next answer comes from a full listing.
    pub fn forget(&self, database: DatabaseId) {
        noted(self.lock().forget(database));
    }

    /// Runs `work` on what exists of a database; only what came after the last time is listed. When it fails because of
    /// what the history says, it runs once more on a history that was listed anew: what the catalog remembered may not
    /// be there any more. `heard` is a live daemon's word, heard before this.
    ///
    /// # Errors
    /// Those of `work`, and [`ReadError`] when the repository cannot be listed.
    pub async fn with_history<T, F: Future<Output = Result<T, RestoreError>>>(
        &self,
        database: DatabaseId,
        heard: Option<Seen>,
        work: impl Fn(Arc<History>) -> F,
    ) -> Result<T, RestoreError> {
        let history = self.history(database, heard).await?;
        match work(Arc::new(history)).await {
            Err(error) if matches!(error.kind(), ErrorKind::NoSuchPoint | ErrorKind::Damaged) => {
                tracing::debug!(%error, "listing the repository anew before believing this");
                self.forget(database);
                work(Arc::new(self.history(database, heard).await?)).await
            }
            other => other,
        }
    }

    /// What exists of a database, and what a live daemon says of it that was `heard` before.
    ///
    /// # Errors
    /// [`ReadError`] when the repository cannot be listed.
    pub async fn history(&self, database: DatabaseId, heard: Option<Seen>) -> Result<History, ReadError> {
        let mut findings = self.findings(database).await?;
        findings.seen.extend(heard);
        Ok(History::build(database, findings))
    }

    /// The segments of the claimed timelines, and of those that have a log and no claim.
    async fn segments_of(
        &self,
        database: DatabaseId,
        claimed: &[Timeline],
        logged: &[TimelineId],
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        let mut segments = Vec::new();
        for timeline in claimed {
            segments.extend(self.cataloged_segments(database, timeline).await?);
        }
        for unclaimed in logged.iter().filter(|id| claimed.iter().all(|timeline| timeline.id != **id)) {
            segments.extend(self.inner.segments(database, *unclaimed, None).await?);
        }
        Ok(segments)
    }

    fn lock(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn cataloged_segments(
        &self,
        database: DatabaseId,
        timeline: &Timeline,
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        let begins = timeline.parent.map(|parent| parent.tx.next());
        let timeline = timeline.id;
        let known = noted(self.lock().segments(database, timeline)).flatten();
        let Some(mut known) = known else {
            let entries = self.inner.segments(database, timeline, None).await?;
            noted(self.lock().set_segments(database, timeline, &entries));
            return Ok(entries);
        };
        let last = whole_up_to(&known, begins);
        let new = self.inner.segments(database, timeline, last).await?;
        known.retain(|entry| Some(entry.key.range.first()) <= last);
        if !new.is_empty() {
            noted(self.lock().add_segments(database, timeline, &new));
        }
        known.extend(new);
        Ok(known)
    }
}

/// The first transaction of the last segment before which none is missing: one that was missing may have arrived since.
/// Segments come in order of their first transaction; those of a first timeline begin anywhere, the older ones expire.
fn whole_up_to(segments: &[SegmentEntry], begins: Option<TxId>) -> Option<TxId> {
    let mut next = begins.or(segments.first().map(|entry| entry.key.range.first()))?;
    let mut last = None;
    for range in segments.iter().map(|entry| entry.key.range) {
        if range.first() > next {
            break;
        }
        last = Some(range.first());
        next = next.max(range.last().next());
    }
    last
}

/// A catalog that does not work is done without.
fn noted<T>(result: rusqlite::Result<T>) -> Option<T> {
    result.map_err(|error| tracing::warn!(%error, "the catalog cannot be used")).ok()
}

impl<O: Inventory> Objects for Cataloged<O> {
    async fn hasher(&self, database: DatabaseId) -> Result<Hasher, ReadError> {
        self.inner.hasher(database).await
    }

    async fn segment(&self, key: SegmentKey) -> Result<Bytes, ReadError> {
        self.inner.segment(key).await
    }

    async fn transactions(&self, entry: SegmentEntry) -> Result<Vec<Transaction>, ReadError> {
        if let Some(known) = noted(self.lock().transactions(&entry.key)).flatten() {
            return Ok(known);
        }
        let transactions = self.inner.transactions(entry).await?;
        noted(self.lock().add_transactions(&entry.key, &transactions));
        Ok(transactions)
    }

    async fn segment_range(&self, key: SegmentKey, range: std::ops::Range<u64>) -> Result<Bytes, ReadError> {
        self.inner.segment_range(key, range).await
    }

    async fn base(&self, key: BaseKey) -> Result<Bytes, ReadError> {
        self.inner.base(key).await
    }

    async fn pack_range(
        &self,
        database: DatabaseId,
        pack: Digest,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, ReadError> {
        self.inner.pack_range(database, pack, range).await
    }
}

impl<O: Inventory> Inventory for Cataloged<O> {
    async fn timelines(&self, database: DatabaseId) -> Result<Vec<Timeline>, ReadError> {
        self.inner.timelines(database).await
    }

    async fn segments(
        &self,
        database: DatabaseId,
        timeline: TimelineId,
        after: Option<TxId>,
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        let timelines = self.inner.timelines(database).await?;
        let Some(timeline) = timelines.iter().find(|known| known.id == timeline) else {
            return self.inner.segments(database, timeline, after).await;
        };
        let mut entries = self.cataloged_segments(database, timeline).await?;
        entries.retain(|entry| after.is_none_or(|after| entry.key.range.first() > after));
        Ok(entries)
    }

    async fn logged_timelines(&self, database: DatabaseId) -> Result<Vec<TimelineId>, ReadError> {
        self.inner.logged_timelines(database).await
    }

    async fn all_segments(&self, database: DatabaseId) -> Result<Vec<SegmentEntry>, ReadError> {
        let logged = self.logged_timelines(database).await?;
        let timelines = self.timelines(database).await?;
        self.segments_of(database, &timelines, &logged).await
    }

    async fn bases(&self, database: DatabaseId) -> Result<Vec<BaseEntry>, ReadError> {
        self.inner.bases(database).await
    }

    async fn seen(&self, database: DatabaseId) -> Result<Vec<Seen>, ReadError> {
        let mut seen = self.inner.seen(database).await?;
        seen.extend(noted(self.lock().newest(database)).into_iter().flatten());
        Ok(seen)
    }

    async fn packs(&self, database: DatabaseId) -> Result<Vec<(Digest, u64)>, ReadError> {
        self.inner.packs(database).await
    }

    /// One listing of the claims serves for both the claims and the segments under them.
    async fn findings(&self, database: DatabaseId) -> Result<Findings, ReadError> {
        let seen = self.seen(database).await?;
        let bases = self.bases(database).await?;
        // Before the claims: a log without a claim is not one that was only begun meanwhile.
        let logged = self.logged_timelines(database).await?;
        let timelines = self.timelines(database).await?;
        let segments = self.segments_of(database, &timelines, &logged).await?;
        Ok(Findings { timelines, segments, bases, seen })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tempfile::TempDir;

    use super::*;
    use crate::history::testing::{at, database};
    use crate::page::PageSize;
    use crate::plan::Target;
    use crate::restore::testing::{MemoryRepository, World, order};
    use crate::restore::{Options, RestorePoint, RestoreReport, history_of, points, restore};

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn world() -> World {
        let mut world = World::new(PageSize::MIN, 8);
        for step in 0..20 {
            world.commit(8, &[(2, 50 + step), (3, 90 + step)]);
            if step % 4 == 1 {
                world.cut();
            }
        }
        world.cut();
        world.seen();
        world
    }

    fn open(folder: &TempDir, repository: &MemoryRepository) -> Cataloged<MemoryRepository> {
        let catalog = Catalog::open(folder.path(), RepositoryId::from_bytes([1; 8])).unwrap();
        Cataloged::new(repository.clone(), catalog)
    }

    fn listed(repository: &MemoryRepository) -> u64 {
        repository.listed.swap(0, Ordering::Relaxed)
    }

    fn restored(
        objects: &Cataloged<MemoryRepository>,
        world: &World,
        target: Target,
    ) -> Result<(RestoreReport, Vec<u8>), RestoreError> {
        let folder = TempDir::new().unwrap();
        let to = folder.path().join("restored");
        let options = Options { reserve_bytes: 0, ..Options::default() };
        let order = order(world, target, &to, &options);
        let order = &order;
        let work = |history: Arc<History>| async move { restore(objects, &history, order).await };
        let report = run(objects.with_history(database(), None, work))?;
        Ok((report, std::fs::read(&to).unwrap()))
    }

    #[test]
    fn only_what_is_new_is_listed_and_nothing_is_looked_into_twice() {
        let (folder, mut world) = (TempDir::new().unwrap(), world());
        let repository = MemoryRepository::of(&world);
        let objects = open(&folder, &repository);
        let whole = run(history_of(&repository, database())).unwrap();
        assert_eq!(run(objects.history(database(), None)).unwrap().report(), whole.report());
        assert_eq!(listed(&repository), world.findings.segments.len() as u64);
        drop(objects);
        let objects = open(&folder, &repository);
        assert_eq!(run(objects.history(database(), None)).unwrap().report(), whole.report());
        assert_eq!(listed(&repository), 0);
        world.commit(8, &[(1, 7)]);
        world.cut();
        *repository.findings.lock().unwrap() = world.findings.clone();
        let history = run(objects.history(database(), None)).unwrap();
        assert_eq!(history.newest().unwrap().position, world.position());
        assert_eq!(listed(&repository), 1);
        let count = || {
            let mut points_of = Vec::new();
            let all = points(&objects, &history, at(0), at(world.now), |point: RestorePoint| {
                points_of.push(point);
                true
            });
            run(all).unwrap();
            assert_eq!(points_of.len(), world.images.len());
            repository.looked_into.load(Ordering::Relaxed)
        };
        assert_eq!(count(), history.segments().count() as u64);
        assert_eq!(count(), history.segments().count() as u64);
    }

    #[test]
    fn a_segment_that_arrives_after_later_ones_is_listed() {
        let world = world();
        let whole = run(history_of(&MemoryRepository::of(&world), database())).unwrap();
        for late in 1..world.findings.segments.len() {
            let folder = TempDir::new().unwrap();
            let repository = MemoryRepository::of(&world);
            repository.findings.lock().unwrap().segments.remove(late);
            let objects = open(&folder, &repository);
            run(objects.history(database(), None)).unwrap();
            *repository.findings.lock().unwrap() = world.findings.clone();
            assert_eq!(run(objects.history(database(), None)).unwrap().report(), whole.report(), "{late}");
        }
    }

    #[test]
    fn a_stale_catalog_is_found_out_and_the_state_is_the_right_one() {
        let (folder, mut world) = (TempDir::new().unwrap(), world());
        let repository = MemoryRepository::of(&world);
        let objects = open(&folder, &repository);
        run(objects.history(database(), None)).unwrap();
        // The narrow segments are joined to a wide one and deleted: the catalog knows only names that are gone.
        world.repack(5);
        let wide = world.findings.segments.pop().unwrap();
        let narrow = world.findings.segments.split_off(world.findings.segments.len() - 5);
        world.findings.segments.push(wide);
        narrow.iter().for_each(|entry| drop(world.objects.remove(&entry.key.to_string())));
        *repository.findings.lock().unwrap() = world.findings.clone();
        let (report, bytes) = restored(&objects, &world, Target::Latest).unwrap();
        assert_eq!(report.position, world.position());
        assert!(bytes == world.images[&world.position()].1);
    }

    #[test]
    fn an_end_that_vanished_is_missing_now_and_later_and_an_earlier_state_is_not_the_latest() {
        let (folder, world) = (TempDir::new().unwrap(), world());
        let repository = MemoryRepository::of(&world);
        run(open(&folder, &repository).history(database(), None)).unwrap();
        {
            // No daemon's mark tells of the end.
            let mut findings = repository.findings.lock().unwrap();
            findings.seen.clear();
            let end = findings.segments.pop().unwrap();
            world.objects.remove(&end.key.to_string());
        }
        for _ in 0..2 {
            let objects = open(&folder, &repository);
            let error = restored(&objects, &world, Target::Latest).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
            assert!(error.to_string().contains("at its end"), "{error}");
            let before = error.nearest().before.unwrap();
            let (report, _) = restored(&objects, &world, Target::Position(before.position)).unwrap();
            assert_eq!(report.position, before.position);
        }
        // A repository that was begun anew in the same place is another one.
        let catalog = Catalog::open(folder.path(), RepositoryId::from_bytes([2; 8])).unwrap();
        let objects = Cataloged::new(repository.clone(), catalog);
        assert!(restored(&objects, &world, Target::Latest).is_ok());
    }

    #[test]
    fn a_row_whose_key_was_altered_does_not_stay() {
        let (folder, world) = (TempDir::new().unwrap(), world());
        let repository = MemoryRepository::of(&world);
        let objects = open(&folder, &repository);
        run(objects.history(database(), None)).unwrap();
        let alter = "UPDATE segment SET key = key || 'x' WHERE key = (SELECT max(key) FROM segment)";
        assert_eq!(objects.lock().connection.execute(alter, []).unwrap(), 1);
        run(objects.history(database(), None)).unwrap();
        listed(&repository);
        run(objects.history(database(), None)).unwrap();
        assert_eq!(listed(&repository), 0);
    }

    #[test]
    fn altered_or_lost_rows_are_found_out() {
        let (folder, world) = (TempDir::new().unwrap(), world());
        let repository = MemoryRepository::of(&world);
        let whole = run(history_of(&repository, database())).unwrap();
        for damage in [
            "DELETE FROM segment WHERE key = (SELECT max(key) FROM segment)",
            "UPDATE segment SET size = size + 1",
            "UPDATE segment SET key = replace(key, '-0-', '-8-')",
            "DELETE FROM segment",
            "UPDATE listed SET segments = 1",
            "UPDATE newest SET key = replace(key, '-0-', '-8-')",
            "DELETE FROM newest",
            "UPDATE transactions SET records = zeroblob(length(records))",
            "UPDATE transactions SET records = substr(records, 2)",
        ] {
            let objects = open(&folder, &repository);
            let history = run(objects.history(database(), None)).unwrap();
            run(points(&objects, &history, at(0), at(world.now), |_| true)).unwrap();
            assert!(objects.lock().connection.execute(damage, []).unwrap() > 0, "{damage}");
            assert_eq!(run(objects.history(database(), None)).unwrap().report(), whole.report(), "{damage}");
            for (position, (transaction, image)) in &world.images {
                let (report, bytes) = restored(&objects, &world, Target::Time(transaction.time)).unwrap();
                assert!(report.position == *position && bytes == *image, "{damage}");
            }
        }
    }

    #[test]
    fn a_broken_foreign_or_deleted_catalog_is_made_anew() {
        let (folder, world) = (TempDir::new().unwrap(), world());
        let repository = MemoryRepository::of(&world);
        let path = folder.path().join(FILE);
        let expected = world.findings.segments.len() as u64;
        for content in
            [Some(&b"not a database at all, but long enough to look like one"[..]), Some(b""), None]
        {
            match content {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let objects = open(&folder, &repository);
            run(objects.history(database(), None)).unwrap();
            assert_eq!(listed(&repository), expected);
        }
        drop(Catalog::open(folder.path(), RepositoryId::from_bytes([9; 8])).unwrap());
        run(open(&folder, &repository).history(database(), None)).unwrap();
        assert_eq!(listed(&repository), expected);
    }

    #[test]
    fn records_are_read_back_or_refused() {
        let world = world();
        let entry = world.findings.segments[1];
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
