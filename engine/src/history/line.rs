//! One timeline's own log: which segments tile it, where it has holes, and which of its states can be rebuilt.

use crate::history::{History, Point, SegmentEntry};
use crate::ids::{Position, TimelineId, TxId, TxRange};
use crate::store::keys::SegmentKey;
use crate::time::Timestamp;

/// One step of the tiling: a segment, and the part of it that counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// The segment.
    pub(crate) key: SegmentKey,
    /// Its object's size, in bytes.
    pub(crate) size: u64,
    /// The first transaction taken from it: its first, unless the segment before overlaps it.
    pub(crate) first: TxId,
    /// Transactions missing right before it.
    pub(crate) hole_before: Option<TxRange>,
    /// The first of its transactions that can be rebuilt; the later ones of it can be, too.
    pub(crate) rebuilds_from: Option<TxId>,
}

impl Piece {
    /// How many transactions are taken from it.
    pub(crate) fn transactions(&self) -> u64 {
        TxRange::new(self.first, self.key.range.last()).map_or(0, TxRange::count)
    }

    /// When its first transaction was committed.
    pub(crate) fn begins(&self) -> Timestamp {
        self.key.begins()
    }

    /// The last moment before it at which the state before it was still the newest.
    pub(crate) fn known_before(&self) -> Timestamp {
        if self.key.flags.opens_window() { self.key.from } else { self.key.from.plus_micros(-1) }
    }

    /// The earliest rebuildable restore point of it whose time is known from the key.
    pub(crate) fn first_point(&self, timeline: TimelineId) -> Option<Point> {
        let tx = self.rebuilds_from?;
        let at = |tx, time| Some(Point { position: Position::new(timeline, tx), time });
        if tx == self.key.range.first() && tx != self.key.range.last() {
            at(tx, self.begins())
        } else {
            at(self.key.range.last(), self.key.to)
        }
    }

    /// Its last restore point, if that can be rebuilt.
    pub(crate) fn last_point(&self, timeline: TimelineId) -> Option<Point> {
        let position = Position::new(timeline, self.key.range.last());
        self.rebuilds_from.map(|_| Point { position, time: self.key.to })
    }

    /// Whether this transaction is taken from this piece.
    pub(crate) fn holds(&self, tx: TxId) -> bool {
        self.first <= tx && tx <= self.key.range.last()
    }

    /// Whether this transaction of it can be rebuilt.
    pub(crate) fn rebuilds(&self, tx: TxId) -> bool {
        self.rebuilds_from.is_some_and(|from| from <= tx)
    }
}

/// A timeline's own transactions: those after its fork point.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) id: TimelineId,
    /// The fork point as the claim says it.
    pub(crate) fork: Option<Position>,
    /// The state at the fork point, when it can be rebuilt and its time is known.
    pub(crate) begins_with: Option<Point>,
    /// Whether the state at the fork point can be rebuilt.
    pub(crate) fork_rebuilds: bool,
    pub(crate) pieces: Vec<Piece>,
    /// The newest mark that says the last transaction is the newest.
    pub(crate) covered_through: Option<Timestamp>,
    /// A mark names a transaction after the last one there is: this one is missing, and maybe more before it.
    pub(crate) missing_tail: Option<TxId>,
}

impl Line {
    pub(crate) fn build(history: &History, id: TimelineId) -> Self {
        let fork = history.timeline(id).and_then(|timeline| timeline.parent);
        let own_fork = fork.and_then(|fork| history.canonical(fork));
        let begins = history.segments.partition_point(|entry| entry.key.timeline < id);
        let own = history.segments.iter().skip(begins).take_while(|entry| entry.key.timeline == id);
        let mut line = Self {
            id,
            fork,
            begins_with: own_fork.and_then(|fork| point_at(history, fork)),
            fork_rebuilds: own_fork.is_some_and(|fork| can_rebuild(history, fork)),
            pieces: tile(own),
            covered_through: None,
            missing_tail: None,
        };
        line.find_holes(history);
        line.find_rebuildable(history);
        line.take_marks(history);
        line
    }

    /// The last transaction that is there: the fork point's number if there is none of its own.
    pub(crate) fn last_tx(&self) -> Option<TxId> {
        self.pieces.last().map(|piece| piece.key.range.last()).or(self.fork.map(|fork| fork.tx))
    }

    /// The piece a transaction is taken from.
    pub(crate) fn piece_of(&self, tx: TxId) -> Option<&Piece> {
        let at = self.pieces.partition_point(|piece| piece.first <= tx).checked_sub(1)?;
        self.pieces.get(at).filter(|piece| piece.holds(tx))
    }

    /// The missing run that a transaction belongs to.
    pub(crate) fn hole_at(&self, tx: TxId) -> Option<TxRange> {
        let at = self.pieces.partition_point(|piece| piece.first <= tx);
        self.pieces
            .get(at)
            .and_then(|piece| piece.hole_before)
            .filter(|hole| hole.contains(tx))
            .or_else(|| self.tail_hole().filter(|hole| hole.contains(tx)))
    }

