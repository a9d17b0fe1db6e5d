//! Lets the log be reset: the pin's moves, in their one order, and when they are made.
//!
//! *Quiet cycle*: advance, PASSIVE checkpoint, advance. If all is backfilled then, the new pin is on slot 0 and the next
//! commit resets the log. No writer ever waits. *Hand-over*: a pin on slot 0 makes the application's own checkpoints
//! futile and dear, so it is exchanged for a marked one at the first frame of the new generation. *Hard limit*: the same
//! cycle with the write lock held. *Waiting checkpoint*: when an application's blocking checkpoint waits for our pin, we
//! advance until it is through. SQLite's checkpoint waits for the slot of a reader that it found behind, whoever is on
//! that slot by then. Should our pin have got there, up to date, it would be waited for for ever: then we *step aside*,
//! and the index's count of commits proves that nothing was lost.

use std::time::{Duration, Instant};

use rusqlite::wal::CheckpointMode;

use super::look::Look;
use super::{Slot, SqliteSource, Trouble, files};
use crate::capture::sink::Sink;
use crate::capture::sqlite::SqliteSourceError;
use crate::time::Timestamp;

/// Between two attempts to leave slot 0.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(1);
/// Between two quiet cycles: more of them only cost fsyncs.
const CYCLE_PAUSE: Duration = Duration::from_millis(50);
/// The same when commits come too close together for a quiet moment.
const RESTLESS_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between cycles of an idle log that another reader keeps from being backfilled.
const CYCLE_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Between two looks for a checkpoint that waits for us.
const PROBE_PAUSE: Duration = Duration::from_millis(10);
/// The same once there seems to be one.
const WAITING_PAUSE: Duration = Duration::from_millis(2);
/// After so many probes, a tenth of a second, advancing is of no use.
const WAITING_MAX: u32 = 50;
/// How long nothing is pinned for a checkpoint at a time. SQLite sleeps 100 ms between two attempts, on a crowded
/// machine more; as long as it waits nothing can be committed.
const ASIDE_MAX: Duration = Duration::from_secs(1);
/// How long the write lock is asked for, and how often.
const LOCK_PATIENCE: Duration = Duration::from_millis(50);
const LOCK_PAUSE: Duration = Duration::from_micros(30);
/// The most that is captured while the write lock is held; and how often the lock is taken to find more than that.
const UNCAPTURED_MAX: u32 = 1_000;
const LOCK_ATTEMPTS: u32 = 8;
/// How long the checkpoint under the write lock is repeated.
const CHECKPOINT_PATIENCE: Duration = Duration::from_millis(20);
/// How long a user who may only read lets go at a time.
const UNPINNED_MAX: Duration = Duration::from_millis(30);
/// Between two forced cycles; doubles while they fail.
const HARD_PAUSE: Duration = Duration::from_millis(100);
const HARD_PAUSE_MAX: Duration = Duration::from_secs(5);

/// When what was done last, and when it is due again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    last_commit: Instant,
    last_cycle: Instant,
    next_cycle: Instant,
    cycle_pause: Duration,
    next_hard: Instant,
    hard_pause: Duration,
    next_probe: Instant,
    /// Successive probes that saw a checkpoint blocking writers.
    waiting: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last_commit: now,
            last_cycle: now,
            next_cycle: now,
            cycle_pause: CYCLE_PAUSE,
            next_hard: now,
            hard_pause: HARD_PAUSE,
            next_probe: now,
            waiting: 0,
        }
    }

    pub(super) fn committed(&mut self, now: Instant) {
        self.last_commit = now;
        self.cycle_pause = CYCLE_PAUSE;
        self.next_cycle = self.next_cycle.min(now + CYCLE_PAUSE);
    }
}

type Step<E> = Result<(), Trouble<E>>;

