//! Worlds for tests: what happened, written down commit by commit, beside what a repository keeps of it.

use proptest::prelude::*;

use crate::history::{
    ActiveTimeline, BaseEntry, Findings, Flaw, Gap, History, Point, Seen, SegmentEntry, Timeline, Window,
};
use crate::ids::{DatabaseId, Digest, HostId, Position, TimelineId, TxId, TxRange};
use crate::page::StateChecksum;
use crate::store::keys::{BaseKey, SegmentKey};
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};

pub(crate) fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

pub(crate) fn tx(number: u64) -> TxId {
    TxId::new(number).unwrap()
}

pub(crate) fn position(text: &str) -> Position {
    let (timeline, number) = text.split_once('/').unwrap();
    Position::new(timeline.parse().unwrap(), tx(number.parse().unwrap()))
}

pub(crate) fn database() -> DatabaseId {
    DatabaseId::from_bytes([7; 8])
}

/// All that is shown of a history: to compare it with another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    windows: Vec<Window>,
    gaps: Vec<Gap>,
    pub(crate) timelines: Vec<ActiveTimeline>,
    bases: Vec<BaseEntry>,
    newest: Option<Point>,
    covered_through: Option<Timestamp>,
    segments: Vec<SegmentEntry>,
    flaws: Vec<Flaw>,
}

impl Shown {
    pub(crate) fn of(history: &History) -> Self {
        Self {
            windows: history.windows(),
            gaps: history.gaps(),
            timelines: history.timelines(),
            bases: history.bases().collect(),
            newest: history.newest(),
            covered_through: history.covered_through(),
            segments: history.segments().collect(),
            flaws: history.flaws().to_vec(),
        }
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A commit so long after the last thing.
    Commit(u8),
    /// The daemon was away: it last looked so long after the last thing, and so long after that is back.
    Gap(u8, u8),
    /// As a gap, but this many commits were found in the log, at unknown times.
    Uncertain(u8, u8, u8),
    /// A commit that needs a base (and maybe gets one at once).
    NeedsBase(u8, bool),
    /// The segment under way is finished.
    Cut,
    /// A base of the newest state.
    Base,
    /// A mark, so long after the last thing.
    Mark(u8),
    /// The source is found some commits back, and a new timeline begins there.
    Fork(u8, u8),
    /// The last few segments are there as one wide one, and the narrow ones maybe not any more.
    Repack(u8, bool),
}

pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => (0u8..4).prop_map(Event::Commit),
        1 => (0u8..5, 1u8..5).prop_map(|(a, b)| Event::Gap(a, b)),
        1 => (0u8..5, 1u8..5, 1u8..4).prop_map(|(a, b, c)| Event::Uncertain(a, b, c)),
        1 => (0u8..4, any::<bool>()).prop_map(|(a, b)| Event::NeedsBase(a, b)),
        4 => Just(Event::Cut),
        1 => Just(Event::Base),
        2 => (0u8..5).prop_map(Event::Mark),
        1 => (0u8..6, 0u8..6).prop_map(|(a, b)| Event::Fork(a, b)),
        1 => (2u8..5, any::<bool>()).prop_map(|(count, keep)| Event::Repack(count, keep)),
    ];
    proptest::collection::vec(event, 0..40)
}

/// A timeline as it really was.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) id: TimelineId,
    pub(crate) fork: Option<Position>,
    pub(crate) claimed: i64,
    pub(crate) transactions: Vec<Transaction>,
    /// Transactions from here on are not in a segment yet.
    cut: usize,
    marks: Vec<(Option<TxId>, i64)>,
}

impl Line {
    fn last(&self) -> Option<TxId> {
        self.transactions.last().map(|t| t.tx).or(self.fork.map(|fork| fork.tx))
    }
}

/// All that happened, and what is kept of it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) lines: Vec<Line>,
    pub(crate) findings: Findings,
    pub(crate) now: i64,
}

impl World {
    pub(crate) fn of(events: &[Event]) -> Self {
        let first = Line {
            id: TimelineId::FIRST,
            fork: None,
            claimed: 10,
            transactions: Vec::new(),
            cut: 0,
            marks: Vec::new(),
        };
        let mut world = Self { lines: vec![first], findings: Findings::default(), now: 10 };
        world.claim();
        for event in events {
            world.happen(event);
        }
        world.cut();
        world
    }

    pub(crate) fn history(&self) -> History {
        History::build(database(), self.findings.clone())
    }

    fn line(&mut self) -> &mut Line {
        self.lines.last_mut().unwrap()
    }

