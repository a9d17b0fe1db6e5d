//! Letting go of a database so that the log harms nobody.
//!
//! A log belongs to a file by name only. As long as our connections are open, no application is the last to close the
//! database, so its log is not deleted; and whoever opens another file of that name lays it over that file. So we do
//! what the application's last close would have done.

use super::SqliteSource;
use super::look::Look;
use super::{Place, Result, Slot, files};

impl SqliteSource {
    /// Ends for good, as applications do: if nobody else has the database open, SQLite puts the log into the file and
    /// deletes it. The next start then compares states, as it does whenever an application was the last to close.
    ///
    /// A log that was not captured to its end stays where it is.
    pub fn close(&mut self) {
        self.give_up_images("the source was closed");
        let captured =
            self.look().is_ok_and(|look| look.is_some_and(|look| Place::of(look.head) == self.place));
        if let Some(links) = self.links.take_if(|_| captured)
            && let Err(error) = links.close()
        {
            tracing::warn!(path = %self.path.display(), %error, "the log was left where it is");
        }
        self.release();
    }

    /// Lets go of a file that its path does not lead to any more. What is left of its log is remembered: nothing else
    /// is opened beside it; see [`super::indexes`].
    pub(super) fn leave_moved(&mut self) {
        self.give_up_images("the database was moved");
        if let Err(error) = self.empty_log() {
            tracing::warn!(path = %self.path.display(), %error, "the log of a file that was moved could not be emptied");
        }
        self.leave_log();
    }

    /// Lets go of a log or an index that was deleted or replaced.
    pub(super) fn leave_log(&mut self) {
        if let Some(links) = &self.links {
            links.leave();
        }
        self.release();
    }

    /// Empties the log that is found by the name of another file now; what was not in the old file yet gets there.
    ///
    /// Unless somebody else is there: what is in the log may then have been committed to either file. With all of it in
    /// the file nothing is written to that, and a pin on slot 0 allows no more than this: what is committed meanwhile
    /// stays in the log.
    fn empty_log(&self) -> Result<()> {
        let Some(links) = &self.links else { return Ok(()) };
        let backfilled = self.look()?.is_some_and(Look::is_backfilled);
        if !backfilled && files::others_have_open(&links.index) {
            return Ok(());
        }
        if !(backfilled && self.slot == Slot::Zero) {
            links.unpin()?;
        }
        links.truncate_log()
    }

    pub(super) fn give_up_images(&self, reason: &str) {
        self.held_images().for_each(|image| image.give_up(reason));
    }
}
