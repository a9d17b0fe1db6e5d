//! Between the API's words and the engine's: times, positions, targets, progress. The only place that converts them;
//! failures have `rpc`.

use std::fmt::Display;

use everwhen_engine::history::Seen;
use everwhen_engine::ids::ParseIdError;
use everwhen_engine::plan::Target;
use everwhen_engine::restore::{Phase, Progress};
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;

/// A time as the API says it.
pub(crate) fn time_out(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_micros();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0),
    }
}

/// A time from the API; what is below a microsecond is dropped, what is out of range is held to its end.
pub(crate) fn time_in(time: &prost_types::Timestamp) -> Timestamp {
    let micros = time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos / 1_000));
    Timestamp::from_micros(micros)
}

/// A point as the API says it.
pub(crate) fn point_out(position: impl Display, time: Option<Timestamp>) -> v1::Point {
    v1::Point { position: position.to_string(), time: time.map(time_out) }
}

/// What is to be restored; or what is wrong with that, in words.
pub(crate) fn target_in(target: Option<v1::Target>) -> Result<Target, String> {
    match target.and_then(|target| target.target) {
        Some(v1::target::Target::Time(time)) => Ok(Target::Time(time_in(&time))),
        Some(v1::target::Target::Position(text)) => {
            text.parse().map(Target::Position).map_err(|error: ParseIdError| error.to_string())
        }
        Some(v1::target::Target::Latest(_)) => Ok(Target::Latest),
        None => Err("no target is named: a time, a position or latest".into()),
    }
}

/// How far a restore is.
pub(crate) fn progress_out(progress: &Progress) -> v1::RestoreProgress {
    let proving = matches!(progress.phase, Phase::Prove | Phase::Publish | Phase::Done);
    let read = (progress.read_bytes, progress.total_bytes);
    let (done_bytes, total_bytes) =
        if proving { (progress.proven_bytes, progress.image_bytes) } else { read };
    let phase = match progress.phase {
        Phase::Preflight => "preflight",
        Phase::Base => "base",
        Phase::Log => "log",
        Phase::Prove => "prove",
        Phase::Publish => "publish",
        Phase::Done => "done",
    };
    v1::RestoreProgress {
        phase: phase.into(),
        done_bytes,
        total_bytes,
        transactions: progress.transactions,
        total_transactions: progress.total_transactions,
        elapsed_ms: progress.elapsed_ms,
    }
}

/// A daemon's word, in its status, on how far it covers the time.
pub(crate) fn seen_in(status: &v1::DatabaseStatus) -> Option<Seen> {
    let position = status.durable.as_ref()?.position.parse().ok()?;
    Some(Seen { position, time: time_in(status.covered_through.as_ref()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_microseconds() {
        for text in
            ["2026-11-21T14:03:00.123456Z", "1969-12-31T23:59:59.999999Z", "0001-01-01T00:00:00.000001Z"]
        {
            let time: Timestamp = text.parse().unwrap();
            assert_eq!(time_in(&time_out(time)), time);
        }
        assert_eq!(time_in(&prost_types::Timestamp { seconds: i64::MAX, nanos: i32::MIN }), Timestamp::MAX);
    }
}