impl SqliteSource {
    /// Does what is due.
    pub(super) fn maintain<S: Sink>(
        &mut self,
        sink: &mut S,
        now: Instant,
        transactions: &mut u64,
    ) -> Step<S::Error> {
        if self.is_at_rest() && !self.checkpoint_waits() {
            return Ok(());
        }
        let Some(look) = self.look()? else {
            // Its writer may have died: SQLite repairs the index when a read transaction begins.
            return self.when_cycle_is_due(now, |source| source.advance(sink, transactions).map(|_| ()));
        };
        self.set_seen_backfilled(look.backfilled);
        if self.slot.may_be_zero() && look.head.frames > look.backfilled {
            return self.advance(sink, transactions).map(|_| ());
        }
        if self.is_at_rest() {
            return Ok(());
        }
        if self.checkpoint_waits_for_us(now) {
            return if self.is_waited_for_in_vain() {
                self.step_aside(sink, transactions)
            } else {
                self.advance(sink, transactions).map(|_| ())
            };
        }
        let read_only = self.links.as_ref().is_none_or(|links| links.read_only);
        let hard = self.options.hard_frames.is_some_and(|hard| look.head.frames >= hard);
        // An image can be read only as long as something is pinned.
        let may = !read_only || self.held_images().next().is_none();
        if hard && may && now >= self.pace.next_hard {
            // Also when it ends with an error, a full spool for one: then it is not due at once again.
            self.pace.next_hard = now + self.pace.hard_pause;
            let done = if read_only {
                self.unpinned_cycle(sink, transactions)?
            } else {
                self.forced_cycle(sink, transactions)?
            };
            let pause = if done { HARD_PAUSE } else { (self.pace.hard_pause * 2).min(HARD_PAUSE_MAX) };
            (self.pace.hard_pause, self.pace.next_hard) = (pause, Instant::now() + pause);
            return Ok(());
        }
        if now >= self.next_cycle(look.head.frames) {
            return self.quiet_cycle(sink, now, transactions);
        }
        Ok(())
    }

    fn when_cycle_is_due<E>(&mut self, now: Instant, act: impl FnOnce(&mut Self) -> Step<E>) -> Step<E> {
        if now < self.pace.next_cycle {
            return Ok(());
        }
        self.pace.next_cycle = now + CYCLE_PAUSE;
        act(self)
    }

    /// Checkpoints change only this number of the head; it alone is no reason to capture.
    #[expect(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own byte order")]
    fn set_seen_backfilled(&mut self, backfilled: u32) {
        if let Some(place) = self.seen.last_chunk_mut::<4>() {
            *place = backfilled.to_ne_bytes();
        }
    }

    /// When the next quiet cycle may be tried, for a log of so many frames.
    fn next_cycle(&self, frames: u32) -> Instant {
        let soft = self.options.soft_frames;
        let quiet = match frames {
            _ if frames < soft => self.options.idle,
            // There was no quiet moment: right after a commit is the best one then, and fails at worst.
            _ if frames >= soft.saturating_add(soft / 2) => {
                return self.pace.next_cycle.max(self.pace.last_cycle + RESTLESS_PAUSE);
            }
            _ => self.options.quiet,
        };
        (self.pace.last_commit + quiet).max(self.pace.next_cycle)
    }

    /// When something will be due.
    pub(super) fn next_due(&self, now: Instant) -> Instant {
        if self.is_at_rest() {
            return now + Duration::from_secs(60);
        }
        if self.slot.may_be_zero() && self.place.frame > self.seen_backfilled() {
            return now + HAND_OVER_PAUSE;
        }
        let probe = if self.pace.waiting > 0 { self.pace.next_probe } else { now + PROBE_PAUSE * 2 };
        probe.min(self.next_cycle(self.place.frame).max(now))
    }

    /// Whether an application's checkpoint blocks all writers and waits, most likely for us: seen at two probes.
    fn checkpoint_waits_for_us(&mut self, now: Instant) -> bool {
        if now < self.pace.next_probe {
            return false;
        }
        if self.checkpoint_waits() {
            self.pace.waiting = self.pace.waiting.saturating_add(1);
            self.pace.next_probe = now + WAITING_PAUSE;
        } else {
            self.pace.waiting = 0;
            self.pace.next_probe = now + PROBE_PAUSE;
        }
        self.pace.waiting >= 2
    }

