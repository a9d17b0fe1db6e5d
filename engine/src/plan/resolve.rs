//! Which exact state a target means.

use crate::history::invariants::lost_line;
use crate::history::{Ending, Flaw, GapReason, History, Line, Nearest, Piece, Point, can_rebuild};
use crate::ids::{Position, TimelineId, TxId};
use crate::plan::{NoSuchPoint, PlanError, Target};
use crate::store::keys::{BaseKey, SegmentKey};
use crate::time::Timestamp;
use crate::transaction::Transaction;

/// Where a target's state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// This point: the last of a segment, or the first.
    Exact(Point),
    /// One of this segment's transactions: [`pick`] says which.
    Within(SegmentKey, Pick),
    /// The state of this base, whose manifest says when it was committed; the log there is gone.
    AtBase(BaseKey),
}

/// Which of a segment's transactions is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The last one committed by this moment.
    LastUpTo(Timestamp),
    /// This one.
    Tx(TxId),
}

/// Finds a target's state from names alone. `now` is the clock's time, to tell the future from the not yet known.
///
/// # Errors
/// [`PlanError`] when there is no such restorable point; it names the nearest ones.
pub fn locate(history: &History, target: Target, now: Timestamp) -> Result<Located, PlanError> {
    match target {
        Target::Time(time) => locate_time(history, time, now),
        Target::Position(position) => locate_position(history, position, target),
        Target::Latest => locate_latest(history),
    }
}

/// Decides among the transactions of the segment that [`locate`] named.
///
/// # Errors
/// [`PlanError::Contradiction`] when the transactions are not those of the segment's name;
/// [`PlanError::NoSuchPoint`] when the state cannot be rebuilt.
pub fn pick(
    history: &History,
    segment: &SegmentKey,
    pick: Pick,
    transactions: &[Transaction],
) -> Result<Point, PlanError> {
    agree(segment, transactions)?;
    let found = match pick {
        Pick::LastUpTo(time) => {
            let after = transactions.partition_point(|transaction| transaction.time <= time);
            after.checked_sub(1).and_then(|at| transactions.get(at))
        }
        Pick::Tx(tx) => transactions.iter().find(|transaction| transaction.tx == tx),
    };
    let Some(found) = found else { return before(history, segment, pick) };
    let position = Position::new(segment.timeline, found.tx);
    let asked = match pick {
        Pick::LastUpTo(time) => Target::Time(time),
        Pick::Tx(_) => Target::Position(position),
    };
    if !can_rebuild(history, position) {
        return Err(why_not_rebuilt(history, position, asked));
    }
    Ok(Point { position, time: found.time })
}

/// The moment lies after the `from` of a segment's name, yet before its first commit: the state before is meant.
fn before(history: &History, segment: &SegmentKey, pick: Pick) -> Result<Point, PlanError> {
    let Pick::LastUpTo(time) = pick else {
        let what = "does not hold the transaction that was asked for".to_owned();
        return Err(PlanError::Contradiction { segment: Box::new(*segment), what });
    };
    let previous = segment.range.first().previous();
    let own = previous.and_then(|tx| history.canonical(Position::new(segment.timeline, tx)));
    match own.map(|own| locate_position(history, own, Target::Time(time))) {
        Some(Ok(Located::Exact(point))) => Ok(point),
        Some(Err(error)) => Err(error),
        Some(Ok(_)) | None => {
            Err(NoSuchPoint::BeforeWindow { asked: time, nearest: history.main_line().nearest(time) }.into())
        }
    }
}

/// What a segment says of its transactions must be what its name says.
pub(crate) fn agree(segment: &SegmentKey, transactions: &[Transaction]) -> Result<(), PlanError> {
    let contradiction = |what: String| Err(PlanError::Contradiction { segment: Box::new(*segment), what });
    let (Some(first), Some(last)) = (transactions.first(), transactions.last()) else {
        return contradiction("has no transactions".to_owned());
    };
    if first.tx != segment.range.first() || last.tx != segment.range.last() {
        return contradiction(format!("holds transactions {} to {}", first.tx, last.tx));
    }
    if first.not_before != segment.from || last.time != segment.to {
        return contradiction(format!("holds the time from {} to {}", first.not_before, last.time));
    }
    if first.flags != segment.flags {
        let (found, expected) = (first.flags.bits(), segment.flags.bits());
        return contradiction(format!("has flags {found:x}, its name says {expected:x}"));
    }
    if transactions.windows(2).any(|pair| matches!(pair, [a, b] if b.time < a.time || a.tx.next() != b.tx)) {
        return contradiction("its transactions are not in order".to_owned());
    }
    Ok(())
}

