//! Makes a plan: the pure steps of [`crate::plan`], with the few reads between them.
//!
//! What a target means is decided once, on the whole history ([`goal`]). Whatever turns out to be damaged after that,
//! every further plan is one for that very state ([`plan_to`]).

use std::sync::Arc;

use bytes::Bytes;

use crate::base::Manifest;
use crate::history::{History, Point, SegmentEntry};
use crate::ids::Position;
use crate::page::PageSize;
use crate::plan::{
    BaseFacts, Located, PlanError, RestorePlan, Route, Target, TargetFacts, agree, locate, pick, route,
};
use crate::restore::around::Around;
use crate::restore::base::{bytes_of, reads_of};
use crate::restore::{Objects, ReadError, RestoreError};
use crate::segment::{HEADER_BYTES, Prologue, SegmentError};
use crate::store::keys::{BaseKey, SegmentKey};
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// A segment up to this size is read whole for its tables, and so checked against its name.
const WHOLE_BYTES_MAX: u64 = 64 * 1024;
/// Bytes read from a larger one at first: header and tables are seldom larger.
const FIRST_BYTES: u64 = 64 * 1024;

/// The exact state that a target means.
pub(crate) struct Goal {
    pub(crate) asked: Target,
    pub(crate) position: Position,
    /// The segment that was looked into to find it.
    known: Option<(SegmentKey, Vec<Transaction>)>,
}

/// Plans a restore: finds the exact state, the way to it, and what it costs. Two to four small reads. Where one of them
/// finds damage, another way to the same state is taken, if there is one.
///
/// `now` is the clock's time, to tell the future from what is not known yet.
///
/// # Errors
/// [`RestoreError::Plan`] when there is no such restorable point, [`RestoreError::Read`] when an object is missing,
/// damaged or not to be had.
pub async fn plan<O: Objects>(
    objects: &O,
    history: &History,
    target: Target,
    now: Timestamp,
) -> Result<RestorePlan, RestoreError> {
    let mut around = Around::new(objects, history);
    let goal = around.goal(target, now).await?;
    around.plan(&goal).await
}

/// Finds the state that a target means.
pub(crate) async fn goal<O: Objects>(
    objects: &O,
    history: &History,
    target: Target,
    now: Timestamp,
) -> Result<Goal, RestoreError> {
    let at = |position| Goal { asked: target, position, known: None };
    Ok(match locate(history, target, now)? {
        Located::Exact(point) => at(point.position),
        Located::AtBase(base) => at(history.canonical(base.position).unwrap_or(base.position)),
        Located::Within(key, which) => {
            let transactions = transactions_of(objects, history, &key).await?;
            let point = pick(history, &key, which, &transactions)?;
            Goal { known: Some((key, transactions)), ..at(point.position) }
        }
    })
}

/// Plans the way to a state that is decided.
pub(crate) async fn plan_to<O: Objects>(
    objects: &O,
    history: &History,
    goal: &Goal,
) -> Result<RestorePlan, RestoreError> {
    let route = route(history, goal.position)?;
    let manifest = open_manifest(objects, route.base.key).await?;
    let target = match route.segments.last() {
        Some(last) if route.base_position(history) != goal.position => {
            facts_of_log(objects, goal, last).await?
        }
        _ => facts_of_base(objects, history, goal, &route, &manifest).await?,
    };
    let reads = reads_of(&manifest);
    let base = BaseFacts {
        bytes: route.base.size.saturating_add(reads.iter().map(bytes_of).sum()),
        requests: 1 + reads.len() as u64,
        manifest: Arc::new(manifest),
    };
    Ok(RestorePlan::new(goal.asked, &route, base, target))
}

/// What a segment says of the state.
async fn facts_of_log<O: Objects>(
    objects: &O,
    goal: &Goal,
    segment: &SegmentEntry,
) -> Result<TargetFacts, RestoreError> {
    match &goal.known {
        Some((key, transactions)) if *key == segment.key => facts(transactions, goal.position, segment),
        _ => facts(&sound_transactions(objects, *segment).await?, goal.position, segment),
    }
}

/// What a base says of its own state, which must be what the log recorded of it, as far as the log is there.
async fn facts_of_base<O: Objects>(
    objects: &O,
    history: &History,
    goal: &Goal,
    route: &Route,
    manifest: &Manifest,
) -> Result<TargetFacts, RestoreError> {
    let position = goal.position;
    let of_base = TargetFacts {
        point: Point { position, time: manifest.time },
        image_pages: manifest.page_count,
        state: manifest.state,
    };
    let line = history.line(position.timeline);
    let Some(piece) = line.and_then(|line| line.piece_of(position.tx)) else { return Ok(of_base) };
    let of_log = facts_of_log(objects, goal, &SegmentEntry { key: piece.key, size: piece.size }).await?;
    if (of_log.image_pages, of_log.state) != (of_base.image_pages, of_base.state) {
        let what = format!(
            "it has {} pages and state {}, the log says {} pages and state {}",
            of_base.image_pages, of_base.state, of_log.image_pages, of_log.state
        );
        return Err(ReadError::Damaged { object: route.base.key.to_string(), what }.into());
    }
    Ok(of_log)
}

