//! Reads a source through whose log does not say how its state came about.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use crate::capture::sink::{Commit, Image, PreviousPage, Sink};
use crate::capture::sqlite::{SqliteSource, SqliteSourceError};
use crate::page::{PageHash, PageNo, StateChecksum};
use crate::protect::ProtectOptions;
use crate::protect::begin;
use crate::protect::error::ProtectError;
use crate::protect::table::PageTable;
use crate::time::Timestamp;

/// Bytes read between two questions whether somebody waits for us.
const STEP_BYTES: usize = 1 << 20;

/// The state of a source, while the source may go on.
///
/// Its log is held, so that the commits that come are captured one by one. But when an application's own checkpoint
/// waits for us, and keeps its writers out as long, or when the log grows past its limit, the source is followed, and
/// the state is a later one.
pub(crate) struct Scan {
    table: PageTable,
    changes: Changes,
    image: Box<dyn Image>,
    /// Between the last commit of the image and the next.
    at: Timestamp,
    scratch: PathBuf,
    log_bytes_max: u64,
}

impl Scan {
    /// Reads the source through. Reading is the whole cost: 0.1-0.3 s per GiB from the page cache.
    pub(crate) fn of(
        source: &mut SqliteSource,
        options: &ProtectOptions,
        go_on: &dyn Fn() -> Result<(), ProtectError>,
    ) -> Result<Self, ProtectError> {
        let log_bytes_max = options.source_log_bytes;
        let must_follow = |source: &SqliteSource| go_on().and_then(|()| is_held_up(source, log_bytes_max));
        let scan = Self::of_while(source, &options.state, must_follow)?;
        Ok(Self { log_bytes_max, ..scan })
    }

    /// Follows the source from the step on at which it must be followed.
    fn of_while(
        source: &mut SqliteSource,
        scratch: &Path,
        must_follow: impl Fn(&SqliteSource) -> Result<bool, ProtectError>,
    ) -> Result<Self, ProtectError> {
        let state_error = |source| ProtectError::State { folder: scratch.to_owned(), source };
        let mut changes = Changes::default();
        let mut image = source.image(&mut changes, scratch)?;
        let at = source.looked();
        let (page_size, pages) = (image.page_size(), image.page_count());
        let mut hashes = Vec::with_capacity(pages as usize);
        let mut buffer = vec![0; page_size.bytes()];
        let step = (STEP_BYTES / page_size.bytes()) as u32;
        for page in (1..=pages).filter_map(PageNo::new) {
            let stored = image.read(page, &mut buffer).map_err(state_error)?;
            hashes.push(stored.map_or(0, |()| PageHash::of(page, &buffer).get()));
            if page.get().is_multiple_of(step) && (must_follow(source)? || changes.any()) {
                follow(source, &mut changes)?;
            }
        }
        let table = PageTable::from_hashes(page_size, begin::never_stored(page_size), hashes);
        let (scratch, log_bytes_max) = (scratch.to_owned(), u64::MAX);
        let mut scan = Self { table, changes, image, at, scratch, log_bytes_max };
        scan.settle(source)?;
        Ok(scan)
    }

    /// The pages of the state, as far as it was followed.
    pub(crate) fn table(&self) -> &PageTable {
        &self.table
    }

    /// Reads a page of it.
    pub(crate) fn read(&mut self, page: PageNo, into: &mut [u8]) -> std::io::Result<Option<()>> {
        self.image.read(page, into)
    }

    /// Between its last commit and the next.
    pub(crate) fn at(&self) -> Timestamp {
        self.at
    }

    /// The checksum of the state.
    pub(crate) fn state(&self) -> StateChecksum {
        self.table.state()
    }

    /// Lets the source go on if somebody waits for it. To be called every few milliseconds of long work; whether the
    /// state is another one now.
    pub(crate) fn look(&mut self, source: &mut SqliteSource) -> Result<bool, ProtectError> {
        if is_held_up(source, self.log_bytes_max)? {
            follow(source, &mut self.changes)?;
        }
        let moved = self.changes.any();
        if moved {
            self.settle(source)?;
        }
        Ok(moved)
    }

