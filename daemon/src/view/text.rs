//! The same reports as text for people: short, aligned, times in the local zone.

use std::fmt::Write as _;
use std::time::Duration;

use everwhen_engine::time::Timestamp;

use super::{
    DatabaseStatusView, DatabaseView, HistoryView, PlanView, PointView, RestorePointView, RestoreView,
    StatusView,
};

/// `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `now`, `350 ms`, `12.5 s`, `3 min`, `5 h`, `2 days`.
pub(crate) fn span(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", duration.as_secs_f64()),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

fn local(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "?".into(), Timestamp::in_local_zone)
}

/// `1 page`, `2 pages`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// `status`.
pub(crate) fn status(view: &StatusView, now: Timestamp) -> String {
    let mut text = String::new();
    if view.databases.is_empty() {
        text.push_str("no databases\n");
    }
    for db in &view.databases {
        one_status(&mut text, db, now);
    }
    if let Some(daemon) = &view.daemon {
        let _ = writeln!(
            text,
            "daemon {} on {}, process {}, since {}",
            daemon.version,
            daemon.host_name,
            daemon.pid,
            local(daemon.started)
        );
    }
    text
}

fn one_status(text: &mut String, db: &DatabaseStatusView, now: Timestamp) {
    let _ = writeln!(text, "{}  {}  ({}, {})", db.name, db.health, db.class, db.path);
    for reason in &db.reasons {
        let _ = writeln!(text, "  ! {reason}");
    }
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "  {label:<9} {value}");
    };
    let point = |point: &PointView| match point.time {
        Some(time) => format!("{}  ({} ago)", point.in_words(), ago(time, now)),
        None => point.in_words(),
    };
    line("durable", db.durable.as_ref().map_or_else(|| "nothing yet".into(), point));
    if let Some(captured) = db.captured.as_ref().filter(|captured| db.durable.as_ref() != Some(captured)) {
        line("captured", point(captured));
    }
    match db.lag_ms {
        Some(0) => line("lag", "none: every captured commit is durable".into()),
        Some(ms) => {
            line("lag", format!("{} since the oldest commit that waits", span(Duration::from_millis(ms))));
        }
        None => {}
    }
    if let Some(window) = &db.window {
        line("window", format!("{} to {}", local(window.from), local(window.to)));
    }
    if db.gaps > 0 {
        line("gaps", format!("{}: see everwhen history", db.gaps));
    }
    if let Some(base) = &db.base {
        line("base", format!("{} of {} pages", base.done_pages, base.total_pages));
    }
    if db.spool_bytes + db.queue_bytes > 0 {
        line("waiting", format!("{} in memory, {} on disk", size(db.queue_bytes), size(db.spool_bytes)));
    }
    if db.lag_ms.is_some() {
        line(
            "shipped",
            format!(
                "{} in {}, {}, since the daemon began",
                counted(db.transactions_total, "commit", "commits"),
                counted(db.segments_total, "segment", "segments"),
                size(db.stored_bytes_total)
            ),
        );
    }
}

fn ago(time: Timestamp, now: Timestamp) -> String {
    span(Duration::from_micros(u64::try_from(now.micros_since(time)).unwrap_or(0)))
}

/// `history`.
pub(crate) fn history(view: &HistoryView) -> String {
    let mut text = String::new();
    if let Some(database) = &view.database {
        let _ = writeln!(text, "{}  ({}, {})", database.name, database.class, database.path);
    }
    if view.windows.is_empty() {
        text.push_str("nothing is restorable yet\n");
    } else {
        text.push_str("windows: every moment in them can be restored\n");
    }
    for window in &view.windows {
        let _ = writeln!(text, "  {}  to  {}", local(window.from), local(window.to));
    }
    if !view.gaps.is_empty() {
        text.push_str("gaps: no moment in them can be restored, but what was captured can, by position\n");
    }
    for gap in &view.gaps {
        let _ = writeln!(text, "  {}  to  {}  {}", local(gap.from), local(gap.to), gap.reason);
    }
    text.push_str("timelines\n");
    for timeline in &view.timelines {
        let from = timeline.parent.as_ref().map(|parent| format!(", from {parent}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "  {}  since {} by {}{from}: {}",
            timeline.id,
            local(timeline.claimed),
            timeline.host_name,
            timeline.why
        );
    }
    text.push_str("bases\n");
    for base in &view.bases {
        let _ = writeln!(text, "  {}", base.position);
    }
    let segments = counted(view.segments, "segment", "segments");
    let _ = writeln!(text, "log\n  {segments}, {}", size(view.log_bytes));
    for flaw in &view.flaws {
        let _ = writeln!(text, "! {flaw}");
    }
    if let Some(latest) = &view.latest {
        let _ = writeln!(text, "latest\n  {}", latest.in_words());
    }
    text
}

/// One line of `points`.
pub(crate) fn point(view: &RestorePointView) -> String {
    let RestorePointView { position, time, pages, .. } = view;
    format!("{position}  {}  {}\n", local(*time), counted(u64::from(*pages), "page", "pages"))
}

/// `restore --dry-run`.
pub(crate) fn plan(view: &PlanView, to: &str) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<9} {value}");
    };
    line("asked", view.asked.clone());
    line("restores", PointView { position: view.position.clone(), time: view.time }.in_words());
    if view.distance_ms > 0 {
        line(
            "distance",
            format!("{} before the time asked for", span(Duration::from_millis(view.distance_ms))),
        );
    }
    line("base", view.base.clone());
    let transactions = counted(view.transactions, "transaction", "transactions");
    line("replays", format!("{transactions} from {}", counted(view.segments, "segment", "segments")));
    line("reads", format!("{} in {}", size(view.bytes), counted(view.requests, "request", "requests")));
    line("writes", format!("{} to {to}", size(view.image_bytes)));
    line("needs", format!("{} there, beside what stays free of a disk", size(view.space_needed_bytes)));
    line("proof", format!("state checksum {} recomputed over the file", view.state));
    text.push_str("nothing was changed (dry run)\n");
    text
}

/// `restore`.
pub(crate) fn restored(view: &RestoreView) -> String {
    let mut text = format!("restored {}\n", view.path);
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "  {label:<9} {value}");
    };
    line("position", PointView { position: view.position.clone(), time: view.time }.in_words());
    line("asked", view.asked.clone());
    if view.distance_ms > 0 {
        line(
            "distance",
            format!("{} before the time asked for", span(Duration::from_millis(view.distance_ms))),
        );
    }
    let took = span(Duration::from_millis(view.elapsed_ms));
    let replayed = counted(view.transactions, "transaction", "transactions");
    line("size", format!("{}, with {replayed} replayed, in {took}", size(view.bytes)));
    line("proof", format!("{} ({})", view.proof.how, view.proof.state));
    for object in &view.avoided {
        line("avoided", format!("{object}: damaged or missing, gone around; run everwhen verify"));
    }
    text
}

/// `databases list`.
pub(crate) fn databases(list: &[DatabaseView]) -> String {
    let width = list.iter().map(|db| db.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    if list.is_empty() {
        text.push_str("no databases\n");
    }
    for db in list {
        let state = if db.protected { "protected" } else { "not protected" };
        let _ = writeln!(text, "{:<width$}  {}  {:<10}  {state:<13}  {}", db.name, db.id, db.class, db.path);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_at_a_glance() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_500, "1.5 s"),
            (180_000, "3 min"),
            (9_000_000, "2 h"),
            (200_000_000, "2 days"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }
}