impl Route {
    fn base_position(&self, history: &History) -> Position {
        history.canonical(self.base.key.position).unwrap_or(self.base.key.position)
    }
}

fn facts(
    transactions: &[Transaction],
    position: Position,
    segment: &SegmentEntry,
) -> Result<TargetFacts, RestoreError> {
    let found = transactions.iter().find(|transaction| transaction.tx == position.tx);
    let missing =
        || ReadError::damaged(&segment.key, &format!("it does not hold transaction {}", position.tx));
    let found = found.ok_or_else(missing)?;
    let point = Point { position, time: found.time };
    Ok(TargetFacts { point, image_pages: found.image_pages, state: found.state })
}

/// Reads a manifest and checks that it is the one its name says.
pub(crate) async fn open_manifest<O: Objects>(objects: &O, key: BaseKey) -> Result<Manifest, ReadError> {
    let bytes = objects.base(key).await?;
    let manifest = Manifest::decode(&bytes).map_err(|error| ReadError::of_base(&key, &error))?;
    if manifest.database != key.database || manifest.position != key.position {
        let what = format!("it is the base at {} of database {}", manifest.position, manifest.database);
        return Err(ReadError::damaged(&key, &what));
    }
    Ok(manifest)
}

async fn transactions_of<O: Objects>(
    objects: &O,
    history: &History,
    key: &SegmentKey,
) -> Result<Vec<Transaction>, ReadError> {
    let entry = history.segments().find(|entry| entry.key == *key);
    let size = entry.map_or(0, |entry| entry.size);
    sound_transactions(objects, SegmentEntry { key: *key, size }).await
}

/// The transactions of a segment, which must be those of its name.
async fn sound_transactions<O: Objects>(
    objects: &O,
    entry: SegmentEntry,
) -> Result<Vec<Transaction>, ReadError> {
    let transactions = objects.transactions(entry).await?;
    match agree(&entry.key, &transactions) {
        Err(PlanError::Contradiction { what, .. }) => Err(ReadError::damaged(&entry.key, &what)),
        _ => Ok(transactions),
    }
}

/// The transactions of a segment, as its parts list them.
pub async fn read_transactions<O: Objects>(
    objects: &O,
    entry: SegmentEntry,
) -> Result<Vec<Transaction>, ReadError> {
    Ok(read_lists(objects, entry).await?.transactions)
}

/// What the parts of a segment say of it before their pages.
pub(crate) struct Lists {
    pub(crate) transactions: Vec<Transaction>,
    /// Of the last part.
    pub(crate) page_size: PageSize,
}

/// Reads no more of a segment than what its parts say before their pages, or all of a small one.
pub(crate) async fn read_lists<O: Objects>(objects: &O, entry: SegmentEntry) -> Result<Lists, ReadError> {
    let key = entry.key;
    let whole = if entry.size <= WHOLE_BYTES_MAX { Some(objects.segment(key).await?) } else { None };
    let size = whole.as_ref().map_or(entry.size, |bytes| bytes.len() as u64);
    let damaged = |error: SegmentError| ReadError::of_segment(&key, &error);
    let mut lists = Lists { transactions: Vec::new(), page_size: PageSize::MIN };
    let mut at = 0;
    while at < size {
        let read = |len: u64| read_at(objects, key, whole.as_ref(), at, len.min(size - at));
        let mut head = read(FIRST_BYTES).await?;
        let mut needed = Prologue::needed(&head).map_err(damaged)?;
        if needed == HEADER_BYTES || needed > head.len() {
            head = read(needed as u64).await?;
            needed = Prologue::needed(&head).map_err(damaged)?;
        }
        let prologue = Prologue::parse(head.get(..needed).unwrap_or(&head)).map_err(damaged)?;
        at += prologue.header.part_len();
        lists.page_size = prologue.header.page_size;
        lists.transactions.extend(prologue.transactions);
    }
    Ok(lists)
}

async fn read_at<O: Objects>(
    objects: &O,
    key: SegmentKey,
    whole: Option<&Bytes>,
    at: u64,
    len: u64,
) -> Result<Bytes, ReadError> {
    match whole {
        Some(bytes) => {
            let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len() - start);
            Ok(bytes.slice(start..start + len))
        }
        None => objects.segment_range(key, at..at + len).await,
    }
}
