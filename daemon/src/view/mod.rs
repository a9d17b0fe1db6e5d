//! What the commands report, as the documented JSON contract and as text for people.
//!
//! Every report begins as a message of the API, whether a daemon sent it or it was read from a repository here. The
//! views below fix its JSON form: snake_case, times RFC 3339 UTC with microseconds, positions as text, `…_ms`,
//! `…_bytes`. Fields are added, never changed; `contract` holds them with a golden text each.

#[cfg(test)]
mod contract;
pub(crate) mod text;

use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;
use serde::Serialize;

use crate::wire::time_in;

/// A restore point and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PointView {
    pub(crate) position: String,
    pub(crate) time: Option<Timestamp>,
}

impl PointView {
    /// For a line of text: position, local time.
    pub(crate) fn in_words(&self) -> String {
        match self.time {
            Some(time) => format!("{} committed {}", self.position, time.in_local_zone()),
            None => self.position.clone(),
        }
    }
}

impl From<v1::Point> for PointView {
    fn from(point: v1::Point) -> Self {
        Self { position: point.position, time: point.time.as_ref().map(time_in) }
    }
}

/// The stable name of a health.
pub(crate) fn health_name(health: v1::Health) -> &'static str {
    match health {
        v1::Health::Ok => "ok",
        v1::Health::Unspecified | v1::Health::Attention => "attention",
        v1::Health::Failing => "failing",
    }
}

/// A database, as `databases` reports it.
#[derive(Debug, Serialize)]
pub(crate) struct DatabaseView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) class: String,
    pub(crate) protected: bool,
    pub(crate) store: String,
    pub(crate) created: Option<Timestamp>,
}

impl From<v1::Database> for DatabaseView {
    fn from(database: v1::Database) -> Self {
        let v1::Database { id, name, path, class, protected, store, created } = database;
        Self { id, name, path, class, protected, store, created: created.as_ref().map(time_in) }
    }
}

/// An interval of time.
#[derive(Debug, Serialize)]
pub(crate) struct WindowView {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
}

impl From<v1::Window> for WindowView {
    fn from(window: v1::Window) -> Self {
        Self { from: window.from.as_ref().map(time_in), to: window.to.as_ref().map(time_in) }
    }
}

/// `status --json`.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) databases: Vec<DatabaseStatusView>,
    /// The daemon that answered; null when the repository was read.
    pub(crate) daemon: Option<DaemonView>,
}

/// One database of `status --json`.
#[derive(Debug, Serialize)]
pub(crate) struct DatabaseStatusView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) class: String,
    pub(crate) protected: bool,
    pub(crate) health: &'static str,
    pub(crate) reasons: Vec<String>,
    pub(crate) captured: Option<PointView>,
    pub(crate) durable: Option<PointView>,
    /// Null when no daemon answers for it: the repository alone cannot tell.
    pub(crate) lag_ms: Option<u64>,
    pub(crate) covered_through: Option<Timestamp>,
    pub(crate) window: Option<WindowView>,
    pub(crate) gaps: u64,
    pub(crate) spool_bytes: u64,
    pub(crate) queue_bytes: u64,
    pub(crate) transactions_total: u64,
    pub(crate) segments_total: u64,
    pub(crate) stored_bytes_total: u64,
    pub(crate) base: Option<BaseProgressView>,
}

/// A base under way.
#[derive(Debug, Serialize)]
pub(crate) struct BaseProgressView {
    pub(crate) done_pages: u64,
    pub(crate) total_pages: u64,
}

/// The daemon of `status --json`.
#[derive(Debug, Serialize)]
pub(crate) struct DaemonView {
    pub(crate) host: String,
    pub(crate) host_name: String,
    pub(crate) version: String,
    pub(crate) started: Option<Timestamp>,
    pub(crate) pid: u32,
}

impl From<v1::GetStatusResponse> for StatusView {
    fn from(status: v1::GetStatusResponse) -> Self {
        let live = status.daemon.is_some();
        let daemon = status.daemon.map(|daemon| DaemonView {
            host: daemon.host,
            host_name: daemon.host_name,
            version: daemon.version,
            started: daemon.started.as_ref().map(time_in),
            pid: daemon.pid,
        });
        let databases = status.databases.into_iter().map(|db| database_status(db, live)).collect();
        Self { databases, daemon }
    }
}

fn database_status(status: v1::DatabaseStatus, live: bool) -> DatabaseStatusView {
    let health = health_name(status.health());
    let database = status.database.unwrap_or_default();
    DatabaseStatusView {
        id: database.id,
        name: database.name,
        path: database.path,
        class: database.class,
        protected: database.protected,
        health,
        reasons: status.reasons,
        captured: status.captured.map(PointView::from),
        durable: status.durable.map(PointView::from),
        lag_ms: (live && database.protected).then_some(status.lag_ms),
        covered_through: status.covered_through.as_ref().map(time_in),
        window: status.window.map(WindowView::from),
        gaps: status.gaps,
        spool_bytes: status.spool_bytes,
        queue_bytes: status.queue_bytes,
        transactions_total: status.transactions_total,
        segments_total: status.segments_total,
        stored_bytes_total: status.stored_bytes_total,
        base: status
            .base
            .map(|base| BaseProgressView { done_pages: base.done_pages, total_pages: base.total_pages }),
    }
}

/// One line of `points --json`.
#[derive(Debug, Serialize)]
pub(crate) struct RestorePointView {
    pub(crate) position: String,
    pub(crate) time: Option<Timestamp>,
    pub(crate) pages: u32,
}

