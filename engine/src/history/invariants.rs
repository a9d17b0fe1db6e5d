//! The rules a history keeps, in one place: each has a function, and a [`Flaw`] that names what breaks it.
//!
//! 1. A timeline is claimed once; its parent is a claimed timeline of a lower number. Numbers have no holes.
//! 2. A segment or base belongs to the database and to a claimed timeline, and a segment lies after the fork point.
//! 3. Of two segments that share transactions, one holds the other whole (a wide one made of narrow ones).
//! 4. A timeline's segments follow one another without a hole, from the fork point or the oldest base on.
//! 5. Commit times do not run backwards from segment to segment.
//! 6. No mark names a transaction after the last one there is, nor a timeline without a claim.
//! 7. A fork point is a transaction of the parent.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};

use crate::history::{BaseEntry, Forks, History, Seen, SegmentEntry, Timeline};
use crate::ids::{DatabaseId, Position, TimelineId, TxRange};
use crate::store::keys::{BaseKey, SegmentKey};

/// A broken rule of a history: what is missing or wrong, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Two different claims of one timeline.
    ClaimedTwice(TimelineId),
    /// A timeline forked from one that is not there (or not older than itself).
    NoParent {
        /// The child.
        timeline: TimelineId,
        /// What it names as its fork point.
        parent: Position,
    },
    /// A timeline forked from a transaction that its parent does not have.
    ForkPointMissing {
        /// The child.
        timeline: TimelineId,
        /// The fork point.
        parent: Position,
    },
    /// A timeline of which segments, bases, marks or later timelines tell, but without a claim that can be read.
    Unclaimed(TimelineId),
    /// A segment of another database.
    StraySegment(SegmentKey),
    /// A base of another database.
    StrayBase(BaseKey),
    /// A segment with transactions that belong to the parent timeline.
    BeforeFork(SegmentKey),
    /// Two segments with some transactions in common, none of them holding the other whole.
    Overlap(SegmentKey, SegmentKey),
    /// Missing transactions.
    Hole {
        /// Whose.
        timeline: TimelineId,
        /// Which, as far as is known.
        missing: TxRange,
    },
    /// Transactions that a daemon saw in the repository, and that are not there.
    TailMissing {
        /// Whose.
        timeline: TimelineId,
        /// Which, as far as is known.
        missing: TxRange,
    },
    /// A segment that begins before the one before it ends.
    TimeRunsBackwards(SegmentKey),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClaimedTwice(timeline) => write!(f, "timeline {timeline}: has two different claims"),
            Self::NoParent { timeline, parent } => {
                write!(f, "timeline {timeline}: forked at {parent}, but that timeline's claim is missing")
            }
            Self::ForkPointMissing { timeline, parent } => {
                write!(f, "timeline {timeline}: forked at {parent}, but that transaction is missing")
            }
            Self::Unclaimed(timeline) => {
                write!(
                    f,
                    "timeline {timeline}: its claim is missing or damaged, and without it its log is of no use"
                )
            }
            Self::StraySegment(key) => write!(f, "segment {key}: belongs to another database"),
            Self::StrayBase(key) => write!(f, "base {key}: belongs to another database"),
            Self::BeforeFork(key) => write!(f, "segment {key}: begins before its timeline's fork point"),
            Self::Overlap(one, other) => write!(f, "segments {one} and {other}: overlap"),
            Self::Hole { timeline, missing } => {
                write!(f, "timeline {timeline}: {} missing", Transactions(*missing))
            }
            Self::TailMissing { timeline, missing } => {
                write!(f, "timeline {timeline}: {} missing at its end", Transactions(*missing))
            }
            Self::TimeRunsBackwards(key) => {
                write!(f, "segment {key}: begins before the segment before it ends")
            }
        }
    }
}

impl Serialize for Flaw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// "transaction 1 is" or "transactions 1 to 3 are".
pub(crate) struct Transactions(pub(crate) TxRange);

impl fmt::Display for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.count() == 1 {
            write!(f, "transaction {} is", self.0.first())
        } else {
            write!(f, "transactions {} to {} are", self.0.first(), self.0.last())
        }
    }
}

/// Rule 1. Children of unsound timelines are unsound.
pub(crate) fn sound_timelines(claims: &[Timeline], flaws: &mut Vec<Flaw>) -> BTreeMap<TimelineId, Timeline> {
    let mut all: BTreeMap<TimelineId, &Timeline> = BTreeMap::new();
    for claim in claims {
        match all.get(&claim.id) {
            Some(other) if *other != claim => flaws.push(Flaw::ClaimedTwice(claim.id)),
            Some(_) => {}
            None => {
                all.insert(claim.id, claim);
            }
        }
    }
    flaws.extend(missing_numbers(all.keys().copied()).map(Flaw::Unclaimed));
    let mut sound: BTreeMap<TimelineId, Timeline> = BTreeMap::new();
    for (id, claim) in all {
        match claim.parent {
            // Parents come first, so a parent that is not in yet is missing, unsound or younger.
            Some(parent) if !sound.contains_key(&parent.timeline) => {
                flaws.push(Flaw::NoParent { timeline: id, parent });
            }
            _ => {
                sound.insert(id, claim.clone());
            }
        }
    }
    sound
}