    /// Whether a checkpoint waits for a pin of ours that is not behind. Not while there are other readers to wait for.
    fn is_waited_for_in_vain(&self) -> bool {
        self.pace.waiting.is_multiple_of(WAITING_MAX)
            && self.links.as_ref().is_some_and(|links| !files::others_read(&links.index))
    }

    /// The only way the pin ever moves while something is pinned. The order is the proof: begin, then read what is
    /// published, capture it, and only then end the old transaction. `false` when the pin stayed where it was.
    fn advance<S: Sink>(&mut self, sink: &mut S, transactions: &mut u64) -> Result<bool, Trouble<S::Error>> {
        let before = self.look()?;
        let Some(links) = &self.links else { return Ok(false) };
        // A checkpoint says that all is backfilled a moment before it gives slot 0 free.
        let free = !files::others_checkpoint(&links.index);
        if !links.begin_free()? {
            return Ok(false);
        }
        match self.catch_up(sink, before, free, transactions) {
            Ok(Some(slot)) => {
                if let Some(links) = &mut self.links {
                    links.exchange()?;
                }
                self.slot = slot;
                Ok(true)
            }
            other => {
                if let Some(links) = &self.links {
                    links.end_free()?;
                }
                other.map(|_| false)
            }
        }
    }

    /// Captures what is published now that the new pin has begun; says where that pin stands.
    ///
    /// Slot 0 is taken only when everything is backfilled. Both the number of frames and of backfilled ones only grow in
    /// a generation: fewer backfilled after the beginning than frames before it means that it was not so. All backfilled
    /// before, and nothing committed until after, means that it was.
    fn catch_up<S: Sink>(
        &mut self,
        sink: &mut S,
        before: Option<Look>,
        free: bool,
        transactions: &mut u64,
    ) -> Result<Option<Slot>, Trouble<S::Error>> {
        let looked = Timestamp::now();
        let Some(after) = self.look()? else { return Ok(None) };
        *transactions += self.capture(sink, after.head, looked)?;
        let slot = match before {
            Some(before)
                if before.head.salts == after.head.salts && after.backfilled < before.head.frames =>
            {
                Slot::Marked
            }
            Some(before) if free && before.is_backfilled() && before.head == after.head => Slot::Zero,
            _ => Slot::Either,
        };
        if slot.may_be_zero() {
            self.secure(sink)?;
            self.held_images().for_each(|image| image.log_may_be_reset(after));
        }
        Ok(Some(slot))
    }

    /// Has the sink secure what was captured, unless it has.
    fn secure<S: Sink>(&mut self, sink: &mut S) -> Step<S::Error> {
        if self.secured != Some(self.place) {
            sink.secure().map_err(Trouble::Sink)?;
            self.secured = Some(self.place);
        }
        Ok(())
    }

    fn quiet_cycle<S: Sink>(&mut self, sink: &mut S, now: Instant, transactions: &mut u64) -> Step<S::Error> {
        self.pace.last_cycle = now;
        self.pace.next_cycle = now + self.pace.cycle_pause;
        // Before the pin moves, so that it does not stand on slot 0 while the sink works.
        self.secure(sink)?;
        if !self.advance(sink, transactions)? {
            return Ok(());
        }
        if self.backfill()? {
            self.advance(sink, transactions)?;
        }
        let done = self.look()?.is_some_and(Look::is_backfilled) && self.slot == Slot::Zero;
        let idle = now.duration_since(self.pace.last_commit) >= self.options.idle;
        self.pace.cycle_pause =
            if done || !idle { CYCLE_PAUSE } else { (self.pace.cycle_pause * 2).min(CYCLE_PAUSE_MAX) };
        self.pace.next_cycle = Instant::now() + self.pace.cycle_pause;
        Ok(())
    }