impl From<v1::RestorePoint> for RestorePointView {
    fn from(point: v1::RestorePoint) -> Self {
        let v1::RestorePoint { position, time, pages } = point;
        Self { position, time: time.as_ref().map(time_in), pages }
    }
}

/// `history --json`.
#[derive(Debug, Serialize)]
pub(crate) struct HistoryView {
    pub(crate) database: Option<DatabaseView>,
    pub(crate) windows: Vec<WindowView>,
    pub(crate) gaps: Vec<GapView>,
    pub(crate) timelines: Vec<TimelineView>,
    /// Labels come with `everwhen backup`; none can exist yet.
    pub(crate) labels: Vec<()>,
    pub(crate) bases: Vec<BaseView>,
    pub(crate) segments: u64,
    pub(crate) log_bytes: u64,
    pub(crate) latest: Option<PointView>,
    pub(crate) flaws: Vec<String>,
}

/// A gap of `history --json`.
#[derive(Debug, Serialize)]
pub(crate) struct GapView {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) before: String,
    pub(crate) after: String,
    pub(crate) reason: String,
}

/// A timeline of `history --json`.
#[derive(Debug, Serialize)]
pub(crate) struct TimelineView {
    pub(crate) id: u32,
    pub(crate) parent: Option<String>,
    pub(crate) why: String,
    pub(crate) host: String,
    pub(crate) host_name: String,
    pub(crate) claimed: Option<Timestamp>,
}

/// A base of `history --json`.
#[derive(Debug, Serialize)]
pub(crate) struct BaseView {
    pub(crate) position: String,
    pub(crate) manifest_bytes: u64,
}

impl From<v1::GetHistoryResponse> for HistoryView {
    fn from(history: v1::GetHistoryResponse) -> Self {
        Self {
            database: history.database.map(DatabaseView::from),
            windows: history.windows.into_iter().map(WindowView::from).collect(),
            gaps: history.gaps.into_iter().map(GapView::from).collect(),
            timelines: history.timelines.into_iter().map(TimelineView::from).collect(),
            labels: Vec::new(),
            bases: history.bases.into_iter().map(BaseView::from).collect(),
            segments: history.segments,
            log_bytes: history.log_bytes,
            latest: history.latest.map(PointView::from),
            flaws: history.flaws,
        }
    }
}

impl From<v1::Gap> for GapView {
    fn from(gap: v1::Gap) -> Self {
        let v1::Gap { from, to, before, after, reason } = gap;
        Self { from: from.as_ref().map(time_in), to: to.as_ref().map(time_in), before, after, reason }
    }
}

impl From<v1::Timeline> for TimelineView {
    fn from(timeline: v1::Timeline) -> Self {
        let v1::Timeline { id, parent, why, host, host_name, claimed } = timeline;
        let parent = Some(parent).filter(|parent| !parent.is_empty());
        Self { id, parent, why, host, host_name, claimed: claimed.as_ref().map(time_in) }
    }
}

impl From<v1::Base> for BaseView {
    fn from(base: v1::Base) -> Self {
        let v1::Base { position, manifest_bytes } = base;
        Self { position, manifest_bytes }
    }
}

/// `restore --dry-run --json`.
#[derive(Debug, Serialize)]
pub(crate) struct PlanView {
    pub(crate) position: String,
    pub(crate) time: Option<Timestamp>,
    pub(crate) asked: String,
    pub(crate) distance_ms: u64,
    pub(crate) base: String,
    pub(crate) segments: u64,
    pub(crate) transactions: u64,
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    pub(crate) image_bytes: u64,
    pub(crate) space_needed_bytes: u64,
    pub(crate) state: String,
}

impl From<v1::RestorePlan> for PlanView {
    fn from(plan: v1::RestorePlan) -> Self {
        let point = PointView::from(plan.point.unwrap_or_default());
        Self {
            position: point.position,
            time: point.time,
            asked: plan.asked,
            distance_ms: plan.distance_ms,
            base: plan.base,
            segments: plan.segments,
            transactions: plan.transactions,
            bytes: plan.bytes,
            requests: plan.requests,
            image_bytes: plan.image_bytes,
            space_needed_bytes: plan.space_needed_bytes,
            state: plan.state,
        }
    }
}

/// `restore --json`.
#[derive(Debug, Serialize)]
pub(crate) struct RestoreView {
    pub(crate) position: String,
    pub(crate) time: Option<Timestamp>,
    pub(crate) asked: String,
    pub(crate) distance_ms: u64,
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) proof: ProofView,
    pub(crate) transactions: u64,
    pub(crate) avoided: Vec<String>,
    pub(crate) elapsed_ms: u64,
}

/// How a restore was proven.
#[derive(Debug, Serialize)]
pub(crate) struct ProofView {
    pub(crate) state: String,
    pub(crate) how: String,
}

impl From<v1::RestoreReport> for RestoreView {
    fn from(report: v1::RestoreReport) -> Self {
        let point = PointView::from(report.point.unwrap_or_default());
        let proof = report.proof.unwrap_or_default();
        Self {
            position: point.position,
            time: point.time,
            asked: report.asked,
            distance_ms: report.distance_ms,
            path: report.path,
            bytes: report.bytes,
            proof: ProofView { state: proof.state, how: proof.how },
            transactions: report.transactions,
            avoided: report.avoided,
            elapsed_ms: report.elapsed_ms,
        }
    }
}
