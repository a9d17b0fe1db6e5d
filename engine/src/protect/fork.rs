//! New timelines: claims, and where each begins.
//!
//! A timeline is never taken up again once its log cannot be shown to go on: the next free number is claimed, with the last
//! state that is certain as its parent. Nothing is lost by it, both stay restorable.

use crate::failpoint;
use crate::ids::{DatabaseId, Position, TimelineId, TxId};
use crate::page::{PageSize, StateChecksum};
use crate::protect::ProtectOptions;
use crate::protect::error::ProtectError;
use crate::protect::journal::Mark;
use crate::repository::{Claim, ForkReason, NewTimeline, Repository};
use crate::segment::chain_start;
use crate::store::keys::SegmentKey;
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// Claims the next free timeline from `wanted` on.
pub(super) async fn claim(
    repository: &Repository,
    options: &ProtectOptions,
    database: DatabaseId,
    mut wanted: TimelineId,
    parent: Option<Position>,
    reason: ForkReason,
) -> Result<(TimelineId, [u8; 8]), ProtectError> {
    failpoint::hit("timeline_before_claim");
    loop {
        let new = NewTimeline {
            id: wanted,
            parent,
            reason,
            host: options.host,
            host_name: options.host_name.clone(),
            now: Timestamp::now(),
        };
        match repository.claim_timeline(database, new).await? {
            Claim::Won(timeline) => {
                failpoint::hit("timeline_after_claim");
                return Ok((timeline.id, timeline.nonce));
            }
            Claim::TakenBy(_) => wanted = wanted.next(),
        }
    }
}

/// Before the first transaction of a timeline that we have claimed.
pub(super) fn first_mark(database: DatabaseId, (timeline, nonce): (TimelineId, [u8; 8])) -> Mark {
    Mark {
        database,
        timeline,
        claim: nonce,
        tx: None,
        time: Timestamp::from_micros(0),
        chain: chain_start(database, timeline),
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
    pub(super) needs_base: Option<TxId>,
}

/// The last transaction of the newest timeline that has any.
pub(super) async fn last_state(
    repository: &Repository,
    database: DatabaseId,
    timelines: &[TimelineId],
) -> Result<Option<LastState>, ProtectError> {
    for &timeline in timelines.iter().rev() {
        let segments = repository.segments(database, timeline, None).await?;
        let Some((key, _)) = segments.iter().max_by_key(|(key, _)| key.range.last()) else { continue };
        let (transactions, page_size) = transactions_of(repository, key).await?;
        if let Some(last) = transactions.last() {
            let based =
                segments.iter().filter(|(key, _)| key.flags.needs_base).map(|(key, _)| key.range.first());
            let (position, needs_base) = (Position::new(timeline, last.tx), based.max());
            return Ok(Some(LastState { position, last: *last, page_size, needs_base }));
        }
    }
    Ok(None)
}

async fn transactions_of(
    repository: &Repository,
    key: &SegmentKey,
) -> Result<(Vec<Transaction>, PageSize), ProtectError> {
    let bytes = repository.get_segment(key).await?;
    let (mut transactions, mut page_size) = (Vec::new(), PageSize::MIN);
    for part in crate::segment::parts(&bytes) {
        let prologue = part?.prologue;
        page_size = prologue.header.page_size;
        transactions.extend(prologue.transactions);
    }
    Ok((transactions, page_size))
}

/// A new timeline for a source that has lost its last transactions: it begins where the source really is, found by
/// the state checksum among the newest transactions; else at the last state, and the caller records the difference.
pub(crate) async fn fork_behind(
    repository: &Repository,
    options: &ProtectOptions,
    mark: &Mark,
    found: StateChecksum,
) -> Result<(Mark, bool), ProtectError> {
    /// Segments searched for the state, newest first.
    const SEARCHED: usize = 64;
    let segments = repository.segments(mark.database, mark.timeline, None).await?;
    let mut at = None;
    for (key, _) in segments.iter().rev().take(SEARCHED) {
        let (transactions, _) = transactions_of(repository, key).await?;
        at = transactions.into_iter().rev().find(|transaction| transaction.state == found);
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
    let forked = fork_from(repository, options, &from, ForkReason::SourceBehind).await?;
    Ok((forked, at.is_some()))
}

/// A new timeline that begins with the state of `mark`, all of which the repository holds.
pub(crate) async fn fork_from(
    repository: &Repository,
    options: &ProtectOptions,
    mark: &Mark,
    reason: ForkReason,
) -> Result<Mark, ProtectError> {
    let parent = mark.tx.map(|tx| Position::new(mark.timeline, tx));
    let (timeline, nonce) =
        claim(repository, options, mark.database, mark.timeline.next(), parent, reason).await?;
    let chain = chain_start(mark.database, timeline);
    Ok(Mark { timeline, claim: nonce, stored: mark.tx, chain, ..mark.clone() })
}
