//! What is known when protection begins, and what follows from it. Pure: no IO, no clock.
//!
//! Two things must never happen. A number that is given to two transactions: a put that a kill broke off may arrive at
//! any time, so whatever *may* be numbered already is not numbered again on the same timeline. And a log that is called
//! durable with nothing to replay it on: only a base on the way to the present state counts.

use std::collections::BTreeMap;

use crate::ids::{Position, TimelineId, TxId, TxRange};

/// The timelines that lead to one, the own first, each with the last transaction that is common to both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lineage(Vec<(TimelineId, Option<TxId>)>);

impl Lineage {
    /// `None` when a claim on the way is not known: nobody can read what is written on such a timeline.
    pub(super) fn of(timeline: TimelineId, parents: &BTreeMap<TimelineId, Option<Position>>) -> Option<Self> {
        let mut steps = vec![(timeline, None)];
        let (mut at, mut upto) = (timeline, None);
        // Ends because a parent's number is lower than its child's.
        while let Some(parent) = (*parents.get(&at)?).filter(|parent| parent.timeline < at) {
            at = parent.timeline;
            upto = Some(upto.map_or(parent.tx, |upto: TxId| upto.min(parent.tx)));
            steps.push((at, upto));
        }
        Some(Self(steps))
    }

    /// Whether the state at `position` is one that the state after `end` came from.
    fn passes(&self, position: Position, end: TxId) -> bool {
        let shared = |&(timeline, upto): &(TimelineId, Option<TxId>)| {
            timeline == position.timeline && upto.is_none_or(|upto| position.tx <= upto)
        };
        position.tx <= end && self.0.iter().any(shared)
    }
}

/// A mark of the journal, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded {
    pub(super) tx: Option<TxId>,
    pub(super) needs_base: Option<TxId>,
}

/// What the journal, the spool and the repository say of the journal's timeline.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) timeline: TimelineId,
    /// `None` when a claim cannot be read.
    pub(super) lineage: Option<Lineage>,
    /// The highest number in a claim that can be read.
    pub(super) newest_claim: TimelineId,
    /// All marks of the journal, oldest first.
    pub(super) marks: Vec<Recorded>,
    /// What the journal knows to be in the repository with all before it.
    pub(super) stored: Option<TxId>,
    /// The segments behind that.
    pub(super) segments: Vec<TxRange>,
    /// The parts in the spool that go on from [`Known::tip`], whole.
    pub(super) parts: Vec<TxRange>,
    /// Where there are bases that can be read, of any timeline.
    pub(super) bases: Vec<Position>,
}

/// Why a timeline is not gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Somebody has claimed a later one.
    Superseded,
    /// Numbers behind the end may be given away already.
    NumberedBeyond,
}

/// How protection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// With the first transaction of the timeline: none was recorded yet.
    First,
    /// On the same timeline, after this transaction.
    GoOn(TxId),
    /// On the next timeline, after this transaction.
    Fork(TxId, Leaving),
    /// On the next timeline, with an image: nothing of this one is certain, or nobody could read it.
    Anew,
    /// On the next timeline, after what the repository holds last: the journal does not know the state there.
    AtTip,
}

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) next: Next,
    /// So many of the parts belong before it; the others are of no use.
    pub(super) parts: usize,
    /// The newest base that leads to it.
    pub(super) base: Option<Position>,
}

impl Known {
    /// The last transaction in the repository with all before it.
    pub(super) fn tip(&self) -> Option<TxId> {
        contiguous_tip(self.stored, &self.segments)
    }

    /// What follows.
    pub(super) fn decide(&self) -> Decision {
        if self.lineage.is_none() {
            return Decision { next: Next::Anew, parts: 0, base: None };
        }
        let mut parts = self.parts.len();
        let mut base = self.base_for(self.end(parts));
        let needs_base = self.needs_base(self.end(parts));
        if base.is_none() && needs_base > self.tip() {
            // Its base was never finished, and nothing of it was ever called durable.
            parts = self.parts.iter().take_while(|part| Some(part.last()) < needs_base).count();
            base = self.base_for(self.end(parts));
        }
        let stays = self.leaving(self.end(parts)).is_none() && self.is_recorded(self.end(parts));
        if !stays && base.is_none() {
            // Without a base nothing is stored, and a timeline that is left gets none.
            parts = 0;
            base = self.base_for(self.end(parts));
        }
        let next = match (self.end(parts), self.leaving(self.end(parts))) {
            (None, None) => Next::First,
            (None, Some(_)) => Next::Anew,
            (end, _) if !self.is_recorded(end) => Next::AtTip,
            (Some(end), Some(leaving)) => Next::Fork(end, leaving),
            (Some(end), None) => Next::GoOn(end),
        };
        Decision { next, parts, base }
    }

    /// Where the log goes on behind so many of the parts.
    fn end(&self, parts: usize) -> Option<TxId> {
        let last = parts.checked_sub(1).and_then(|last| self.parts.get(last));
        last.map(|part| part.last()).or(self.tip())
    }

