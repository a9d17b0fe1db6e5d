//! Answers about one database, from its repository.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use everwhen_engine::error::ErrorKind;
use everwhen_engine::history::{History, Point, Seen};
use everwhen_engine::ids::DatabaseId;
use everwhen_engine::plan::{RestorePlan, Target, locate};
use everwhen_engine::restore::{
    self, Cancel, Options, Order, ProgressFn, RestoreError, RestorePoint, RestoreReport,
};
use everwhen_engine::sqlite::lock_byte_page;
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;
use everwhen_proto::v1::restore_response::Event;
use futures::{FutureExt, StreamExt, stream};
use tokio::sync::mpsc;

use super::records::{Record, Records, described};
use crate::answers::Parts;
use crate::failure::{Failure, Nearest};
use crate::view::PointView;
use crate::wire::{point_out, progress_out, target_in, time_in, time_out};

/// Restore points in one message of a listing.
const POINTS_IN_A_PART: usize = 2_000;
/// Flaws of a history that a status names; `everwhen history` has all.
const FLAWS_TOLD: usize = 8;
/// Messages of a restore that may wait for a slow caller; progress that finds no room is dropped.
const EVENTS_WAITING: usize = 16;

/// Files that SQLite would take for a part of a restored database.
const SIDECARS: &[&str] = &["-wal", "-journal", "-shm"];

/// One database of a repository.
#[derive(Clone)]
pub(crate) struct DatabaseReader {
    records: Records,
    record: Record,
    /// A running daemon's word on how far it covers the time, beyond the marks in the repository. It is heard before the
    /// segments are listed, so it vouches for segments that are there.
    heard: Option<Seen>,
}

impl DatabaseReader {
    pub(crate) fn new(records: &Records, record: Record, heard: Option<Seen>) -> Self {
        Self { records: records.clone(), record, heard }
    }

    fn id(&self) -> DatabaseId {
        self.record.id
    }

    fn described(&self) -> v1::Database {
        described(&self.record, self.records.url())
    }

    async fn read_history(&self) -> Result<History, Failure> {
        let history = self.records.objects.history(self.id(), self.heard).await;
        history.map_err(|error| Failure::of(&error))
    }

    /// Windows, gaps, timelines, bases.
    pub(crate) async fn history(&self) -> Result<v1::GetHistoryResponse, Failure> {
        Ok(history_out(&self.read_history().await?, self.described()))
    }

    /// What the repository alone can say of the protection.
    pub(crate) async fn status(&self) -> Result<v1::DatabaseStatus, Failure> {
        let history = self.read_history().await?;
        let covered_through = history.covered_through().map(time_out);
        let history = history_out(&history, self.described());
        let nobody = "no running daemon answers for it here: this is what the repository holds";
        let mut reasons = vec![nobody.to_owned()];
        reasons.extend(history.flaws.into_iter().take(FLAWS_TOLD));
        Ok(v1::DatabaseStatus {
            database: history.database,
            health: v1::Health::Attention.into(),
            reasons,
            durable: history.latest,
            window: history.windows.last().cloned(),
            gaps: history.gaps.len() as u64,
            covered_through,
            ..v1::DatabaseStatus::default()
        })
    }

    /// Restore points of the main line from `from` to `to`, oldest first.
    pub(crate) fn points(
        self,
        from: Option<prost_types::Timestamp>,
        to: Option<prost_types::Timestamp>,
    ) -> Parts<v1::ListPointsResponse> {
        let from = from.as_ref().map_or(Timestamp::MIN, time_in);
        let to = to.as_ref().map_or(Timestamp::MAX, time_in);
        async move {
            let listing = Listing { history: self.read_history().await?, reader: self, from, to, last: None };
            Ok(stream::try_unfold(listing, Listing::next_part))
        }
        .into_stream()
        .map(|listing: Result<_, Failure>| match listing {
            Ok(parts) => parts.boxed(),
            Err(failure) => stream::iter([Err(failure)]).boxed(),
        })
        .flatten()
        .boxed()
    }

    async fn plan_for(&self, target: Target, now: Timestamp) -> Result<RestorePlan, Failure> {
        let objects = &self.records.objects;
        let work = |history: Arc<History>| async move { restore::plan(objects, &history, target, now).await };
        let planned = objects.with_history(self.id(), self.heard, work).await;
        planned.map_err(|error| restore_failure(&error))
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
        Ok(plan_out(&self.plan_for(target_in(target).map_err(Failure::usage)?, Timestamp::now()).await?))
    }