/// The numbers that claims pass over. Each claim takes the number after the highest, so there was one for these, too.
fn missing_numbers(claimed: impl Iterator<Item = TimelineId>) -> impl Iterator<Item = TimelineId> {
    /// Of one hole: whatever a forged claim says, the list stays short.
    const TOLD_MAX: usize = 100;
    let mut next = TimelineId::FIRST;
    claimed.flat_map(move |id| {
        let first = std::mem::replace(&mut next, id.next());
        (first.get()..id.get()).take(TOLD_MAX).filter_map(TimelineId::new)
    })
}

/// Rule 6, as far as it is about timelines: a mark is put by a timeline's writer, after its claim.
pub(crate) fn check_marks(seen: &[Seen], forks: &Forks<'_>, flaws: &mut Vec<Flaw>) {
    for mark in seen {
        if forks.fork_of(mark.position.timeline).is_none() {
            add(Flaw::Unclaimed(mark.position.timeline), flaws);
        }
    }
}

/// Rules 2 and 3: the usable segments in order of timeline, first transaction, widest first.
pub(crate) fn sound_segments(
    database: DatabaseId,
    mut segments: Vec<SegmentEntry>,
    forks: &Forks<'_>,
    flaws: &mut Vec<Flaw>,
) -> Vec<SegmentEntry> {
    segments.retain(|entry| {
        let key = &entry.key;
        let flaw = match forks.fork_of(key.timeline) {
            _ if key.database != database => Flaw::StraySegment(*key),
            None => Flaw::Unclaimed(key.timeline),
            Some(Some(fork)) if key.range.first() <= fork.tx => Flaw::BeforeFork(*key),
            Some(_) => return true,
        };
        add(flaw, flaws);
        false
    });
    segments.sort_by_key(|SegmentEntry { key, .. }| {
        (key.timeline, key.range.first(), std::cmp::Reverse(key.range.last()), key.digest)
    });
    segments.dedup_by_key(|entry| entry.key);
    check_overlaps(&segments, flaws);
    segments
}

/// One lost claim is one flaw, whatever was written under it, and so is one that is of no use because its parent's is
/// lost.
fn add(flaw: Flaw, flaws: &mut Vec<Flaw>) {
    let told = match flaw {
        Flaw::Unclaimed(lost) => lost_line(flaws, lost).is_some(),
        _ => false,
    };
    if !told {
        flaws.push(flaw);
    }
}

/// Why nothing is known of a timeline that something was written on.
pub(crate) fn lost_line(flaws: &[Flaw], lost: TimelineId) -> Option<&Flaw> {
    flaws.iter().find(|flaw| match flaw {
        Flaw::Unclaimed(timeline) | Flaw::NoParent { timeline, .. } => *timeline == lost,
        _ => false,
    })
}

/// Rule 3, over segments in order: each one lies within the innermost one that is still open, or after it.
fn check_overlaps(segments: &[SegmentEntry], flaws: &mut Vec<Flaw>) {
    let mut open: Vec<SegmentKey> = Vec::new();
    for SegmentEntry { key, .. } in segments {
        while open
            .last()
            .is_some_and(|outer| outer.timeline != key.timeline || outer.range.last() < key.range.first())
        {
            open.pop();
        }
        if let Some(outer) = open.last()
            && outer.range.last() < key.range.last()
        {
            flaws.push(Flaw::Overlap(*outer, *key));
        }
        open.push(*key);
    }
}

/// Rule 2, for bases.
pub(crate) fn sound_bases(
    database: DatabaseId,
    mut bases: Vec<BaseEntry>,
    forks: &Forks<'_>,
    flaws: &mut Vec<Flaw>,
) -> Vec<BaseEntry> {
    bases.retain(|entry| {
        let flaw = match forks.canonical(entry.key.position) {
            _ if entry.key.database != database => Flaw::StrayBase(entry.key),
            None => Flaw::Unclaimed(entry.key.position.timeline),
            Some(_) => return true,
        };
        add(flaw, flaws);
        false
    });
    bases.sort_by_key(|entry| (entry.key.position, entry.key.digest));
    bases.dedup_by_key(|entry| entry.key);
    bases
}

/// Rules 4 to 7, over the timelines' logs.
pub(crate) fn check_lines(history: &mut History) {
    let mut flaws = Vec::new();
    for line in history.lines.values() {
        let timeline = line.id;
        for piece in &line.pieces {
            flaws.extend(piece.hole_before.map(|missing| Flaw::Hole { timeline, missing }));
        }
        for pair in line.pieces.windows(2) {
            if let [before, after] = pair
                && after.key.from < before.key.to
            {
                flaws.push(Flaw::TimeRunsBackwards(after.key));
            }
        }
        flaws.extend(line.tail_hole().map(|missing| Flaw::TailMissing { timeline, missing }));
        if let Some(parent) = line.fork
            && !line.fork_rebuilds
            && !fork_point_exists(history, parent)
        {
            flaws.push(Flaw::ForkPointMissing { timeline, parent });
        }
    }
    history.flaws.extend(flaws);
}

fn fork_point_exists(history: &History, fork: Position) -> bool {
    let Some(own) = history.canonical(fork) else { return false };
    history.line(own.timeline).is_some_and(|line| line.piece_of(own.tx).is_some())
}