    fn settle(&mut self, source: &mut SqliteSource) -> Result<(), ProtectError> {
        if self.changes.any() {
            self.image = source.image(&mut self.changes, &self.scratch)?;
            self.at = source.looked();
            std::mem::take(&mut self.changes).apply_to(&mut self.table);
        }
        Ok(())
    }

    /// Takes the table out, of a scan that is not looked after any more.
    pub(crate) fn take_table(&mut self) -> PageTable {
        let empty = PageTable::from_hashes(self.table.page_size(), None, Vec::new());
        std::mem::replace(&mut self.table, empty)
    }

    /// Its image.
    pub(crate) fn into_image(self) -> Box<dyn Image> {
        self.image
    }
}

/// Whether an application waits for us, or its log has grown past what it may.
fn is_held_up(source: &SqliteSource, log_bytes_max: u64) -> Result<bool, ProtectError> {
    Ok(source.checkpoint_waits() || source.log_bytes()? > log_bytes_max)
}

fn follow(source: &mut SqliteSource, changes: &mut Changes) -> Result<(), ProtectError> {
    match source.poll(changes)?.event {
        None => Ok(()),
        Some(_) => Err(SqliteSourceError::Replaced { path: source.path().to_owned() }.into()),
    }
}

/// Takes of the transactions only what becomes of the pages.
#[derive(Default)]
struct Changes {
    pending: Vec<(PageNo, PageHash)>,
    hashes: BTreeMap<PageNo, PageHash>,
    /// The size of the image after the last of them; and the smallest, beyond which nothing is left of before.
    pages: Option<(u32, u32)>,
}

impl Changes {
    fn any(&self) -> bool {
        self.pages.is_some()
    }

    fn apply_to(self, table: &mut PageTable) {
        if let Some((last, least)) = self.pages {
            table.resize(table.pages().min(least));
            table.resize(last);
            self.hashes.into_iter().for_each(|(page, hash)| table.set(page, hash));
            table.commit();
        }
    }
}

impl Sink for Changes {
    type Error = Infallible;