    fn is_recorded(&self, end: Option<TxId>) -> bool {
        self.marks.iter().any(|mark| mark.tx == end)
    }

    fn needs_base(&self, end: Option<TxId>) -> Option<TxId> {
        let reached = self.marks.iter().rev().find(|mark| mark.tx <= end).or(self.marks.first());
        reached.and_then(|mark| mark.needs_base)
    }

    /// The newest base from which the state after `end` can be rebuilt.
    fn base_for(&self, end: Option<TxId>) -> Option<Position> {
        let (end, lineage, needs_base) = (end?, self.lineage.as_ref()?, self.needs_base(end));
        let serves = |base: &Position| Some(base.tx) >= needs_base && lineage.passes(*base, end);
        self.bases.iter().copied().filter(serves).max_by_key(|base| (base.tx, base.timeline))
    }

    fn leaving(&self, end: Option<TxId>) -> Option<Leaving> {
        let own_base = |base: &Position| base.timeline == self.timeline && Some(base.tx) > end;
        if self.marks.iter().any(|mark| mark.tx > end)
            || self.segments.iter().any(|segment| Some(segment.last()) > end)
            || self.bases.iter().any(own_base)
        {
            Some(Leaving::NumberedBeyond)
        } else {
            (self.newest_claim > self.timeline).then_some(Leaving::Superseded)
        }
    }
}

/// The last transaction of the run of segments that goes on without a hole after `stored`.
pub(super) fn contiguous_tip(stored: Option<TxId>, segments: &[TxRange]) -> Option<TxId> {
    segments.iter().fold(stored, |tip, segment| {
        if segment.first() <= tip.map_or(TxId::FIRST, TxId::next) {
            tip.max(Some(segment.last()))
        } else {
            tip
        }
    })
}

