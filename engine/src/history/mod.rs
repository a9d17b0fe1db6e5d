//! What exists of a database: built from names alone, without opening an object. Pure: no IO, no clock.
//!
//! A [`History`] is made of timelines (claims and how they forked), the keys of segments and bases, and the marks of
//! daemons that looked and saw no newer commit. It knows the windows and gaps, the segment of any moment, and what
//! is missing. Damage never hides the rest: a broken rule becomes a [`Flaw`] with a name, and only what depends on it
//! cannot be restored.
//!
//! Time and timelines: the *main line* at a moment is the timeline that was active then. A timeline is active from its
//! claim (or its first commit, if that is earlier) until the next one with any evidence of life begins. A position on
//! a timeline at or before its fork point names the parent's state.
//!
//! Known moments: after a commit the state is known until the next commit's `not_before`; after the last one, as far
//! as a [`Seen`] mark reaches. Moments are whole microseconds, so a gap is the open interval between two known ones.
//!
//! Elsewhere: the rules ([`invariants`]), one timeline's log (`line`), windows and gaps (`windows`), targets
//! ([`crate::plan`]).

pub mod invariants;
mod line;
mod lost;
mod windows;

#[cfg(test)]
pub(crate) mod testing;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};

use crate::ids::{DatabaseId, HostId, Position, TimelineId, TxId};
use crate::store::keys::{BaseKey, SegmentKey};
use crate::time::Timestamp;

pub use invariants::Flaw;
pub(crate) use line::{Line, Piece, can_rebuild};
pub(crate) use windows::Ending;

/// How exact commit times are, those that are not being told to be uncertain: of two daemons, a commit that is not later by
/// more may be the same one.
pub(crate) const EXACT_MICROS: i64 = 1_000_000;

/// A claim: who writes a timeline, since when, and where it left its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// Its number.
    pub id: TimelineId,
    /// The last position it shares with the timeline it forked from; `None` for one that begins with a history.
    pub parent: Option<Position>,
    /// Why it was begun, in words.
    pub why: String,
    /// The daemon that writes it.
    pub host: HostId,
    /// That daemon's machine, for people.
    pub host_name: String,
    /// When it was claimed.
    pub claimed_at: Timestamp,
}

/// A daemon's word that the database stood at `position`, all of it in the repository, at the moment `time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The newest commit there was.
    pub position: Position,
    /// When it looked.
    pub time: Timestamp,
}

/// A restore point with its commit time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Its exact name.
    pub position: Position,
    /// When it was committed.
    pub time: Timestamp,
}

/// The restore points around a moment or position that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// The last one before.
    pub before: Option<Point>,
    /// The first one after.
    pub after: Option<Point>,
}

/// A maximal interval in which every moment has a known restore point. Both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Its first moment.
    pub from: Timestamp,
    /// Its last moment.
    pub to: Timestamp,
    /// The state at its first moment.
    pub first: Position,
    /// The state at its last moment.
    pub last: Position,
}

/// An interval whose moments have no known restore point. Its ends are the known moments around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The last known moment before it.
    pub from: Timestamp,
    /// The first known moment after it.
    pub to: Timestamp,
    /// The last restore point before it.
    pub before: Position,
    /// The first restore point after it.
    pub after: Position,
    /// Why nothing is known of it.
    pub reason: GapReason,
}

/// Why the moments of a gap have no restore point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The commits were not captured singly: nobody held the source's log, and it went on. The daemon was away, or had to
    /// let go of the log, or the log was reset under it.
    NotCaptured,
    /// The commits were captured, but when each of them happened is not known. Each can be restored by position.
    UncertainTimes,
    /// Nobody watched between the end of one timeline and the beginning of the next.
    NotWatched,
    /// Segments that were written are missing or unusable.
    Damaged,
    /// The log there begins with a state whose base is not in the repository.
    NoBase,
}

impl GapReason {
    /// The stable name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotCaptured => "not_captured",
            Self::UncertainTimes => "uncertain_times",
            Self::NotWatched => "not_watched",
            Self::Damaged => "damaged",
            Self::NoBase => "no_base",
        }
    }
}

impl std::fmt::Display for GapReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotCaptured => "its commits were not captured one by one",
            Self::UncertainTimes => "the times of its commits are not known",
            Self::NotWatched => "nobody watched the database between two timelines",
            Self::Damaged => "segments are missing",
            Self::NoBase => "the base it builds on is not in the repository",
        })
    }
}

