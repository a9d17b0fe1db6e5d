//! How far a restore is, and how to stop one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::watch;

use crate::restore::RestoreError;

/// The least time between two reports of a phase, in milliseconds.
const REPORT_EVERY_MS: u64 = 100;

/// What a restore is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Looks whether the target is fit.
    Preflight,
    /// Reads the base.
    Base,
    /// Replays the log.
    Log,
    /// Computes the checksum of the result and brings it to disk.
    Prove,
    /// Gives the result its name.
    Publish,
    /// Done.
    Done,
}

const PHASES: [Phase; 6] =
    [Phase::Preflight, Phase::Base, Phase::Log, Phase::Prove, Phase::Publish, Phase::Done];

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Stored bytes that were read.
    pub read_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
    /// Transactions that were replayed.
    pub transactions: u64,
    /// Of so many.
    pub total_transactions: u64,
    /// Bytes of the result that were proven.
    pub proven_bytes: u64,
    /// Of so many.
    pub image_bytes: u64,
    /// Since it began, in milliseconds.
    pub elapsed_ms: u64,
    /// Stored bytes read per second so far.
    pub bytes_per_second: u64,
}

/// Who is told of progress. Called from several threads, about ten times a second; must not block.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// Counts what is done, and tells.
pub(crate) struct Tracker {
    tell: ProgressFn,
    began: Instant,
    phase: AtomicU8,
    told_ms: AtomicU64,
    read: AtomicU64,
    transactions: AtomicU64,
    proven: AtomicU64,
    total_bytes: u64,
    total_transactions: u64,
    image_bytes: u64,
}

impl Tracker {
    pub(crate) fn new(tell: ProgressFn, bytes: u64, transactions: u64, image_bytes: u64) -> Self {
        Self {
            tell,
            began: Instant::now(),
            phase: AtomicU8::new(0),
            told_ms: AtomicU64::new(0),
            read: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            proven: AtomicU64::new(0),
            total_bytes: bytes,
            total_transactions: transactions,
            image_bytes,
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        let at = PHASES.iter().position(|other| *other == phase).unwrap_or_default();
        self.phase.store(u8::try_from(at).unwrap_or_default(), Ordering::Relaxed);
        (self.tell)(self.now());
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        self.tell_at_times();
    }

    pub(crate) fn replayed(&self, transactions: u64) {
        self.transactions.fetch_add(transactions, Ordering::Relaxed);
        self.tell_at_times();
    }

    pub(crate) fn proven(&self, bytes: u64) {
        self.proven.fetch_add(bytes, Ordering::Relaxed);
        self.tell_at_times();
    }

    pub(crate) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn tell_at_times(&self) {
        let now = self.elapsed_ms();
        let told = self.told_ms.load(Ordering::Relaxed);
        let ours = now >= told.saturating_add(REPORT_EVERY_MS)
            && self.told_ms.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if ours {
            (self.tell)(self.now());
        }
    }

    fn now(&self) -> Progress {
        let elapsed_ms = self.elapsed_ms();
        let read = self.read.load(Ordering::Relaxed);
        Progress {
            phase: PHASES
                .get(usize::from(self.phase.load(Ordering::Relaxed)))
                .copied()
                .unwrap_or(Phase::Done),
            read_bytes: read,
            total_bytes: self.total_bytes.max(read),
            transactions: self.transactions.load(Ordering::Relaxed),
            total_transactions: self.total_transactions,
            proven_bytes: self.proven.load(Ordering::Relaxed),
            image_bytes: self.image_bytes,
            elapsed_ms,
            bytes_per_second: read.saturating_mul(1000) / elapsed_ms.max(1),
        }
    }
}

/// Stops one restore or one verification from outside. Clones share it.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<Stage>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Cancelled,
    TooLate,
}

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Stage::Open)))
    }
}

impl Cancel {
    /// One that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops whatever it was given to, soon. `false` when it is too late for that: a restore is getting its name.
    pub fn cancel(&self) -> bool {
        self.move_on(Stage::Cancelled) == Stage::Cancelled
    }

    /// From here on it is too late, unless it was cancelled.
    pub(crate) fn close(&self) -> Result<(), RestoreError> {
        match self.move_on(Stage::TooLate) {
            Stage::Cancelled => Err(RestoreError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Whoever comes first decides; gives what is decided.
    fn move_on(&self, to: Stage) -> Stage {
        self.0.send_if_modified(|stage| {
            let open = *stage == Stage::Open;
            if open {
                *stage = to;
            }
            open
        });
        *self.0.borrow()
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow() == Stage::Cancelled
    }

    /// Returns when it is cancelled.
    pub async fn cancelled(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as we do: waiting cannot fail.
        let _ = receiver.wait_for(|stage| *stage == Stage::Cancelled).await;
    }

    pub(crate) fn check(&self) -> Result<(), RestoreError> {
        if self.is_cancelled() { Err(RestoreError::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_first_decides() {
        let (stopped, done) = (Cancel::new(), Cancel::new());
        assert!(stopped.cancel() && stopped.cancel());
        assert!(stopped.is_cancelled() && stopped.close().is_err());
        done.close().unwrap();
        assert!(!done.cancel() && !done.is_cancelled());
        done.check().unwrap();
    }
}
