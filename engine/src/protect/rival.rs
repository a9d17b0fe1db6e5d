//! Another daemon on the same database. It has claimed a newer timeline, which is the main line from then on.
//!
//! Both go on, and both tell. But when the other one ends, the main line ends with it, while this one goes on with a line
//! that is found by its positions only. So once the newer timeline has been without a commit for a while that this one
//! has stored, this one takes the line back: it begins again as after a restart, on a timeline of its own. Two that are
//! alive by turns would do so without end, and so it is done once an hour at most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::capture::watch::Waker;
use crate::history::EXACT_MICROS;
use crate::ids::{DatabaseId, TimelineId, TxId};
use crate::protect::ship::tell_newer_claim;
use crate::protect::status::Board;
use crate::repository::{Repository, RepositoryError, Timeline};
use crate::time::Timestamp;

/// Between two times that the line is taken back.
const TAKEN_EVERY: Duration = Duration::from_secs(3600);

/// What those who ship have to tell the capture.
#[derive(Debug, Default)]
pub(crate) struct Rival {
    due: AtomicBool,
    taken: Mutex<Option<Instant>>,
}

impl Rival {
    /// Whether the line is to be taken back now. Asked by who does it.
    pub(crate) fn take_back(&self) -> bool {
        let due = self.due.swap(false, Ordering::Relaxed);
        if due {
            *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        due
    }

    fn may_take(&self) -> bool {
        let taken = *self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.is_none_or(|taken| taken.elapsed() >= TAKEN_EVERY)
    }
}

/// Looks after the timeline of another daemon, for one run.
pub(crate) struct RivalWatch {
    pub(crate) rival: Arc<Rival>,
    pub(crate) waker: Waker,
    pub(crate) silence: Duration,
    /// How far the newest timeline is known.
    pub(crate) known: Option<Known>,
    /// Since when it has not got further, although this daemon has.
    pub(crate) silent_since: Option<Instant>,
}

/// How far a timeline goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    timeline: TimelineId,
    last: Option<TxId>,
    until: Timestamp,
}

impl RivalWatch {
    /// Whether there is something to look for although nothing is stored.
    pub(crate) fn is_waiting(&self) -> bool {
        self.silent_since.is_some()
    }

    /// Looks for a newer claim, and how far its timeline goes.
    pub(crate) async fn look(
        &mut self,
        repository: &Repository,
        board: &Board,
        database: DatabaseId,
        ours: TimelineId,
    ) {
        let Some(newest) = tell_newer_claim(repository, board, database, ours).await else { return };
        let durable = board.now().durable.filter(|durable| durable.position.timeline == ours);
        let Some(durable) = durable else { return };
        let known = match self.how_far(repository, database, &newest).await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(%error, "cannot look how far the newer timeline goes");
                return;
            }
        };
        let got_further = self.known.is_none_or(|before| before.until != known.until);
        self.known = Some(known);
        if got_further || durable.time <= known.until.plus_micros(EXACT_MICROS) {
            self.silent_since = None;
        }
        if durable.time > known.until.plus_micros(EXACT_MICROS) {
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.silence && self.rival.may_take() {
                self.rival.due.store(true, Ordering::Relaxed);
                self.waker.wake();
            }
        }
    }

    /// Lists what came since the last time.
    async fn how_far(
        &self,
        repository: &Repository,
        database: DatabaseId,
        newest: &Timeline,
    ) -> Result<Known, RepositoryError> {
        let begun = Known { timeline: newest.id, last: None, until: newest.claimed };
        let mut known = self.known.filter(|known| known.timeline == newest.id).unwrap_or(begun);
        for (key, _) in repository.segments(database, newest.id, known.last).await? {
            known.last = known.last.max(Some(key.range.first()));
            known.until = known.until.max(key.to);
        }
        Ok(known)
    }
}
