//! From a wish to a plan: which exact state is meant, and what to read to rebuild it. Pure: no IO, no clock.
//!
//! 1. [`locate`] finds the point from names alone, or says whose segment's transactions decide ([`Located::Within`]);
//!    then [`pick`] decides. Either refuses with the nearest points, never guesses.
//! 2. [`route()`] finds the newest base before it and the segments from there on.
//! 3. [`RestorePlan::new`] adds what the base's manifest and the target's record say. The plan is the one value that
//!    a dry run prints, progress counts against, a restore executes and tests look at.

mod error;
mod resolve;
mod route;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::base::Manifest;
use crate::history::{Point, SegmentEntry};
use crate::ids::{DatabaseId, Position};
use crate::page::{PageSize, StateChecksum};
use crate::store::keys::BaseKey;
use crate::time::Timestamp;

pub use error::{NoSuchPoint, PlanError};
pub(crate) use resolve::agree;
pub use resolve::{Located, Pick, locate, pick};
pub use route::{Route, route};

/// What to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The state as of a moment.
    Time(Timestamp),
    /// Exactly this commit.
    Position(Position),
    /// The newest commit in the repository.
    Latest,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => time.fmt(f),
            Self::Position(position) => position.fmt(f),
            Self::Latest => f.write_str("latest"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The base, and what it costs to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseFacts {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Stored bytes to read: the chunks and the manifest itself.
    pub bytes: u64,
    /// Reads they come in.
    pub requests: u64,
}

/// What the repository says of the target's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetFacts {
    /// The point.
    pub point: Point,
    /// Pages in the image.
    pub image_pages: u32,
    /// The checksum that the result must have.
    pub state: StateChecksum,
}

/// Everything a restore will do, and what it will cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestorePlan {
    /// Whose state.
    pub database: DatabaseId,
    /// The exact state.
    pub position: Position,
    /// When it was committed.
    pub time: Timestamp,
    /// What was asked for.
    pub asked: Target,
    /// How long before the asked time it was committed; `None` unless a time was asked for.
    pub distance_ms: Option<i64>,
    /// The image to begin with.
    #[serde(serialize_with = "as_text")]
    pub base: BaseKey,
    /// What that image is made of.
    #[serde(skip)]
    pub manifest: Arc<Manifest>,
    /// The log to replay on it, in order.
    #[serde(serialize_with = "as_texts")]
    pub segments: Vec<SegmentEntry>,
    /// Transactions to replay.
    pub transactions: u64,
    /// Stored bytes to read.
    pub read_bytes: u64,
    /// Requests to make, at least.
    pub requests: u64,
    /// Bytes in a page.
    #[serde(serialize_with = "as_number")]
    pub page_size: PageSize,
    /// Pages of the result.
    pub image_pages: u32,
    /// Bytes of the result.
    pub image_bytes: u64,
    /// Bytes of the base's image or of the result, whichever is larger: what must be free, apart from the reserve. An image
    /// that grew and shrank between the two takes more for a while.
    pub space_needed_bytes: u64,
    /// The checksum that the result must have.
    #[serde(serialize_with = "as_text")]
    pub state: StateChecksum,
}

impl RestorePlan {
    /// Puts a plan together.
    #[must_use]
    pub fn new(asked: Target, route: &Route, base: BaseFacts, target: TargetFacts) -> Self {
        let page_size = base.manifest.page_size;
        let page_bytes = u64::from(page_size.get());
        let distance = match asked {
            Target::Time(time) => Some(time.micros_since(target.point.time) / 1000),
            Target::Position(_) | Target::Latest => None,
        };
        let log_bytes: u64 = route.segments.iter().map(|entry| entry.size).sum();
        Self {
            database: route.base.key.database,
            position: target.point.position,
            time: target.point.time,
            asked,
            distance_ms: distance,
            base: route.base.key,
            segments: route.segments.clone(),
            transactions: route.transactions,
            read_bytes: base.bytes.saturating_add(log_bytes),
            requests: base.requests.saturating_add(route.segments.len() as u64),
            page_size,
            image_pages: target.image_pages,
            image_bytes: u64::from(target.image_pages) * page_bytes,
            space_needed_bytes: u64::from(target.image_pages.max(base.manifest.page_count)) * page_bytes,
            state: target.state,
            manifest: base.manifest,
        }
    }
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_texts<S: Serializer>(entries: &[SegmentEntry], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(entries.iter().map(|entry| entry.key.to_string()))
}

fn as_number<S: Serializer>(size: &PageSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(size.get())
}