impl Serialize for GapReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A timeline with the interval in which it was the main line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActiveTimeline {
    /// The claim.
    #[serde(flatten)]
    pub timeline: Timeline,
    /// When it became the main line; `None` if it shows no sign of life.
    pub active_from: Option<Timestamp>,
    /// When the next one took over; `None` while none has.
    pub active_until: Option<Timestamp>,
    /// Its newest commit; the fork point while it has none.
    pub last: Option<Position>,
}

/// A base image that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseEntry {
    /// Its name.
    pub key: BaseKey,
    /// The size of its manifest, in bytes.
    pub size: u64,
}

/// A segment that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Its name.
    pub key: SegmentKey,
    /// Its size, in bytes.
    pub size: u64,
}

/// What was found of one database: the input of [`History::build`], in any order.
///
/// Read `seen` first, then list bases, then segments: a mark vouches for segments that were there when it was written.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// The claims.
    pub timelines: Vec<Timeline>,
    /// All segments of all timelines.
    pub segments: Vec<SegmentEntry>,
    /// All bases.
    pub bases: Vec<BaseEntry>,
    /// All marks; a live daemon's own word may be added.
    pub seen: Vec<Seen>,
}

/// What exists of one database, and what of it can be restored. See the module's text.
#[derive(Clone, Debug)]
pub struct History {
    database: DatabaseId,
    timelines: BTreeMap<TimelineId, Timeline>,
    lines: BTreeMap<TimelineId, Line>,
    /// Timelines without a claim that counts, with their first sign of life.
    lost: BTreeMap<TimelineId, Timestamp>,
    bases: BTreeMap<Position, Vec<BaseEntry>>,
    segments: Vec<SegmentEntry>,
    seen: Vec<Seen>,
    flaws: Vec<Flaw>,
}

impl History {
    /// Puts the findings in order. Never fails: what breaks a rule is left out and named in [`History::flaws`].
    #[must_use]
    pub fn build(database: DatabaseId, findings: Findings) -> Self {
        let mut flaws = Vec::new();
        let timelines = invariants::sound_timelines(&findings.timelines, &mut flaws);
        let lost = lost::lost_timelines(database, &findings, &timelines);
        let forks = Forks { timelines: &timelines };
        let segments = invariants::sound_segments(database, findings.segments, &forks, &mut flaws);
        let bases = invariants::sound_bases(database, findings.bases, &forks, &mut flaws);
        invariants::check_marks(&findings.seen, &forks, &mut flaws);
        let mut history = Self {
            database,
            lines: BTreeMap::new(),
            lost,
            bases: by_position(&bases, &forks),
            segments,
            seen: findings.seen,
            timelines,
            flaws,
        };
        // Parents have lower numbers, so that every line finds its parent's line done.
        for id in history.timelines.keys().copied().collect::<Vec<_>>() {
            let line = Line::build(&history, id);
            history.lines.insert(id, line);
        }
        invariants::check_lines(&mut history);
        history
    }

    /// The same history as if some objects did not exist: to find a way around damaged ones.
    #[must_use]
    pub fn without(&self, segments: &BTreeSet<String>, bases: &BTreeSet<String>) -> Self {
        Self::build(
            self.database,
            Findings {
                timelines: self.timelines.values().cloned().collect(),
                segments: self
                    .segments()
                    .filter(|entry| !segments.contains(&entry.key.to_string()))
                    .collect(),
                bases: self.bases().filter(|entry| !bases.contains(&entry.key.to_string())).collect(),
                seen: self.seen.clone(),
            },
        )
    }

    /// Whose history it is.
    #[must_use]
    pub fn database(&self) -> DatabaseId {
        self.database
    }

    /// The rules this history breaks, each with what it concerns.
    #[must_use]
    pub fn flaws(&self) -> &[Flaw] {
        &self.flaws
    }

