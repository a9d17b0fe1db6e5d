//! How far a protection is behind its writer: for each commit, when it was captured and when it was durable.
//!
//! The engine is in this process, and a watcher thread reads its status all the time: its own rhythm (20 µs and what the
//! scheduler adds) is part of the figures, and it keeps a core awake, on which the capture thread wakes sooner than in a
//! daemon that sleeps. [`of_daemon`] has neither.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use everwhen_engine::protect::{Point, Protection};
use rusqlite::Connection;

use crate::Outcome;
use crate::daemon::Daemon;
use crate::database::write_and_tell;
use crate::measure::Sample;
use crate::protected::Protected;
use crate::workload::Steps;
use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(300);

/// Ages of commits, in milliseconds after their return, and how they were made.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    /// Until captured.
    pub captured: Sample,
    /// Until durable.
    pub durable: Sample,
    /// Commits.
    pub commits: u64,
    /// Seconds the writer took.
    pub seconds: f64,
    /// Seconds from the last commit until all were durable.
    pub drained_s: f64,
}

/// When each transaction was first seen.
#[derive(Default)]
struct Seen {
    captured: HashMap<u64, Instant>,
    durable: HashMap<u64, Instant>,
}

/// Writes at a pace (infinite: back to back) and watches, until `enough` of the commits and time so far. Begins after a
/// quiet moment.
///
/// # Errors
/// The writer's, or when the last commit is not durable in five minutes.
pub fn lag(
    world: &World,
    protected: &Protected,
    connection: &mut Connection,
    writer: &mut impl Steps,
    pace: f64,
    enough: impl Fn(u64, Duration) -> bool,
) -> Outcome<Lag> {
    let protection = &protected.protection;
    world.runtime.block_on(protection.wait_durable(None, PATIENCE))?;
    let first = number(protection.status().captured) + 1;
    std::thread::sleep(Duration::from_millis(world.scale.pick(50, 1200, 1200)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(protection, first, &stop));
        let mut returned = Vec::new();
        let pace = pace.is_finite().then_some(pace);
        let written =
            write_and_tell(connection, writer, pace, enough, |commit| returned.push(commit.returned));
        let durable = world.runtime.block_on(until_durable(protection, first + returned.len() as u64 - 1));
        let drained = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let seen = watcher.join().map_err(|_| "the watcher died")?;
        written?;
        durable?;
        let (began, ended) = (returned.first().copied(), returned.last().copied());
        let since = |at: Option<Instant>, to: Option<Instant>| {
            at.zip(to).map_or(f64::NAN, |(at, to)| to.saturating_duration_since(at).as_secs_f64())
        };
        Ok(Lag {
            captured: ages(&returned, first, &seen.captured),
            durable: ages(&returned, first, &seen.durable),
            commits: returned.len() as u64,
            seconds: since(began, ended),
            drained_s: since(ended, Some(drained)),
        })
    })
}

/// Milliseconds from the return of each of some rare commits until its segment stands in the store of a daemon in a
/// process of its own, which is looked at every 50 µs.
///
/// # Errors
/// SQLite's, and when a segment does not come.
pub fn of_daemon(
    daemon: &Daemon,
    connection: &mut Connection,
    writer: &mut impl Steps,
    commits: u64,
    pause: Duration,
) -> Outcome<Sample> {
    let mut durable = Sample::default();
    for _ in 0..commits {
        let before = daemon.logs();
        writer.step(connection)?;
        let returned = Instant::now();
        while daemon.logs() == before {
            if returned.elapsed() > PATIENCE {
                return Err("a commit was not stored in five minutes".into());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        durable.push(returned.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(pause);
    }
    Ok(durable)
}

/// Not `wait_durable`: it would cut the flush interval short.
async fn until_durable(protection: &Protection, last: u64) -> Result<(), tokio::time::error::Elapsed> {
    let reached = async {
        while number(protection.status().durable) < last {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await
}

fn number(point: Option<Point>) -> u64 {
    point.map_or(0, |point| point.position.tx.get())
}

fn ages(returned: &[Instant], first: u64, seen: &HashMap<u64, Instant>) -> Sample {
    let commits = returned.iter().zip(first..);
    commits
        .filter_map(|(at, tx)| Some(seen.get(&tx)?.saturating_duration_since(*at).as_secs_f64() * 1e3))
        .collect()
}

fn watch(protection: &Protection, first: u64, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let (mut captured, mut durable) = (first, first);
    loop {
        let ending = stop.load(Ordering::Relaxed);
        let (status, now) = (protection.status(), Instant::now());
        for (point, next, seen) in [
            (status.captured, &mut captured, &mut seen.captured),
            (status.durable, &mut durable, &mut seen.durable),
        ] {
            let end = number(point) + 1;
            seen.extend((*next..end).map(|tx| (tx, now)));
            *next = end.max(*next);
        }
        if ending {
            return seen;
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}