    /// The run that is missing at the end, as far as marks tell.
    pub(crate) fn tail_hole(&self) -> Option<TxRange> {
        let first = self.last_tx().map_or(TxId::FIRST, TxId::next);
        self.missing_tail.and_then(|last| TxRange::new(first, last))
    }

    /// Between neighbours, and before the first piece when something vouches for an earlier transaction.
    fn find_holes(&mut self, history: &History) {
        let oldest_base = history.bases.range(Position::new(self.id, TxId::FIRST)..).next();
        let oldest_base = oldest_base.filter(|(at, _)| at.timeline == self.id).map(|(at, _)| at.tx);
        // The log of the first timeline may begin anywhere: what came before has expired.
        let mut after = self.fork.map(|fork| fork.tx).or(oldest_base);
        for piece in &mut self.pieces {
            let before = piece.first.previous();
            piece.hole_before = after.zip(before).and_then(|(after, last)| TxRange::new(after.next(), last));
            after = Some(piece.key.range.last());
        }
    }

    fn find_rebuildable(&mut self, history: &History) {
        let mut reachable = self.fork_rebuilds;
        let mut previous = self.fork.map(|fork| fork.tx);
        for piece in &mut self.pieces {
            let touches = previous.is_some_and(|previous| previous.next() == piece.first);
            let last = piece.key.range.last();
            // A base right before the piece serves, even when the log before it is gone.
            let based_before = piece.first.previous().is_some_and(|tx| has_base(history, self.id, tx));
            reachable = if piece.key.flags.needs_base {
                has_base(history, self.id, piece.first)
            } else {
                reachable && touches || based_before
            };
            piece.rebuilds_from = if reachable {
                Some(piece.first)
            } else {
                let own =
                    history.own_bases(self.id, piece.first, last).next().map(|base| base.key.position.tx);
                own.or(Some(last).filter(|last| has_base(history, self.id, *last)))
            };
            reachable = piece.rebuilds_from.is_some();
            previous = Some(last);
        }
    }

    fn take_marks(&mut self, history: &History) {
        for mark in history.seen.iter().filter(|mark| mark.position.timeline == self.id) {
            match self.last_tx() {
                Some(last) if mark.position.tx == last => {
                    self.covered_through = self.covered_through.max(Some(mark.time));
                }
                Some(last) if mark.position.tx < last => {}
                _ => self.missing_tail = self.missing_tail.max(Some(mark.position.tx)),
            }
        }
    }
}

fn has_base(history: &History, timeline: TimelineId, tx: TxId) -> bool {
    let own = history.canonical(Position::new(timeline, tx));
    own.is_some_and(|position| !history.bases_at(position).is_empty())
}

fn point_at(history: &History, position: Position) -> Option<Point> {
    let piece = history.line(position.timeline)?.piece_of(position.tx)?;
    // The time of a transaction within a segment is not in the key: its segment's end is the closest there is.
    let time = if position.tx == piece.key.range.first() { piece.begins() } else { piece.key.to };
    Some(Point { position, time })
}

pub(crate) fn can_rebuild(history: &History, position: Position) -> bool {
    !history.bases_at(position).is_empty()
        || history
            .line(position.timeline)
            .and_then(|line| line.piece_of(position.tx))
            .is_some_and(|piece| piece.rebuilds(position.tx))
}

/// Chooses segments so that each begins where the one before ends, the widest first. Needs them in order of first
/// transaction, widest first.
fn tile<'a>(segments: impl Iterator<Item = &'a SegmentEntry>) -> Vec<Piece> {
    let segments: Vec<&SegmentEntry> = segments.collect();
    let mut pieces: Vec<Piece> = Vec::new();
    // The one that reaches furthest among those that begin within what is tiled already.
    let mut overlapping: Option<&SegmentEntry> = None;
    let mut at = 0;
    while let Some(&entry) = segments.get(at) {
        let range = entry.key.range;
        let next = pieces.last().map(|piece| piece.key.range.last().next());
        if next.is_some_and(|next| range.first() < next) {
            overlapping = overlapping.filter(|other| other.key.range.last() >= range.last()).or(Some(entry));
            at += 1;
            continue;
        }
        let bridge = overlapping.filter(|_| next.is_some_and(|next| range.first() > next));
        let bridge = bridge.filter(|other| next.is_some_and(|next| other.key.range.last() >= next));
        match (bridge, next) {
            (Some(other), Some(next)) => pieces.push(piece(other, next)),
            _ => {
                pieces.push(piece(entry, range.first()));
                at += 1;
            }
        }
    }
    let next = pieces.last().map(|piece| piece.key.range.last().next());
    if let (Some(other), Some(next)) = (overlapping, next)
        && other.key.range.last() >= next
    {
        pieces.push(piece(other, next));
    }
    pieces
}

fn piece(entry: &SegmentEntry, first: TxId) -> Piece {
    Piece { key: entry.key, size: entry.size, first, hole_before: None, rebuilds_from: None }
}
