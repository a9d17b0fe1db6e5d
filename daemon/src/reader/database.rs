//! Answers about one database, from its repository.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use everwhen_engine::history::{History, Seen, SegmentEntry};
use everwhen_engine::ids::{Position, TxId};
use everwhen_engine::plan::{RestorePlan, Target, route};
use everwhen_engine::repository::Repository;
use everwhen_engine::restore::{self, Cancel, Inventory, Options, RestoreError, RestoreReport};
use everwhen_engine::sqlite::lock_byte_page;
use everwhen_engine::store::keys::SegmentKey;
use everwhen_engine::time::Timestamp;
use everwhen_engine::transaction::Transaction;
use everwhen_engine::verify::{self, VerifyOptions, VerifyProgressFn, VerifyReport};
use everwhen_proto::v1;
use everwhen_proto::v1::restore_response::Event;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::objects::RepositoryObjects;
use super::repository::{Record, described, set_record, url};
use crate::answers::Parts;
use crate::failure::{Failure, Nearest};
use crate::view::PointView;
use crate::wire::{point_out, progress_out, target_in, time_in, time_out};

/// Restore points in one message of a listing.
const POINTS_IN_A_PART: usize = 1_000;
/// Segments whose tables are read at the same time.
const READ_AHEAD: usize = 8;
/// Messages of a restore that may wait for a slow caller; progress that finds no room is dropped.
const EVENTS_WAITING: usize = 16;

/// Files that SQLite would take for a part of a restored database.
const SIDECARS: &[&str] = &["-wal", "-journal", "-shm"];

/// One database of a repository, and the newest word on how far its time is covered.
#[derive(Clone)]
pub(crate) struct DatabaseReader {
    repository: Repository,
    record: Record,
    seen: Option<Seen>,
}

impl DatabaseReader {
    pub(crate) fn new(repository: Repository, record: Record, seen: Option<Seen>) -> Self {
        Self { repository, record, seen }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.record.name
    }

    async fn build_history(&self) -> Result<History, Failure> {
        let objects = RepositoryObjects(self.repository.clone());
        let mut findings = objects.findings(self.record.id).await.map_err(|error| Failure::of(&error))?;
        findings.seen.extend(self.seen);
        Ok(History::build(self.record.id, findings))
    }

    /// Windows, gaps, timelines, bases.
    pub(crate) async fn history(&self) -> Result<v1::GetHistoryResponse, Failure> {
        let history = self.build_history().await?;
        for flaw in history.flaws() {
            tracing::warn!("{}: {flaw}", self.record.name);
        }
        Ok(history_out(&history, described(&self.record, &url(&self.repository))))
    }

    /// What the repository alone can say of the protection.
    pub(crate) async fn status(&self) -> Result<v1::DatabaseStatus, Failure> {
        let history = self.build_history().await?;
        let covered_through = history.covered_through().map(time_out);
        let history = history_out(&history, described(&self.record, &url(&self.repository)));
        Ok(v1::DatabaseStatus {
            database: history.database,
            health: v1::Health::Attention.into(),
            reasons: vec!["no running daemon answers for it here: this is what the repository holds".into()],
            durable: history.latest,
            window: history.windows.last().cloned(),
            gaps: history.gaps.len() as u64,
            covered_through,
            ..v1::DatabaseStatus::default()
        })
    }

    /// Restore points from `from` to `to`, oldest first.
    pub(crate) fn points(
        self,
        from: Option<prost_types::Timestamp>,
        to: Option<prost_types::Timestamp>,
    ) -> Parts<v1::ListPointsResponse> {
        let from = from.as_ref().map_or(Timestamp::MIN, time_in);
        let to = to.as_ref().map_or(Timestamp::MAX, time_in);
        let objects = RepositoryObjects(self.repository.clone());
        async move {
            let history = self.build_history().await?;
            let wanted = segments_between(&history, from, to);
            let read = stream::iter(wanted).map(move |entry| points_of(objects.clone(), entry, from, to));
            Ok(read.buffered(READ_AHEAD))
        }
        .into_stream()
        .try_flatten()
        .map_ok(in_parts)
        .try_flatten()
        .boxed()
    }

    async fn plan_in(
        &self,
        history: &History,
        target: Target,
        now: Timestamp,
    ) -> Result<RestorePlan, Failure> {
        let objects = RepositoryObjects(self.repository.clone());
        restore::plan(&objects, history, target, now).await.map_err(|error| restore_failure(&error))
    }

