//! Windows and gaps of the main line, and the intervals in which each timeline was it.

use std::collections::BTreeMap;

use crate::history::{ActiveTimeline, Gap, GapReason, History, Line, Nearest, Piece, Point, Window};
use crate::ids::TimelineId;
use crate::time::Timestamp;

/// A run of known moments on one timeline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// The state at `from`.
    pub(crate) first: Point,
    /// The first commit in it, if that is not `first`: a state may have been there before.
    pub(crate) first_commit: Option<Point>,
    /// The newest commit in it.
    pub(crate) last: Point,
    pub(crate) ending: Ending,
}

/// Why the moments after a span are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing is in the repository after it, and no mark reaches further.
    Open,
    Gap(GapReason),
}

/// The interval in which a timeline is the main line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Active {
    pub(crate) timeline: TimelineId,
    pub(crate) from: Timestamp,
    /// The first moment of the next one.
    pub(crate) until: Option<Timestamp>,
}

impl Active {
    pub(crate) fn last_moment(&self) -> Timestamp {
        self.until.map_or(Timestamp::MAX, |until| until.plus_micros(-1))
    }
}

impl History {
    /// The main line's windows, oldest first.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        self.main_line().windows()
    }

    /// The intervals between the windows.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        self.main_line().gaps
    }

    /// The last moment whose restore point is known. Moments after it are not known yet.
    #[must_use]
    pub fn covered_through(&self) -> Option<Timestamp> {
        self.main_line().spans.last().map(|span| span.to)
    }

    /// The claims, with the intervals in which each was the main line.
    #[must_use]
    pub fn timelines(&self) -> Vec<ActiveTimeline> {
        let active = self.active();
        let describe = |timeline: &super::Timeline| {
            let interval = active.iter().find(|active| active.timeline == timeline.id);
            ActiveTimeline {
                timeline: timeline.clone(),
                active_from: interval.map(|active| active.from),
                active_until: interval.and_then(|active| active.until),
                last: self.last_of(timeline.id),
            }
        };
        self.timelines.values().map(describe).collect()
    }

    /// The timelines with a sign of life, lost ones among them, with their intervals, in order of time.
    pub(crate) fn active(&self) -> Vec<Active> {
        let alive = self.lines.values().filter_map(|line| Some((line.id, begins(self, line)?)));
        // A lost timeline was the main line in its time, too: the one before must not be taken for it.
        let alive: BTreeMap<TimelineId, Timestamp> = alive.chain(self.lost.clone()).collect();
        let mut active: Vec<Active> = Vec::new();
        for (timeline, begins) in alive {
            let from = active.last().map_or(begins, |before| before.from.max(begins));
            if let Some(before) = active.last_mut() {
                before.until = Some(from);
            }
            active.push(Active { timeline, from, until: None });
        }
        active
    }

    /// The spans of the main line, each held to the interval in which its timeline was it, and the gaps between.
    pub(crate) fn main_line(&self) -> MainLine {
        let mut main = MainLine::default();
        for active in self.active() {
            let Some(line) = self.line(active.timeline) else { continue };
            let reason_to_begin =
                line.pieces.first().and_then(opens_because).unwrap_or(GapReason::NotWatched);
            for span in self.spans(line) {
                if let Some(span) = clip(span, &active, line) {
                    main.add(span, reason_to_begin);
                }
            }
        }
        main
    }

    /// The runs of known, rebuildable moments of a timeline, from its fork point on, not yet held to its active
    /// interval.
    pub(crate) fn spans(&self, line: &Line) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut current = self.fork_span(line);
        for piece in &line.pieces {
            let joined = piece.hole_before.is_none() && piece.rebuilds_from == Some(piece.first);
            if let Some(span) = current.as_mut() {
                end_before(span, piece);
                let moments_join = span.from <= span.to && piece.begins() <= span.to.plus_micros(1);
                if joined && moments_join {
                    span.to = span.to.max(piece.key.to);
                    span.first_commit = span.first_commit.or(piece.first_point(line.id));
                    span.last = piece.last_point(line.id).unwrap_or(span.last);
                    span.ending = Ending::Open;
                    continue;
                }
            }
            spans.extend(current.take().filter(|span| span.from <= span.to));
            current = begin_at(piece, line.id);
        }
        if let Some(span) = current.as_mut() {
            match line.missing_tail {
                Some(_) => {
                    span.to = span.to.min(span.last.time.plus_micros(-1));
                    span.ending = Ending::Gap(GapReason::Damaged);
                }
                None => span.to = span.to.max(line.covered_through.unwrap_or(span.to)),
            }
        }
        spans.extend(current.filter(|span| span.from <= span.to));
        spans
    }

    fn fork_span(&self, line: &Line) -> Option<Span> {
        let point = line.begins_with.filter(|_| line.fork_rebuilds)?;
        let from = begins(self, line)?.max(point.time);
        // Empty until something says that the state was still the same.
        Some(Span {
            from,
            to: from.plus_micros(-1),
            first: point,
            first_commit: None,
            last: point,
            ending: Ending::Open,
        })
    }
}