    fn claim(&mut self) {
        let line = self.lines.last().unwrap();
        self.findings.timelines.push(Timeline {
            id: line.id,
            parent: line.fork,
            why: "a test".to_owned(),
            host: HostId::from_bytes([1; 8]),
            host_name: "here".to_owned(),
            claimed_at: at(line.claimed),
        });
    }

    fn commit(&mut self, not_before: i64, flags: TxFlags) {
        let time = self.now;
        let line = self.line();
        let number = line.last().map_or(TxId::FIRST, TxId::next);
        line.transactions.push(Transaction {
            tx: number,
            time: at(time),
            not_before: at(not_before),
            flags,
            pages: 1,
            image_pages: 1,
            state: StateChecksum::EMPTY,
        });
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Commit(wait) => {
                self.now += i64::from(wait);
                self.commit(self.now, TxFlags::NONE);
            }
            Event::Gap(look, back) => {
                self.cut();
                let looked = self.now + i64::from(look);
                self.now = looked + i64::from(back);
                self.commit(looked, TxFlags { ends_gap: true, ..TxFlags::NONE });
                self.cut();
            }
            Event::Uncertain(look, back, count) => {
                self.cut();
                let looked = self.now + i64::from(look);
                self.now = looked + i64::from(back);
                self.commit(looked, TxFlags { uncertain_time: true, ..TxFlags::NONE });
                (1..count).for_each(|_| self.commit(self.now, TxFlags::NONE));
                self.cut();
            }
            Event::NeedsBase(wait, comes) => {
                self.cut();
                self.now += i64::from(wait);
                self.commit(self.now, TxFlags { needs_base: true, ..TxFlags::NONE });
                if comes {
                    self.base();
                }
            }
            Event::Cut => self.cut(),
            Event::Base => {
                self.cut();
                self.base();
            }
            Event::Mark(wait) => {
                self.cut();
                self.now += i64::from(wait);
                let (last, now) = (self.line().last(), self.now);
                if let Some(last) = last {
                    self.line().marks.push((Some(last), now));
                    let position = Position::new(self.line().id, last);
                    self.findings.seen.push(Seen { position, time: at(now) });
                }
            }
            Event::Fork(back, wait) => self.fork(back, wait),
            Event::Repack(count, keep) => self.repack(count, keep),
        }
    }

    fn cut(&mut self) {
        let line = self.lines.last_mut().unwrap();
        let Some(new) = line.transactions.get(line.cut..).filter(|new| !new.is_empty()) else { return };
        let (first, last) = (new.first().unwrap(), new.last().unwrap());
        let key = SegmentKey {
            database: database(),
            timeline: line.id,
            range: TxRange::new(first.tx, last.tx).unwrap(),
            from: first.not_before,
            to: last.time,
            flags: first.flags,
            digest: Digest::from_bytes([2; 32]),
        };
        line.cut = line.transactions.len();
        self.findings.segments.push(SegmentEntry { key, size: 100 });
    }

    fn base(&mut self) {
        let line = self.line();
        let Some(last) = line.last() else { return };
        let position = Position::new(line.id, last);
        let own = self.own(position);
        // Segments are cut at bases, but a fork point may lie within one.
        let within = |key: &SegmentKey| {
            key.timeline == own.timeline && key.range.contains(own.tx) && key.range.last() != own.tx
        };
        if self.findings.segments.iter().any(|entry| within(&entry.key)) {
            return;
        }
        let key = BaseKey { database: database(), position, digest: Digest::from_bytes([3; 32]) };
        self.findings.bases.push(BaseEntry { key, size: 100 });
    }

    fn fork(&mut self, back: u8, wait: u8) {
        self.cut();
        let line = self.lines.last().unwrap();
        let Some(last) = line.last().filter(|last| last.get() > u64::from(back)) else { return };
        let fork = Position::new(line.id, tx(last.get() - u64::from(back)));
        let id = line.id.next();
        // Moments may pass between the last look at the old timeline and the claim of the new one.
        self.now += i64::from(wait);
        let claimed = self.now;
        self.lines.push(Line {
            id,
            fork: Some(fork),
            claimed,
            transactions: Vec::new(),
            cut: 0,
            marks: vec![],
        });
        self.claim();
    }

    fn repack(&mut self, count: u8, keep: bool) {
        let timeline = self.line().id;
        let narrow = self.findings.segments.iter().rev().filter(|entry| entry.key.timeline == timeline);
        let narrow: Vec<SegmentKey> = narrow.take(usize::from(count)).map(|entry| entry.key).collect();
        let (Some(last), Some(first)) = (narrow.first(), narrow.last()) else { return };
        let flagged = narrow.iter().rev().skip(1).any(|key| key.flags.any());
        if flagged || first.flags.opens_window() || first.range.last() >= last.range.last() {
            return;
        }
        let range = TxRange::new(first.range.first(), last.range.last()).unwrap();
        // Otherwise names alone do not tell from when on its states can be rebuilt.
        if !self.rebuilds(Position::new(timeline, range.first())) {
            return;
        }
        let others = self.findings.segments.iter().filter(|entry| entry.key.timeline == timeline);
        let apart = |key: &SegmentKey| key.range.last() < range.first() || range.last() < key.range.first();
        let nested = |a: TxRange, b: TxRange| a.contains(b.first()) && a.contains(b.last());
        let fits = |key: &SegmentKey| apart(key) || nested(range, key.range) || nested(key.range, range);
        if !others.map(|entry| entry.key).all(|key| fits(&key)) {
            return;
        }
        let key = SegmentKey { range, to: last.to, digest: Digest::from_bytes([4; 32]), ..*first };
        if !keep {
            let inside = |key: &SegmentKey| key.timeline == timeline && nested(range, key.range);
            self.findings.segments.retain(|entry| !inside(&entry.key));
        }
        self.findings.segments.push(SegmentEntry { key, size: 100 });
    }

    /// The true answer: the state at a moment, if it is known and can be rebuilt. By brute force.
    pub(crate) fn state_at(&self, time: i64) -> Option<Position> {
        self.known_at(time).filter(|state| self.rebuilds(*state))
    }

    /// The state at a moment, if it is known.
    pub(crate) fn known_at(&self, time: i64) -> Option<Position> {
        let mut main: Option<(&Line, i64)> = None;
        for line in &self.lines {
            let begins = match line.transactions.first() {
                Some(first) if line.fork.is_none() => first.time.as_micros(),
                Some(first) => line.claimed.min(first.time.as_micros()),
                None if line.marks.is_empty() => continue,
                None => line.claimed,
            };
            let begins = main.map_or(begins, |(_, before)| before.max(begins));
            if begins <= time || main.is_none() {
                main = Some((line, begins)).filter(|_| begins <= time);
            }
            if begins > time {
                break;
            }
        }
        let (line, _) = main?;
        let done = line.transactions.partition_point(|t| t.time.as_micros() <= time);
        let newest = match done.checked_sub(1) {
            Some(at) => Position::new(line.id, line.transactions[at].tx),
            None => Position::new(line.id, line.fork?.tx),
        };
        let known = match line.transactions.get(done) {
            Some(next) if next.flags.opens_window() => time <= next.not_before.as_micros(),
            Some(_) => true,
            None => {
                let last = line.transactions.last();
                let marks = line.marks.iter().filter(|(tx, _)| *tx == line.last()).map(|(_, time)| *time);
                time <= marks.chain(last.map(|t| t.time.as_micros())).max().unwrap_or(i64::MIN)
            }
        };
        known.then(|| self.own(newest))
    }

    /// The name of a state on the timeline that wrote it.
    pub(crate) fn own(&self, position: Position) -> Position {
        let line = self.lines.iter().find(|line| line.id == position.timeline).unwrap();
        match line.fork {
            Some(fork) if position.tx <= fork.tx => self.own(Position::new(fork.timeline, position.tx)),
            _ => position,
        }
    }

    /// Whether a base and an unbroken log lead to a state.
    pub(crate) fn rebuilds(&self, position: Position) -> bool {
        let own = self.own(position);
        if self.findings.bases.iter().any(|base| self.own(base.key.position) == own) {
            return true;
        }
        let line = self.lines.iter().find(|line| line.id == own.timeline).unwrap();
        let transaction = line.transactions.iter().find(|t| t.tx == own.tx).unwrap();
        let before = own.tx.previous();
        !transaction.flags.needs_base
            && before.is_some_and(|before| self.rebuilds(Position::new(own.timeline, before)))
    }

    /// When a state was committed.
    pub(crate) fn time_of(&self, position: Position) -> Timestamp {
        let own = self.own(position);
        let line = self.lines.iter().find(|line| line.id == own.timeline).unwrap();
        line.transactions.iter().find(|t| t.tx == own.tx).unwrap().time
    }

    /// The transactions of a segment.
    pub(crate) fn transactions(&self, key: &SegmentKey) -> Vec<Transaction> {
        let line = self.lines.iter().find(|line| line.id == key.timeline).unwrap();
        line.transactions.iter().filter(|t| key.range.contains(t.tx)).copied().collect()
    }
}