    /// The exact restore point for a target.
    pub(crate) async fn resolve(
        &self,
        target: Option<v1::Target>,
    ) -> Result<v1::ResolvePointResponse, Failure> {
        let plan = self.plan(target).await?;
        Ok(v1::ResolvePointResponse { point: plan.point, distance_ms: plan.distance_ms })
    }

    /// What a restore would do.
    pub(crate) async fn plan(&self, target: Option<v1::Target>) -> Result<v1::RestorePlan, Failure> {
        let (target, now) = (target_in(target)?, Timestamp::now());
        let history = self.build_history().await?;
        Ok(plan_out(&self.plan_in(&history, target, now).await?))
    }

    /// Restores. Dropping the stream cancels it.
    pub(crate) fn restore(self, target: Option<v1::Target>, to: PathBuf) -> Parts<v1::RestoreResponse> {
        let (events, waiting) = mpsc::channel(EVENTS_WAITING);
        let cancel = Cancel::new();
        let task = tokio::spawn(self.restore_into(target, to, events, cancel.clone()));
        let running = Running { waiting, task: Some(task), cancel };
        stream::unfold(running, |mut running| async {
            let next = running.next().await?;
            Some((next, running))
        })
        .boxed()
    }

    async fn restore_into(
        self,
        target: Option<v1::Target>,
        to: PathBuf,
        events: mpsc::Sender<Event>,
        cancel: Cancel,
    ) -> Result<v1::RestoreReport, Failure> {
        let (target, now) = (target_in(target)?, Timestamp::now());
        let history = self.build_history().await?;
        let plan = self.plan_in(&history, target, now).await?;
        let _ = events.send(Event::Plan(plan_out(&plan))).await;
        let told = Arc::new(move |progress| drop(events.try_send(Event::Progress(progress_out(&progress)))));
        let objects = RepositoryObjects(self.repository.clone());
        let options = sqlite_options();
        let report = restore::restore(&objects, &history, target, now, &to, &options, told, &cancel).await;
        report.map(|report| report_out(&report)).map_err(|error| restore_failure(&error))
    }

    /// Verifies what the repository holds of it; with a folder for scratch files, also by rebuilding every state.
    pub(crate) async fn verify(
        &self,
        deep_in: Option<&Path>,
        progress: VerifyProgressFn,
        cancel: &Cancel,
    ) -> Result<VerifyReport, Failure> {
        let objects = RepositoryObjects(self.repository.clone());
        let history = self.build_history().await?;
        let packs = objects.packs(self.record.id).await.map_err(|error| Failure::of(&error))?;
        let restore = sqlite_options();
        let options = VerifyOptions { deep_in, restore: &restore, progress, cancel };
        verify::verify(&objects, &history, &packs, &options).await.map_err(|error| Failure::of(&error))
    }

    /// Changes the record.
    pub(crate) async fn set(&self, request: &v1::SetDatabaseRequest) -> Result<v1::Database, Failure> {
        let record = set_record(&self.repository, self.record.clone(), &request.name, &request.class).await?;
        Ok(described(&record, &url(&self.repository)))
    }
}

/// What a restore must know of SQLite.
fn sqlite_options() -> Options {
    Options { sidecar_suffixes: SIDECARS, left_out: |size| Some(lock_byte_page(size)), ..Options::default() }
}

/// A restore under way, as a stream of its messages. Cancelled when dropped.
struct Running {
    waiting: mpsc::Receiver<Event>,
    task: Option<tokio::task::JoinHandle<Result<v1::RestoreReport, Failure>>>,
    cancel: Cancel,
}