    /// Copies captured frames into the database file, as far as SQLite lets us. `false` when there was nothing to do.
    fn backfill<E>(&mut self) -> Result<bool, Trouble<E>> {
        if self.look()?.is_some_and(Look::is_backfilled) {
            return Ok(self.slot != Slot::Zero);
        }
        self.require_own_file()?;
        let Some(links) = &self.links else { return Ok(false) };
        if links.moved()?.is_some() {
            // What is in the log may have been committed to the file that is there now.
            self.names_due = Instant::now();
            return Ok(false);
        }
        if links.read_only {
            return Ok(true);
        }
        match links.checkpointer.wal_checkpoint_v2(Some("main"), CheckpointMode::PASSIVE) {
            Ok(_) => {}
            Err(error) if is_busy(&error) => {}
            // A full disk, say. The log then stays and grows; capture goes on.
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the log could not be checkpointed");
            }
        }
        // What is written to the file from now on is not our doing.
        self.require_own_file()?;
        Ok(true)
    }

    /// The quiet cycle with the write lock held. Whether all was backfilled.
    fn forced_cycle<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
    ) -> Result<bool, Trouble<S::Error>> {
        *transactions += self.capture_published(sink)?;
        self.secure(sink)?;
        // The pin stays where it is until then: else a writer's own checkpoint begins to work, and ours finds it at it.
        for _ in 0..LOCK_ATTEMPTS {
            // What was committed meanwhile is not to be captured under the lock.
            *transactions += self.capture_published(sink)?;
            if !self.take_write_lock()? {
                return Ok(false);
            }
            let outcome = match self.uncaptured_frames() {
                Ok(0..=UNCAPTURED_MAX) => self.cycle_under_lock(sink, transactions).map(Some),
                // Somebody committed much while we asked for the lock: nobody shall wait while that is captured.
                other => other.map(|_| None).map_err(Trouble::from),
            };
            self.give_write_lock_back()?;
            if let Some(done) = outcome? {
                return Ok(done);
            }
        }
        Ok(false)
    }

    /// For a user who may only read. Such a pin cannot be set at the newest commit, and applications checkpoint right
    /// after a commit: the log would never be backfilled to its end, and grow for ever. So past the hard limit we let go
    /// for a moment, and pin again once all is backfilled.
    pub(super) fn unpinned_cycle<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
    ) -> Result<bool, Trouble<S::Error>> {
        *transactions += self.capture_published(sink)?;
        self.secure(sink)?;
        self.without_pin(sink, transactions, |unpinned| unpinned < UNPINNED_MAX)
    }

    /// Lets a checkpoint through that waits for our pin whatever we do. It keeps all writers out: until it is over
    /// nothing is committed, and then we pin again.
    fn step_aside<S: Sink>(&mut self, sink: &mut S, transactions: &mut u64) -> Step<S::Error> {
        *transactions += self.capture_published(sink)?;
        self.secure(sink)?;
        let Some(links) = &self.links else { return Ok(()) };
        self.held_images().for_each(|image| image.leave_log(links.pinned()));
        let index = links.index.clone();
        let waits = |unpinned| unpinned < ASIDE_MAX && files::checkpoint_blocks_writers(&index);
        if waits(Duration::ZERO) {
            self.without_pin(sink, transactions, waits)?;
        }
        Ok(())
    }

    /// Pins nothing until all is backfilled, at most as long as `may` says. If the log is reset meanwhile, what is
    /// captured then must be all that was committed; else that is said. Whether all was backfilled.
    fn without_pin<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
        may: impl Fn(Duration) -> bool,
    ) -> Result<bool, Trouble<S::Error>> {
        if let Some(links) = &self.links {
            links.unpin()?;
        }
        self.unpinned = true;
        let outcome = self.follow_unpinned(sink, transactions, may);
        if outcome.is_err() {
            // Pinned, but what was published before is still to be captured: the next look does.
            self.pin_anew()?;
        }
        let done = outcome?;
        self.follow_pinned_anew(sink, transactions)?;
        Ok(done)
    }

    /// Pins again. Until all that was published by then is captured, a reset may still have lost something, so that this
    /// is not what `unpinned` tells.
    fn pin_anew(&mut self) -> super::Result<()> {
        self.slot = Slot::Either;
        self.links.as_ref().map_or(Ok(()), |links| links.pin_again(self.options.patience))
    }

    /// Ends the time without a pin: what is published after the new one began was, and is, kept.
    pub(super) fn follow_pinned_anew<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
    ) -> Step<S::Error> {
        self.pin_anew()?;
        let began = Instant::now();
        let look = loop {
            match self.capture_unless_torn(sink, transactions)? {
                Some(look) => break look,
                None if began.elapsed() > self.options.patience => {
                    return Err(Trouble::Lost(
                        "after a reset unseen, the log is not what was published".into(),
                    ));
                }
                None => std::thread::sleep(LOCK_PAUSE),
            }
        };
        self.unpinned = false;
        self.held_images().for_each(|image| image.log_may_be_reset(look));
        self.secure(sink)
    }

    /// Captures while nothing is pinned, until all is backfilled.
    fn follow_unpinned<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
        may: impl Fn(Duration) -> bool,
    ) -> Result<bool, Trouble<S::Error>> {
        let started = Instant::now();
        while may(started.elapsed()) {
            if self.capture_unless_torn(sink, transactions)?.is_some_and(Look::is_backfilled) {
                return Ok(true);
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Ok(false)
    }

    /// Captures what is published. `None` when log and index do not agree just now: one is being reset, perhaps.
    fn capture_unless_torn<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
    ) -> Result<Option<Look>, Trouble<S::Error>> {
        let looked = Timestamp::now();
        let Some(look) = self.look()? else { return Ok(None) };
        match self.capture(sink, look.head, looked) {
            Ok(captured) => {
                *transactions += captured;
                Ok(Some(look))
            }
            Err(Trouble::Passing(_)) => {
                self.frames.forget();
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Whether all was backfilled.
    fn cycle_under_lock<S: Sink>(
        &mut self,
        sink: &mut S,
        transactions: &mut u64,
    ) -> Result<bool, Trouble<S::Error>> {
        if !self.advance(sink, transactions)? {
            return Ok(false);
        }
        let started = Instant::now();
        loop {
            self.backfill()?;
            let done = self.look()?.is_some_and(Look::is_backfilled);
            if done || started.elapsed() >= CHECKPOINT_PATIENCE {
                self.advance(sink, transactions)?;
                return Ok(done);
            }
            std::thread::sleep(LOCK_PAUSE);
        }
    }

    /// Published, and not captured yet.
    fn uncaptured_frames(&self) -> super::Result<u32> {
        let captured = |salts| if salts == self.place.salts { self.place.frame } else { 0 };
        let look = self.look()?;
        Ok(look.map_or(0, |look| look.head.frames.saturating_sub(captured(look.head.salts))))
    }

    fn take_write_lock(&self) -> super::Result<bool> {
        let Some(links) = &self.links else { return Ok(false) };
        let started = Instant::now();
        loop {
            match links.locker.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([])) {
                Ok(_) => return Ok(true),
                Err(error) if is_busy(&error) && started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(error) if is_busy(&error) => return Ok(false),
                Err(source) => {
                    let path = self.path.clone();
                    return Err(SqliteSourceError::Sqlite { path, doing: "take its write lock", source });
                }
            }
        }
    }

    fn give_write_lock_back(&self) -> super::Result<()> {
        self.links.as_ref().map_or(Ok(()), |links| super::links::end(&self.path, &links.locker))
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, FileLockingProtocolFailed};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | FileLockingProtocolFailed))
}
