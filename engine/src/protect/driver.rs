//! What the capture thread works with, and how it waits.

use std::cell::RefCell;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::base::Manifest;
use crate::capture::watch::Waker;
use crate::protect::ProtectOptions;
use crate::protect::claims::OurClaim;
use crate::protect::commands::Commands;
use crate::protect::error::ProtectError;
use crate::protect::held;
use crate::protect::rival::Rival;
use crate::protect::status::Board;
use crate::repository::Repository;

/// Everything that outlives one run.
pub(crate) struct Driver {
    pub(crate) repository: Repository,
    pub(crate) options: ProtectOptions,
    pub(crate) board: Board,
    pub(crate) runtime: Handle,
    pub(crate) commands: Commands,
    pub(crate) waker: Waker,
    pub(crate) manifest: Option<Arc<Manifest>>,
    /// Until the journal says that it is used.
    pub(crate) unused_claim: RefCell<Option<OurClaim>>,
    /// What is known of other daemons on this database.
    pub(crate) rival: Arc<Rival>,
    /// What is to be recorded next does not fit into the log: the next run begins with an image.
    pub(crate) wants_image: bool,
}

/// How a run ended.
pub(super) enum Ended {
    Stopped,
    /// Begin again at once.
    Again,
}

impl Driver {
    /// An error when told to stop. For long work before capture has begun, when there is nothing to make safe.
    pub(super) fn go_on(&self) -> Result<(), ProtectError> {
        if self.commands.told_to_stop() {
            return Err(ProtectError::Stopped { name: self.options.name.clone() });
        }
        Ok(())
    }

    /// Waits for what the store answers, and looks every few milliseconds after the source, which somebody may wait for.
    pub(super) fn wait_for<T>(
        &self,
        answer: impl Future<Output = T>,
        mut look: impl FnMut() -> Result<(), ProtectError>,
    ) -> Result<T, ProtectError> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let slice = async { tokio::time::timeout(held::CHECK_EVERY, answer.as_mut()).await };
            if let Ok(answer) = self.runtime.block_on(slice) {
                return Ok(answer);
            }
            self.go_on()?;
            look()?;
        }
    }
}
