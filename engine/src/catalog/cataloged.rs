//! A repository with a catalog in front of it: only what came after the last time is listed.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::Catalog;
use crate::digest::Hasher;
use crate::error::{ErrorKind, Explain};
use crate::history::{BaseEntry, Findings, History, Seen, SegmentEntry, Timeline};
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::restore::{Inventory, Objects, ReadError, RestoreError};
use crate::store::keys::{BaseKey, SegmentKey};
use crate::transaction::Transaction;

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
    pub async fn forget(&self, database: DatabaseId) {
        self.ask(move |catalog| catalog.forget(database)).await;
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
                self.forget(database).await;
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

    /// Asks the catalog on a thread that may wait: another process may be at its file. One that does not work is done
    /// without.
    async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Catalog) -> rusqlite::Result<T> + Send + 'static,
    ) -> Option<T> {
        let catalog = Arc::clone(&self.catalog);
        let asked = move || what(&mut catalog.lock().unwrap_or_else(PoisonError::into_inner));
        let answer = tokio::task::spawn_blocking(asked).await.ok()?;
        answer.map_err(|error| tracing::warn!(%error, "the catalog cannot be used")).ok()
    }

    async fn cataloged_segments(
        &self,
        database: DatabaseId,
        timeline: &Timeline,
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        let begins = timeline.parent.map(|parent| parent.tx.next());
        let timeline = timeline.id;
        let known = self.ask(move |catalog| catalog.segments(database, timeline)).await.flatten();
        let Some(mut known) = known else {
            let entries = self.inner.segments(database, timeline, None).await?;
            let kept = entries.clone();
            self.ask(move |catalog| catalog.set_segments(database, timeline, &kept)).await;
            return Ok(entries);
        };
        let last = whole_up_to(&known, begins);
        let new = self.inner.segments(database, timeline, last).await?;
        known.retain(|entry| Some(entry.key.range.first()) <= last);
        if !new.is_empty() {
            let kept = new.clone();
            self.ask(move |catalog| catalog.add_segments(database, timeline, &kept)).await;
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

impl<O: Inventory> Objects for Cataloged<O> {
    async fn hasher(&self, database: DatabaseId) -> Result<Hasher, ReadError> {
        self.inner.hasher(database).await
    }

    async fn segment(&self, key: SegmentKey) -> Result<Bytes, ReadError> {
        self.inner.segment(key).await
    }

    async fn transactions(&self, entry: SegmentEntry) -> Result<Vec<Transaction>, ReadError> {
        let key = entry.key;
        if let Some(known) = self.ask(move |catalog| catalog.transactions(&key)).await.flatten() {
            return Ok(known);
        }
        let transactions = self.inner.transactions(entry).await?;
        let kept = transactions.clone();
        self.ask(move |catalog| catalog.add_transactions(&key, &kept)).await;
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
        seen.extend(self.ask(move |catalog| catalog.newest(database)).await.into_iter().flatten());
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
    use crate::catalog::file::FILE;
    use crate::history::testing::{Shown, at, database};
    use crate::ids::RepositoryId;
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
        let options = Options { reserve_bytes: Some(0), ..Options::default() };
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
        assert_eq!(Shown::of(&run(objects.history(database(), None)).unwrap()), Shown::of(&whole));
        assert_eq!(listed(&repository), world.findings.segments.len() as u64);
        drop(objects);
        let objects = open(&folder, &repository);
        assert_eq!(Shown::of(&run(objects.history(database(), None)).unwrap()), Shown::of(&whole));
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
            assert_eq!(
                Shown::of(&run(objects.history(database(), None)).unwrap()),
                Shown::of(&whole),
                "{late}"
            );
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
        assert_eq!(objects.catalog.lock().unwrap().alter(alter), 1);
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
            assert!(objects.catalog.lock().unwrap().alter(damage) > 0, "{damage}");
            assert_eq!(
                Shown::of(&run(objects.history(database(), None)).unwrap()),
                Shown::of(&whole),
                "{damage}"
            );
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
}
