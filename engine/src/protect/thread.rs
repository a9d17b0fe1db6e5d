//! The capture thread of one database, from run to run.
//!
//! One [run](Run) goes from a beginning (see [`begin`]) to a stop or to something that breaks the thread: an
//! error of the source, another file under the same name, a full spool. Then everything that is captured is made
//! safe, and the next run begins as after a restart: there is one way back, and it is the tested one.

use std::time::{Duration, Instant};

use crate::capture::sqlite::SqliteSource;
use crate::error::{chain, explained};
use crate::protect::begin::{self, Beginning};
use crate::protect::commands::Command;
use crate::protect::driver::{Driver, Ended};
use crate::protect::error::ProtectError;
use crate::protect::held::{self, Held};
use crate::protect::run::Run;
use crate::protect::status::Board;
use crate::segment::EncodeError;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A thread that panics captures nothing any more.
struct TellIfDead(Board);

impl Drop for TellIfDead {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dead = "the capture thread died, a defect of Everwhen: restart the daemon, and report what it has logged";
            self.0.source_trouble(Some(dead.into()));
        }
    }
}

impl Driver {
    /// Runs until told to stop. Errors are shown in the status and tried again.
    pub(crate) fn run(mut self, first: Option<SqliteSource>) {
        // What is logged on the way names the database.
        let _named = tracing::info_span!("database", name = self.options.name).entered();
        let _told = TellIfDead(self.board.clone());
        let (path, sqlite) = (self.options.source.clone(), self.options.sqlite.clone());
        let mut held = Held::new(path, sqlite, self.options.source_log_bytes, first);
        let (mut pause, mut told, mut too_large) = (RETRY_MIN, None, false);
        loop {
            let began = Instant::now();
            match self.run_once(&mut held) {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Again) => (told, too_large) = (None, false),
                Err(ProtectError::Stopped { .. }) => return,
                Err(error) => {
                    if matches!(error, ProtectError::Encode(EncodeError::TooLarge { .. })) {
                        // The next run begins a part with it. Only if it does not fit into that one either it needs a base.
                        self.wants_image |= std::mem::replace(&mut too_large, true);
                    }
                    let kept = if held.is_held() { "; the log is kept meanwhile" } else { "" };
                    told.take_if(|_| began.elapsed() > RETRY_MAX);
                    let trouble = format!("{}{kept}", explained(&error));
                    if told.replace(trouble.clone()).as_ref() == Some(&trouble) {
                        tracing::debug!("still: {trouble}");
                    } else {
                        tracing::warn!("protection is interrupted: {trouble}");
                    }
                    self.board.source_trouble(Some(trouble));
                }
            }
            pause = if began.elapsed() > RETRY_MAX { RETRY_MIN } else { (pause * 2).min(RETRY_MAX) };
            if self.told_to_stop_within(pause, &mut held) {
                return;
            }
        }
    }

    /// Waits before the next run; `true` when told to stop meanwhile.
    fn told_to_stop_within(&self, pause: Duration, held: &mut Held) -> bool {
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            held.check();
            match self.commands.next_within(left.min(held::CHECK_EVERY)) {
                Some(Command::Stop) => return true,
                // Who waits for a flush is told by the reply that never comes.
                Some(Command::Flush(_)) | None => {}
            }
        }
        false
    }

    /// Finds where to begin, while the log is kept.
    fn begin(&self, held: &mut Held) -> Result<Beginning, ProtectError> {
        let path = held.path().to_owned();
        let begun = begin::begin(self, &path);
        self.wait_for(begun, || {
            held.check();
            Ok(())
        })?
    }

    fn run_once(&mut self, held: &mut Held) -> Result<Ended, ProtectError> {
        held.hold()?;
        let beginning = self.begin(held)?;
        let Some(mut run) = Run::begin(self, held, beginning)? else { return Ok(Ended::Again) };
        self.board.source_trouble(None);
        let ended = run.capture(self);
        let stopping = matches!(ended, Ok(Ended::Stopped));
        if !stopping {
            // Before the run lets go: an interruption is no reason for a gap.
            let _ = held.hold();
        }
        let secured = run.end(self, stopping, held);
        match (secured, stopping) {
            (Err(error), true) => {
                tracing::warn!(error = %chain(&error), "not all that is captured is safe");
                Ok(Ended::Stopped)
            }
            (secured, _) => secured.and(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protect::status::Health;

    #[test]
    fn a_capture_thread_that_dies_shows_in_the_status() {
        let board = Board::new("app", std::path::PathBuf::new());
        let told = TellIfDead(board.clone());
        let died = std::thread::spawn(move || {
            let _told = told;
            std::panic::resume_unwind(Box::new("a test"));
        });
        assert!(died.join().is_err());
        assert_eq!(board.now().health, Health::Failing);
    }
}
