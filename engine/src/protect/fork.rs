//! New timelines: where each begins.
//!
//! A timeline is never taken up again once its log cannot be shown to go on: the next free number is claimed, with the
//! last state that is certain as its parent. Nothing is lost by it, both stay restorable.

use std::collections::BTreeSet;

use crate::error::{Explain, chain};
use crate::history::{Findings, History, SegmentEntry};
use crate::ids::{DatabaseId, Position, TimelineId, TxId};
use crate::page::{PageSize, StateChecksum};
use crate::plan::{Route, route};
use crate::protect::claims::{OurClaim, claim};
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::protect::journal::Mark;
use crate::repository::{ForkReason, Repository};
use crate::restore::{Inventory, Lists, read_lists};
use crate::segment::chain_start;
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// What was read; `None`, with a warning, when the one object is not as it should be.
pub(super) fn readable<T, E: Into<ProtectError>>(read: Result<T, E>) -> Result<Option<T>, ProtectError> {
    match read.map_err(Into::into) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_of_one_object() => {
            let (error, advice) = (chain(&error), error.advice());
            tracing::warn!(error, advice, "protection goes on without it");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Before the first transaction of a timeline that we have claimed.
pub(super) fn first_mark(claim: OurClaim) -> Mark {
    Mark {
        database: claim.database,
        timeline: claim.timeline,
        claim: claim.nonce,
        tx: None,
        time: Timestamp::from_micros(0),
        chain: chain_start(claim.database, claim.timeline),
        page_size: PageSize::MIN,
        image_pages: 0,
        stored: None,
        needs_base: None,
        log_versions: 0,
        log_bytes: 0,
        resume: Vec::new(),
    }
}

/// The end of what the repository holds.
pub(super) struct LastState {
    pub(super) position: Position,
    pub(super) last: Transaction,
    pub(super) page_size: PageSize,
    /// The last transaction of its timeline whose state only a base gives.
    pub(super) needs_base: Option<TxId>,
    /// How it is rebuilt; `None` when it cannot be.
    pub(super) route: Option<Route>,
}

impl LastState {
    /// Before the first transaction after it, on a timeline that we have claimed.
    pub(super) fn mark(&self, claim: OurClaim) -> Mark {
        let tx = Some(self.position.tx);
        let log = self.route.as_ref();
        Mark {
            tx,
            time: self.last.time,
            page_size: self.page_size,
            image_pages: self.last.image_pages,
            stored: tx,
            needs_base: if log.is_some() { self.needs_base } else { tx },
            // Names do not tell how many pages a transaction changed: one at least.
            log_versions: log.map_or(0, |log| log.transactions),
            log_bytes: log.map_or(0, |log| log.segments.iter().map(|segment| segment.size).sum()),
            ..first_mark(claim)
        }
    }
}

/// The last transaction that can be read, of the newest timeline. Where that one has none of its own it was claimed for
/// nothing, or nothing was committed since: then of the timeline with the latest commit.
pub(super) async fn last_state(
    repository: &Repository,
    database: DatabaseId,
) -> Result<Option<LastState>, ProtectError> {
    let mut history = history(repository, database).await?;
    let mut timelines: Vec<TimelineId> =
        history.timelines().iter().map(|active| active.timeline.id).collect();
    let newest = timelines.last().copied();
    if history.segments().all(|entry| Some(entry.key.timeline) != newest) {
        timelines.sort_by_key(|id| history.newest_of(*id).map(|point| (point.time, point.position)));
    }
    for &timeline in timelines.iter().rev() {
        let own = |entry: &SegmentEntry| entry.key.timeline == timeline;
        let mut segments: Vec<SegmentEntry> = history.segments().filter(own).collect();
        segments.sort_by_key(|entry| entry.key.range.last());
        let mut unreadable = BTreeSet::new();
        while let Some(newest) = segments.pop() {
            let Some(lists) = readable(read_lists(repository, newest).await)? else {
                unreadable.insert(newest.key.to_string());
                continue;
            };
            let Lists { transactions, page_size } = lists;
            let Some(last) = transactions.last().copied() else { continue };
            if !unreadable.is_empty() {
                history = history.without(&unreadable, &BTreeSet::new());
            }
            let position = Position::new(timeline, last.tx);
            let based = segments.iter().chain([&newest]).filter(|entry| entry.key.flags.needs_base);
            let needs_base = based.map(|entry| entry.key.range.first()).max();
            let route = route(&history, position).ok();
            return Ok(Some(LastState { position, last, page_size, needs_base, route }));
        }
    }
    Ok(None)
}

/// What of a database can be read: without the timelines that a damaged claim leads to.
async fn history(repository: &Repository, database: DatabaseId) -> Result<History, ProtectError> {
    let claims = Inventory::claims(repository, database).await?;
    let findings = Findings {
        timelines: claims.into_iter().filter_map(Result::ok).collect(),
        segments: Inventory::all_segments(repository, database).await?,
        bases: Inventory::bases(repository, database).await?,
        seen: Vec::new(),
    };
    Ok(History::build(database, findings))
}

/// A new timeline for a source that has lost its last transactions: it begins where the source really is, found by
/// the state checksum among the newest transactions; else at the last state, and the caller records the difference.
pub(crate) async fn fork_behind(
    driver: &Driver,
    mark: &Mark,
    found: StateChecksum,
) -> Result<(Mark, bool), ProtectError> {
    /// Segments searched for the state, newest first.
    const SEARCHED: usize = 64;
    let repository = &driver.repository;
    let segments = repository.segments(mark.database, mark.timeline, None).await?;
    // What lies behind the mark lies behind a hole.
    let is_it = |transaction: &Transaction| transaction.state == found && Some(transaction.tx) <= mark.tx;
    let mut at = None;
    for &(key, size) in segments.iter().rev().take(SEARCHED) {
        let Some(lists) = readable(read_lists(repository, SegmentEntry { key, size }).await)? else {
            continue;
        };
        at = lists.transactions.into_iter().rev().find(is_it);
        if at.is_some() {
            break;
        }
    }
    let from = Mark {
        tx: at.map(|transaction| transaction.tx).or(mark.tx),
        time: at.map_or(mark.time, |transaction| transaction.time.max(mark.time)),
        image_pages: at.map_or(mark.image_pages, |transaction| transaction.image_pages),
        ..mark.clone()
    };
    let forked = fork_from(driver, &from, ForkReason::SourceBehind).await?;
    Ok((forked, at.is_some()))
}

/// A new timeline that begins with the state of `mark`, all of which the repository holds.
pub(crate) async fn fork_from(
    driver: &Driver,
    mark: &Mark,
    reason: ForkReason,
) -> Result<Mark, ProtectError> {
    let parent = mark.tx.map(|tx| Position::new(mark.timeline, tx));
    let claim = claim(driver, mark.database, parent, reason).await?;
    let fresh = first_mark(claim);
    Ok(Mark {
        timeline: fresh.timeline,
        claim: fresh.claim,
        chain: fresh.chain,
        stored: mark.tx,
        ..mark.clone()
    })
}
