//! When commits come while a large transaction is captured.
//!
//! A look at the log ends when all that it found is handed over: compressed, checked, in the spool. After a transaction
//! of gigabytes that takes seconds, and of the commits that came meanwhile one would only know that they lie between
//! this look and the next. So another thread goes on looking at what is published.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::files;
use crate::sqlite::index::IndexHead;
use crate::sqlite::wal::Salts;
use crate::time::Timestamp;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(10);
/// Sightings kept of one watch, 1 MiB: eleven minutes of commits without a pause.
const SIGHTINGS_MAX: usize = 65_536;

/// What was published at a moment: the clock was read first.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    looked: Timestamp,
    frames: u32,
}

/// Sightings of one generation of the log, in order of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Sightings {
    salts: Option<Salts>,
    seen: Vec<Sighting>,
}

impl Sightings {
    /// Between which moments the commit that ends with a frame was made, if it was after `since` and not after `until`.
    pub(super) fn bounds(
        &self,
        salts: Salts,
        frame: u32,
        (since, until): (Timestamp, Timestamp),
    ) -> (Timestamp, Timestamp) {
        let seen = if self.salts == Some(salts) { self.seen.as_slice() } else { &[] };
        let (before, after) = seen.split_at(seen.partition_point(|sighting| sighting.frames < frame));
        let since = before.last().map_or(since, |sighting| sighting.looked.max(since));
        (since, after.first().map_or(until, |sighting| sighting.looked.min(until)))
    }

    /// Takes in what was seen later.
    pub(super) fn append(&mut self, later: Self) {
        if self.salts == later.salts {
            self.seen.extend(later.seen);
        } else if later.salts.is_some() {
            *self = later;
        }
    }

    /// Notes what is published, if it is more than before. A log that was reset has no frames of this one.
    fn note(&mut self, head: &IndexHead, looked: Timestamp) {
        let salts = *self.salts.get_or_insert(head.salts);
        let more = self.seen.last().is_none_or(|last| last.frames < head.frames);
        if salts == head.salts && more && self.seen.len() < SIGHTINGS_MAX {
            self.seen.push(Sighting { looked, frames: head.frames });
        }
    }
}

/// A thread that looks at the index until it is called back.
pub(super) struct Lookout {
    called: Sender<()>,
    thread: JoinHandle<Sightings>,
}

impl Lookout {
    /// `None` when the system gives no thread.
    pub(super) fn send(index: &Arc<File>) -> Option<Self> {
        let (called, wait) = channel();
        let index = Arc::clone(index);
        let look = move || {
            let mut sightings = Sightings::default();
            while wait.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let looked = Timestamp::now();
                // A torn head is being written: the next look sees it whole.
                if let Ok(Ok(head)) = files::read_head(&index).map(|bytes| IndexHead::parse(&bytes)) {
                    sightings.note(&head, looked);
                }
            }
            sightings
        };
        let thread = std::thread::Builder::new().name("lookout".into()).spawn(look).ok()?;
        Some(Self { called, thread })
    }

    /// What it has seen.
    pub(super) fn call_back(self) -> Sightings {
        drop(self.called);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_lies_between_the_last_look_without_it_and_the_first_with_it() {
        let at = Timestamp::from_micros;
        let seen =
            [(10, 5), (20, 8), (30, 12)].map(|(looked, frames)| Sighting { looked: at(looked), frames });
        let salts = Salts(1, 2);
        let sightings = Sightings { salts: Some(salts), seen: seen.to_vec() };
        let bounds = |salts, frame| {
            let (since, until) = sightings.bounds(salts, frame, (at(1), at(99)));
            (since.as_micros(), until.as_micros())
        };
        assert_eq!(bounds(salts, 4), (1, 10));
        assert_eq!(bounds(salts, 5), (1, 10));
        assert_eq!(bounds(salts, 6), (10, 20));
        assert_eq!(bounds(salts, 12), (20, 30));
        assert_eq!(bounds(salts, 13), (30, 99));
        assert_eq!(bounds(Salts(1, 3), 6), (1, 99), "of another generation nothing is known");
    }
}