fn locate_time(history: &History, time: Timestamp, now: Timestamp) -> Result<Located, PlanError> {
    let main = history.main_line();
    let nearest = main.nearest(time);
    let asked = Target::Time(time);
    // First, for the clock here may lag behind that of the daemon who knows the moment.
    if main.spans.iter().any(|span| span.from <= time && time <= span.to) {
        return locate_known(history, time);
    }
    if time > now {
        return Err(NoSuchPoint::Future { asked: time, now, nearest }.into());
    }
    if let Some(lost) = history.lost_at(time) {
        return Err(PlanError::Missing { asked, missing: Box::new(lost.clone()), nearest });
    }
    let (Some(oldest), Some(newest)) = (main.spans.first(), main.spans.last()) else {
        return Err(nothing_rebuilds(history, asked));
    };
    if time < oldest.from {
        return Err(NoSuchPoint::BeforeWindow { asked: time, nearest }.into());
    }
    if time > newest.to {
        return Err(match newest.ending {
            Ending::Gap(GapReason::Damaged) => missing_around(history, time, nearest),
            Ending::Gap(GapReason::NoBase) => missing_around(history, time, nearest),
            _ if began_damaged(history, newest.last.position.timeline) => {
                missing_around(history, time, nearest)
            }
            _ => NoSuchPoint::NotKnownYet { asked: time, covered_through: newest.to, nearest }.into(),
        });
    }
    let gap = main.gaps.iter().find(|gap| gap.from < time && time < gap.to);
    match gap {
        Some(gap) if gap.reason == GapReason::Damaged => Err(missing_around(history, time, nearest)),
        Some(gap) => Err(NoSuchPoint::InGap { asked: time, gap: Box::new(gap.clone()), nearest }.into()),
        None => Err(missing_around(history, time, nearest)),
    }
}

/// Whether the newest timeline, which is not the given one, forked from what is missing: then nothing of it is known.
fn began_damaged(history: &History, other: TimelineId) -> bool {
    let newest = history.active().last().map(|active| active.timeline);
    newest.is_some_and(|newest| newest != other && fork_missing(history, newest).is_some())
}

fn fork_missing(history: &History, line: TimelineId) -> Option<Flaw> {
    let of_line = |flaw: &&Flaw| matches!(flaw, Flaw::ForkPointMissing { timeline, .. } if *timeline == line);
    history.flaws().iter().find(of_line).cloned()
}

/// Of a moment in a window.
fn locate_known(history: &History, time: Timestamp) -> Result<Located, PlanError> {
    let active = history.active().into_iter().rev().find(|active| active.from <= time);
    let line = active.and_then(|active| history.line(active.timeline));
    let Some(line) = line else { return Err(nothing_rebuilds(history, Target::Time(time))) };
    let at = line.pieces.partition_point(|piece| piece.begins() <= time);
    match at.checked_sub(1).and_then(|at| line.pieces.get(at)) {
        Some(piece) if piece.key.to <= time && piece.rebuilds_from.is_some() => {
            Ok(Located::Exact(end_of(piece, line)))
        }
        Some(piece) => Ok(Located::Within(piece.key, Pick::LastUpTo(time))),
        None => match line.fork {
            Some(fork) => locate_position(history, fork, Target::Time(time)),
            None => Err(nothing_rebuilds(history, Target::Time(time))),
        },
    }
}

fn end_of(piece: &Piece, line: &Line) -> Point {
    Point { position: Position::new(line.id, piece.key.range.last()), time: piece.key.to }
}

fn locate_position(history: &History, position: Position, asked: Target) -> Result<Located, PlanError> {
    let nearest = || nearest_of_position(history, position);
    if let Some(lost) = lost_line(history.flaws(), position.timeline) {
        return Err(PlanError::Missing { asked, missing: Box::new(lost.clone()), nearest: nearest() });
    }
    let unknown = || NoSuchPoint::UnknownPosition { asked: position, nearest: nearest() };
    let own = history.canonical(position).ok_or_else(unknown)?;
    let line = history.line(own.timeline).ok_or_else(unknown)?;
    let Some(piece) = line.piece_of(own.tx) else {
        return match history.bases_at(own).first() {
            Some(base) => Ok(Located::AtBase(base.key)),
            None if line.hole_at(own.tx).is_some() => Err(why_not_rebuilt(history, own, asked)),
            None => Err(unknown().into()),
        };
    };
    if !piece.rebuilds(own.tx) {
        return Err(why_not_rebuilt(history, own, asked));
    }
    if own.tx == piece.key.range.last() {
        Ok(Located::Exact(end_of(piece, line)))
    } else if own.tx == piece.key.range.first() {
        Ok(Located::Exact(Point { position: own, time: piece.begins() }))
    } else {
        Ok(Located::Within(piece.key, Pick::Tx(own.tx)))
    }
}

