//! Waiting for the next commit: closely after a write to the log, else until somebody tells us or the timer does.

use std::time::{Duration, Instant};

use super::SqliteSource;
use crate::capture::watch::{Waker, wait_for};

/// How long after a write to the log its publication is looked for closely.
const HOT: Duration = Duration::from_millis(20);
/// Between two looks at the index while hot.
const HOT_PAUSE: Duration = Duration::from_micros(50);
/// At the beginning of the hot time we do not sleep at all: most commits are published within microseconds.
const SPIN: Duration = Duration::from_micros(40);
/// Before the next look when commits come faster than we can look: what a look costs is shared by those of a
/// millisecond.
const CROWDED_PAUSE: Duration = Duration::from_millis(1);
/// Between two looks while commits are being backfilled, or nobody tells us of writes.
const COLD: Duration = Duration::from_millis(20);
/// Between two looks when all is quiet.
const IDLE: Duration = Duration::from_millis(250);
/// What was written to the log so long ago and is not published is left of a transaction that was given up.
const SYNC_MAX: Duration = Duration::from_secs(5);
/// Between two looks while published frames fail their check.
const MISMATCH_PAUSE: Duration = Duration::from_millis(2);

impl SqliteSource {
    /// After a capture: unless a further transaction is already on its way into the log, its next write will tell.
    /// The events are taken first: whatever they told of is then to be seen in the file.
    pub(super) fn settle(&mut self) {
        let seen = self.watcher.drain();
        if seen.folder {
            self.names_due = Instant::now();
        }
        self.hot_since =
            if self.written_beyond(self.place.frame, self.place.salts) { Some(Instant::now()) } else { None };
    }

    /// Blocks until there may be something to do: a write to the log, a due maintenance, a ring of `wake`, or `max`.
    /// After a failed [`SqliteSource::poll`] there is something to do at once: the caller paces its own attempts.
    pub fn wait(&mut self, wake: &Waker, max: Duration) {
        let until = Instant::now() + max;
        if self.links.is_none() {
            wake.wait(max);
            let _ = wake.take();
            return;
        }
        if self.crowded {
            self.sleep(wake, CROWDED_PAUSE.min(max), false);
        }
        loop {
            if wake.take() {
                return;
            }
            let seen = self.watcher.drain();
            let now = Instant::now();
            if seen.folder {
                self.names_due = now;
                return;
            }
            if seen.log {
                (self.hot_since, self.stirred) = (Some(now), now);
            }
            if self.mismatch_since.is_some() {
                self.sleep(wake, MISMATCH_PAUSE.min(until - now), false);
                return;
            }
            if !self.nothing_published().unwrap_or(false) {
                return;
            }
            self.hot_since = self.hot_since.filter(|since| now.duration_since(*since) < HOT);
            let due = self.next_due(now).min(until);
            if due <= now {
                return;
            }
            match self.hot_since {
                Some(since) if now.duration_since(since) < SPIN => std::thread::yield_now(),
                Some(_) => {
                    self.sleep(wake, HOT_PAUSE.min(due - now), false);
                }
                None => {
                    if !self.sleep(wake, self.cold_pause().min(due - now), true) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether something happened before the time was over.
    fn sleep(&self, wake: &Waker, time: Duration, listen: bool) -> bool {
        use std::os::fd::AsFd;
        match self.watcher.descriptor().filter(|_| listen) {
            Some(descriptor) => wait_for(&[wake.as_fd(), descriptor], time),
            None => wait_for(&[wake.as_fd()], time),
        }
    }

    fn cold_pause(&self) -> Duration {
        // What waits for its fsync is in the log already, and nothing tells of its publication.
        let published =
            self.stirred.elapsed() > SYNC_MAX || !self.written_beyond(self.place.frame, self.place.salts);
        if published && self.watcher.descriptor().is_some() && self.is_at_rest() { IDLE } else { COLD }
    }
}
