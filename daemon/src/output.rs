//! Standard output, and progress on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

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

/// How far long work is, on standard error: on a terminal a bar with phase, bytes, rate and time left; else, and when
/// all is to be JSON, a line of JSON a second.
pub(crate) enum Progress {
    /// For people.
    Bar(Bar),
    /// For programs and logs.
    Lines(Lines),
}

impl Progress {
    /// Lines if `json` is asked for or standard error is no terminal.
    pub(crate) fn new(json: bool) -> Self {
        if json || !std::io::stderr().is_terminal() {
            Self::Lines(Lines { last: Mutex::new(Instant::now()) })
        } else {
            Self::Bar(Bar::new())
        }
    }

    /// Shows how far it is.
    pub(crate) fn show(&self, progress: &v1::RestoreProgress) {
        // The other phases take no time worth a word.
        if !matches!(progress.phase.as_str(), "base" | "log" | "prove" | "read" | "replay") {
            return;
        }
        match self {
            Self::Bar(bar) => bar.show(progress),
            Self::Lines(lines) => lines.show(progress),
        }
    }

    /// It has ended.
    pub(crate) fn done(&self) {
        if let Self::Bar(bar) = self {
            bar.bar.finish_and_clear();
        }
    }
}

/// What is over within this time says nothing.
const LINE_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Lines {
    last: Mutex<Instant>,
}

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    progress: &'a str,
    done_bytes: u64,
    /// 0: not known.
    total_bytes: u64,
    transactions: u64,
    total_transactions: u64,
}

impl Lines {
    fn show(&self, progress: &v1::RestoreProgress) {
        if let Some(line) = self.line(progress, Instant::now()) {
            // Whoever does not listen wants the result all the same.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }

    /// The line to be written at this moment, if one is due.
    fn line(&self, progress: &v1::RestoreProgress, now: Instant) -> Option<String> {
        let mut last = self.last.lock().ok()?;
        if now.saturating_duration_since(*last) < LINE_EVERY {
            return None;
        }
        *last = now;
        json_line(&Line {
            progress: &progress.phase,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            transactions: progress.transactions,
            total_transactions: progress.total_transactions,
        })
        .ok()
    }
}

pub(crate) struct Bar {
    bar: ProgressBar,
    phase: Mutex<String>,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, phase: Mutex::default() }
    }

    fn show(&self, progress: &v1::RestoreProgress) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_progress_come_once_a_second_and_are_json() {
        let began = Instant::now();
        let lines = Lines { last: Mutex::new(began) };
        let progress = v1::RestoreProgress { phase: "base".into(), done_bytes: 7, ..Default::default() };
        let due: Vec<u64> = (0..=3500)
            .step_by(100)
            .filter(|&ms| {
                let line = lines.line(&progress, began + Duration::from_millis(ms));
                line.as_ref().is_some_and(|line| {
                    let value: serde_json::Value = serde_json::from_str(line).unwrap();
                    value["progress"] == "base" && value["done_bytes"] == 7 && line.ends_with('\n')
                })
            })
            .collect();
        assert_eq!(due, [1000, 2000, 3000]);
    }
}
