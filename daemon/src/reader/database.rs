//! Answers about one database, from its repository.

use std::path::PathBuf;

use everwhen_engine::error::ErrorKind;
use everwhen_engine::history::{Findings, History, Seen};
use everwhen_engine::repository::Repository;
use everwhen_proto::v1;
use futures::{FutureExt, StreamExt};

use super::repository::{Record, described, url};
use crate::answers::Parts;
use crate::failure::Failure;
use crate::wire::{point_out, time_out};

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

    async fn build_history(&self) -> Result<History, Failure> {
        let findings = Findings { seen: self.seen.into_iter().collect(), ..Findings::default() };
        Ok(History::build(self.record.id, findings))
    }

    /// Windows, gaps, timelines, bases.
    pub(crate) async fn history(&self) -> Result<v1::GetHistoryResponse, Failure> {
        let history = self.build_history().await?;
        Ok(history_out(&history, described(&self.record, &url(&self.repository))))
    }

    /// What the repository alone can say of the protection.
    pub(crate) async fn status(&self) -> Result<v1::DatabaseStatus, Failure> {
        let history = self.history().await?;
        Ok(v1::DatabaseStatus {
            database: history.database,
            health: v1::Health::Attention.into(),
            reasons: vec!["no running daemon answers for it here: this is what the repository holds".into()],
            durable: history.latest,
            window: history.windows.last().cloned(),
            gaps: history.gaps.len() as u64,
            ..v1::DatabaseStatus::default()
        })
    }

    pub(crate) fn points(
        self,
        _from: Option<prost_types::Timestamp>,
        _to: Option<prost_types::Timestamp>,
    ) -> Parts<v1::ListPointsResponse> {
        async { Err(interim()) }.into_stream().boxed()
    }

    pub(crate) async fn resolve(
        &self,
        _target: Option<v1::Target>,
    ) -> Result<v1::ResolvePointResponse, Failure> {
        Err(interim())
    }

    pub(crate) async fn plan(&self, _target: Option<v1::Target>) -> Result<v1::RestorePlan, Failure> {
        Err(interim())
    }

    pub(crate) fn restore(self, _target: Option<v1::Target>, _to: PathBuf) -> Parts<v1::RestoreResponse> {
        async { Err(interim()) }.into_stream().boxed()
    }

    pub(crate) async fn set(&self, _request: &v1::SetDatabaseRequest) -> Result<v1::Database, Failure> {
        Err(interim())
    }
}

fn interim() -> Failure {
    Failure::new(ErrorKind::Failed, "interim")
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
