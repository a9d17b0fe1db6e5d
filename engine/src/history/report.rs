//! A history as it is shown.

use serde::Serialize;

use crate::history::{ActiveTimeline, Flaw, Gap, History, Point, Window};
use crate::ids::{DatabaseId, Position};
use crate::time::Timestamp;

/// What `everwhen history --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HistoryReport {
    /// Whose history.
    pub database: DatabaseId,
    /// The intervals in which every moment can be restored.
    pub windows: Vec<Window>,
    /// The intervals between them.
    pub gaps: Vec<Gap>,
    /// The lines of history, and when each was the main one.
    pub timelines: Vec<ActiveTimeline>,
    /// The labels. None are made yet.
    pub labels: Vec<()>,
    /// The full images.
    pub bases: Vec<BaseReport>,
    /// The newest commit of the main line.
    pub latest: Option<Point>,
    /// The last moment whose restore point is known.
    pub covered_through: Option<Timestamp>,
    /// Segments on all timelines.
    pub segments: u64,
    /// Their size.
    pub log_bytes: u64,
    /// What is missing or wrong, as far as names tell.
    pub flaws: Vec<Flaw>,
}

/// A base as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BaseReport {
    /// The state it holds.
    pub position: Position,
    /// The size of its manifest; the pages lie in packs that bases share.
    pub manifest_bytes: u64,
}

impl History {
    /// What is shown of this history.
    #[must_use]
    pub fn report(&self) -> HistoryReport {
        let base =
            |entry: super::BaseEntry| BaseReport { position: entry.key.position, manifest_bytes: entry.size };
        HistoryReport {
            database: self.database(),
            windows: self.windows(),
            gaps: self.gaps(),
            timelines: self.timelines(),
            labels: Vec::new(),
            bases: self.bases().map(base).collect(),
            latest: self.newest(),
            covered_through: self.covered_through(),
            segments: self.segments().count() as u64,
            log_bytes: self.segments().map(|entry| entry.size).sum(),
            flaws: self.flaws().to_vec(),
        }
    }
}