impl Running {
    async fn next(&mut self) -> Option<Result<v1::RestoreResponse, Failure>> {
        if let Some(event) = self.waiting.recv().await {
            return Some(Ok(v1::RestoreResponse { event: Some(event) }));
        }
        let ended = self.task.take()?.await;
        let report = ended.unwrap_or_else(|died| {
            Err(Failure::new(everwhen_engine::error::ErrorKind::Failed, "the restore died").caused_by(&died))
        });
        Some(report.map(|report| v1::RestoreResponse { event: Some(Event::Report(report)) }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A segment, from the first of its transactions that can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    entry: SegmentEntry,
    first: TxId,
}

/// The segments with restore points between two moments, in the order of positions. One for every transaction.
///
/// What a base must give and no base gives cannot be restored, and is not listed.
fn segments_between(history: &History, from: Timestamp, to: Timestamp) -> Vec<Listed> {
    let mut listed = Vec::new();
    let mut last: Option<SegmentKey> = None;
    let mut rebuilds = false;
    // Of several that begin alike the widest comes first; what lies within an earlier one adds nothing.
    for entry in history.segments() {
        let (key, range) = (entry.key, entry.key.range);
        let on_its_line = last.filter(|last| last.timeline == key.timeline);
        if on_its_line.is_some_and(|last| last.range.last() >= range.last()) {
            continue;
        }
        rebuilds = match on_its_line {
            Some(last) => rebuilds && last.range.last().next() >= range.first() && !key.flags.needs_base,
            None => route(history, Position::new(key.timeline, range.first())).is_ok(),
        };
        let based = history.bases().map(|base| base.key.position);
        let based =
            based.filter(|at| at.timeline == key.timeline && range.contains(at.tx)).map(|at| at.tx).min();
        let first = if rebuilds { Some(range.first()) } else { based };
        rebuilds = first.is_some();
        last = Some(key);
        listed.extend(first.map(|first| Listed { entry, first }));
    }
    listed.retain(|listed| listed.entry.key.to >= from && listed.entry.key.from <= to);
    listed
}

async fn points_of(
    objects: RepositoryObjects,
    listed: Listed,
    from: Timestamp,
    to: Timestamp,
) -> Result<VecDeque<v1::RestorePoint>, Failure> {
    let read = restore::read_transactions(&objects, listed.entry).await;
    let transactions = read.map_err(|error| Failure::of(&error))?;
    let wanted = transactions.iter().filter(|one| one.tx >= listed.first && (from..=to).contains(&one.time));
    Ok(wanted.map(|transaction| restore_point(listed.entry, transaction)).collect())
}

fn restore_point(entry: SegmentEntry, transaction: &Transaction) -> v1::RestorePoint {
    let position = Position::new(entry.key.timeline, transaction.tx);
    v1::RestorePoint {
        position: position.to_string(),
        time: Some(time_out(transaction.time)),
        pages: transaction.pages,
        image_pages: transaction.image_pages,
    }
}

fn in_parts(
    points: VecDeque<v1::RestorePoint>,
) -> impl futures::Stream<Item = Result<v1::ListPointsResponse, Failure>> {
    stream::unfold(points, |mut points| async move {
        let part: Vec<_> = points.drain(..points.len().min(POINTS_IN_A_PART)).collect();
        (!part.is_empty()).then_some((Ok(v1::ListPointsResponse { points: part }), points))
    })
}

/// A failed restore or plan, with its neighbours.
fn restore_failure(error: &RestoreError) -> Failure {
    let mut failure = Failure::of(error);
    let nearest = error.nearest();
    let point = |point: everwhen_engine::history::Point| PointView {
        position: point.position.to_string(),
        time: Some(point.time),
    };
    if nearest.before.is_some() || nearest.after.is_some() {
        let around = Nearest { before: nearest.before.map(point), after: nearest.after.map(point) };
        failure.nearest = Some(Box::new(around));
    }
    failure
}

fn distance(ms: Option<i64>) -> u64 {
    ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}

fn plan_out(plan: &RestorePlan) -> v1::RestorePlan {
    v1::RestorePlan {
        point: Some(point_out(plan.position, Some(plan.time))),
        asked: plan.asked.to_string(),
        distance_ms: distance(plan.distance_ms),
        base: plan.base.position.to_string(),
        segments: plan.segments.len() as u64,
        transactions: plan.transactions,
        bytes: plan.read_bytes,
        requests: plan.requests,
        image_bytes: plan.image_bytes,
        space_needed_bytes: plan.space_needed_bytes.saturating_add(restore::RESERVE_BYTES),
        state: plan.state.to_string(),
    }
}

fn report_out(report: &RestoreReport) -> v1::RestoreReport {
    v1::RestoreReport {
        point: Some(point_out(report.position, Some(report.time))),
        asked: report.asked.to_string(),
        distance_ms: distance(report.distance_ms),
        path: report.path.to_string_lossy().into_owned(),
        bytes: report.bytes,
        proof: Some(v1::Proof { state: report.proof.state.to_string(), how: report.proof.how.clone() }),
        transactions: report.transactions,
        avoided: report.avoided.clone(),
        elapsed_ms: report.elapsed_ms,
    }
}

fn history_out(history: &History, database: v1::Database) -> v1::GetHistoryResponse {
    let windows = history
        .windows()
        .into_iter()
        .map(|window| v1::Window { from: Some(time_out(window.from)), to: Some(time_out(window.to)) });
    let gaps = history.gaps().into_iter().map(|gap| v1::Gap {
        from: Some(time_out(gap.from)),
        to: Some(time_out(gap.to)),
        before: gap.before.to_string(),
        after: gap.after.to_string(),
        reason: gap.reason.to_string(),
    });
    let timelines = history.timelines().into_iter().map(|active| v1::Timeline {
        id: active.timeline.id.get(),
        parent: active.timeline.parent.map(|parent| parent.to_string()).unwrap_or_default(),
        why: active.timeline.why,
        host: active.timeline.host.to_string(),
        host_name: active.timeline.host_name,
        claimed: Some(time_out(active.timeline.claimed_at)),
    });
    let bases = history.bases().map(|base| v1::Base {
        position: base.key.position.to_string(),
        time: None,
        manifest_bytes: base.size,
    });
    v1::GetHistoryResponse {
        windows: windows.collect(),
        gaps: gaps.collect(),
        timelines: timelines.collect(),
        bases: bases.collect(),
        segments: history.segments().count() as u64,
        log_bytes: history.segments().map(|segment| segment.size).sum(),
        latest: history.newest().map(|point| point_out(point.position, Some(point.time))),
        database: Some(database),
    }
}

#[cfg(test)]
mod tests {
    use everwhen_engine::history::{BaseEntry, Findings};
    use everwhen_engine::ids::{DatabaseId, Digest, HostId, TimelineId, TxRange};
    use everwhen_engine::store::keys::BaseKey;
    use everwhen_engine::transaction::TxFlags;

    use super::*;

    fn database() -> DatabaseId {
        DatabaseId::from_bytes([7; 8])
    }

    fn tx(number: u64) -> TxId {
        TxId::new(number).unwrap()
    }

    fn time(second: u64) -> Timestamp {
        Timestamp::from_micros(i64::try_from(second).unwrap() * 1_000_000)
    }

    fn segment(first: u64, last: u64, needs_base: bool) -> SegmentEntry {
        let key = SegmentKey {
            database: database(),
            timeline: TimelineId::FIRST,
            range: TxRange::new(tx(first), tx(last)).unwrap(),
            from: time(first),
            to: time(last),
            flags: TxFlags { needs_base, ..TxFlags::NONE },
            digest: Digest::from_bytes([u8::try_from(first).unwrap(); 32]),
        };
        SegmentEntry { key, size: 100 }
    }

    fn listed(segments: &[SegmentEntry], bases: &[u64], from: u64, to: u64) -> Vec<(u64, u64)> {
        let base = |at: &u64| BaseEntry {
            key: BaseKey {
                database: database(),
                position: Position::new(TimelineId::FIRST, tx(*at)),
                digest: Digest::from_bytes([0xbb; 32]),
            },
            size: 10,
        };
        let claim = everwhen_engine::history::Timeline {
            id: TimelineId::FIRST,
            parent: None,
            why: String::new(),
            host: HostId::from_bytes([1; 8]),
            host_name: String::new(),
            claimed_at: time(0),
        };
        let findings = Findings {
            timelines: vec![claim],
            segments: segments.to_vec(),
            bases: bases.iter().map(base).collect(),
            seen: Vec::new(),
        };
        let history = History::build(database(), findings);
        let listed = segments_between(&history, time(from), time(to));
        listed.iter().map(|one| (one.first.get(), one.entry.key.range.last().get())).collect()
    }

    #[test]
    fn every_transaction_is_listed_once() {
        let segments =
            [segment(1, 1, true), segment(2, 9, false), segment(2, 4, false), segment(5, 9, false)];
        assert_eq!(listed(&segments, &[1], 0, 99), [(1, 1), (2, 9)]);
    }

    #[test]
    fn what_cannot_be_rebuilt_is_not_listed() {
        let segments = [segment(1, 1, true), segment(2, 4, false), segment(5, 9, false)];
        assert_eq!(listed(&segments, &[3], 0, 99), [(3, 4), (5, 9)]);
        assert_eq!(listed(&segments, &[], 0, 99), []);
        let hole = [segment(1, 1, true), segment(5, 9, false), segment(10, 12, false)];
        assert_eq!(listed(&hole, &[1, 10], 0, 99), [(1, 1), (10, 12)]);
    }

    #[test]
    fn only_segments_of_the_time_are_read() {
        let segments = [segment(1, 1, true), segment(2, 4, false), segment(5, 9, false)];
        assert_eq!(listed(&segments, &[1], 3, 4), [(2, 4)]);
    }
}