    fn page(&mut self, page: PageNo, image: &[u8], _: PreviousPage<'_>) -> Result<(), Infallible> {
        self.pending.push((page, PageHash::of(page, image)));
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<(), Infallible> {
        self.hashes.extend(self.pending.drain(..));
        let pages = commit.image_pages;
        if self.pages.is_some_and(|(before, _)| pages < before) {
            self.hashes.retain(|page, _| page.get() <= pages);
        }
        let least = self.pages.map_or(pages, |(_, least)| least.min(pages));
        self.pages = Some((pages, least));
        Ok(())
    }

    fn began_anew(&mut self, _: Vec<u8>) -> Result<(), Infallible> {
        Ok(())
    }

    fn unwatched(&mut self, _: Timestamp) -> Result<(), Infallible> {
        Ok(())
    }

    fn watched(&mut self) -> Result<(), Infallible> {
        Ok(())
    }

    fn rollback(&mut self) {
        self.pending.clear();
    }

    /// Whoever scans finds that the source has changed, and begins anew.
    fn distrust(&mut self) {}

    /// Nothing is promised of these transactions: what counts is the state that they lead to.
    fn secure(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use rusqlite::Connection;

    use super::*;
    use crate::capture::sink::Previous;
    use crate::capture::sqlite::SqliteOptions;
    use crate::page::PageSize;

    fn state_of(image: &mut dyn Image) -> StateChecksum {
        let mut buffer = vec![0; image.page_size().bytes()];
        let mut state = StateChecksum::EMPTY;
        for page in (1..=image.page_count()).filter_map(PageNo::new) {
            if image.read(page, &mut buffer).unwrap().is_some() {
                state = state.with(PageHash::of(page, &buffer));
            }
        }
        state
    }

    fn large(path: &Path) -> Connection {
        let app = Connection::open(path).unwrap();
        app.execute_batch(
            "PRAGMA journal_mode=wal; PRAGMA synchronous=off; create table t(a integer primary key, b);
             with recursive n(i) as (select 1 union all select i + 1 from n where i < 24000)
             insert into t(b) select randomblob(1500) from n;",
        )
        .unwrap();
        app
    }

    const DATABASE: &str = "EVERWHEN_TEST_DATABASE";

    /// Empties its log again and again, and changes the database in between; notes each round. Ends with its parent's
    /// patience or when the database is gone.
    #[test]
    #[ignore = "runs as an application process of the next test"]
    fn application_process() {
        let Ok(path) = std::env::var(DATABASE) else { return };
        let app = Connection::open(&path).unwrap();
        app.busy_timeout(Duration::from_secs(20)).unwrap();
        for round in 0..6 {
            app.execute("delete from t where a > 20000 - ?1 * 300", [round]).unwrap();
            app.execute_batch("vacuum; insert into t(b) values (randomblob(9000))").unwrap();
            let truncate = "PRAGMA wal_checkpoint(truncate)";
            // SQLite says at once, without any patience, that another checkpoint is running: ours may be.
            while app.query_row(truncate, [], |row| row.get::<_, i64>(0)).unwrap() != 0 {}
            std::fs::write(format!("{path}.round"), round.to_string()).unwrap();
        }
    }

    #[test]
    fn nobody_waits_for_a_scan_and_its_state_is_that_of_its_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        drop(large(&path));
        let mut source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
        source.attach(None).unwrap();
        let mut application = Command::new(std::env::current_exe().unwrap())
            .args(["protect::scan::tests::application_process", "--exact", "--ignored"])
            .env(DATABASE, &path)
            .arg("--nocapture")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // A scan that takes long enough for a checkpoint to come through.
        let (rounds, began) = (folder.path().join("app.db.round"), Instant::now());
        let follows = |source: &SqliteSource| {
            let early = !rounds.exists() && began.elapsed() < Duration::from_secs(10);
            std::thread::sleep(Duration::from_millis(if early { 100 } else { 2 }));
            Ok(source.checkpoint_waits())
        };
        let scan = Scan::of_while(&mut source, folder.path(), follows).unwrap();
        let (table, mut image) = (scan.table().clone(), scan.into_image());
        assert!(rounds.exists(), "the checkpoint waited for the scan");
        assert_eq!((image.page_count(), state_of(&mut *image)), (table.pages(), table.state()));
        while application.try_wait().unwrap().is_none() {
            source.poll(&mut Changes::default()).unwrap();
        }
        assert!(application.wait().unwrap().success());
    }

    #[test]
    fn a_log_that_grows_too_long_is_followed_and_another_is_held() {
        for (log_bytes_max, follows) in [(0, true), (u64::MAX, false)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("app.db");
            let app = large(&path);
            let mut source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
            source.attach(None).unwrap();
            let (state, host) = (folder.path().to_owned(), crate::ids::HostId::from_bytes([1; 8]));
            let options = ProtectOptions::new(path, "app".into(), state, host, "here".into());
            let options = ProtectOptions { source_log_bytes: log_bytes_max, ..options };
            let mut scan = Scan::of(&mut source, &options, &|| Ok(())).unwrap();
            app.execute("insert into t(b) values (randomblob(9000))", []).unwrap();
            assert_eq!(scan.look(&mut source).unwrap(), follows);
            let table = scan.take_table();
            assert_eq!(state_of(&mut *scan.into_image()), table.state());
        }
    }

    #[test]
    fn an_image_cut_and_grown_again_has_zeros_where_nothing_was_written() {
        let page = |number| PageNo::new(number).unwrap();
        let size = PageSize::new(512).unwrap();
        let hash = |number| PageHash::of(page(number), &[7; 512]);
        let mut changes = Changes::default();
        let mut commit = |written: &[u32], image_pages| {
            for number in written {
                changes.page(page(*number), &[7; 512], &mut |_| Previous::Unknown).unwrap();
            }
            let time = Timestamp::from_micros(0);
            changes.commit(Commit { image_pages, time, resume: Vec::new() }).unwrap();
        };
        commit(&[2, 9], 10);
        commit(&[1], 5);
        commit(&[7], 8);
        let mut table = PageTable::from_hashes(size, None, vec![3; 10]);
        changes.apply_to(&mut table);
        let zeros = |number| PageHash::of(page(number), &[0; 512]);
        assert_eq!(table.pages(), 8);
        let found: Vec<_> = (1..=8).filter_map(|number| table.get(page(number))).collect();
        let old = PageHash::from_raw(3);
        assert_eq!(found, [hash(1), hash(2), old, old, old, zeros(6), hash(7), zeros(8)]);
    }
}