    /// Restores. Dropping the stream cancels it.
    pub(crate) fn restore(
        self,
        target: Option<v1::Target>,
        to: PathBuf,
        cancel: Cancel,
    ) -> Parts<v1::RestoreResponse> {
        let (events, waiting) = mpsc::channel(EVENTS_WAITING);
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
        let (target, now) = (target_in(target).map_err(Failure::usage)?, Timestamp::now());
        let told = events.clone();
        // The first message there is: it finds room.
        let planned = move |plan: &RestorePlan| drop(told.try_send(Event::Plan(plan_out(plan))));
        let progress: ProgressFn =
            Arc::new(move |progress| drop(events.try_send(Event::Progress(progress_out(&progress)))));
        let (objects, options) = (&self.records.objects, sqlite_options());
        let order =
            Order { target, now, to: &to, options: &options, planned: &planned, progress, cancel: &cancel };
        let order = &order;
        let work = |history: Arc<History>| async move { restore::restore(objects, &history, order).await };
        // A store that does not answer must not be waited for.
        let report = tokio::select! {
            report = objects.with_history(self.id(), self.heard, work) => report,
            () = cancel.cancelled() => Err(RestoreError::Cancelled),
        };
        report.map(|report| report_out(&report)).map_err(|error| restore_failure(&error))
    }

    /// Changes name or class.
    pub(crate) async fn set(&self, request: &v1::SetDatabaseRequest) -> Result<v1::Database, Failure> {
        let record = self.records.set(self.record.clone(), request).await?;
        Ok(described(&record, self.records.url()))
    }
}

/// A listing of restore points, part by part: a slow reader holds one part in memory, not a history.
struct Listing {
    reader: DatabaseReader,
    history: History,
    from: Timestamp,
    to: Timestamp,
    /// The last point that was listed. The next part begins at its time, after it.
    last: Option<RestorePoint>,
}

impl Listing {
    async fn next_part(mut self) -> Result<Option<(v1::ListPointsResponse, Self)>, Failure> {
        let mut part = Vec::new();
        let mut past_last = self.last.is_none();
        let take = |point: RestorePoint| {
            if past_last {
                part.push(point);
            } else {
                past_last = self.last.is_some_and(|last| last.position == point.position);
            }
            part.len() < POINTS_IN_A_PART
        };
        let objects = &self.reader.records.objects;
        let listed = restore::points(objects, &self.history, self.from, self.to, take).await;
        listed.map_err(|error| Failure::of(&error))?;
        let Some(last) = part.last().copied() else { return Ok(None) };
        (self.from, self.last) = (last.time, Some(last));
        let points = part.iter().map(restore_point).collect();
        Ok(Some((v1::ListPointsResponse { points }, self)))
    }
}

fn restore_point(point: &RestorePoint) -> v1::RestorePoint {
    v1::RestorePoint {
        position: point.position.to_string(),
        time: Some(time_out(point.time)),
        pages: point.pages,
    }
}

/// What a restore must know of SQLite.
pub(super) fn sqlite_options() -> Options {
    Options { sidecar_suffixes: SIDECARS, left_out: |size| Some(lock_byte_page(size)), ..Options::default() }
}

/// Whether a restore of so many bytes to this path could be made here.
pub(crate) fn fits(to: &str, space_needed_bytes: u64) -> Result<(), Failure> {
    let fits = restore::check_target(Path::new(to), &sqlite_options(), space_needed_bytes);
    fits.map_err(|error| Failure::of(&error))
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
        let died = |died| Err(Failure::new(ErrorKind::Failed, "the restore died").caused_by(&died));
        let report = ended.unwrap_or_else(died);
        Some(report.map(|report| v1::RestoreResponse { event: Some(Event::Report(report)) }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A failed restore or plan, with its neighbours.
fn restore_failure(error: &RestoreError) -> Failure {
    let mut failure = Failure::of(error);
    let nearest = error.nearest();
    let point = |point: Point| PointView { position: point.position.to_string(), time: Some(point.time) };
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
        space_needed_bytes: plan.space_needed_bytes,
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

/// The newest state that can be rebuilt: behind a lost object it is an earlier one than the last.
fn newest_restorable(history: &History) -> Option<Point> {
    match locate(history, Target::Latest, Timestamp::now()) {
        Ok(_) => history.newest(),
        Err(error) => error.nearest().before,
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
    let bases = history
        .bases()
        .map(|base| v1::Base { position: base.key.position.to_string(), manifest_bytes: base.size });
    v1::GetHistoryResponse {
        windows: windows.collect(),
        gaps: gaps.collect(),
        timelines: timelines.collect(),
        bases: bases.collect(),
        segments: history.segments().count() as u64,
        log_bytes: history.segments().map(|segment| segment.size).sum(),
        latest: newest_restorable(history).map(|point| point_out(point.position, Some(point.time))),
        database: Some(database),
        flaws: history.flaws().iter().map(ToString::to_string).collect(),
    }
}