    /// All usable segments, in order of timeline, first transaction, widest first.
    pub fn segments(&self) -> impl Iterator<Item = SegmentEntry> + '_ {
        self.segments.iter().copied()
    }

    /// All usable bases, in order of their positions (a base at a fork point counts to the parent).
    pub fn bases(&self) -> impl Iterator<Item = BaseEntry> + '_ {
        self.bases.values().flatten().copied()
    }

    /// The bases that hold exactly this state.
    pub(crate) fn bases_at(&self, position: Position) -> &[BaseEntry] {
        self.bases.get(&position).map_or(&[], Vec::as_slice)
    }

    /// The bases that a timeline's own writer made of its transactions from `first` through `last`, oldest first.
    ///
    /// The writer ends a part of its log at each of them, so a replay can begin there even amid a segment. At a base
    /// that a child made of its fork point it cannot: that may lie amid a part.
    pub(crate) fn own_bases(
        &self,
        timeline: TimelineId,
        first: TxId,
        last: TxId,
    ) -> impl DoubleEndedIterator<Item = BaseEntry> + '_ {
        let positions = Position::new(timeline, first)..=Position::new(timeline, last);
        let entries = if first <= last { Some(self.bases.range(positions)) } else { None };
        let entries = entries.into_iter().flatten().flat_map(|(_, entries)| entries);
        entries.copied().filter(move |base| base.key.position.timeline == timeline)
    }

    /// The claim of a timeline.
    #[must_use]
    pub fn timeline(&self, id: TimelineId) -> Option<&Timeline> {
        self.timelines.get(&id)
    }

    pub(crate) fn line(&self, id: TimelineId) -> Option<&Line> {
        self.lines.get(&id)
    }

    /// The own name of a state: a position at or before a timeline's fork point becomes the parent's. `None` when a
    /// timeline on the way does not exist.
    #[must_use]
    pub fn canonical(&self, position: Position) -> Option<Position> {
        Forks { timelines: &self.timelines }.canonical(position)
    }

    /// The newest transaction of a timeline that is in the repository, its fork point if it has none of its own.
    #[must_use]
    pub fn last_of(&self, timeline: TimelineId) -> Option<Position> {
        let line = self.lines.get(&timeline)?;
        match line.pieces.last() {
            Some(piece) => Some(Position::new(timeline, piece.key.range.last())),
            None => line.fork.and_then(|fork| self.canonical(fork)),
        }
    }

    /// The newest commit of the main line that is in the repository, restorable or not.
    #[must_use]
    pub fn newest(&self) -> Option<Point> {
        let timeline = self.active().last()?.timeline;
        self.newest_of(timeline)
    }

    /// The newest commit of a timeline that the main line had left before: somebody went on there. `main` is the main
    /// line's newest commit, `timeline` its timeline. Times are exact to a second: what is not later by more may be the
    /// same commit, seen by two daemons.
    pub(crate) fn newer_elsewhere(&self, timeline: TimelineId, main: Point) -> Option<Point> {
        let claimed = self.timelines.get(&timeline)?.claimed_at;
        let older = self.lines.keys().filter(|id| **id < timeline);
        let newest = older.filter_map(|id| self.newest_of(*id)).max_by_key(|point| point.time)?;
        (newest.time > main.time.max(claimed).plus_micros(EXACT_MICROS)).then_some(newest)
    }

    /// Whether the newest timeline of all, of which nothing more is known, begins with this state.
    pub(crate) fn is_gone_on_from(&self, position: Position) -> bool {
        self.lines.keys().next_back().is_some_and(|newest| self.last_of(*newest) == Some(position))
    }

    /// The newest commit of a timeline that is in the repository, restorable or not; the state it begins with if it has
    /// none of its own.
    pub(crate) fn newest_of(&self, timeline: TimelineId) -> Option<Point> {
        let line = self.lines.get(&timeline)?;
        match line.pieces.last() {
            Some(piece) => {
                Some(Point { position: Position::new(timeline, piece.key.range.last()), time: piece.key.to })
            }
            None => line.begins_with,
        }
    }
}

/// How timelines hang together.
pub(crate) struct Forks<'a> {
    timelines: &'a BTreeMap<TimelineId, Timeline>,
}

impl Forks<'_> {
    fn fork_of(&self, timeline: TimelineId) -> Option<Option<Position>> {
        self.timelines.get(&timeline).map(|timeline| timeline.parent)
    }

    /// Ends because a parent's number is lower than its child's ([`invariants::sound_timelines`]).
    fn canonical(&self, mut position: Position) -> Option<Position> {
        loop {
            match self.fork_of(position.timeline)? {
                Some(fork) if position.tx <= fork.tx => position.timeline = fork.timeline,
                _ => return Some(position),
            }
        }
    }
}

fn by_position(bases: &[BaseEntry], forks: &Forks<'_>) -> BTreeMap<Position, Vec<BaseEntry>> {
    let mut map: BTreeMap<Position, Vec<BaseEntry>> = BTreeMap::new();
    for entry in bases {
        if let Some(position) = forks.canonical(entry.key.position) {
            map.entry(position).or_default().push(*entry);
        }
    }
    map
}
