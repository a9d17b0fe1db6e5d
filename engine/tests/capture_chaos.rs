//! Capture under load: several application processes, hostile checkpoints, kills. No commit is lost, no page differs.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use capture_support::writer::{Dice, reported, run_job, start};
use capture_support::{Rig, wal_database};
use everwhen_engine::capture::sqlite::SqliteOptions;
use rusqlite::Connection;

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    run_job();
}

fn database(folder: &tempfile::TempDir) -> PathBuf {
    let (path, app) = wal_database(folder.path(), "PRAGMA page_size=1024");
    app.execute_batch("create table t(a integer primary key, b, c); create index i on t(b, c);").unwrap();
    path
}

fn options() -> SqliteOptions {
    SqliteOptions { soft_frames: 200, hard_frames: Some(1_500), ..SqliteOptions::default() }
}

fn check(rig: &mut Rig, folder: &tempfile::TempDir) {
    rig.settle_and_compare();
    assert!(rig.events.is_empty(), "{:?}", rig.events);
    assert_eq!(rig.model.previous_given, rig.model.previous_right);
    let totals = |connection: &Connection| -> (i64, i64, i64) {
        let query = "select count(*), total(a) + total(b), total(length(c)) from t";
        connection
            .query_row(query, [], |row| {
                Ok((row.get(0)?, row.get::<_, f64>(1)? as i64, row.get::<_, f64>(2)? as i64))
            })
            .unwrap()
    };
    let copy = rig.model.open_copy(folder.path(), 1024);
    assert_eq!(totals(&copy), totals(&Connection::open(rig.source.path()).unwrap()));
}

/// `EVERWHEN_CHAOS_MS` makes the runs longer (5000 by default, 40,000 at most), `EVERWHEN_CHAOS_SEED` makes them others.
fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn millis() -> u64 {
    from_environment("EVERWHEN_CHAOS_MS", 5_000)
}

fn seed() -> u64 {
    from_environment("EVERWHEN_CHAOS_SEED", 1) * 1_000
}

#[test]
fn every_acknowledged_commit_of_three_processes_is_captured() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach_with(&path, options());
    let mut children: Vec<_> =
        (1..=3).map(|n| start(&format!("chaos {} {}", millis(), seed() + n), &path)).collect();
    rig.run_until(|_| children.iter_mut().all(|child| child.try_wait().unwrap().is_some()));
    let acknowledged: u64 = children.into_iter().map(|child| reported(child, "commits")).sum();
    check(&mut rig, &folder);
    assert_eq!(rig.model.commits.len() as u64, acknowledged);
    assert!(acknowledged > 50, "{acknowledged}");
}

#[test]
fn hostile_checkpoints_lose_no_commit() {
    hostile_checkpoints(options());
}

/// As on systems without inotify: everything goes by the timer.
#[test]
fn hostile_checkpoints_lose_no_commit_to_the_polling_fallback() {
    hostile_checkpoints(SqliteOptions { notify: false, ..options() });
}

fn hostile_checkpoints(options: SqliteOptions) {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach_with(&path, options);
    let mut children: Vec<_> =
        (11..=13).map(|n| start(&format!("chaos {} {}", millis(), seed() + n), &path)).collect();
    let mut hostile = start(&format!("checkpoints {} {}", millis(), seed()), &path);
    rig.run_until(|_| {
        children.iter_mut().chain([&mut hostile]).all(|child| child.try_wait().unwrap().is_some())
    });
    reported(hostile, "done");
    let acknowledged: u64 = children.into_iter().map(|child| reported(child, "commits")).sum();
    check(&mut rig, &folder);
    assert_eq!(rig.model.commits.len() as u64, acknowledged);
    assert!(acknowledged > 50, "{acknowledged}");
}

#[test]
fn killed_writers_leave_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach_with(&path, options());
    let mut dice = Dice::new(seed());
    let mut children: Vec<_> = (0..3).map(|n| start(&format!("chaos 60000 {}", seed() + n), &path)).collect();
    let mut hostile = start(&format!("checkpoints {} {}", millis(), seed()), &path);
    let until = Instant::now() + Duration::from_millis(millis());
    let mut next_kill = Instant::now();
    let mut next_seed = seed() + 100;
    rig.run_until(|_| {
        let now = Instant::now();
        if now >= next_kill && now < until {
            let victim = &mut children[dice.below(3) as usize];
            victim.kill().unwrap();
            victim.wait().unwrap();
            next_seed += 1;
            *victim = start(&format!("chaos 60000 {next_seed}"), &path);
            next_kill = now + Duration::from_millis(100 + dice.below(300));
        }
        now >= until
    });
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    hostile.wait().unwrap();
    check(&mut rig, &folder);
    assert!(rig.model.commits.len() > 50);
}