fn locate_latest(history: &History) -> Result<Located, PlanError> {
    if let Some(lost) = history.lost_at(Timestamp::MAX) {
        let nearest = Nearest { before: last_restorable(history), after: None };
        return Err(PlanError::Missing { asked: Target::Latest, missing: Box::new(lost.clone()), nearest });
    }
    let newest = history.newest();
    let line = newest.and_then(|_| history.active().last().copied()).and_then(|a| history.line(a.timeline));
    let (Some(newest), Some(line)) = (newest, line) else {
        return Err(nothing_rebuilds(history, Target::Latest));
    };
    if let Some(missing) = line.tail_hole() {
        let nearest = Nearest { before: last_restorable(history), after: None };
        let missing = Box::new(Flaw::TailMissing { timeline: line.id, missing });
        return Err(PlanError::Missing { asked: Target::Latest, missing, nearest });
    }
    if let Some(other) = history.newer_elsewhere(line.id, newest) {
        return match history.is_gone_on_from(other.position) {
            true => locate_position(history, other.position, Target::Latest),
            false => Err(NoSuchPoint::TwoLatest { main: newest, other }.into()),
        };
    }
    locate_position(history, newest.position, Target::Latest)
}

fn last_restorable(history: &History) -> Option<Point> {
    history.main_line().spans.last().map(|span| span.last)
}

fn nothing_rebuilds(history: &History, asked: Target) -> PlanError {
    let flaw = history.flaws().iter().find(|flaw| {
        matches!(
            flaw,
            Flaw::Hole { .. }
                | Flaw::TailMissing { .. }
                | Flaw::NoParent { .. }
                | Flaw::ForkPointMissing { .. }
                | Flaw::Unclaimed(_)
        )
    });
    let nearest = Nearest::default();
    match (flaw, history.segments().next()) {
        (Some(missing), _) => PlanError::Missing { asked, missing: Box::new(missing.clone()), nearest },
        (None, Some(_)) => NoSuchPoint::NoBase { asked, nearest }.into(),
        (None, None) => NoSuchPoint::NoHistory { database: history.database() }.into(),
    }
}

/// Names the hole that a moment falls into or comes after.
fn missing_around(history: &History, time: Timestamp, nearest: Nearest) -> PlanError {
    let asked = Target::Time(time);
    let active = history.active().into_iter().rev().find(|active| active.from <= time);
    let line = active.and_then(|active| history.line(active.timeline));
    let flaw = line.and_then(|line| {
        let timeline = line.id;
        let next = line.pieces.partition_point(|piece| piece.begins() <= time);
        let before = line.pieces.iter().take(next).rev().find_map(|piece| piece.hole_before);
        let after = || line.pieces.iter().skip(next).find_map(|piece| piece.hole_before);
        before
            .or_else(after)
            .map(|missing| Flaw::Hole { timeline, missing })
            .or_else(|| line.tail_hole().map(|missing| Flaw::TailMissing { timeline, missing }))
            .or_else(|| fork_missing(history, timeline))
            .or_else(|| hole_before(history, history.canonical(line.fork?)?))
    });
    match flaw {
        Some(missing) => PlanError::Missing { asked, missing: Box::new(missing), nearest },
        None => NoSuchPoint::NoBase { asked, nearest }.into(),
    }
}

/// The refusal for a state that is named, but cannot be rebuilt.
pub(crate) fn why_not_rebuilt(history: &History, own: Position, asked: Target) -> PlanError {
    let nearest = nearest_of_position(history, own);
    match hole_before(history, own) {
        Some(missing) => PlanError::Missing { asked, missing: Box::new(missing), nearest },
        None => NoSuchPoint::NoBase { asked, nearest }.into(),
    }
}

/// The restorable segment ends around a position, on its own timeline and its ancestors.
pub(crate) fn nearest_of_position(history: &History, position: Position) -> Nearest {
    let own = history.canonical(position);
    let Some(line) = own.and_then(|own| history.line(own.timeline)) else {
        return Nearest { before: last_restorable(history), after: None };
    };
    let tx = own.map_or(position.tx, |own| own.tx);
    let before = line.pieces.iter().rev().filter(|piece| piece.key.range.last() < tx);
    let after = line.pieces.iter().filter(|piece| piece.key.range.last() > tx);
    Nearest {
        before: before
            .filter_map(|piece| piece.last_point(line.id))
            .next()
            .or(line.begins_with.filter(|_| line.fork_rebuilds)),
        after: after.filter_map(|piece| piece.first_point(line.id)).find(|point| point.position.tx > tx),
    }
}

/// The damage nearest to a state, if any stands between it and a base.
fn hole_before(history: &History, own: Position) -> Option<Flaw> {
    let mut at = own;
    loop {
        let line = history.line(at.timeline)?;
        let timeline = at.timeline;
        if let Some(missing) = line.hole_at(at.tx) {
            return Some(if line.tail_hole() == Some(missing) {
                Flaw::TailMissing { timeline, missing }
            } else {
                Flaw::Hole { timeline, missing }
            });
        }
        let holes = line.pieces.iter().rev().filter(|piece| piece.first <= at.tx);
        if let Some(missing) = holes.filter_map(|piece| piece.hole_before).next() {
            return Some(Flaw::Hole { timeline, missing });
        }
        if let Some(missing) = fork_missing(history, timeline) {
            return Some(missing);
        }
        at = history.canonical(line.fork?)?;
    }
}
