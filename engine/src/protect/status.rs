//! What an operator sees of a protection: one value, shared by the capture thread and the tasks.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::history::Point;
use crate::ids::{DatabaseId, Position, TimelineId, TxId};
use crate::time::Timestamp;

/// Commits that are captured and not durable for so long are worth a word. 30 s.
const LATE: Duration = Duration::from_secs(30);
/// Notes kept in sight, at most: the last ones.
const NOTES_MAX: usize = 8;
/// How long a note is kept in sight: the history keeps what it is about.
const NOTE_LIFE: Duration = Duration::from_secs(3600);

/// The verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Every commit is on its way or safe.
    #[default]
    Ok,
    /// Protected, with something an operator should know.
    Attention,
    /// Not protected now.
    Failing,
}

/// How far the first base of the history, or a later one, has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BaseProgress {
    /// The newest complete base.
    pub newest: Option<Point>,
    /// Pages read for the one being made; `None` when none is.
    pub pages_done: Option<u32>,
    /// Pages it has in all.
    pub pages_total: Option<u32>,
}

/// Everything an operator sees of one protected database.
#[derive(Clone, Debug, Serialize)]
pub struct ProtectionStatus {
    /// Its id; `None` until its first capture.
    pub database: Option<DatabaseId>,
    /// Its name.
    pub name: String,
    /// The source.
    pub path: PathBuf,
    /// The verdict.
    pub health: Health,
    /// Why it is not `ok`, as sentences.
    pub reasons: Vec<String>,
    /// The last commit seen and verified.
    pub captured: Option<Point>,
    /// The last commit that a loss of this machine does not lose.
    pub durable: Option<Point>,
    /// Age of the oldest commit that is captured and not durable; 0 when there is none. Milliseconds.
    pub lag_ms: u64,
    /// Up to this moment it is known that nothing but the durable commits happened.
    pub covered_through: Option<Timestamp>,
    /// Bases.
    pub base: BaseProgress,
    /// Bytes captured and not yet in the store, in memory.
    pub queue_bytes: u64,
    /// Bytes captured and not yet in the store, on the local disk: in the spool, and packs of a base.
    pub spool_bytes: u64,
    /// Commits captured since the start.
    pub transactions_total: u64,
    /// Segments stored since the start.
    pub segments_total: u64,
    /// Bytes stored since the start, bases included.
    pub stored_bytes_total: u64,
    /// Gaps recorded since the start.
    pub gaps_total: u64,
}

#[derive(Debug)]
struct Shared {
    status: ProtectionStatus,
    waiting: Waiting,
    /// How long commits may wait before it is worth a word.
    late: Duration,
    /// Without a base the log restores nothing, so nothing in it is called durable.
    has_base: bool,
    /// Counts how often a new base became necessary: a base begun before that does not serve.
    base_epoch: u64,
    stored: Option<Point>,
    /// Packs of a base that wait on disk.
    parked_bytes: u64,
    source_trouble: Option<String>,
    /// What the store does not take, by what it is.
    store_troubles: BTreeMap<&'static str, String>,
    /// What an operator should know for as long as it lasts, by what it is about.
    concerns: BTreeMap<&'static str, String>,
    /// What happened once and should be known for a while, and when it was told last.
    notes: VecDeque<(String, Instant)>,
}

impl Shared {
    /// Nothing that is captured could be lost with this machine.
    fn is_all_durable(&self) -> bool {
        let durable = self.status.durable.map(|point| point.position);
        self.has_base && self.status.captured.is_none_or(|captured| Some(captured.position) == durable)
    }

    /// What is stored is durable as soon as there is a base.
    fn settle(&mut self) {
        let Some(point) = self.stored.filter(|_| self.has_base) else { return };
        self.status.durable = Some(point);
        self.waiting.durable(point.position);
        if self.is_all_durable() {
            self.waiting.0.clear();
        }
    }
}

/// Since when captured commits wait to be durable, by a clock that nobody sets: some of them with the moment of their
/// capture, oldest first.
#[derive(Debug, Default)]
struct Waiting(VecDeque<(Position, Instant)>);

impl Waiting {
    /// Finer than this nobody reads it.
    const STEP: Duration = Duration::from_millis(20);
    const MOMENTS_MAX: usize = 1024;

