//! The capture thread of one database, from run to run.
//!
//! One [run](Run) goes from a beginning (see [`begin`]) to a stop or to something that breaks the thread: an
//! error of the source, another file under the same name, a full spool. Then everything that is captured is made
//! safe, and the next run begins as after a restart: there is one way back, and it is the tested one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::base::Manifest;
use crate::capture::sqlite::SqliteSource;
use crate::capture::watch::Waker;
use crate::history::Point;
use crate::protect::ProtectOptions;
use crate::protect::begin::{self, Beginning};
use crate::protect::error::ProtectError;
use crate::protect::held::{self, Held};
use crate::protect::run::Run;
use crate::protect::ship::{chain, explained};
use crate::protect::status::Board;
use crate::repository::Repository;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What other threads ask of the capture thread.
pub(crate) enum Command {
    /// Capture what is committed now and ship it; answers with the last captured point.
    Flush(oneshot::Sender<Option<Point>>),
    /// Make everything safe and end.
    Stop,
}

/// Everything that outlives one run.
pub(crate) struct Driver {
    pub(crate) repository: Repository,
    pub(crate) options: ProtectOptions,
    pub(crate) board: Board,
    pub(crate) runtime: Handle,
    pub(crate) commands: Receiver<Command>,
    pub(crate) waker: Waker,
    pub(crate) manifest: Option<Arc<Manifest>>,
}

/// How a run ended.
pub(super) enum Ended {
    Stopped,
    /// Begin again at once.
    Again,
}

impl Driver {
    /// Runs until told to stop. Errors are shown in the status and tried again.
    pub(crate) fn run(mut self, first: Option<SqliteSource>) {
        let (path, sqlite) = (self.options.source.clone(), self.options.sqlite.clone());
        let mut held = Held::new(path, sqlite, self.options.source_log_bytes, first);
        let mut pause = RETRY_MIN;
        loop {
            let began = Instant::now();
            match self.run_once(&mut held) {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Again) => {}
                Err(error) => {
                    let kept = if held.is_held() { "; the log is kept meanwhile" } else { "" };
                    tracing::warn!(error = %chain(&error), "protection is interrupted");
                    self.board.source_trouble(Some(format!("{}{kept}", explained(&error))));
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
            match self.commands.recv_timeout(left.min(held::CHECK_EVERY)) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
                // Who waits for a flush is told by the reply that never comes.
                Ok(Command::Flush(_)) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
        false
    }

    /// Finds where to begin, while the log is kept. `None` when told to stop meanwhile.
    fn begin(&self, held: &mut Held) -> Result<Option<Beginning>, ProtectError> {
        let path = held.path().to_owned();
        let mut begun = std::pin::pin!(begin::begin(&self.repository, &self.options, &path));
        loop {
            let slice = async { tokio::time::timeout(held::CHECK_EVERY, begun.as_mut()).await };
            match self.runtime.block_on(slice) {
                Ok(beginning) => return beginning.map(Some),
                Err(_) => held.check(),
            }
            if matches!(self.commands.try_recv(), Ok(Command::Stop) | Err(TryRecvError::Disconnected)) {
                return Ok(None);
            }
        }
    }

    fn run_once(&mut self, held: &mut Held) -> Result<Ended, ProtectError> {
        held.hold()?;
        let Some(beginning) = self.begin(held)? else { return Ok(Ended::Stopped) };
        let source = held.take()?;
        let mut run = match Run::begin(self, source, beginning) {
            Ok(run) => run,
            Err(error) => {
                let _ = held.hold();
                return Err(error);
            }
        };
        self.board.source_trouble(None);
        let ended = run.capture(self);
        let stopping = matches!(ended, Ok(Ended::Stopped));
        if !stopping {
            // Before the run lets go: an interruption is no reason for a gap.
            let _ = held.hold();
        }
        let secured = run.end(self, stopping);
        match (secured, stopping) {
            (Err(error), true) => {
                tracing::warn!(error = %chain(&error), "not all that is captured is safe");
                Ok(Ended::Stopped)
            }
            (secured, _) => secured.and(ended),
        }
    }
}
