//! What an operator sees of a protection: one value, shared by the capture thread and the tasks.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;
use tokio::sync::watch;

use crate::history::Point;
use crate::ids::{DatabaseId, Position, TimelineId, TxId};
use crate::time::Timestamp;

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
    /// Bytes captured and not yet in the store, in the local spool.
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
    /// Of the oldest commit that is not durable.
    unprotected_since: Option<Timestamp>,
    /// Without a base the log restores nothing, so nothing in it is called durable.
    has_base: bool,
    /// Counts how often a new base became necessary: a base begun before that does not serve.
    base_epoch: u64,
    stored: Option<Point>,
    source_trouble: Option<String>,
    store_trouble: Option<String>,
    notes: Vec<String>,
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
            unprotected_since: None,
            has_base: false,
            base_epoch: 0,
            stored: None,
            source_trouble: None,
            store_trouble: None,
            notes: Vec::new(),
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

    /// Changes plain numbers of the status.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ProtectionStatus)) {
        change(&mut self.lock().status);
    }

    /// A commit was captured.
    pub(crate) fn captured(&self, point: Point) {
        let mut shared = self.lock();
        shared.status.captured = Some(point);
        shared.status.transactions_total += 1;
        shared.unprotected_since.get_or_insert(point.time);
    }

    /// An earlier run captured up to `captured` and stored up to `stored`.
    pub(crate) fn resumed(&self, captured: Option<Point>, stored: Option<Point>) {
        let mut shared = self.lock();
        shared.status.captured = captured;
        shared.unprotected_since = captured.filter(|_| captured != stored).map(|point| point.time);
        drop(shared);
        if let Some(stored) = stored {
            self.stored(stored, None);
        }
    }

    /// The source was looked at: nothing but what is captured was committed before `moment`.
    pub(crate) fn looked(&self, moment: Timestamp) {
        let mut shared = self.lock();
        if shared.unprotected_since.is_none() && shared.has_base {
            shared.status.covered_through = Some(moment);
        }
    }

    /// Up to this moment everything is durable, and nothing went unseen.
    pub(crate) fn covered_through(&self) -> Option<Timestamp> {
        self.lock().status.covered_through
    }

    /// Everything up to `point` is in the store; `next_time` is the commit time of what is queued behind it.
    pub(crate) fn stored(&self, point: Point, next_time: Option<Timestamp>) {
        let mut shared = self.lock();
        shared.stored = Some(point);
        if !shared.has_base {
            return;
        }
        shared.status.durable = Some(point);
        let all = shared.status.captured.is_none_or(|captured| captured.position == point.position);
        shared.unprotected_since = if all { None } else { next_time.or(Some(point.time)) };
        drop(shared);
        self.durable.send_replace(Some(point.position));
    }

    /// The last transaction of a timeline that is in the store with all before it.
    pub(crate) fn stored_tx(&self, timeline: TimelineId) -> Option<TxId> {
        self.lock().stored.map(|point| point.position).filter(|at| at.timeline == timeline).map(|at| at.tx)
    }

    /// The history has a base from which the log in the store can be replayed.
    pub(crate) fn base_ready(&self) {
        let mut shared = self.lock();
        shared.has_base = true;
        let stored = shared.stored;
        drop(shared);
        self.based.send_replace(true);
        if let Some(point) = stored {
            self.stored(point, None);
        }
    }

    /// From here on a new base is needed before anything is durable.
    pub(crate) fn base_missing(&self) {
        let mut shared = self.lock();
        shared.has_base = false;
        shared.base_epoch += 1;
        drop(shared);
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
        if self.base_epoch() == epoch {
            self.base_ready();
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

    /// The store does not take what it is given, or does again.
    pub(crate) fn store_trouble(&self, trouble: Option<String>) {
        self.lock().store_trouble = trouble;
    }

    /// Something to be told once and kept in sight.
    pub(crate) fn note(&self, note: String) {
        tracing::warn!("{note}");
        let mut shared = self.lock();
        if !shared.notes.contains(&note) {
            shared.notes.push(note);
        }
    }

    /// The moves of the durable position.
    pub(crate) fn watch_durable(&self) -> watch::Receiver<Option<Position>> {
        self.durable.subscribe()
    }

    /// The status at `now`.
    pub(crate) fn at(&self, now: Timestamp) -> ProtectionStatus {
        let shared = self.lock();
        let mut status = shared.status.clone();
        status.lag_ms = shared
            .unprotected_since
            .map_or(0, |since| u64::try_from(now.micros_since(since) / 1000).unwrap_or(0));
        let failing = shared.source_trouble.iter().chain(&shared.store_trouble);
        status.reasons = failing.chain(&shared.notes).cloned().collect();
        if !shared.has_base && shared.source_trouble.is_none() {
            status
                .reasons
                .push("the first base is being made: nothing can be restored before it is complete".into());
        }
        status.health = match (&shared.source_trouble, &shared.store_trouble, status.reasons.is_empty()) {
            (None, None, true) => Health::Ok,
            (None, None, false) => Health::Attention,
            _ => Health::Failing,
        };
        status
    }
}
