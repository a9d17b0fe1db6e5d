//! SIGTERM and SIGINT: the first asks for an orderly end, the second ends the process at once.

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

use everwhen_engine::error::ErrorKind;

use crate::failure::Failure;

/// The two signals, listened to from the moment this exists.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over the signals.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(ErrorKind::Failed, "cannot listen to signals").caused_by(&error)
            })
        };
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next one; gives its name and the exit code of a process that it ends.
    pub(crate) async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 143),
            _ = self.interrupt.recv() => ("SIGINT", 130),
        }
    }

    /// From now on the next signal ends the process at once. What is durable or in the spool stays so.
    pub(crate) fn end_at_once_on_next(mut self) {
        tokio::spawn(async move {
            let (name, code) = self.next().await;
            tracing::warn!("{name} again: stopping at once, without flushing");
            std::process::exit(code);
        });
    }
}

/// A file that grows past a limit of this process (`ulimit -f`) is an error of the write, and not the end of the process.
/// Needs a runtime.
pub(crate) fn outlive_size_limits() {
    // A signal that is listened to once never has its first effect again. Where it cannot be, all is as before.
    let _ = signal(SignalKind::from_raw(Number::XFSZ.as_raw()));
}