    fn captured(&mut self, position: Position, now: Instant) {
        if self.0.back().is_some_and(|(_, last)| now.saturating_duration_since(*last) < Self::STEP) {
            return;
        }
        if self.0.len() >= Self::MOMENTS_MAX {
            // Every second one does: those in between count as captured with the one before them.
            let mut keep = false;
            self.0.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.0.push_back((position, now));
    }

    fn durable(&mut self, upto: Position) {
        let behind = Position::new(upto.timeline, upto.tx.next());
        while self.0.get(1).is_some_and(|(next, _)| *next <= behind) {
            self.0.pop_front();
        }
    }

    fn since(&self) -> Option<Instant> {
        self.0.front().map(|(_, moment)| *moment)
    }
}

/// The shared status and the signal that the durable position moved.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    shared: Arc<Mutex<Shared>>,
    durable: Arc<watch::Sender<Option<Position>>>,
    /// Whether there is a base to replay the log on.
    based: Arc<watch::Sender<bool>>,
}

impl Board {
    pub(crate) fn new(name: &str, path: PathBuf) -> Self {
        let status = ProtectionStatus {
            database: None,
            name: name.to_owned(),
            path,
            health: Health::Ok,
            reasons: Vec::new(),
            captured: None,
            durable: None,
            lag_ms: 0,
            covered_through: None,
            base: BaseProgress::default(),
            queue_bytes: 0,
            spool_bytes: 0,
            transactions_total: 0,
            segments_total: 0,
            stored_bytes_total: 0,
            gaps_total: 0,
        };
        let shared = Shared {
            status,
            waiting: Waiting::default(),
            late: LATE,
            has_base: false,
            base_epoch: 0,
            stored: None,
            parked_bytes: 0,
            source_trouble: None,
            store_troubles: BTreeMap::new(),
            concerns: BTreeMap::new(),
            notes: VecDeque::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            durable: Arc::new(watch::Sender::new(None)),
            based: Arc::new(watch::Sender::new(false)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Commits wait for this interval as a matter of course.
    pub(crate) fn expect_interval(&self, interval: Duration) {
        self.lock().late = LATE.max(interval.saturating_mul(4));
    }

    /// Changes plain numbers of the status.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ProtectionStatus)) {
        change(&mut self.lock().status);
    }

    /// So many bytes of a base wait on disk for the store.
    pub(crate) fn parked(&self, bytes: u64) {
        self.lock().parked_bytes = bytes;
    }

    /// A commit was captured.
    pub(crate) fn captured(&self, point: Point) {
        let mut shared = self.lock();
        shared.status.captured = Some(point);
        shared.status.transactions_total += 1;
        shared.waiting.captured(point.position, Instant::now());
    }

    /// An earlier run captured up to `captured` and stored up to `stored`.
    pub(crate) fn resumed(&self, captured: Option<Point>, stored: Option<Point>) {
        let mut shared = self.lock();
        shared.status.captured = captured;
        // Since when it waits only the clock on the wall can say, unless this process captured it.
        let since = |point: Point| shared.waiting.since().unwrap_or_else(|| moment_of(point.time));
        shared.waiting = Waiting(captured.map(|point| (point.position, since(point))).into_iter().collect());
        let Some(stored) = stored else { return };
        self.now_stored(&mut shared, stored);
    }

    /// The source was looked at: nothing but what is captured was committed before `moment`.
    pub(crate) fn looked(&self, moment: Timestamp) {
        let mut shared = self.lock();
        if shared.is_all_durable() {
            shared.status.covered_through = Some(moment);
        }
    }

    /// Up to this moment everything is durable, and nothing went unseen.
    pub(crate) fn covered_through(&self) -> Option<Timestamp> {
        self.lock().status.covered_through
    }

    /// Everything up to `point` is in the store.
    pub(crate) fn stored(&self, point: Point) {
        self.now_stored(&mut self.lock(), point);
    }

    /// Told under the lock, so that nobody hears of an older position after a newer one.
    fn now_stored(&self, shared: &mut Shared, point: Point) {
        shared.stored = Some(point);
        self.settle(shared);
    }

    fn settle(&self, shared: &mut Shared) {
        shared.settle();
        if shared.has_base {
            self.durable.send_replace(shared.status.durable.map(|point| point.position));
        }
    }

    /// The last transaction of a timeline that is in the store with all before it.
    pub(crate) fn stored_tx(&self, timeline: TimelineId) -> Option<TxId> {
        self.lock().stored.map(|point| point.position).filter(|at| at.timeline == timeline).map(|at| at.tx)
    }

    /// The history has a base from which the log in the store can be replayed.
    pub(crate) fn base_ready(&self) {
        self.now_based(&mut self.lock());
    }

    fn now_based(&self, shared: &mut Shared) {
        shared.has_base = true;
        self.settle(shared);
        self.based.send_replace(true);
    }

    /// From here on a new base is needed before anything is durable.
    pub(crate) fn base_missing(&self) {
        let mut shared = self.lock();
        shared.has_base = false;
        shared.base_epoch += 1;
        self.based.send_replace(false);
    }

    /// Whether the log goes to the store now; else it waits for a base.
    pub(crate) fn has_base(&self) -> bool {
        self.lock().has_base
    }

    /// Waits until this position is in the store with all before it.
    pub(crate) async fn until_durable(&self, position: Position) {
        let there = |durable: &Option<Position>| durable.is_some_and(|durable| durable >= position);
        // The sender lives as long as this does.
        let _ = self.durable.subscribe().wait_for(there).await;
    }

    /// To be given to [`Board::base_made`] when a base that is begun now is complete.
    pub(crate) fn base_epoch(&self) -> u64 {
        self.lock().base_epoch
    }

    /// A base begun in this epoch is complete.
    pub(crate) fn base_made(&self, epoch: u64) {
        let mut shared = self.lock();
        if shared.base_epoch == epoch {
            self.now_based(&mut shared);
        }
    }

    /// Waits until there is a base. The log is never stored before what it is replayed on.
    pub(crate) async fn until_based(&self) {
        // The sender lives as long as this does.
        let _ = self.based.subscribe().wait_for(|based| *based).await;
    }

    /// The source cannot be captured now, or can again.
    pub(crate) fn source_trouble(&self, trouble: Option<String>) {
        self.lock().source_trouble = trouble;
    }

    /// The store does not take `what` it is given, or does again.
    pub(crate) fn store_trouble(&self, what: &'static str, trouble: Option<String>) {
        let mut shared = self.lock();
        match trouble {
            Some(trouble) => shared.store_troubles.insert(what, trouble),
            None => shared.store_troubles.remove(what),
        };
    }

    /// Something about `what` that an operator should know for as long as it lasts. Told once.
    pub(crate) fn concern(&self, what: &'static str, concern: Option<String>) {
        let mut shared = self.lock();
        let Some(concern) = concern else {
            shared.concerns.remove(what);
            return;
        };
        if shared.concerns.get(what) != Some(&concern) {
            tracing::warn!("{concern}");
            shared.concerns.insert(what, concern);
        }
    }

    /// Something that happened, to be told once and kept in sight for a while. What is noted again stays.
    pub(crate) fn note(&self, note: String) {
        let mut shared = self.lock();
        let now = Instant::now();
        shared.notes.retain(|(_, told)| now.saturating_duration_since(*told) < NOTE_LIFE);
        if let Some((_, told)) = shared.notes.iter_mut().find(|(known, _)| *known == note) {
            *told = now;
            return;
        }
        tracing::warn!("{note}");
        if shared.notes.len() >= NOTES_MAX {
            shared.notes.pop_front();
        }
        shared.notes.push_back((note, now));
    }

    /// The moves of the durable position.
    pub(crate) fn watch_durable(&self) -> watch::Receiver<Option<Position>> {
        self.durable.subscribe()
    }

    /// The status now.
    pub(crate) fn now(&self) -> ProtectionStatus {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> ProtectionStatus {
        let shared = self.lock();
        let mut status = shared.status.clone();
        status.spool_bytes += shared.parked_bytes;
        let lag = shared.waiting.since().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        status.lag_ms = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        let failing = shared.source_trouble.iter().chain(shared.store_troubles.values());
        status.reasons = failing.cloned().collect();
        let fails = !status.reasons.is_empty();
        let notes = shared.notes.iter();
        let notes = notes.filter(|(_, told)| now.saturating_duration_since(*told) < NOTE_LIFE);
        status.reasons.extend(shared.concerns.values().chain(notes.map(|(note, _)| note)).cloned());
        if shared.has_base && lag >= shared.late {
            let seconds = lag.as_secs();
            status.reasons.push(format!("commits have been waiting for the store for {seconds} s"));
        }
        if !shared.has_base && shared.source_trouble.is_none() {
            status
                .reasons
                .push("the first base is being made: nothing can be restored before it is complete".into());
        }
        status.health = match (fails, status.reasons.is_empty()) {
            (true, _) => Health::Failing,
            (false, false) => Health::Attention,
            (false, true) => Health::Ok,
        };
        status
    }
}

/// When that was, if the clock was right all the time.
fn moment_of(time: Timestamp) -> Instant {
    let now = Instant::now();
    let age = u64::try_from(Timestamp::now().micros_since(time)).unwrap_or(0);
    now.checked_sub(Duration::from_micros(age)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_in_sight_for_an_hour_after_it_was_told_last() {
        let board = Board::new("app", PathBuf::new());
        board.base_ready();
        board.note("a new timeline was begun".into());
        board.note("a new timeline was begun".into());
        let after = |seconds| board.at(Instant::now() + Duration::from_secs(seconds));
        assert_eq!(after(3_590).reasons, ["a new timeline was begun"]);
        assert_eq!(after(3_590).health, Health::Attention);
        assert_eq!((after(3_601).reasons, after(3_601).health), (vec![], Health::Ok));
    }

    fn point(tx: u64) -> Point {
        let position = Position::new(TimelineId::FIRST, TxId::new(tx).unwrap());
        Point { position, time: Timestamp::from_micros(tx as i64) }
    }

    fn based() -> Board {
        let board = Board::new("app", PathBuf::new());
        board.base_ready();
        board
    }

    #[test]
    fn the_lag_is_the_age_of_the_oldest_commit_that_waits_whatever_the_clock_says() {
        let board = based();
        let began = Instant::now();
        let later = |ms| board.at(began + Duration::from_millis(ms)).lag_ms;
        assert_eq!(later(5_000), 0, "nothing waits");
        // Commit times lie in 1970, or anywhere.
        board.captured(point(1));
        std::thread::sleep(Waiting::STEP * 2);
        board.captured(point(2));
        assert!((5_000 - 1_000..=5_000).contains(&later(5_000)), "{}", later(5_000));
        let first = later(5_000);
        board.stored(point(1));
        assert!(later(5_000) < first, "the second one waits for less long");
        board.stored(point(2));
        assert_eq!(later(5_000), 0);
    }

    #[test]
    fn moments_that_are_left_out_make_nothing_seem_younger() {
        let (mut waiting, began) = (Waiting::default(), Instant::now());
        for step in 0..5_000 {
            waiting.captured(point(step + 1).position, began + Waiting::STEP * step as u32);
        }
        assert!(waiting.0.len() <= Waiting::MOMENTS_MAX);
        assert_eq!(waiting.since(), Some(began));
        waiting.durable(point(2_500).position);
        let since = waiting.since().unwrap();
        assert!(since <= began + Waiting::STEP * 2_500 && since > began + Waiting::STEP * 2_400);
    }

    #[test]
    fn a_store_that_takes_packs_and_no_commits_is_trouble_all_the_time() {
        let board = based();
        board.store_trouble("commits", Some("cannot store commits: refused".into()));
        board.store_trouble("a base", None);
        assert_eq!(board.now().health, Health::Failing);
        board.store_trouble("commits", None);
        assert_eq!(board.now().health, Health::Ok);
    }

    #[test]
    fn commits_that_wait_too_long_are_told_even_if_the_store_says_nothing() {
        let board = based();
        board.captured(point(1));
        let told = |seconds| board.at(Instant::now() + Duration::from_secs(seconds)).health;
        assert_eq!(told(20), Health::Ok);
        assert_eq!(told(40), Health::Attention);
        board.expect_interval(Duration::from_secs(60));
        assert_eq!(told(100), Health::Ok, "as asked for");
    }

    #[test]
    fn a_base_that_comes_late_does_not_move_the_durable_position_back() {
        let board = based();
        let moves = board.watch_durable();
        for tx in 1..4 {
            board.captured(point(tx));
            board.stored(point(tx));
            board.base_ready();
            assert_eq!(*moves.borrow(), Some(point(tx).position));
        }
        board.base_missing();
        board.captured(point(4));
        board.stored(point(4));
        assert_eq!(*moves.borrow(), Some(point(3).position), "nothing to replay it on");
        board.base_ready();
        assert_eq!(board.now().durable, Some(point(4)));
    }

    #[test]
    fn what_is_told_is_bounded_and_what_lasts_goes_when_it_is_over() {
        let board = based();
        (0..100).for_each(|number| board.note(format!("timeline {number} was claimed")));
        assert_eq!(board.now().reasons.len(), NOTES_MAX);
        board.concern("clock", Some("the clock has stepped back".into()));
        assert!(board.now().reasons.contains(&"the clock has stepped back".to_owned()));
        board.concern("clock", None);
        assert_eq!(board.now().reasons.len(), NOTES_MAX);
    }
}
