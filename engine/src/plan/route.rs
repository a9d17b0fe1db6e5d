//! Which base and which segments lead to a state.

use crate::history::{BaseEntry, History, SegmentEntry};
use crate::ids::Position;
use crate::plan::resolve::{nearest_of_position, why_not_rebuilt};
use crate::plan::{NoSuchPoint, PlanError, Target};

/// The way to a state: an image and the log from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The image to begin with.
    pub base: BaseEntry,
    /// The log to replay on it, in order. The first may begin with parts that the base already holds. Each is replayed
    /// up to where the next one begins: a timeline may have left its parent in the middle of a segment.
    pub segments: Vec<SegmentEntry>,
    /// Transactions to replay.
    pub transactions: u64,
}

/// Finds the newest base from which the log leads to `position` without a hole.
///
/// # Errors
/// [`PlanError`] when there is none: what is missing, or that no base is there.
pub fn route(history: &History, position: Position) -> Result<Route, PlanError> {
    let asked = Target::Position(position);
    let unknown =
        || NoSuchPoint::UnknownPosition { asked: position, nearest: nearest_of_position(history, position) };
    let own = history.canonical(position).ok_or_else(unknown)?;
    let mut backwards: Vec<SegmentEntry> = Vec::new();
    let mut at = own;
    let base = loop {
        if let Some(base) = history.bases_at(at).first() {
            break Some(*base);
        }
        let Some(piece) = history.line(at.timeline).and_then(|line| line.piece_of(at.tx)) else { break None };
        backwards.push(SegmentEntry { key: piece.key, size: piece.size });
        let before = at.tx.previous().unwrap_or(at.tx);
        if let Some(base) = history.own_bases(at.timeline, piece.first, before).next_back() {
            break Some(base);
        }
        if piece.key.flags.needs_base {
            // Its first transaction changes no page: it can be replayed on the base that holds it.
            let first = Position::new(at.timeline, piece.key.range.first());
            break history.bases_at(first).first().copied();
        }
        // In a hole there is no piece, but there may be a base.
        let Some(before) = piece.first.previous() else { break None };
        let Some(previous) = history.canonical(Position::new(at.timeline, before)) else { break None };
        at = previous;
    };
    let Some(base) = base else { return Err(why_not_rebuilt(history, own, asked)) };
    backwards.reverse();
    let transactions = own.tx.get().saturating_sub(base.key.position.tx.get());
    Ok(Route { base, segments: backwards, transactions })
}