/// Whether a part goes on from `tip`: it leaves no hole, and is not all there already.
pub(super) fn goes_on(tip: Option<TxId>, part: TxRange) -> bool {
    let next = tip.map_or(TxId::FIRST, TxId::next);
    part.first() <= next && part.last() >= next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tx(number: u64) -> Option<TxId> {
        TxId::new(number)
    }

    fn range((first, last): (u64, u64)) -> TxRange {
        TxRange::new(tx(first).unwrap(), tx(last).unwrap()).unwrap()
    }

    fn at((timeline, number): (u32, u64)) -> Position {
        Position::new(TimelineId::new(timeline).unwrap(), tx(number).unwrap())
    }

    /// A journal whose parts ended with these transactions, of which the last state to need a base is `needs_base`. All
    /// claims are of timelines that left the one before at 50.
    struct Case {
        marks: &'static [u64],
        needs_base: u64,
        stored: u64,
        segments: &'static [(u64, u64)],
        parts: &'static [(u64, u64)],
        bases: &'static [(u32, u64)],
        timeline: u32,
        claims: u32,
    }

    /// Transactions 1 to 9 are stored, on a base of the first, and so says the journal.
    const QUIET: Case = Case {
        marks: &[9],
        needs_base: 1,
        stored: 9,
        segments: &[],
        parts: &[],
        bases: &[(1, 1)],
        timeline: 1,
        claims: 1,
    };

    fn known(case: &Case) -> Known {
        let claim = |id: u32| (TimelineId::new(id).unwrap(), (id > 1).then(|| at((id - 1, 50))));
        let (timeline, needs_base) = (TimelineId::new(case.timeline).unwrap(), tx(case.needs_base));
        let recorded = |&last: &u64| Recorded {
            tx: tx(last),
            needs_base: needs_base.filter(|needs_base| needs_base.get() <= last),
        };
        Known {
            timeline,
            lineage: Lineage::of(timeline, &(1..=case.claims).map(claim).collect()),
            newest_claim: TimelineId::new(case.claims).unwrap(),
            marks: case.marks.iter().map(recorded).collect(),
            stored: tx(case.stored),
            segments: case.segments.iter().copied().map(range).collect(),
            parts: case.parts.iter().copied().map(range).collect(),
            bases: case.bases.iter().copied().map(at).collect(),
        }
    }

    fn fork(end: u64, leaving: Leaving) -> Next {
        Next::Fork(tx(end).unwrap(), leaving)
    }

    fn go_on(end: u64) -> Next {
        Next::GoOn(tx(end).unwrap())
    }

    #[test]
    fn what_follows_from_what_is_known() {
        use Leaving::{NumberedBeyond, Superseded};
        let none: Option<(u32, u64)> = None;
        #[rustfmt::skip]
        let cases = [
            ("all is stored", QUIET, go_on(9), 0, Some((1, 1))),
            ("more is stored than the journal knew", Case { marks: &[9, 12], segments: &[(10, 12)], ..QUIET }, go_on(12), 0, Some((1, 1))),
            ("the spool goes on", Case { marks: &[9, 12], parts: &[(10, 12)], ..QUIET }, go_on(12), 1, Some((1, 1))),
            ("nothing was recorded yet", Case { marks: &[0], needs_base: 0, stored: 0, bases: &[], ..QUIET }, Next::First, 0, none),
            ("the repository is ahead", Case { segments: &[(10, 12)], ..QUIET }, Next::AtTip, 0, Some((1, 1))),
            // A part of the spool that a power cut tore is not among the parts.
            ("the only part is torn", Case { marks: &[9, 12], ..QUIET }, fork(9, NumberedBeyond), 0, Some((1, 1))),
            ("the second part is torn", Case { marks: &[9, 12, 15], parts: &[(10, 12)], ..QUIET }, fork(12, NumberedBeyond), 1, Some((1, 1))),
            ("a part is torn that the whole table is behind", Case { marks: &[15], parts: &[(10, 12)], ..QUIET }, Next::AtTip, 1, Some((1, 1))),
            ("somebody has claimed a later timeline", Case { claims: 2, ..QUIET }, fork(9, Superseded), 0, Some((1, 1))),
            ("and the spool goes on", Case { marks: &[9, 12], parts: &[(10, 12)], claims: 2, ..QUIET }, fork(12, Superseded), 1, Some((1, 1))),
            ("a put was broken off", Case { marks: &[9, 12], ..QUIET }, fork(9, NumberedBeyond), 0, Some((1, 1))),
            ("a segment lies behind a hole", Case { marks: &[9, 12, 15], segments: &[(13, 15)], ..QUIET }, fork(9, NumberedBeyond), 0, Some((1, 1))),
            ("a base was made on a parent's other future", Case { marks: &[50, 51], needs_base: 51, stored: 50, parts: &[(51, 51)], bases: &[(1, 1), (1, 60)], timeline: 2, claims: 2, ..QUIET }, fork(50, NumberedBeyond), 0, Some((1, 1))),
            ("a base was made before the fork", Case { marks: &[50, 52], stored: 50, parts: &[(51, 52)], bases: &[(1, 1), (1, 50), (1, 60)], timeline: 2, claims: 2, ..QUIET }, go_on(52), 1, Some((1, 50))),
            ("its base was finished", Case { marks: &[50, 51], needs_base: 51, stored: 50, parts: &[(51, 51)], bases: &[(1, 1), (2, 51)], timeline: 2, claims: 2, ..QUIET }, go_on(51), 1, Some((2, 51))),
            ("a base lies behind the end", Case { bases: &[(1, 1), (1, 10)], ..QUIET }, fork(9, NumberedBeyond), 0, Some((1, 1))),
            ("the first base was broken off", Case { marks: &[1], stored: 0, parts: &[(1, 1)], bases: &[], ..QUIET }, Next::Anew, 0, none),
            ("the first base was finished", Case { marks: &[1], stored: 0, parts: &[(1, 1)], ..QUIET }, go_on(1), 1, Some((1, 1))),
            ("the first base arrived, the log did not", Case { marks: &[0], needs_base: 0, stored: 0, ..QUIET }, Next::Anew, 0, none),
            ("no base can be read", Case { bases: &[], ..QUIET }, go_on(9), 0, none),
            ("no base can be read, and the timeline is left", Case { marks: &[9, 12], parts: &[(10, 12)], bases: &[], claims: 2, ..QUIET }, fork(9, NumberedBeyond), 0, none),
        ];
        for (what, case, next, parts, base) in cases {
            let expected = Decision { next, parts, base: base.map(at) };
            assert_eq!(known(&case).decide(), expected, "{what}");
        }
    }

    #[test]
    fn nobody_goes_on_with_a_timeline_whose_claims_cannot_be_read() {
        let whole = known(&Case { timeline: 3, claims: 3, ..QUIET });
        assert_eq!(whole.decide().next, go_on(9));
        let first_lost = [(2, Some((1, 50))), (3, Some((2, 50)))]
            .map(|(id, parent)| (TimelineId::new(id).unwrap(), parent.map(at)));
        let lineage = Lineage::of(TimelineId::new(3).unwrap(), &first_lost.into());
        assert_eq!(Known { lineage, ..whole }.decide(), Decision { next: Next::Anew, parts: 0, base: None });
    }

    #[test]
    fn the_repository_holds_what_is_there_without_a_hole() {
        let tip = |stored, segments: &[(u64, u64)]| {
            contiguous_tip(tx(stored), &segments.iter().copied().map(range).collect::<Vec<_>>())
        };
        assert_eq!(tip(0, &[]), None);
        assert_eq!(tip(0, &[(1, 4), (5, 5)]), tx(5));
        assert_eq!(tip(0, &[(2, 4)]), None, "what is before is missing");
        assert_eq!(tip(4, &[(3, 6), (6, 7), (9, 9)]), tx(7));
    }
}
