//! Standard output, and progress on a terminal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use everwhen_engine::error::ErrorKind;
use everwhen_proto::v1;

use crate::failure::Failure;

/// Writes text as it is.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| cannot_write(&error))
}

/// A value as one line of JSON.
pub(crate) fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::new(ErrorKind::Failed, "cannot write JSON").caused_by(&error))?;
    Ok(text + "\n")
}

/// Writes `value` as JSON or `text`, as was asked.
pub(crate) fn report(
    json: bool,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    print(&if json { json_line(value)? } else { text() })
}

fn cannot_write(error: &std::io::Error) -> Failure {
    Failure::io("cannot write to standard output", error)
}

/// A bar with phase, bytes, rate and time left, on a terminal; nothing anywhere else.
pub(crate) struct Progress {
    bar: ProgressBar,
    phase: std::sync::Mutex<String>,
}

impl Progress {
    /// A bar on standard error, unless `quiet` or it is no terminal.
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if shown {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar, phase: std::sync::Mutex::default() }
    }

    /// Shows how far it is.
    pub(crate) fn show(&self, progress: &v1::RestoreProgress) {
        // The other phases take no time worth a bar.
        if !matches!(progress.phase.as_str(), "base" | "log" | "prove" | "read" | "replay") {
            return;
        }
        let Ok(mut phase) = self.phase.lock() else { return };
        let new_phase = *phase != progress.phase;
        if new_phase {
            phase.clone_from(&progress.phase);
            // The rate is that of the phase.
            self.bar.reset();
        }
        if progress.total_bytes > 0 {
            self.bar.set_length(progress.total_bytes);
        }
        self.bar.set_position(progress.done_bytes);
        if new_phase {
            self.bar.set_style(style(progress.total_bytes > 0));
            self.bar.set_message(progress.phase.clone());
        }
    }

    /// Takes the bar away.
    pub(crate) fn done(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "{msg:<8} [{bar:30}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
    } else {
        "{msg:<8} {spinner} {binary_bytes}  {binary_bytes_per_sec}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