/// The known moments of a history, in order of time.
#[derive(Default)]
pub(crate) struct MainLine {
    /// They do not touch: moments between two of them have no restore point.
    pub(crate) spans: Vec<Span>,
    /// One between each two spans.
    pub(crate) gaps: Vec<Gap>,
}

impl MainLine {
    fn add(&mut self, span: Span, reason_to_begin: GapReason) {
        let Some(before) = self.spans.last_mut() else {
            self.spans.push(span);
            return;
        };
        if before.to.plus_micros(1) >= span.from {
            (before.to, before.last, before.ending) = (span.to, span.last, span.ending);
            return;
        }
        let reason = match before.ending {
            Ending::Gap(reason) => reason,
            Ending::Open => reason_to_begin,
        };
        let (from, to) = (before.to, span.from);
        self.gaps.push(Gap { from, to, before: before.last.position, after: span.first.position, reason });
        self.spans.push(span);
    }

    fn windows(&self) -> Vec<Window> {
        let window = |span: &Span| Window {
            from: span.from,
            to: span.to,
            first: span.first.position,
            last: span.last.position,
        };
        self.spans.iter().map(window).collect()
    }

    /// The restore points around a moment outside all spans.
    pub(crate) fn nearest(&self, time: Timestamp) -> Nearest {
        let (before, after) = self.spans.split_at(self.spans.partition_point(|span| span.from <= time));
        // A span may begin with a state of an earlier time, when its timeline forked from it.
        let begins = |span: &Span| Some(span.first).filter(|first| first.time > time);
        let forked = || after.first().map(|span| span.first).filter(|first| first.time <= time);
        Nearest {
            before: before.last().map(|span| span.last).or_else(forked),
            after: after.iter().find_map(|span| span.first_commit.or(begins(span))),
        }
    }
}

/// When a timeline begins to live: at its claim, or at its first commit if that is earlier; not at all without a
/// commit or a mark of its own. The first timeline of a history begins with its first commit: nothing was before.
fn begins(history: &History, line: &Line) -> Option<Timestamp> {
    let claimed = history.timeline(line.id)?.claimed_at;
    match line.pieces.first() {
        Some(piece) if line.fork.is_none() => Some(piece.begins()),
        Some(piece) => Some(claimed.min(piece.begins())),
        None if line.covered_through.is_some() || line.missing_tail.is_some() => Some(claimed),
        None => None,
    }
}

fn opens_because(piece: &Piece) -> Option<GapReason> {
    if piece.key.flags.ends_gap {
        Some(GapReason::NotCaptured)
    } else if piece.key.flags.uncertain_time {
        Some(GapReason::UncertainTimes)
    } else {
        None
    }
}

/// Lets a span reach as far as the piece after it says that nothing had changed yet.
fn end_before(span: &mut Span, next: &Piece) {
    if next.hole_before.is_some() {
        // A missing commit may have the very time of the last one that is there.
        span.to = span.to.min(span.last.time.plus_micros(-1));
        span.ending = Ending::Gap(GapReason::Damaged);
        return;
    }
    // It may have the very time of the last one that is known.
    span.to = span.to.max(next.known_before()).min(next.begins().plus_micros(-1));
    span.ending = if let Some(reason) = opens_because(next) {
        Ending::Gap(reason)
    } else if next.rebuilds_from != Some(next.first) {
        Ending::Gap(GapReason::NoBase)
    } else {
        Ending::Open
    };
}

fn begin_at(piece: &Piece, timeline: TimelineId) -> Option<Span> {
    let (first, last) = (piece.first_point(timeline)?, piece.last_point(timeline)?);
    let ending = Ending::Open;
    Some(Span { from: first.time, to: piece.key.to, first, first_commit: Some(first), last, ending })
}

/// The part of a span in which its timeline is the main line.
fn clip(span: Span, active: &Active, line: &Line) -> Option<Span> {
    let (from, to) = (span.from.max(active.from), span.to.min(active.last_moment()));
    let cut = to < span.to;
    let commits = line.pieces.iter().filter(|piece| piece.begins() >= from);
    let first_commit = match span.first_commit {
        Some(point) if point.time < from => commits.filter_map(|piece| piece.first_point(line.id)).next(),
        other => other,
    };
    (from <= to).then(|| Span {
        first_commit: first_commit.filter(|point| point.time <= to),
        from,
        to,
        first: if from > span.from { newest_at(line, from, span.first) } else { span.first },
        last: if cut { newest_at(line, to, span.first) } else { span.last },
        ending: if cut { Ending::Open } else { span.ending },
    })
}

/// The newest commit at a moment, as exactly as keys tell: the end of the last segment that ends by then.
fn newest_at(line: &Line, time: Timestamp, first: Point) -> Point {
    let at = line.pieces.partition_point(|piece| piece.key.to <= time);
    let piece = at.checked_sub(1).and_then(|at| line.pieces.get(at));
    let point = piece.and_then(|piece| piece.last_point(line.id));
    point.filter(|point| point.time >= first.time).unwrap_or(first)
}
